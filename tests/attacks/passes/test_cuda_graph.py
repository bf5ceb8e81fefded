"""Steps and attacks may be captured as CUDA graphs: no host reads, no copies between host and device."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcphotoz import attacks
from hpcphotoz.attacks import Ball, RandomStart, losses
from hpcphotoz.config.load import configure
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.models.layers import fuse_activations
from hpcphotoz.training.adversaries import StepAttack
from hpcphotoz.training.compute import ComputeOptions
from hpcphotoz.training.objectives import TrainingObjective
from hpcphotoz.training.overlap.streams import NoOverlap
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.step import Step
from tests.helpers.kernels.capture import Watch, fake_gpu

pytest.importorskip("triton", reason="triton is not installed: a GPU would run no kernel")
pytestmark = pytest.mark.skipif(
    torch.version.cuda is None,
    reason="fake CUDA tensors want a torch with CUDA: `make test-torch211`",
)
SIDE, SCALE = 16, (0.1,) * 5


def rank_batch(n: int = 8) -> RankBatch:
    images = torch.randn(n, 5, SIDE, SIDE, device="cuda").contiguous(memory_format=torch.channels_last)
    vector = torch.rand(n, device="cuda")
    return RankBatch(
        images=images,
        ebv=vector,
        z_spec=vector,
        sky_sigma=torch.rand(n, 5, device="cuda"),
        object_id=torch.arange(n, device="cuda"),
        attacked=torch.arange(0, n, 2, device="cuda"),
        clean=torch.arange(1, n, 2, device="cuda"),
        positions=np.arange(0, n, 2),
        catalogue_id=np.arange(n),
        size=n,
        epoch=torch.zeros((), dtype=torch.int64, device="cuda"),
        step=0,
    )


def compute(precision: torch.dtype | None) -> ComputeOptions:
    return ComputeOptions(
        training=precision,
        attack=precision,
        channels_last=True,
        merged=False,
        compiled=False,
        graphs="step",
        fused_adam=True,
        micro_batch=None,
    )


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("cnn", {"objective": "replace"}),
        ("cnn", {"objective": "append"}),
        ("cnn", {"objective": "consistency"}),
        ("inception", {"objective": "replace", "loss": "margin"}),
        ("inception", {"fused": True}),
        ("compact", {"label_width": 2.0, "loss": "shift", "method": "apgd", "steps": 8}),
        ("compact", {"loss": "crps", "stop": 0.05, "restarts": 2}),
        ("compact", {"ball": "l2", "method": "fgsm", "random_start": False}),
        ("compact", {"ball": "flux", "target": "shift", "target_value": 0.1, "stop": 0.01}),
    ],
)
def test_a_training_step_can_be_captured(
    monkeypatch: pytest.MonkeyPatch,
    network: str,
    options: dict[str, Any],
    precision: torch.dtype | None,
) -> None:
    fused, options = "fused" in options, {name: options[name] for name in options if name != "fused"}
    config = configure("a test", **{"name": network, "fraction": 0.5, "steps": 2, **options})
    bins = bins_of(config.model)
    with fake_gpu(monkeypatch):
        with torch.device("cuda"):
            module = build(config.model, stamp=SIDE, scale=SCALE)
        for parameter in module.parameters():  # `to` would swap fake tensors, which torch refuses
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        fuse_activations(module, on=fused)
        of_step = compute(precision)
        step_attack = StepAttack(module, config, bins, of_step)
        step = Step(
            module,
            torch.optim.SGD(module.parameters(), 0.1),
            NoOverlap(step_attack),
            TrainingObjective(config, bins),
            of_step,
        )
        given = rank_batch()
        with Watch() as watch:
            sums, bad_rows = step.gradients(given)
    assert bad_rows.device.type == "cuda" and sums.device.type == "cuda" and sums.shape == (4,)
    assert any("convolution" in name for name in watch.names)
    assert not watch.found, "\n".join(watch.found)
    assert ("hpcphotoz.prelu_pool.default" in watch.names) == fused
    assert ("aten._prelu_kernel.default" in watch.names) == (network != "compact" and not fused)
    # PGD without a stop or restarts in bfloat16 writes what the network reads.
    plain = not {"method", "stop", "restarts", "ball"} & set(options)
    written = any("pgd_normalised" in name for name in watch.names)
    assert written == (plain and precision is not None)


BINS = RedshiftBins(20, 0.0, 0.4)
KINDS: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "pgd": {"steps": 2, "restarts": 2, "best": True, "stop": losses.outlier(BINS)},
    "apgd": {"steps": 5, "restarts": 2, "stop": losses.outlier(BINS)},
    "minimal_eps": {
        "steps": 2,
        "bisections": 2,
        "reach": losses.outlier(BINS),
        "others": [losses.lower(BINS)],
    },
}


@pytest.mark.parametrize("ball", attacks.ball.BALLS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [losses.shift, losses.margin])
def test_attacks(monkeypatch: pytest.MonkeyPatch, kind: str, ball: str, loss: Any) -> None:
    options = dict(KINDS[kind])
    with fake_gpu(monkeypatch):
        given = rank_batch()
        weight = torch.randn(5 * SIDE * SIDE, BINS.n, device="cuda")

        def model(images: Tensor, ebv: Tensor) -> Tensor:
            return images.flatten(1) @ weight + ebv[:, None]

        limits = Ball(given.sky_sigma, ball, -given.sky_sigma, given.sky_sigma, given.images > 0)
        if kind != "fgsm":
            options["start"] = RandomStart(given.object_id, 1, given.epoch)
        attack = getattr(attacks, kind)
        with Watch() as watch:
            attack(model, given.images, given.ebv, given.z_spec, limits, loss=loss(BINS), **options)
    assert any(name.startswith("hpcphotoz.") for name in watch.names), "no kernel was called"
    assert not watch.found, "\n".join(watch.found)


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.__setitem__(torch.arange(2, device="cuda"), True),
        lambda x: x.add_(torch.ones(8).to("cuda")),
        lambda x: torch.tensor([1.0, 2.0], device="cuda"),
    ],
)
def test_forbidden_operations_are_detected(monkeypatch: pytest.MonkeyPatch, forbidden: Any) -> None:
    with fake_gpu(monkeypatch):
        x = torch.rand(8, device="cuda")
        try:
            with Watch() as watch:
                forbidden(x)
        except Exception as error:  # the size of the result is known on the device alone
            assert "fake" in f"{type(error)} {error}".lower() or "DataDependent" in type(error).__name__
    assert watch.found
