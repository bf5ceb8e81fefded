"""Attacked datasets hold the same objects within the ball, for every attack and storage."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcphotoz.config import Attack
from hpcphotoz.config.load import parse
from hpcphotoz.data.format.extra import ExtraColumn, mask_column, variance_column
from hpcphotoz.data.format.manifest import STORAGE, Header, read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.read.rows import read_rows, verify
from hpcphotoz.data.select.predicate import Predicate
from hpcphotoz.data.select.subset import Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import robustness
from hpcphotoz.evaluation.adversarial_dataset import write_adversarial_dataset
from tests.helpers.datasets import NOISE_BANDS, NOISE_SIDE, load, noise_stamps, write_stamps
from tests.helpers.networks import BINS, ConvNetwork, NonFiniteNetwork, StubNetwork

evaluate = partial(robustness.evaluate, keep_objects=True)


def test_adversarial_dataset_holds_the_same_objects_within_the_ball(tmp_path: Path) -> None:
    content = noise_stamps(50, unknown=5)
    data, out, network = write_stamps(tmp_path / "d", content), tmp_path / "out", StubNetwork()
    attack = parse({"attack": {"method": "pgd", "eps": 0.3, "steps": 4, "loss": "shift"}}, "test").attack
    assert write_adversarial_dataset(network, data, out, attack, seed=5, batch=7) == 50
    manifest = read_manifest(out)
    verify(out, manifest)
    written = load(out, manifest)
    for name in ("object_id", "z_spec", "ebv", "sky_sigma", "ra", "dec"):
        np.testing.assert_array_equal(getattr(written, name), getattr(content, name))
    sigmas = np.abs(written.images - content.images) / content.sky_sigma[:, :, None, None]
    assert 0.299 < sigmas.max() <= 0.3 + 5 * 2**-23 / 0.5
    # A linear network drives every pixel to the surface of the ball, for objects of unknown redshift too.
    assert sigmas.min() > 0.3 - 5 * 2**-23 / 0.5
    provenance = manifest.provenance
    digest = hashlib.sha256((data / "manifest.json").read_bytes()).hexdigest()
    assert provenance["source_manifest_sha256"] == digest
    assert provenance["run"] == "standard" and provenance["step"] == 3 and provenance["seed"] == 5
    assert provenance["attack"]["eps"] == 0.3 and provenance["attack"]["steps"] == 4
    assert provenance["source_subset"] == {"part": "all", "where": "", "limit": None}
    # A network sees in the attacked set what evaluation saw in its own attack.
    seen = evaluate([network], data, eps=(0.3,), steps=4, seed=5, loss="shift").networks[0].at("pgd", 0.3)
    np.testing.assert_allclose(
        evaluate([network], out, eps=()).networks[0].clean.z_phot, seen.z_phot, atol=1e-6
    )


def test_an_attacked_dataset_keeps_the_extra_columns(tmp_path: Path) -> None:
    columns = (
        ExtraColumn("petro_r", "float32", "mag"),
        ExtraColumn("clean", "bool"),
        ExtraColumn("psf_fwhm", "float32", "arcsec", (3,)),
        mask_column(3, NOISE_SIDE),
        variance_column(3, NOISE_SIDE),
    )
    rng, content, n = np.random.default_rng(1), noise_stamps(20), 20
    extra = {one.name: (rng.random((n, *one.shape)) * 3).astype(one.dtype) for one in columns}
    extra["clean"] = np.arange(n) % 3 > 0
    content = replace(content, extra=extra)
    header = Header(NOISE_BANDS, NOISE_SIDE, 0.396, "int16", columns)
    with DatasetWriter(tmp_path / "d", header, 8, {}) as writer:
        writer.append(content)
    attack = parse({"attack": {"method": "fgsm", "eps": 0.3}}, "test").attack
    subset = Subset(where=Predicate.parse("clean", NOISE_BANDS, columns))
    count = write_adversarial_dataset(
        StubNetwork(), tmp_path / "d", tmp_path / "out", attack, batch=7, subset=subset
    )
    manifest = read_manifest(tmp_path / "out")
    verify(tmp_path / "out", manifest)
    names = ("variance", "mask")
    found = Stamps.concatenate(list(read_rows(tmp_path / "out", manifest, pixel_columns=names)))
    expected = content[extra["clean"]]
    assert count == len(found) == len(expected) and manifest.header.extra == columns
    for one in columns:
        np.testing.assert_array_equal(found.extra[one.name], expected.extra[one.name])


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("method", ["fgsm", "pgd", "apgd"])
def test_an_attack_stays_in_the_ball_and_survives_every_storage(
    tmp_path: Path, storage: str, method: str
) -> None:
    bright = noise_stamps()
    bright.images[:] += 200  # where float16 has steps of 1/8, a fraction of the sky sigma
    data, out = write_stamps(tmp_path / "d", bright, storage=storage), tmp_path / "out"
    eps = 0.01  # less than half a unit of int16, sigma / 64
    attack = parse({"attack": {"method": method, "eps": eps, "steps": 4}}, "test").attack
    write_adversarial_dataset(StubNetwork(), data, out, attack)
    source, written = load(data), load(out)
    sigmas = np.abs(written.images - source.images) / source.sky_sigma[:, :, None, None]
    assert sigmas.min() > 0, "a linear network moves every pixel"
    # One rounding of x + eps sigma, |x| < 256, in units of a sky sigma of at least 0.5.
    assert sigmas.max() <= eps + 256 * 2**-24 / 0.5
    manifest = read_manifest(out)
    assert manifest.header.storage == "float32" and manifest.provenance["source_storage"] == storage


def test_an_attack_on_nothing_leaves_no_folder(tmp_path: Path) -> None:
    data, out = write_stamps(tmp_path / "d", noise_stamps()), tmp_path / "out"
    nothing = Subset.from_options(parse({"data": {"where": "z_spec > 9"}}, "test").data, "all", NOISE_BANDS)
    with pytest.raises(
        BadInput,
        match="none of its 50 objects is selected .where z_spec > 9.: z_spec is .*: change the condition$",
    ):
        write_adversarial_dataset(
            StubNetwork(), data, out, parse({"attack": {"eps": 0.1}}, "test").attack, subset=nothing
        )
    assert not out.exists()


def test_a_failed_attack_leaves_no_finished_dataset(tmp_path: Path) -> None:
    data, out = write_stamps(tmp_path / "d", noise_stamps()), tmp_path / "out"
    attack = parse({"attack": {"eps": 0.1}}, "test").attack
    with pytest.raises(BadInput, match="not finite"):
        write_adversarial_dataset(StubNetwork(module=NonFiniteNetwork()), data, out, attack, batch=16)
    with pytest.raises(BadInput, match="manifest.json"):
        read_manifest(out)
    with pytest.raises(BadInput, match="finished dataset"):
        write_adversarial_dataset(StubNetwork(), data, data, attack)


def attack_of(**options: object) -> Attack:
    return parse({"attack": options}, "test").attack


def z_phot(data: Path) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return evaluate([StubNetwork()], data, eps=(), methods=("fgsm",)).networks[0].clean.z_phot


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("method", ["fgsm", "pgd", "apgd"])
def test_a_flux_attack_leaves_the_flux_of_every_band_and_stays_in_the_ball(
    tmp_path: Path, storage: str, method: str
) -> None:
    bright = noise_stamps()
    bright.images[::2] += 200
    data, out = write_stamps(tmp_path / "d", bright, storage=storage), tmp_path / "out"
    eps = 0.3
    write_adversarial_dataset(
        StubNetwork(), data, out, attack_of(method=method, ball="flux", eps=eps, steps=4)
    )
    source, written = load(data), load(out)
    change = written.images.astype(np.float64) - source.images
    radius = eps * source.sky_sigma[:, :, None, None]
    # Stored pixels are rounded once: half a spacing of x + eps sigma.
    rounding = 2.0**-24 * (np.abs(source.images) + radius)
    assert (np.abs(change) <= radius + 2 * rounding).all()
    flux, most = np.abs(change.sum(axis=(2, 3))), rounding.sum(axis=(2, 3))
    # The projection's own sum, of 64 numbers of eps sigma, is zero to a few roundings too.
    assert (flux <= most + 64 * 2.0**-23 * radius[..., 0, 0]).all()
    assert np.median(np.abs(change) / radius) > 0.9, "a perturbation as large as the ball allows"


def test_an_l2_attack_has_the_root_mean_square_of_epsilon(tmp_path: Path) -> None:
    data, out = write_stamps(tmp_path / "d", noise_stamps()), tmp_path / "out"
    write_adversarial_dataset(StubNetwork(), data, out, attack_of(ball="l2", eps=0.3, steps=4))
    sigmas = (load(out).images - noise_stamps().images) / noise_stamps().sky_sigma[:, :, None, None]
    rms = np.sqrt((sigmas.astype(np.float64) ** 2).mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(rms, 0.3, rtol=1e-4)
    assert np.abs(sigmas).max() > 0.6


@pytest.mark.parametrize("loss", ["cross_entropy", "shift", "crps"])
@pytest.mark.parametrize("ball", ["linf", "flux"])
def test_a_targeted_attack_moves_every_galaxy_towards_the_target(
    tmp_path: Path, loss: str, ball: str
) -> None:
    data, out = write_stamps(tmp_path / "d", noise_stamps(50, unknown=5)), tmp_path / "out"
    chosen = attack_of(loss=loss, ball=ball, eps=0.1, target="redshift", target_value=0.35)
    before = z_phot(data)
    assert write_adversarial_dataset(StubNetwork(), data, out, chosen) == 50
    after = z_phot(out)
    assert (np.abs(after - 0.35) < np.abs(before - 0.35) - 0.002).all()
    assert np.isnan(load(out).z_spec[:5]).all() and not np.isnan(load(out).z_spec[5:]).any()
    provenance = read_manifest(out).provenance["attack"]
    assert provenance == {**chosen.model_dump(exclude={"fraction"})}
    assert (provenance["target"], provenance["target_value"], provenance["ball"]) == ("redshift", 0.35, ball)


def test_a_target_by_the_margin_becomes_the_most_probable_bin(tmp_path: Path) -> None:
    network = StubNetwork(module=ConvNetwork(), bins=BINS)  # of two bins the DLR is 1 or -1
    data, out = write_stamps(tmp_path / "d", noise_stamps()), tmp_path / "out"
    chosen = attack_of(method="apgd", loss="margin", eps=1.0, target="redshift", target_value=0.35)
    write_adversarial_dataset(network, data, out, chosen)
    with torch.no_grad():
        before, after = (
            network.module(torch.from_numpy(load(folder).images), torch.zeros(50)).argmax(dim=1)
            for folder in (data, out)
        )
    wanted = 17  # the bin of 0.35, which the margin compares with its strongest rival
    assert (before == wanted).sum() == 0 and (after == wanted).sum() > 25


@pytest.mark.parametrize("shift", [-0.04, 0.04])
def test_a_shift_is_from_each_galaxys_own_redshift_or_else_the_networks(tmp_path: Path, shift: float) -> None:
    some = noise_stamps()
    data = write_stamps(tmp_path / "a", some)
    own = z_phot(data)
    z = own.copy()
    z[:5] = np.nan
    data, out = write_stamps(tmp_path / "d", replace(some, z_spec=z)), tmp_path / "out"
    chosen = attack_of(method="apgd", eps=1.0, loss="shift", steps=40, target="shift", target_value=shift)
    write_adversarial_dataset(StubNetwork(), data, out, chosen)
    after = z_phot(out)
    labels = np.where(np.isnan(z), np.where(own < 0.2, 0.1, 0.3), z)  # the most probable bin
    wanted = np.clip(labels + shift * (1 + labels), 0.1, 0.3)  # the centres of the outer bins
    assert (np.abs(after - wanted) < np.abs(own - wanted)).all()
    near = np.isfinite(z) & (np.abs(wanted - 0.2) < 0.07)  # where the sigmoid is not flat
    assert near.sum() > 20 and np.abs(after - wanted)[near].max() < 0.003
    np.testing.assert_array_equal(np.sign(after - own)[5:], np.sign(shift))


def test_an_attack_stops_at_its_stop_condition(tmp_path: Path) -> None:
    data = write_stamps(tmp_path / "d", noise_stamps())
    free = attack_of(eps=0.5, loss="shift", steps=20, target="redshift", target_value=0.25)
    within = 0.02 * 1.25
    held = free.model_copy(update={"stop": 0.02})
    for name, chosen in (("free", free), ("held", held)):
        write_adversarial_dataset(StubNetwork(), data, tmp_path / name, chosen)
    there = np.abs(z_phot(tmp_path / "held") - 0.25)
    assert (there < within + 1e-6).all(), "each galaxy reaches it"
    already = np.abs(z_phot(data) - 0.25) < within
    assert (there[~already] > 0.2 * within).mean() > 0.9, "and goes hardly further"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fgsm", "restarts": 3}, "restarts 3: fgsm has no random start"),
        ({"method": "fgsm", "stop": 0.1}, "stop 0.1: fgsm is one step"),
        ({"method": "apgd", "step_size": 0.1}, "step_size 0.1: apgd has its own"),
        (
            {"target": "redshift", "target_value": 0.4},
            "target redshift 0.4: outside the bins .0, 0.4.",
        ),
        ({"target": "redshift", "target_value": -0.01}, "target redshift -0.01: outside the bins"),
        ({"target": "shift", "target_value": -0.5}, "target shift -0.5: carries every galaxy out"),
    ],
)
def test_contradicting_options_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    data, out = write_stamps(tmp_path / "d", noise_stamps()), tmp_path / "out"
    with pytest.raises(BadInput, match=message):
        write_adversarial_dataset(StubNetwork(), data, out, attack_of(**options))
    with pytest.raises(BadInput, match="precision 'fp8': want one of fp32, tf32, bf16"):
        write_adversarial_dataset(StubNetwork(), data, out, attack_of(), precision="fp8")
    assert not out.exists()
