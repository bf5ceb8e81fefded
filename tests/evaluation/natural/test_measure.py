"""Natural perturbations of a linear network, for which their effect is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.batches import to_tensors
from hpcphotoz.evaluation.natural.measure import ATTACK, CLEAN, MovedRedshifts, measure_natural, sky_stamps
from hpcphotoz.evaluation.natural.perturbations import NATURAL, TYPICAL_FWHM
from hpcphotoz.evaluation.natural.second_epoch import EPOCH, measure_second_epoch
from hpcphotoz.evaluation.natural.section import natural_section
from hpcphotoz.evaluation.perturbation.headline import HeadlineAttack
from hpcphotoz.evaluation.robustness import evaluate
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from tests.helpers.datasets import NOISE_SIDE, noise_stamps, write_stamps
from tests.helpers.evaluation_results import check_section
from tests.helpers.networks import VIEW, CroppedNetwork, LogisticNetwork, StubNetwork

T = 1.5  # temperature of the network "other"


def headline(data: Path, limit: int | None = None) -> HeadlineAttack:
    networks = [StubNetwork(), StubNetwork("other", LogisticNetwork(seed=1))]
    how = {"limit": limit, "calibrations": {"other": Calibration(temperature=T)}, "keep_objects": True}
    result = evaluate(networks, data, eps=(0.1,), methods=("pgd",), **how)  # type: ignore[arg-type]
    return HeadlineAttack(networks, result, batch=16)


def test_changes_and_amplitudes_are_those_of_the_perturbations(tmp_path: Path) -> None:
    content = noise_stamps()
    given = headline(write_stamps(tmp_path / "d", content))
    shifts = measure_natural(given)
    for network in given.result.networks:
        one = shifts.networks[network.name]
        condition = network.at("pgd", 0.1)
        np.testing.assert_allclose(one.clean, network.clean.z_phot, atol=1e-6)
        np.testing.assert_allclose(one.moved[ATTACK], condition.z_phot, atol=1e-6)
        assert one.change(ATTACK)[0] == pytest.approx(condition.shift_median, abs=1e-6)
        assert one.greatest[ATTACK] == pytest.approx(0.1, rel=1e-4)  # every corner of the ball is reached
        assert one.rms["background_0.1_sigma"] == pytest.approx(0.1, rel=1e-3)
        assert one.greatest["background_0.1_sigma"] == pytest.approx(0.1, rel=1e-3)
        assert np.median(one.rms["sky_noise"]) == pytest.approx(np.sqrt(2), rel=0.05)
        # An attack of 0.1 sigma goes where it hurts, the background of 0.1 sigma where it happens to.
        assert one.change(ATTACK)[0] > 3 * one.change("background_0.1_sigma")[0]
        assert one.metrics(CLEAN)["sigma_mad"] == pytest.approx(network.clean.metrics["sigma_mad"], abs=1e-6)
    np.testing.assert_array_equal(shifts.ra, content.ra)


def test_amplitudes_are_of_the_pixels_that_a_network_sees(tmp_path: Path) -> None:
    content = noise_stamps()
    content.ra[:] = np.arange(50)
    networks = [StubNetwork(), StubNetwork("cropped", CroppedNetwork())]
    data = write_stamps(tmp_path / "one", content)
    result = evaluate(networks, data, eps=(0.1,), methods=("pgd",))
    given = HeadlineAttack(networks, result, batch=16)
    shifts = measure_natural(given)
    for name, edge in (("standard", 0), ("cropped", (NOISE_SIDE - VIEW.part) // 2)):
        one, part = shifts.networks[name], slice(edge, NOISE_SIDE - edge)
        # A linear network's pixels all end at epsilon; a random start has a root mean square of 0.06.
        assert one.rms[ATTACK] == pytest.approx(0.1, rel=1e-4)
        for perturbation in NATURAL:
            tensor = to_tensors(content, "cpu")
            images = perturbation.perturb(sky_stamps(content, tensor, result.header.pixel_scale, result.seed))
            change = (images.numpy() - content.images) / content.sky_sigma[:, :, None, None]
            seen = change[:, :, part, part].reshape(50, -1)
            found = one.rms[perturbation.name], one.greatest[perturbation.name]
            np.testing.assert_allclose(found[0], np.sqrt((seen**2).mean(axis=1)), rtol=1e-3)
            np.testing.assert_allclose(found[1], np.abs(seen).max(axis=1), rtol=1e-3)
    night = noise_stamps()
    night.ra[:] = content.ra
    night.images[:, :, 0] += 3 * night.sky_sigma[:, :, None]  # in one row, at the edge
    epoch = measure_second_epoch(given, shifts, write_stamps(tmp_path / "two", night))
    assert epoch.networks["standard"].rms[EPOCH] == pytest.approx(3 / NOISE_SIDE**0.5, rel=1e-4)
    assert not epoch.networks["cropped"].rms[EPOCH].any()


def test_the_ratio_and_the_metrics_are_those_of_the_redshifts() -> None:
    z = np.linspace(0.05, 0.35, 11)
    moved = {ATTACK: z + 0.06, "sky": z + np.where(np.arange(11) < 6, 0.02, -0.03)}
    one = MovedRedshifts(np.where(z < 0.1, np.nan, z), z, moved, {"sky": z}, {"sky": 2 * z})
    record = one.record("sky")
    assert record["attack_over_this"] == pytest.approx(3) and record["shift_p90"] == pytest.approx(0.03)
    assert record["rms_sky_sigma"] == pytest.approx(0.2) and record["max_sky_sigma"] == pytest.approx(0.4)
    dz = ((moved["sky"] - z) / (1 + z))[z >= 0.1]
    assert record["sigma_mad"] == metrics.sigma_mad(dz) and record["eta"] == 0
    still = MovedRedshifts(z, z, {ATTACK: z + 0.06, "sky": z}, {}, {})
    assert still.record("sky")["attack_over_this"] is None
    assert still.record("sky")["errors"] == {"attack_over_this": None, "attack_over_this_p90": None}
    # The attack moves all by 0.06; of a resampling the sky's median is 0.02 or 0.03, its 90th nearly 0.03.
    errors = record["errors"]
    assert 0.3 < errors["attack_over_this"] < 0.5 and errors["attack_over_this_p90"] < 0.2
    assert one.record(ATTACK)["errors"] == {"attack_over_this": 0, "attack_over_this_p90": 0}


def test_another_night_is_matched_by_position(tmp_path: Path) -> None:
    content, rng = noise_stamps(), np.random.default_rng(3)
    content.ra[:], content.dec[:] = rng.uniform(350, 351, 50), rng.uniform(0, 1, 50)
    data = write_stamps(tmp_path / "one", content)
    order = rng.permutation(50)[:40]
    night = noise_stamps()[order]
    night.images[:] = content.images[order] + 0.5 * content.sky_sigma[order][:, :, None, None]
    night.ra[:], night.dec[:] = content.ra[order] + 0.3 / 3600, content.dec[order] - 0.3 / 3600
    night.object_id[:] += 5000
    night.dec[:3] += 1.5 / 3600  # too far
    other = write_stamps(tmp_path / "two", night)
    given = headline(data)
    shifts = measure_natural(given)
    epoch = measure_second_epoch(given, shifts, other)
    assert epoch.matched == 37
    rows = np.sort(order[3:])
    for network in given.networks:
        one = epoch.networks[network.name]
        np.testing.assert_array_equal(one.clean, shifts.networks[network.name].clean[rows])
        w = next(network.module.parameters()).detach().double().numpy()
        change = 0.5 * (content.sky_sigma[rows] * w.sum((1, 2))).sum(1)
        logit = (content.images[rows] * w).sum((1, 2, 3)) + change
        temperature = T if network.name == "other" else 1
        calibrated = 0.1 + 0.2 / (1 + np.exp(-logit / temperature))
        np.testing.assert_allclose(one.moved[EPOCH], calibrated, atol=1e-6)
        assert one.rms[EPOCH] == pytest.approx(0.5, rel=1e-4)
        assert one.greatest[EPOCH] == pytest.approx(0.5, rel=1e-4)
    section = natural_section(given.result, shifts, epoch)
    assert section.record["second_epoch"]["matched"] == 37
    assert section.record["networks"]["other"][EPOCH]["n"] == 37
    assert len(section.tables[0]) == 1 + 2 * (1 + 1 + len(NATURAL) + 1)
    check_section(section)
    (png,) = section.figures.values()
    assert png.startswith(b"\x89PNG")


def test_a_night_of_other_galaxies_is_refused(tmp_path: Path) -> None:
    data, content = write_stamps(tmp_path / "one", noise_stamps()), noise_stamps()
    content.ra[:] = 180
    given = headline(data, limit=4)
    shifts = measure_natural(given)
    with pytest.raises(BadInput, match="no galaxy within 1 arcsec"):
        measure_second_epoch(given, shifts, write_stamps(tmp_path / "two", content))


def test_the_psf_is_that_of_the_dataset(tmp_path: Path) -> None:
    content = noise_stamps(2)
    tensor = to_tensors(content, "cpu")
    assert torch.equal(sky_stamps(content, tensor, 0.4, 0).psf_fwhm, torch.full((2, 3), TYPICAL_FWHM))
    known = np.array([[1.0, np.nan, 2.0], [1.1, 1.2, 1.3]], np.float32)
    found = sky_stamps(replace(content, extra={"psf_fwhm": known}), tensor, 0.4, 0).psf_fwhm
    np.testing.assert_allclose(found, np.where(np.isnan(known), TYPICAL_FWHM, known))
