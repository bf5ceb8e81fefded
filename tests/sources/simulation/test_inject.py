"""Galaxies injected into real sky: flux and place in every band, photon noise, and unchanged sky."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("astropy")
pytest.importorskip("galsim")
pytest.importorskip("speclite")

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import MANIFEST
from hpcphotoz.data.format.stamps import COLUMNS
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import (
    BANDS,
)
from hpcphotoz.sources.simulation import inject as module
from hpcphotoz.sources.simulation import real_sky
from hpcphotoz.sources.simulation.inject import InjectGalaxies, count_photons, inject, simulate_onto
from hpcphotoz.sources.simulation.population import Galaxy
from hpcphotoz.sources.simulation.real_sky import PATCH, RealField, field_blocks, load_field
from hpcphotoz.sources.simulation.rendering import STAMP, render_in_pixels
from hpcphotoz.sources.simulation.simulate import simulate_object
from hpcphotoz.sources.simulation.survey_tables import R_BAND, SurveyTables
from hpcphotoz.sources.surveys.frame import resample
from hpcphotoz.sources.surveys.sdss.fields import find_frame_sets
from tests.helpers.datasets import load
from tests.helpers.sources.psfield_files import gaussian
from tests.helpers.sources.sdss_files import STRIPE82, real_frames
from tests.helpers.sources.sky_fields import FLUX20, NOISE_DN, OFFSET, SHAPE, write_field

Array = npt.NDArray[Any]


def disc(radius: float = 1.0) -> Galaxy:
    flux = np.array([10.0, 40.0, 90.0, 130.0, 160.0])
    return Galaxy(0.1, 0.0, 17.5, 1, 0 * flux, flux, radius, radius, 1.0, 0.6, 0.7)


def quiet(field: RealField) -> RealField:
    """The same field with negligible noise and countless photons."""
    rng = np.random.default_rng(0)
    images = [1e-7 * rng.standard_normal(SHAPE).astype(np.float32) for _ in BANDS]
    silent = tuple(replace(f, image=image) for f, image in zip(field.frames, images, strict=True))
    return replace(field, frames=silent, electrons=np.full(len(BANDS), 1e14))


def moments(image: Array, radius: float) -> tuple[Array, Array]:
    """Flux (band,) and centre of light (band, 2) as x, y from the stamp's centre, within a radius, pixels."""
    y, x = np.indices(image.shape[-2:]) - (image.shape[-1] - 1) / 2
    light = np.where(np.hypot(y, x) <= radius, image, 0.0)
    total = light.sum(axis=(1, 2))
    return total, np.stack([(light * axis).sum(axis=(1, 2)) / total for axis in (x, y)], axis=1)


def test_flux_and_place_are_right_in_every_band(
    field: RealField, tables: SurveyTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "draw_galaxy", lambda tables, rng: disc())
    silent = quiet(field)
    for index in range(4):
        one = inject(tables, silent, 5, index)
        flux, _ = moments(one.image, 31.0)
        np.testing.assert_allclose(flux, one.galaxy.flux_disc, rtol=5e-3)
        _, centre = moments(one.image, 12.0)
        assert np.abs(centre).max() < 0.05
        xy = silent.frames[R_BAND].geometry.pixels(np.array([one.ra]), np.array([one.dec]))[0]
        np.testing.assert_allclose(xy, one.place[R_BAND], atol=1e-6)
        offsets = np.array(one.place) - one.place[R_BAND]
        np.testing.assert_allclose(offsets, OFFSET, atol=1e-3)


def test_a_point_looks_like_the_psf_with_no_second_pixel() -> None:
    # Half a pixel off in x; the PSF is lopsided, and its centre of light must lie there.
    star = 0.7 * gaussian(1.4) + 0.3 * gaussian(2.0, 1.0, -0.5)
    drawn = render_in_pixels(disc(1e-3), [star] * 5, [(35.5, 36.0)] * 5, PATCH)
    total = drawn.sum(axis=(1, 2))
    np.testing.assert_allclose(total, disc().flux_disc, rtol=1e-4)
    y, x = np.indices((PATCH, PATCH))
    np.testing.assert_allclose((drawn * x).sum(axis=(1, 2)) / total, 35.5, atol=0.01)
    np.testing.assert_allclose((drawn * y).sum(axis=(1, 2)) / total, 36.0, atol=0.01)
    # The square pixel would add 1/12 to the variance along x, which is that of the two Gaussians.
    variance = (drawn[2] * (x - 35.5) ** 2).sum() / total[2]
    assert variance == pytest.approx(0.7 * 1.4**2 + 0.3 * 2.0**2 + 0.7 * 0.3 * 1.0**2, abs=0.02)


