"""Robustness of linear networks, for which attacks have analytic results."""

import errno
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics, robustness
from hpcphotoz.evaluation.batches import read_batches
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from hpcphotoz.models.bins import RedshiftBins
from tests.helpers.datasets import noise_stamps, write_stamps
from tests.helpers.networks import TWO_BINS, LogisticNetwork, NonFiniteNetwork, StubNetwork

evaluate = partial(robustness.evaluate, keep_objects=True)


def mean_redshift(
    logit: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return 0.1 + 0.2 / (1 + np.exp(-logit))


def test_fgsm_on_a_linear_network_moves_each_redshift_by_the_analytic_amount(tmp_path: Path) -> None:
    content, network = noise_stamps(), StubNetwork()
    result = evaluate(
        [network], write_stamps(tmp_path / "d", content), eps=(0, 0.05, 0.2), headline_eps=0.1, batch=7
    )
    w = next(network.module.parameters()).detach().double().numpy()
    logit = (content.images * w).sum(axis=(1, 2, 3))
    # sign(gradient) is +sign(w) where the label is the lower bin: the loss rises with the upper logit.
    away = np.where(content.z_spec < 0.2, 1, -1)
    reach = (content.sky_sigma * np.abs(w).sum(axis=(1, 2))).sum(axis=1)
    assert result.eps == (0.05, 0.1, 0.2)
    one = result.networks[0]
    np.testing.assert_allclose(one.clean.z_phot, mean_redshift(logit), atol=1e-6)
    for eps in result.eps:
        moved = mean_redshift(logit + eps * away * reach)
        # PGD on a linear function ends in the same corner: 10 steps of eps/4 reach it from anywhere.
        for method in ("fgsm", "pgd"):
            condition = one.at(method, eps)
            np.testing.assert_allclose(condition.z_phot, moved, atol=2e-6)
            change = np.abs(moved - mean_redshift(logit))
            assert condition.shift_median == pytest.approx(np.median(change), abs=2e-6)
            assert condition.shift_p90 == pytest.approx(np.percentile(change, 90), abs=2e-6)
            assert condition.as_summary()["eps_sky_sigma"] == eps
    assert [point[0] for point in one.shift_curve("pgd")] == [0, 0.05, 0.1, 0.2]


def test_metrics_are_those_of_the_pdfs(tmp_path: Path) -> None:
    content, network = noise_stamps(), StubNetwork()
    one = evaluate([network], write_stamps(tmp_path / "d", content), eps=()).networks[0]
    with torch.no_grad():
        pdf = torch.softmax(network.module(torch.from_numpy(content.images), torch.zeros(50)), dim=1).numpy()
    expected = metrics.summary(
        pdf @ TWO_BINS.centres().numpy(),
        content.z_spec,
        **metrics.pdf_scores(pdf, TWO_BINS.edges(), content.z_spec),
    )
    # The PITs of three statistics are rounded to 65,536 bins.
    assert one.clean.metrics == pytest.approx(expected, rel=2e-4)
    np.testing.assert_allclose(one.clean.pit, metrics.pit(pdf, TWO_BINS.edges(), content.z_spec), atol=1e-6)
    assert one.at("pgd", 0.1).metrics["crps"] > one.clean.metrics["crps"]


def test_scored_pdfs_are_calibrated_and_attacks_are_on_the_networks_own(tmp_path: Path) -> None:
    content, network = noise_stamps(50, unknown=20), StubNetwork()
    data, names = write_stamps(tmp_path / "d", content), ("standard", "other")
    calibrations = {"standard": Calibration(temperature=2.5)}
    how = {"eps": (), "headline_eps": 0.1, "methods": ("fgsm",), "minimal_eps_max": 0.4}
    networks = [StubNetwork(name, network.module) for name in names]
    result = evaluate(networks, data, **how, calibrations=calibrations)  # type: ignore[arg-type]
    one, own = result.networks
    w = next(network.module.parameters()).detach().double().numpy()
    logit = (content.images * w).sum(axis=(1, 2, 3))
    # The softmax of (0, x) at temperature T is that of (0, x / T); unknown redshifts: away from its own mode.
    label_is_low = np.where(np.isnan(content.z_spec), logit < 0, content.z_spec < 0.2)
    reach = (content.sky_sigma * np.abs(w).sum(axis=(1, 2))).sum(axis=1)
    attacked = logit + 0.1 * np.where(label_is_low, 1, -1) * reach
    for method, eps, x in (("clean", 0.0, logit), ("fgsm", 0.1, attacked)):
        np.testing.assert_allclose(one.at(method, eps).z_phot, mean_redshift(x / 2.5), atol=2e-6)
        np.testing.assert_allclose(own.at(method, eps).z_phot, mean_redshift(x), atol=2e-6)
    known = np.isfinite(content.z_spec)
    upper = 1 / (1 + np.exp(-logit[known] / 2.5))
    pdf = np.stack([1 - upper, upper], axis=1)
    expected = metrics.pdf_scores(pdf, TWO_BINS.edges(), content.z_spec[known])
    np.testing.assert_allclose(one.clean.pit[known], expected["pit"], atol=1e-6)
    for key, score in (("crps", "crps"), ("cde_loss", "cde"), ("brier", "brier")):
        assert one.clean.metrics[key] == pytest.approx(expected[score].mean(), rel=1e-5)
    assert one.minimal_eps is not None and own.minimal_eps is not None
    np.testing.assert_array_equal(one.minimal_eps.eps, own.minimal_eps.eps)
    # Images are the same, so that each predicts from the other's as from its own.
    assert result.transfer["other"]["standard"].metrics == one.at("fgsm", 0.1).metrics
    assert result.transfer["standard"]["other"].metrics == own.at("fgsm", 0.1).metrics
    shown = result.example
    np.testing.assert_array_equal(shown.attacked["standard"], shown.attacked["other"])
    at = content.object_id == shown.object_id
    np.testing.assert_allclose(
        shown.pdf_clean["standard"] @ [0.1, 0.3], mean_redshift(logit[at] / 2.5), atol=2e-6
    )
    with pytest.raises(BadInput, match="calibration of 'third': no network of that name"):
        evaluate(networks, data, calibrations={"third": Calibration()})


def test_attacks_leave_the_mode_of_the_networks_own_pdf_where_no_redshift_is_known(tmp_path: Path) -> None:
    """This map of the PIT moves most modes to the upper bin: were it the label, fewer logits would fall."""
    content = noise_stamps(30, unknown=30)
    data, calibration = write_stamps(tmp_path / "d", content), Calibration(pit=(3.0,))
    how = {"eps": (), "methods": ("fgsm",), "headline_eps": 0.1}
    found = evaluate([StubNetwork()], data, **how, calibrations={"standard": calibration})  # type: ignore[arg-type]
    own = evaluate([StubNetwork()], data, **how)  # type: ignore[arg-type]
    moved, raw = (one.networks[0].at("fgsm", 0.1).z_phot.astype(np.float64) for one in (found, own))
    lower = 1 - (raw - 0.1) / 0.2
    np.testing.assert_allclose(moved, 0.1 + 0.2 * (1 - calibration.mapped(lower)), atol=1e-5)
    assert ((moved > 0.2) != (raw > 0.2)).sum() > 5


def test_the_batch_size_and_the_shards_change_nothing(tmp_path: Path) -> None:
    few = evaluate(
        [StubNetwork()],
        write_stamps(tmp_path / "a", noise_stamps(), shard_rows=50),
        eps=(0.3,),
        steps=1,
        batch=50,
    )
    many = evaluate(
        [StubNetwork()],
        write_stamps(tmp_path / "b", noise_stamps(), shard_rows=9),
        eps=(0.3,),
        steps=1,
        batch=4,
    )
    for a, b in zip(few.networks[0].conditions, many.networks[0].conditions, strict=True):
        np.testing.assert_allclose(a.z_phot, b.z_phot, atol=1e-6)
        assert a.metrics == pytest.approx(b.metrics, rel=1e-4)


def test_unknown_redshifts_are_attacked_but_not_scored(tmp_path: Path) -> None:
    part = evaluate(
        [StubNetwork()], write_stamps(tmp_path / "part", noise_stamps(50, unknown=20)), eps=(0.1,)
    )
    assert part.unlabelled == 20
    assert part.networks[0].clean.metrics["n"] == 30
    assert np.isnan(part.networks[0].clean.pit).sum() == 20
    known = noise_stamps(50, unknown=20)[20:]
    alone = evaluate([StubNetwork()], write_stamps(tmp_path / "alone", known), eps=(0.1,))
    for a, b in zip(part.networks[0].conditions, alone.networks[0].conditions, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "shift"])
