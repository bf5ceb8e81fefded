"""Simulated datasets: reproducible to the bit, with stamps whose flux is that of the catalogue."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("galsim")
pytest.importorskip("speclite")

from hpcphotoz.data.format.manifest import MANIFEST, read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.read.rows import verify
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.build import UnitStamps
from hpcphotoz.sources.constants import BANDS
from hpcphotoz.sources.optional_imports import sources_extra
from hpcphotoz.sources.simulation import simulate as module
from hpcphotoz.sources.simulation.exposure import CAMERA
from hpcphotoz.sources.simulation.rendering import STAMP
from hpcphotoz.sources.simulation.simulate import (
    Ranges,
    SimulatedGalaxy,
    SimulateGalaxies,
    index_ranges,
    parts_of,
    simulate,
    simulate_object,
)
from hpcphotoz.sources.simulation.survey_tables import SurveyTables
from tests.helpers.datasets import load


def same_bits(a: Stamps, b: Stamps) -> bool:
    return all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes()
        for name in ("images", "z_spec", "ebv", "object_id", "sky_sigma", "ra", "dec")
    )


def simulated(tables: SurveyTables, seed: int, start: int, stop: int) -> Stamps:
    stamps = SimulateGalaxies(tables, seed)(((start, stop),)).stamps
    assert stamps is not None
    return stamps


def test_objects_do_not_depend_on_processes_number_or_shards(tmp_path: Path, tables: SurveyTables) -> None:
    # 40 objects are two tasks, so two processes do work; the second run has other shards.
    one = simulate(tmp_path / "one", 40, seed=3, shard_rows=16, processes=1, storage="float32")
    two = simulate(tmp_path / "two", 40, seed=3, shard_rows=7, processes=2, storage="float32")
    assert one.rows == two.rows == 40
    assert [s.rows for s in one.shards] == [16, 16, 8]
    a, b = load(tmp_path / "one"), load(tmp_path / "two")
    assert same_bits(a, b)
    assert same_bits(a[:4], simulated(tables, 3, 0, 4))
    assert same_bits(a[5:8], simulated(tables, 3, 5, 8))
    assert (a.object_id == (3 << 32) + np.arange(40)).all()
    verify(tmp_path / "one", one)


def test_what_is_appended_is_stored_as_the_dataset(tmp_path: Path, tables: SurveyTables) -> None:
    out = tmp_path / "d"
    simulate(out, 2, seed=3, processes=1, storage="int16")
    assert simulate(out, 3, seed=3, processes=1, append=True).header.storage == "int16"
    stamps, made = load(out), simulated(tables, 3, 0, 3)
    error = np.abs(stamps.images - made.images) / made.sky_sigma[:, :, None, None]
    assert 0.01 < error.max() < 1.01 / 64
    with pytest.raises(BadInput, match="cannot append: storage float32, but int16 in the dataset"):
        simulate(out, 4, seed=3, processes=1, append=True, storage="float32")


def test_seeds_and_objects_differ(tables: SurveyTables) -> None:
    a, b = simulated(tables, 0, 0, 3), simulated(tables, 1, 0, 3)
    assert len({*a.z_spec.tolist(), *b.z_spec.tolist()}) == 6
    assert np.abs(a.images[0] - a.images[1]).max() > 0


def test_provenance_records_how_a_dataset_was_simulated(tmp_path: Path) -> None:
    simulate(tmp_path / "d", 2, seed=9, processes=1)
    record = json.loads((tmp_path / "d" / MANIFEST).read_text())["provenance"]
    assert (record["command"], record["n"], record["seed"]) == ("simulate", 2, 9)
    assert record["survey"]["r_limit"] == 17.8
    assert record["camera"]["sky_sigma"] == [0.048, 0.018, 0.027, 0.041, 0.199]
    assert {"galsim", "speclite", "numpy"} <= set(record["versions"])


def test_stored_sky_sigma_is_that_of_the_stamp(tables: SurveyTables) -> None:
    stamps = simulated(tables, 2, 0, 40)
    border = np.ones((STAMP, STAMP), np.bool_)
    border[8:-8, 8:-8] = False
    # Differences of neighbours take out the galaxy's wing; their scatter is sqrt(2) sigma.
    pixels = np.diff(stamps.images, axis=3)[:, :, border[:, 1:] & border[:, :-1]]
    measured = 1.4826 * np.median(np.abs(pixels), axis=2) / np.sqrt(2)
    np.testing.assert_allclose(np.median(measured / stamps.sky_sigma, axis=0), 1.0, atol=0.04)
    assert 0.05 < np.log(stamps.sky_sigma).std(axis=0).mean() < 0.2


def test_stamp_flux_is_the_catalogue_flux(tables: SurveyTables) -> None:
    checked = 0
    for index in range(30):
        one = simulate_object(tables, 4, index)
        galaxy, image = one.galaxy, one.image
        assert image.dtype == np.float32 and image.shape == (len(BANDS), STAMP, STAMP)
        assert 120 <= one.ra <= 240 and 0 <= one.dec <= 60
        if max(galaxy.radius_disc, galaxy.radius_bulge) > 2.5:
            continue
        total = image.sum(axis=(1, 2), dtype=np.float64)
        flux = galaxy.flux_bulge + galaxy.flux_disc
        noise = np.sqrt(STAMP**2 * one.sky_sigma**2 + flux / np.array(CAMERA.electrons))
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


def test_parts_and_shards_hold_every_galaxy_once_and_in_order() -> None:
    none = np.zeros(0, np.int64)
    units = index_ranges(200, 70, none)
    assert units == [((0, 70),), ((70, 140),), ((140, 200),)]
    assert parts_of(units[1]) == [((70, 102),), ((102, 134),), ((134, 140),)]
    assert index_ranges(10, 4, np.array([0, 1, 5])) == [((2, 5), (6, 7)), ((7, 10),)]
    assert index_ranges(3, 4, np.arange(3)) == []


def test_append_simulates_the_galaxies_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "d", tmp_path / "whole"
    simulate(out, 5, seed=2, shard_rows=3, processes=1)
    manifest = simulate(out, 9, seed=2, shard_rows=3, processes=1, append=True)
    assert "added 4 objects in 2 shards; 5 were there already" in capsys.readouterr().err
    assert [shard.rows for shard in manifest.shards] == [3, 2, 3, 1]
    simulate(whole, 9, seed=2, shard_rows=3, processes=1)
    assert same_bits(load(out), load(whole))
    verify(out, manifest)
    more = simulate(out, 2, seed=3, processes=1, append=True)
    assert more.rows == 11 and [one["seed"] for one in more.provenance["appended"]] == [2, 3]


def test_an_interrupted_simulation_is_not_a_dataset_and_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "d"

    def stop_at_17(tables: SurveyTables, seed: int, index: int) -> SimulatedGalaxy:
        if index == 17:
            raise KeyboardInterrupt
        return simulate_object(tables, seed, index)

    monkeypatch.setattr(module, "simulate_object", stop_at_17)
    with pytest.raises(KeyboardInterrupt):
        simulate(out, 20, shard_rows=8, processes=1)
    monkeypatch.undo()
    assert [path.name for path in sorted(out.glob("shard-*.hdf5"))] == [
        "shard-00000.hdf5",
        "shard-00001.hdf5",
    ]
    with pytest.raises(BadInput, match="unfinished"):
        read_manifest(out)
    before = (out / "shard-00001.hdf5").stat().st_mtime_ns
    with pytest.raises(BadInput, match="unfinished dataset of other input or options"):
        simulate(out, 20, seed=1, shard_rows=8, processes=1)
    manifest = simulate(out, 20, shard_rows=8, processes=1)
    assert "kept 2 finished shards of an earlier run" in capsys.readouterr().err
    assert (out / "shard-00001.hdf5").stat().st_mtime_ns == before
    fresh = simulate(tmp_path / "fresh", 20, shard_rows=8, processes=1)
    assert manifest == fresh


def test_a_worker_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SimulateGalaxies", Leave)
    with pytest.raises(BadInput, match="a worker process died"):
        simulate(tmp_path / "d", 64, processes=2)
    assert not (tmp_path / "d" / MANIFEST).exists()


@dataclass(frozen=True)
class Leave(SimulateGalaxies):
    def __call__(self, unit: Ranges) -> UnitStamps:
        os._exit(9)


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "galsim", None)
    with pytest.raises(BadInput, match=r"galsim.*hpcphotoz\[sources\]") as caught, sources_extra():
        import galsim  # noqa: F401
    assert "\n" not in str(caught.value)