def test_photons_are_counted() -> None:
    electrons = np.array([150.0, 1000.0])
    light = np.stack([np.full((100, 100), 0.5), np.full((100, 100), 2.0)])
    seen = count_photons(light, electrons, np.random.default_rng(1))
    # 10,000 pixels give the mean to 1 % of the scatter and the scatter to 0.7 %; four of those are allowed.
    scatter = np.sqrt(np.array([0.5, 2.0]) / electrons)
    assert (np.abs(seen.mean(axis=(1, 2)) - [0.5, 2.0]) < 0.04 * scatter).all()
    np.testing.assert_allclose(seen.std(axis=(1, 2)), scatter, rtol=0.03)
    np.testing.assert_array_equal(count_photons(-light, electrons, np.random.default_rng(1)), -light)


def test_a_stamp_has_the_noise_of_its_photons(
    field: RealField, tables: SurveyTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The r frame's pixels fall on the stamp's: no resampling there. The other bands' keep the sum of noise.
    place = [(110.5 + dx, 95.5 + dy) for dx, dy in OFFSET]
    monkeypatch.setattr(module, "find_place", lambda field, rng: place)
    monkeypatch.setattr(module, "draw_galaxy", lambda tables, rng: disc())
    silent = quiet(field)
    clean = inject(tables, silent, 0, 0).image.astype(np.float64)
    seen = [inject(tables, replace(silent, electrons=field.electrons), 0, k).image for k in range(40)]
    noise = np.stack(seen) - clean
    # 40 stamps with about a hundred bright pixels each: 2 %.
    expected = (clean[R_BAND].clip(0) / field.electrons[R_BAND]).sum()
    assert (noise[:, R_BAND] ** 2).sum(axis=(1, 2)).mean() == pytest.approx(expected, rel=0.06)
    pull = noise.sum(axis=(2, 3)) / np.sqrt(disc().flux_disc / field.electrons)
    # 40 sums a band: the mean to 0.16, the variance over all bands to 10 %.
    assert np.abs(pull.mean(axis=0)).max() < 0.6
    assert (pull**2).mean() == pytest.approx(1.0, abs=0.35)
    assert np.isfinite(noise).all() and len({image.tobytes() for image in seen}) == 40


def test_galaxies_do_not_depend_on_number_shards_or_processes(
    tmp_path: Path, frames: Path, tables: SurveyTables
) -> None:
    kept: dict[str, Any] = {"seed": 3, "storage": "float32"}
    simulate_onto(tmp_path / "one", 6, frames, shard_rows=4, processes=1, **kept)
    simulate_onto(tmp_path / "two", 36, frames, shard_rows=20, processes=2, **kept)
    a, b = load(tmp_path / "one"), load(tmp_path / "two")
    middle = InjectGalaxies(tables, 3, ())(field_blocks(find_frame_sets(frames), 2, 5)).stamps
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b[:6], name))
        np.testing.assert_array_equal(getattr(a[2:5], name), getattr(middle, name))
    assert (b.object_id == (3 << 32) + np.arange(36)).all()
    same = [simulate_object(tables, 3, k).galaxy for k in range(6)]
    np.testing.assert_array_equal(a.z_spec, np.array([g.z for g in same], np.float32))
    np.testing.assert_array_equal(a.ebv, np.array([g.ebv for g in same], np.float32))
    assert len({*b.ra.tolist()}) == 36
    expected = np.array([NOISE_DN * 10 / flux20 for flux20 in FLUX20])
    np.testing.assert_allclose(b.sky_sigma.mean(axis=0), expected, rtol=0.03)


def test_command_and_provenance(tmp_path: Path, frames: Path) -> None:
    out = str(tmp_path / "d")
    assert main(["simulate", out, "--n", "2", "--onto", str(frames), "--processes", "1"]) == 0
    record = json.loads((tmp_path / "d" / MANIFEST).read_text())["provenance"]
    assert (record["command"], record["n"], record["seed"]) == ("simulate", 2, 0)
    assert "psField-000125-4-0012.fit" in record["onto"] and "fpC-000094-z4-0012.fit" in record["onto"]
    assert record["placement"]["radius"] == 3.0 and "camera" not in record


