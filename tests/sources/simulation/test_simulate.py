"""Simulated galaxies: reproducible to the bit, fluxes that add up, a believable survey."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("galsim")
pytest.importorskip("speclite")

from hpcphotoz.data.format.manifest import MANIFEST, read_manifest  # noqa: E402
from hpcphotoz.data.format.stamps import Stamps  # noqa: E402
from hpcphotoz.data.read.rows import verify  # noqa: E402
from hpcphotoz.errors import BadInput  # noqa: E402
from hpcphotoz.sources.constants import (
    BANDS,  # noqa: E402
    PIXEL_SCALE,  # noqa: E402
)
from hpcphotoz.sources.optional_imports import sources_extra  # noqa: E402
from hpcphotoz.sources.simulation import simulate as module  # noqa: E402
from hpcphotoz.sources.simulation.population import (  # noqa: E402
    EXTINCTION,
    R_BAND,
    Galaxy,
    Survey,
    SurveyTables,
    draw_galaxy,
    make_survey_tables,
    mixture,
)
from hpcphotoz.sources.simulation.rendering import (  # noqa: E402
    STAMP,
    Camera,
    Exposure,
    _grid_size,
    add_noise,
    half_maximum,
    render,
)
from hpcphotoz.sources.simulation.simulate import simulate, simulate_object, simulate_rows  # noqa: E402
from tests.helpers.datasets import load  # noqa: E402


@pytest.fixture(scope="module")
def tables() -> SurveyTables:
    return make_survey_tables()


@pytest.fixture(scope="module")
def galaxies(tables: SurveyTables) -> list[Galaxy]:
    rng = np.random.default_rng(5)
    return [draw_galaxy(tables, rng) for _ in range(3000)]


def compact(**changes: object) -> Galaxy:
    flux = np.array([10.0, 40.0, 90.0, 130.0, 160.0])
    values: dict[str, object] = {
        "z": 0.1,
        "ebv": 0.0,
        "r_magnitude": 17.5,
        "galaxy_class": 0,
        "flux_bulge": 0.4 * flux,
        "flux_disc": 0.6 * flux,
        "radius_bulge": 0.5,
        "radius_disc": 1.0,
        "axis_ratio_bulge": 0.9,
        "axis_ratio_disc": 0.5,
        "position_angle": 0.0,
    }
    return Galaxy(**{**values, **changes})  # type: ignore[arg-type]


def exposure(dx: float = 0.0, dy: float = 0.0) -> Exposure:
    return Exposure(np.full(5, 1.4), np.array(Camera().sky_sigma), (dx, dy))


def same_bits(a: Stamps, b: Stamps) -> bool:
    return all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes()
        for name in ("images", "z_spec", "ebv", "object_id", "sky_sigma", "ra", "dec")
    )


def test_objects_do_not_depend_on_processes_number_or_shards(tmp_path: Path, tables: SurveyTables) -> None:
    # 40 objects are two tasks, so two processes do work; the second run has other shards.
    one = simulate(tmp_path / "one", 40, seed=3, shard_rows=16, processes=1)
    two = simulate(tmp_path / "two", 40, seed=3, shard_rows=7, processes=2)
    assert one.rows == two.rows == 40
    assert [s.rows for s in one.shards] == [16, 16, 8]
    a, b = load(tmp_path / "one"), load(tmp_path / "two")
    assert same_bits(a, b)
    assert same_bits(a[:4], simulate_rows(tables, 3, 0, 4))
    assert same_bits(a[5:8], simulate_rows(tables, 3, 5, 8))
    assert (a.object_id == (3 << 32) + np.arange(40)).all()
    verify(tmp_path / "one", one)


def test_seeds_and_objects_differ(tables: SurveyTables) -> None:
    a, b = simulate_rows(tables, 0, 0, 3), simulate_rows(tables, 1, 0, 3)
    assert len({*a.z_spec.tolist(), *b.z_spec.tolist()}) == 6
    assert np.abs(a.images[0] - a.images[1]).max() > 0


def test_provenance_tells_how(tmp_path: Path) -> None:
    simulate(tmp_path / "d", 2, seed=9, processes=1)
    record = json.loads((tmp_path / "d" / MANIFEST).read_text())["provenance"]
    assert (record["command"], record["n"], record["seed"]) == ("simulate", 2, 9)
    assert record["survey"]["r_limit"] == 17.8
    assert record["camera"]["sky_sigma"] == [0.048, 0.018, 0.027, 0.041, 0.199]
    assert {"galsim", "speclite", "numpy"} <= set(record["versions"])


def test_render_conserves_flux_and_centres() -> None:
    galaxy, y_x = compact(), np.mgrid[:STAMP, :STAMP] - (STAMP - 1) / 2
    image = render(galaxy, exposure(0.2, -0.15), Camera())
    total = image.sum(axis=(1, 2))
    # 0.5 %: what a de Vaucouleurs profile of this size leaves outside the stamp.
    np.testing.assert_allclose(total, galaxy.flux_bulge + galaxy.flux_disc, rtol=5e-3)
    y, x = ((y_x[axis] * image).sum(axis=(1, 2)) / total for axis in (0, 1))
    np.testing.assert_allclose(x, 0.2, atol=0.01)
    np.testing.assert_allclose(y, -0.15, atol=0.01)
    assert image.min() > -1e-4 * image.max()  # a wrong phase or grid rings


def test_render_matches_galsim_drawing_the_same_scene() -> None:
    import galsim

    galaxy, camera = compact(position_angle=0.6), Camera()
    image = render(galaxy, exposure(), camera)[R_BAND]
    bulge = galsim.DeVaucouleurs(half_light_radius=0.5 * np.sqrt(0.9), trunc=4.0 * np.sqrt(0.9))
    disc = galsim.Exponential(half_light_radius=1.0 * np.sqrt(0.5))
    light = bulge.shear(q=0.9, beta=0.6 * galsim.radians) * galaxy.flux_bulge[R_BAND]
    light += disc.shear(q=0.5, beta=0.6 * galsim.radians) * galaxy.flux_disc[R_BAND]
    sigma = 1.4 / (2 * half_maximum(camera.wide_size, camera.wide_height))
    wide = camera.wide_height * camera.wide_size**2
    psf = galsim.Gaussian(sigma=sigma) / (1 + wide)
    psf += galsim.Gaussian(sigma=sigma * camera.wide_size) * (wide / (1 + wide))
    drawn = galsim.Convolve(light, psf).drawImage(nx=STAMP, ny=STAMP, scale=PIXEL_SCALE).array
    # GalSim's default accuracy (folding_threshold 5e-3) spreads 0.5 % of the light over the stamp.
    np.testing.assert_allclose(image, drawn, atol=1e-3 * drawn.max())


@pytest.mark.parametrize("radius", [40.0, 110.0])  # pixels
def test_a_large_galaxy_does_not_wrap_around(radius: float) -> None:
    import galsim

    size, camera = radius * PIXEL_SCALE, Camera()
    galaxy = compact(radius_bulge=size, axis_ratio_bulge=1.0, radius_disc=size, axis_ratio_disc=1.0)
    image = render(galaxy, exposure(), camera)[R_BAND]
    accurate = galsim.GSParams(folding_threshold=1e-5, maximum_fft_size=8192)
    bulge = galsim.DeVaucouleurs(half_light_radius=size, trunc=8 * size, gsparams=accurate)
    disc = galsim.Exponential(half_light_radius=size, gsparams=accurate)
    y, x = np.mgrid[:STAMP, :STAMP] - (STAMP - 1) / 2
    place = np.hypot(x, y) * PIXEL_SCALE
    area = PIXEL_SCALE**2
    light = galaxy.flux_bulge[R_BAND] * np.vectorize(lambda r: bulge.xValue(r, 0.0))(place) * area
    light += galaxy.flux_disc[R_BAND] * np.vectorize(lambda r: disc.xValue(r, 0.0))(place) * area
    # Beyond 20 pixels the seeing moves such a profile by 0.3 %; light that wrapped around a grid of 256
    # pixels added 2 % at 40 pixels and 26 % at 110.
    outside = np.hypot(x, y) > 20
    np.testing.assert_allclose(image[outside], light[outside], rtol=5e-3)


def test_smaller_galaxies_are_drawn_on_the_same_grid_as_ever() -> None:
    for radius, size in ((1.0, 128), (10.0, 128), (10.1, 256), (28.0, 256), (28.1, 512), (112.0, 1024)):
        galaxy = compact(radius_bulge=radius * PIXEL_SCALE, radius_disc=0.3)
        assert _grid_size(galaxy, STAMP) == size


def test_point_spread_function_has_the_width_it_says() -> None:
    point = compact(radius_bulge=0.01, radius_disc=0.01)
    image = render(point, exposure(0.5, 0.5), Camera())[R_BAND]
    row = image[STAMP // 2, STAMP // 2 :]
    half = np.interp(-0.5 * row[0], -row, np.arange(len(row)))
    # The square pixel widens the 1.4" profile by 2 %.
    assert 2 * half * PIXEL_SCALE == pytest.approx(1.42, abs=0.03)


def test_noise_is_sky_plus_photons(tables: SurveyTables) -> None:
    rng, camera, conditions = np.random.default_rng(0), Camera(), exposure()
    empty = add_noise(np.zeros((5, STAMP, STAMP)), conditions, camera, rng)
    # 4096 pixels give a standard deviation to 1.1 %; 5 % is 4.5 of those.
    np.testing.assert_allclose(empty.std(axis=(1, 2)), conditions.sky_sigma, rtol=0.05)
    bright = add_noise(np.full((5, STAMP, STAMP), 10.0), conditions, camera, rng)
    expected = np.sqrt(conditions.sky_sigma**2 + 10.0 / np.array(camera.electrons))
    np.testing.assert_allclose(bright.std(axis=(1, 2)), expected, rtol=0.05)


def test_stored_sky_sigma_is_that_of_the_stamp(tables: SurveyTables) -> None:
    stamps = simulate_rows(tables, 2, 0, 40)
    border = np.ones((STAMP, STAMP), np.bool_)
    border[8:-8, 8:-8] = False
    # Differences of neighbours take out the galaxy's wing; their scatter is sqrt(2) sigma.
    pixels = np.diff(stamps.images, axis=3)[:, :, border[:, 1:] & border[:, :-1]]
    measured = 1.4826 * np.median(np.abs(pixels), axis=2) / np.sqrt(2)
    np.testing.assert_allclose(np.median(measured / stamps.sky_sigma, axis=0), 1.0, atol=0.04)
    assert 0.05 < np.log(stamps.sky_sigma).std(axis=0).mean() < 0.2


def test_survey_has_the_depth_of_the_main_sample(galaxies: list[Galaxy]) -> None:
    z, r = np.array([g.z for g in galaxies]), np.array([g.r_magnitude for g in galaxies])
    assert 0.005 <= z.min() and z.max() <= 0.4
    assert 0.08 < np.median(z) < 0.11
    assert r.max() < 17.8
    # Counts of a shallow survey grow as 10^(0.6 m), a factor 4 a magnitude; redshift takes some of it.
    assert 2.8 < (r < 17.6).sum() / (r < 16.6).sum() < 4.4
    classes = np.bincount([g.galaxy_class for g in galaxies], minlength=3) / len(galaxies)
    assert classes.min() > 0.05 and classes.max() < 0.6
    ebv = np.array([g.ebv for g in galaxies])
    assert 0.02 < np.median(ebv) < 0.05 and ebv.min() > 0


def test_colours_redden_with_redshift(tables: SurveyTables, galaxies: list[Galaxy]) -> None:
    g_r = [-2.5 * np.log10(np.divide(*mixture(tables, z, 0.0)[[1, 2]])) for z in (0.02, 0.1, 0.2, 0.3)]
    assert (np.diff(g_r) > 0.1).all()
    # An elliptical of the CWW set: g - r = 0.8 at rest, 1.0 at z = 0.1, 1.7 at z = 0.4.
    assert g_r[1] == pytest.approx(1.0, abs=0.05)
    early = [g for g in galaxies if g.galaxy_class == 0]
    flux = np.array([(g.flux_bulge + g.flux_disc) * 10 ** (0.4 * g.ebv * EXTINCTION) for g in early])
    colour, z = -2.5 * np.log10(flux[:, 1] / flux[:, 2]), np.array([g.z for g in early])
    assert np.corrcoef(colour, z)[0, 1] > 0.9


def test_mixture_meets_its_templates(tables: SurveyTables) -> None:
    for kind in range(4):
        np.testing.assert_allclose(mixture(tables, tables.z[7], kind), tables.relative_flux[7, kind])
    np.testing.assert_allclose(mixture(tables, 0.4, 9.0), tables.relative_flux[-1, 3])
    halfway = mixture(tables, tables.z[7], 1.5)
    np.testing.assert_allclose(halfway, tables.relative_flux[7, 1:3].mean(axis=0))


def test_extinction_dims_by_the_law_and_leaves_the_selection_alone() -> None:
    clear = make_survey_tables(Survey(ebv_median=1e-12))
    dusty = make_survey_tables(Survey(ebv_median=0.1, ebv_scatter=0.0))
    for seed in range(20):
        a = draw_galaxy(clear, np.random.default_rng(seed))
        b = draw_galaxy(dusty, np.random.default_rng(seed))
        ratio = (b.flux_bulge + b.flux_disc) / (a.flux_bulge + a.flux_disc)
        np.testing.assert_allclose(-2.5 * np.log10(ratio), 0.1 * EXTINCTION, atol=1e-9)
        assert b.r_magnitude == pytest.approx(a.r_magnitude)


def test_bulges_are_redder_than_discs(galaxies: list[Galaxy]) -> None:
    spirals = [g for g in galaxies if g.galaxy_class == 1]
    redder = [g.flux_bulge[2] * g.flux_disc[1] > g.flux_bulge[1] * g.flux_disc[2] for g in spirals]
    assert np.mean(redder) > 0.95


def test_stamp_flux_is_the_catalogue_flux(tables: SurveyTables) -> None:
    checked = 0
    for index in range(30):
        galaxy, conditions, image, (ra, dec) = simulate_object(tables, 4, index)
        assert image.dtype == np.float32 and image.shape == (len(BANDS), STAMP, STAMP)
        assert 120 <= ra <= 240 and 0 <= dec <= 60
        if max(galaxy.radius_disc, galaxy.radius_bulge) > 2.5:
            continue
        total = image.sum(axis=(1, 2), dtype=np.float64)
        flux = galaxy.flux_bulge + galaxy.flux_disc
        noise = np.sqrt(STAMP**2 * conditions.sky_sigma**2 + flux / np.array(Camera().electrons))
        # 1.5 % lies outside the stamp at most; noise to 4 sigma.
        assert (np.abs(total - flux) < 4 * noise + 0.015 * flux).all()
        checked += 1
    assert checked > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n 0"),
        ({"n": 4, "seed": -1}, "seed -1"),
        ({"n": 4, "seed": 1 << 31}, "seed 2147483648"),
        ({"n": 4, "processes": 0}, "processes 0"),
        ({"n": 4, "processes": 1, "shard_rows": 0}, "shard rows 0"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        simulate(tmp_path / "d", **arguments)
    assert not (tmp_path / "d" / MANIFEST).exists()


def test_interrupted_simulation_is_not_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(results: Iterator[tuple[int, Stamps]]) -> Iterator[Stamps]:
        yield next(results)[1]
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "in_order", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "d", 64, shard_rows=8, processes=1)
    assert list((tmp_path / "d").glob("shard-*.h5"))
    with pytest.raises(BadInput, match="unfinished"):
        read_manifest(tmp_path / "d")
    monkeypatch.undo()
    assert simulate(tmp_path / "d", 3, processes=1).rows == 3


def test_a_worker_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SimulateChunk", Leave)
    with pytest.raises(BadInput, match="a worker process died"):
        simulate(tmp_path / "d", 64, processes=2)
    assert not (tmp_path / "d" / MANIFEST).exists()


@dataclass(frozen=True)
class Leave:
    tables: SurveyTables
    seed: int

    def __call__(self, chunk: tuple[int, int]) -> Stamps:
        os._exit(9)


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "galsim", None)
    with pytest.raises(BadInput, match=r"galsim.*hpcphotoz\[sources\]") as caught, sources_extra():
        import galsim  # noqa: F401
    assert "\n" not in str(caught.value)