def test_without_any_redshift_the_change_of_the_mean_is_still_measured(tmp_path: Path, loss: str) -> None:
    result = evaluate(
        [StubNetwork()],
        write_stamps(tmp_path / "d", noise_stamps(30, unknown=30)),
        eps=(0.02, 0.3),
        loss=loss,
    )
    one = result.networks[0]
    assert one.clean.metrics == {}
    assert np.isnan(result.example.z_spec)
    for method in ("fgsm", "pgd"):
        medians = [median for _, median, _ in one.shift_curve(method)]
        assert medians[0] == 0 and medians == sorted(medians) and medians[-1] > 0.02


def test_transfer_to_equal_weights_is_the_attack_itself_and_to_opposite_weights_lowers_the_loss(
    tmp_path: Path,
) -> None:
    opposite = LogisticNetwork()
    opposite.w.data.neg_()
    networks = [StubNetwork(), StubNetwork("twin"), StubNetwork("opposite", opposite)]
    result = evaluate(networks, write_stamps(tmp_path / "d", noise_stamps()), eps=(0.1,))
    own = result.networks[0].at("pgd", 0.1).metrics
    twin = result.transfer["standard"]["twin"]
    assert twin.metrics == pytest.approx(own)
    assert twin.errors == pytest.approx(result.networks[0].at("pgd", 0.1).errors)
    gift, clean = result.transfer["standard"]["opposite"].metrics, result.networks[2].clean.metrics
    assert own["crps"] > result.networks[0].clean.metrics["crps"]
    assert gift["crps"] < clean["crps"]