def test_incomplete_frame_sets_are_left_out_and_listed(
    tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = {200: "fpC-000200-u4-0012.fit", 300: "fpM-000300-g4-0012.fit", 400: "psField-000400-4-0012.fit"}
    for run, name in lacking.items():
        (write_field(tmp_path / "frames", run=run) / name).unlink()
    write_field(tmp_path / "frames")
    manifest = simulate_onto(tmp_path / "d", 2, tmp_path / "frames", processes=1)
    reasons = {one["frame_set"]: one["reason"] for one in manifest.provenance["skipped"]}
    assert [name.split()[1] for name in reasons] == ["200", "300", "400"]
    assert all("lacks" in reason for reason in reasons.values())
    assert len(manifest.provenance["onto"]) == 11
    assert "left out 3 of 4 frame sets" in capsys.readouterr().err


def test_a_replaced_psf_makes_only_its_own_shards_again(
    tmp_path: Path, frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_sky, "PLACEMENT", replace(real_sky.PLACEMENT, block=2))
    write_field(tmp_path / "frames")
    write_field(tmp_path / "frames", run=125)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hpcphotoz.sources.build.finish_dataset", stop)
        with pytest.raises(KeyboardInterrupt):
            simulate_onto(tmp_path / "d", 4, tmp_path / "frames", shard_rows=2, processes=1)
    shards = sorted((tmp_path / "d").glob("shard-*.hdf5"))
    before = [path.stat().st_mtime_ns for path in shards]
    psf = tmp_path / "frames" / "psField-000125-4-0012.fit"
    os.utime(psf, ns=(0, psf.stat().st_mtime_ns + 1))
    simulate_onto(tmp_path / "d", 4, tmp_path / "frames", shard_rows=2, processes=1)
    after = [path.stat().st_mtime_ns for path in shards]
    assert after[0] == before[0] and after[1] > before[1]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("psField-000094-4-0012.fit", Path.unlink, "field 12 lacks its psField-000094-4-0012.fit"),
        ("psField-000094-4-0012.fit", lambda p: p.write_bytes(b"no"), "psField-000094-4-0012.fit: not a"),
        ("fpM-000094-z4-0012.fit", Path.unlink, "run 94 camcol 4 field 12 lacks an fpM file"),
        ("fpM-000094-z4-0012.fit", lambda p: p.write_bytes(b"no"), "fpM-000094-z4-0012.fit: not a"),
        ("fpC-000094-i4-0012.fit", Path.unlink, "lacks its i frame"),
        ("fpC-000094-i4-0012.fit", lambda p: p.write_bytes(b"no"), "fpC-000094-i4-0012.fit: not a"),
        (".", lambda p: [one.unlink() for one in p.iterdir()], "no fpC-"),
    ],
)
def test_bad_folders_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Callable[[Path], object],
    message: str,
) -> None:
    change(write_field(tmp_path / "frames") / name)
    out = tmp_path / "d"
    arguments = ["simulate", str(out), "--n", "2", "--onto", str(tmp_path / "frames"), "--processes", "1"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    *cautions, last = error.splitlines()
    assert message in last and all("FLUX20" in line for line in cautions) and "Traceback" not in error
    assert not (out / MANIFEST).exists()


def test_an_unusable_output_folder_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(BadInput, match=r"holds other files \(thesis.tex\)"):
        simulate_onto(tmp_path / "mine", 2, tmp_path / "absent", processes=1)


@real_frames
def test_real_sky_keeps_its_noise_and_gains_the_light(tables: SurveyTables) -> None:
    sets = find_frame_sets(STRIPE82)
    y, x = np.indices((STAMP, STAMP)) - (STAMP - 1) / 2
    r = np.hypot(y, x)
    corner, aperture, ring = r > 34, r < 15, (r > 22) & (r < 31)
    noise, light = [], []
    for index in range(100):
        field = load_field(field_blocks(sets, index, index + 1)[0].frame_set)
        one = inject(tables, field, 0, index)
        if max(one.galaxy.radius_bulge, one.galaxy.radius_disc) > 2.0:
            continue
        reference = field.frames[R_BAND]
        grid = one.place[R_BAND][0] + x, one.place[R_BAND][1] + y
        sky = np.stack([resample(f, *real_sky.project(reference, f, *grid)) for f in field.frames])
        sky *= [[[reference.geometry.pixel_area / f.geometry.pixel_area]] for f in field.frames]
        noise.append(one.image[:, corner].std(axis=1) / sky[:, corner].std(axis=1))
        total = one.galaxy.flux_bulge + one.galaxy.flux_disc
        flux = one.image[:, aperture].sum(axis=1) - aperture.sum() * np.median(one.image[:, ring], axis=1)
        light.append(flux / total)
        added, centre = moments(one.image - sky, 31.0)
        # Photon noise is below 1 % here; 1.5 % at most lies outside.
        np.testing.assert_allclose(added[1:4], total[1:4], rtol=0.04)
        _, centre = moments(one.image - sky, 8.0)
        assert np.abs(centre[1:4]).max() < 0.1
    assert len(noise) > 15
    # What the galaxy's own wing adds to the corners is below 1 %.
    np.testing.assert_allclose(np.median(noise, axis=0), 1.0, atol=0.01)
    # 1 to 3 % lies outside the aperture; so few give u to 4 % and the others to 1 %.
    off = np.abs(np.median(light, axis=0) - 0.98)
    assert (off < [0.1, 0.025, 0.025, 0.025, 0.04]).all()
