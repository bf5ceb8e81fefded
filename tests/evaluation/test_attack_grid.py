"""Each attack of an evaluation reaches the analytic optimum of its ball on a linear network."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import robustness
from hpcphotoz.evaluation.attack_grid import METHODS, build_attack_grid, headline_attack, headline_radius
from hpcphotoz.evaluation.report.summary import report_summary
from tests.helpers.datasets import NOISE_BANDS, NOISE_SIDE, noise_stamps, write_stamps
from tests.helpers.networks import BINS, ConvNetwork, StubNetwork

evaluate = partial(robustness.evaluate, keep_objects=True)

EPS = 0.1


def logit(z_phot: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The logit of a LogisticNetwork with this mean redshift, 0.1 + 0.2 sigmoid(logit)."""
    p = (z_phot.astype(np.float64) - 0.1) / 0.2
    return np.log(p / (1 - p))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stamps(tmp_path_factory.mktemp("methods") / "d", noise_stamps())


def test_each_method_moves_a_linear_network_as_far_as_its_ball_allows(data: Path) -> None:
    network, content = StubNetwork(), noise_stamps()
    result = evaluate([network], data, eps=(), headline_eps=EPS, methods=tuple(METHODS), queries=1500)
    one = result.networks[0]
    w = next(network.module.parameters()).detach().double().numpy().reshape(len(NOISE_BANDS), -1)
    sigma = content.sky_sigma.astype(np.float64)
    # The largest w . delta in each ball. Flux: the upper half of the weights up, the lower half down.
    box = EPS * (sigma * np.abs(w).sum(axis=1)).sum(axis=1)
    flux = EPS * (sigma * np.abs(w - np.median(w, axis=1, keepdims=True)).sum(axis=1)).sum(axis=1)
    ellipsoid = EPS * np.sqrt(w.size) * np.linalg.norm(sigma[:, :, None] * w, axis=(1, 2))
    before = logit(one.clean.z_phot)
    most = {"fgsm": box, "pgd": box, "apgd": box, "square": box, "flux": flux, "l2": ellipsoid}
    for method, reach in most.items():
        moved = np.abs(logit(one.at(method, EPS).z_phot) - before) / reach
        # Ten steps of a quarter from a random start end in the corner of a cube, nearly so in the others; of
        # 512 single pixels and signs, a random search draws most.
        least = 0.99 if reach is box and method != "square" else 0.9
        assert moved.max() <= 1 + 1e-4 and moved.min() > least, method
    assert (flux < box).all() and (box < ellipsoid).all()


def test_apgd_raises_the_loss_at_least_as_far_as_pgd_and_more_restarts_further(data: Path) -> None:
    network = StubNetwork(module=ConvNetwork(), bins=BINS)

    def crps(restarts: int) -> dict[str, float]:
        result = evaluate([network], data, eps=(), methods=("pgd", "apgd"), loss="crps", restarts=restarts)
        return {m: result.networks[0].at(m, 0.1).metrics["crps"] for m in result.methods}

    one, four = crps(1), crps(4)
    assert one["apgd"] >= one["pgd"] > evaluate([network], data, eps=()).networks[0].clean.metrics["crps"]
    assert four["apgd"] >= one["apgd"] - 1e-6 and four["pgd"] >= one["pgd"] - 1e-6


def test_pictures_and_transfer_show_the_strongest_attack_on_single_pixels(data: Path) -> None:
    networks = [StubNetwork(), StubNetwork("twin")]
    result = evaluate(networks, data, eps=(), methods=("l2", "pgd", "flux", "apgd", "fgsm"))
    assert result.methods == ("fgsm", "pgd", "apgd", "flux", "l2")
    assert result.headline_method == "apgd"
    own = result.networks[0].at("apgd", 0.1).metrics
    assert result.transfer["standard"]["twin"].metrics == pytest.approx(own)
    example = result.example
    for attacked in example.attacked.values():
        sigmas = np.abs(attacked - example.image) / example.sky_sigma[:, None, None]
        assert sigmas.max() < 0.1 + 1e-5, "not the attack of the L2 ball"
    assert headline_attack(["fgsm", "l2"]) == "fgsm" and headline_attack(["l2", "flux"]) == "flux"
    assert headline_attack(["l2"]) == "l2"


def test_the_summary_says_what_each_method_was(data: Path) -> None:
    result = evaluate([StubNetwork()], data, eps=(0.3,), methods=("fgsm", "flux", "l2"), steps=3, restarts=2)
    assert result.eps == (0.3,) and result.headline_eps == 0.3  # nothing that was not asked for
    tree = json.loads(json.dumps(report_summary(result), allow_nan=False))
    assert tree["attack"]["by_method"] == {
        "fgsm": {"method": "fgsm", "ball": "linf", "steps": 1, "restarts": 1},
        "flux": {"method": "pgd", "ball": "flux", "steps": 3, "restarts": 2},
        "l2": {"method": "pgd", "ball": "l2", "steps": 3, "restarts": 2},
    }
    assert tree["attack"]["headline_method"] == "fgsm" and "minimal_eps" not in tree["attack"]
    assert {"clean", "fgsm", "flux", "l2"} < set(tree["standard"])
    assert set(tree["robustness_curves"]["standard"]) == {"fgsm", "flux", "l2"}


def test_gradients_in_bfloat16_fool_as_well(data: Path) -> None:
    network = StubNetwork(module=ConvNetwork(), bins=BINS)
    full, half = (
        evaluate(
            [network], data, eps=(), headline_eps=0.3, methods=("apgd",), loss="crps", precision=precision
        )
        for precision in ("fp32", "bf16")
    )
    assert not np.array_equal(full.networks[0].conditions[1].z_phot, half.networks[0].conditions[1].z_phot)
    clean, most, other = (
        c.metrics["crps"] for c in (*full.networks[0].conditions, half.networks[0].conditions[1])
    )
    assert other - clean > 0.9 * (most - clean)
    assert report_summary(half)["attack"]["gradient_precision"] == "bf16"


def test_a_plan_is_sorted_and_invalid_ones_are_refused() -> None:
    plan = build_attack_grid(["l2", "pgd", "l2"], [0.5, 0, 0.2, 0.5], 0.1, steps=4, restarts=2, loss="margin")
    assert [(name, attack.eps) for name, attack in plan] == [
        (name, eps) for name in ("pgd", "l2") for eps in (0.1, 0.2, 0.5)
    ]
    assert {(a.ball, a.steps, a.restarts, a.loss) for _, a in plan} == {
        ("linf", 4, 2, "margin"),
        ("l2", 4, 2, "margin"),
    }
    assert [headline_radius(e) for e in ((), (0, 0.1, 0.5), (0.2, 0.05), (0.05, 0.5, 0.2))] == [
        0.1,
        0.1,
        0.05,
        0.2,
    ]
    with pytest.raises(BadInput, match="attack.steps"):
        build_attack_grid(["fgsm"], [0.1], 0.1, steps=0)
    assert NOISE_SIDE**2 % 2 == 0  # the test of flux takes the median of an even number of weights