def test_the_example_is_a_galaxy_of_the_set_and_its_attack_stays_in_the_ball(tmp_path: Path) -> None:
    content = noise_stamps()
    example = evaluate(
        [StubNetwork(), StubNetwork("b", LogisticNetwork(seed=1))],
        write_stamps(tmp_path / "d", content),
        eps=(),
    ).example
    i = int(np.flatnonzero(content.object_id == example.object_id)[0])
    np.testing.assert_array_equal(example.image, content.images[i])
    assert set(example.attacked) == {"standard", "b"}
    for attacked in example.attacked.values():
        sigmas = np.abs(attacked - example.image) / example.sky_sigma[:, None, None]
        # One rounding of x + eps sigma, |x| < 5, in units of a sky sigma of at least 0.5.
        assert 0.099 < sigmas.max() <= 0.1 + 5 * 2**-23 / 0.5


def test_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    network = StubNetwork()
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    evaluate([network], write_stamps(tmp_path / "d", noise_stamps()), eps=())
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.module.parameters())


class Blind(LogisticNetwork):
    """Depends on the image with a gradient of zero: PGD stays at its random start."""

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        return super().forward(images.detach(), ebv) + 0 * images.sum()


def test_random_starts_are_keyed_by_seed_and_object(tmp_path: Path) -> None:
    data, other = (
        write_stamps(tmp_path / "d", noise_stamps()),
        write_stamps(tmp_path / "other", noise_stamps()[10:], shard_rows=7),
    )

    def started(folder: Path, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        one = evaluate(
            [StubNetwork(module=Blind())], folder, eps=(), methods=("pgd",), headline_eps=1.0, seed=seed
        )
        return one.networks[0].at("pgd", 1.0).z_phot

    first = started(data, 1)
    np.testing.assert_allclose(started(other, 1), first[10:], atol=1e-6)
    assert np.abs(started(data, 2) - first).max() > 1e-3


def test_limit_selects_the_first_objects(tmp_path: Path) -> None:
    data = write_stamps(tmp_path / "d", noise_stamps())
    assert evaluate([StubNetwork()], data, eps=(), limit=21, batch=5).object_id.tolist() == list(
        range(100, 121)
    )
    manifest = read_manifest(data)
    assert sum(map(len, read_batches(data, manifest, 5, "reading"))) == 50
    assert sum(map(len, read_batches(data, manifest, 5, "reading", limit=1000))) == 50


@pytest.mark.parametrize(
    ("networks", "options", "message"),
    [
        ([], {}, "no network"),
        ([StubNetwork(), StubNetwork()], {}, "two runs are called 'standard'"),
        ([StubNetwork(bands=("r", "g", "i"))], {}, "g,r,i but run 'standard' takes r,g,i"),
        ([StubNetwork(stamp=64)], {}, "stamps of 8 pixels"),
        ([StubNetwork(bins=RedshiftBins(2, 0.0, 0.2))], {}, "object 1[0-9][0-9] has z_spec"),
        ([StubNetwork(bins=RedshiftBins(3, 0.0, 0.4))], {}, "logits of shape"),
        ([StubNetwork(module=NonFiniteNetwork())], {"batch": 16}, "output for object 115 is not finite"),
        (
            [StubNetwork()],
            {"methods": ("cw",)},
            "attack method 'cw': want some of square, fgsm, pgd, apgd, flux, l2",
        ),
        ([StubNetwork()], {"methods": ("fgsm",), "restarts": 3}, "3 restarts of fgsm alone: add an attack"),
        ([StubNetwork()], {"restarts": 0}, "attack.restarts"),
        ([StubNetwork()], {"loss": "mse"}, "attack.loss"),
        ([StubNetwork()], {"precision": "fp16"}, "precision 'fp16': want one of fp32, tf32, bf16"),
        ([StubNetwork()], {"minimal_eps_max": 0.0}, "minimal_eps_max 0.0: must be above 0"),
        ([StubNetwork()], {"minimal_eps_max": float("inf")}, "minimal_eps_max inf: must be above 0"),
        ([StubNetwork()], {"minimal_eps_max": 1e39}, "at most 1e"),
        ([StubNetwork()], {"eps": [1e39]}, "attack.eps"),
        ([StubNetwork()], {"methods": ()}, "no attack method"),
        ([StubNetwork()], {"eps": (-0.1,)}, "attack.eps"),
        ([StubNetwork()], {"steps": 0}, "attack.steps"),
        ([StubNetwork()], {"headline_eps": 0.0}, "headline"),
        ([StubNetwork()], {"batch": 0}, "batch"),
        ([StubNetwork()], {"limit": 0}, "limit"),
    ],
)
def test_unusable_input_is_refused(
    tmp_path: Path, networks: list[StubNetwork], options: dict[str, object], message: str
) -> None:
    data = write_stamps(tmp_path / "d", noise_stamps())
    with pytest.raises(BadInput, match=message):
        evaluate(networks, data, **options)  # type: ignore[arg-type]


def test_redshifts_that_cannot_be_read_are_named_by_their_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_stamps(tmp_path / "d", noise_stamps())

    def fails(*_: object) -> int:
        raise OSError(errno.EREMOTEIO, "Remote I/O error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(BadInput, match=r"d/shard-00000.hdf5: cannot be read: Remote I/O error"):
        evaluate([StubNetwork(bins=RedshiftBins(2, 0.0, 0.2))], data)
