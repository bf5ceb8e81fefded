"""Pairs of objects at one place on the sky are those of a comparison of all with all."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import Header, read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.select import duplicates
from hpcphotoz.data.select.duplicates import Duplicates, find_duplicates
from hpcphotoz.errors import BadInput
from tests.helpers.commands import fails
from tests.helpers.datasets import make_stamps

ARCSEC = 1 / 3600


def write(out: Path, ra: np.ndarray, dec: np.ndarray, ids: np.ndarray | None = None) -> Path:
    stamps = replace(make_stamps(len(ra), size=4), ra=np.array(ra, float), dec=np.array(dec, float))
    stamps = stamps if ids is None else replace(stamps, object_id=np.array(ids, np.int64))
    with DatasetWriter(out, Header(tuple("ugriz"), 4, 0.4), 37, {"made": "for a test"}) as writer:
        writer.append(stamps)
    return out


def find(folder: Path, arcsec: float) -> Duplicates:
    return find_duplicates(folder, read_manifest(folder), arcsec)


def brute_force(ra: np.ndarray, dec: np.ndarray, arcsec: float) -> dict[tuple[int, int], float]:
    """Separations of all pairs closer than a limit, by comparing all with all."""
    places = SkyCoord(ra, dec, unit="deg")
    found: dict[tuple[int, int], float] = {}
    for k in range(len(ra) - 1):
        separations = places[k].separation(places[k + 1 :]).to_value(units.arcsec)
        found |= {(k, k + 1 + int(j)): separations[j] for j in np.flatnonzero(separations < arcsec)}
    return found


@pytest.mark.parametrize("where", ["seam", "north pole", "south pole", "equator"])
@pytest.mark.parametrize("arcsec", [0.01, 1.0, 30.0])
def test_pairs_are_those_of_all_with_all(where: str, arcsec: float, tmp_path: Path) -> None:
    rng, n, spread = np.random.default_rng(3), 120, 8 * arcsec * ARCSEC
    if "pole" in where:
        sign, ra = (1 if where == "north pole" else -1), rng.uniform(0, 360, n)
        dec = sign * (90 - spread * np.sqrt(rng.random(n)))
    else:
        dec = rng.uniform(-spread, spread, n) + (40 if where == "seam" else 0)
        ra = np.mod(rng.uniform(-spread, spread, n) / np.cos(np.radians(dec)), 360)
        ra += 0 if where == "seam" else 100
    ra[:2] = (0, 360) if where == "seam" else ra[:2]
    dec[:2] = dec[0] if where == "seam" else dec[:2]
    found = find(write(tmp_path / "set", ra, dec), arcsec)
    wanted = brute_force(ra, dec, arcsec)
    assert len(wanted) > 20 and list(map(tuple, found.pairs.tolist())) == sorted(wanted)
    assert np.allclose(found.separation, [wanted[pair] for pair in sorted(wanted)], rtol=1e-6, atol=1e-9)
    if where == "seam":
        assert wanted[0, 1] == 0 and any(abs(ra[a] - ra[b]) > 300 for a, b in wanted), "across 0"


def test_groups_are_chains_of_pairs_and_take_the_smallest_id(tmp_path: Path) -> None:
    ids = np.array([50, 40, 30, 20, 10, 60, 7])
    ra = 10 + np.array([0, 0.8, 1.6, 100, 100.5, 200, 300]) * ARCSEC  # three in a chain, two, two alone
    found = find(write(tmp_path / "set", ra, np.zeros(7), ids), 1)
    assert found.pairs.tolist() == [[0, 1], [1, 2], [3, 4]]
    assert found.group.tolist() == [30, 30, 30, 10, 10, 60, 7]
    facts = found.facts()
    assert facts["pairs"] == 3 and facts["groups"] == 2 and facts["objects_in_groups"] == 5
    assert facts["group_sizes"] == {"2": 1, "3": 1} and json.dumps(facts)
    first = facts["first_pairs"][0]
    assert first["object_id"] == [50, 40] and first["arcsec"] == pytest.approx(0.8, rel=1e-6)
    assert first["delta_z"] == pytest.approx(float(found.z_spec[1]) - float(found.z_spec[0]))


def test_one_id_in_two_shards_is_one_object(tmp_path: Path) -> None:
    """Otherwise a split by group would tear apart what a split by id keeps together."""
    ids = np.arange(80)
    ids[70] = 5
    found = find(write(tmp_path / "set", np.linspace(0, 300, 80), np.zeros(80), ids), 1)
    assert not len(found.pairs) and found.group.tolist() == ids.tolist()
    ra = np.linspace(0, 300, 80)
    ra[71] = ra[70]
    found = find(write(tmp_path / "near", ra, np.zeros(80), ids), 1)
    assert found.group[[5, 70, 71]].tolist() == [5, 5, 5]
    found.write_groups(tmp_path / "groups.csv")
    lines = (tmp_path / "groups.csv").read_text().splitlines()
    assert lines[0] == "object_id,group" and len(lines) == 80 and "71,5" in lines and "6,6" in lines


def test_objects_of_unknown_position_are_counted_and_in_no_pair(tmp_path: Path) -> None:
    ra, dec = np.array([np.nan, np.nan, 1, 1, np.inf]), np.array([0, 0, 2, 2, 0.0])
    found = find(write(tmp_path / "set", ra, dec), 5)
    assert found.pairs.tolist() == [[2, 3]] and found.unplaced == 3 and found.separation.tolist() == [0]
    with pytest.raises(BadInput, match="none: no object has a position, by which duplicates are found"):
        find(write(tmp_path / "none", np.full(3, np.nan), np.zeros(3)), 5)
    assert find(write(tmp_path / "one", np.ones(1), np.ones(1)), 5).group.tolist() == [0]


def test_more_pairs_than_memory_has_room_for_are_refused_before_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "set", np.zeros(200), np.zeros(200))  # placeholders
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 19_899)
    with pytest.raises(BadInput, match="19900 pairs of objects are closer than 1 arcsec, at most 19899"):
        find(folder, 1)
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 19_900)
    assert find(folder, 1).facts()["group_sizes"] == {"200": 1}


def test_inspect_lists_pairs_and_writes_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n, out = 60, tmp_path / "groups.csv"
    ra = np.linspace(0, 300, n)
    ra[30:] = ra[:30] + 0.5 * ARCSEC
    folder = write(tmp_path / "set", ra, np.zeros(n), np.arange(n))
    words = ["inspect", str(folder), "--duplicates", "1"]
    assert main([*words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "duplicates           30 pairs closer than 1 arcsec, 30 groups (30 of 2 objects)" in printed
    first = next(line for line in printed if " 0 and 30: " in line)
    assert first.strip().startswith("0 and 30: 0.5000 arcsec, delta z ")
    assert "... and 20 more" in printed[-2] and printed[-1].endswith("object_id and group of every object")
    assert out.read_text().splitlines()[:3] == ["object_id,group", "0,0", "1,1"]
    assert out.read_text().splitlines()[-1] == "59,29"
    assert main([*words, "--out", str(out), "--json"]) == 0, "its own table is replaced"
    facts = json.loads(capsys.readouterr().out)["duplicates"]
    assert facts["group_sizes"] == {"2": 30} and len(facts["first_pairs"]) == 10
    assert main(["inspect", str(folder), "--json"]) == 0
    assert "duplicates" not in json.loads(capsys.readouterr().out)
    (tmp_path / "other.csv").write_text("ra,dec\n")
    fails(capsys, [*words, "--out", tmp_path / "other.csv"], "exists and holds no groups")
    fails(capsys, [*words[:2], "--out", out], "give --duplicates ARCSEC too")
    fails(capsys, [*words, "--out", tmp_path / "no" / "a.csv"], "no such folder")
    for wrong in ("0", "-1", "3601", "nan"):
        fails(capsys, [*words[:3], wrong], f"argument --duplicates: {wrong}: must be")


def test_without_scipy_the_extra_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", np.zeros(3), np.zeros(3))
    code = "import sys; sys.modules['scipy'] = None; from hpcphotoz.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "inspect", str(folder), "--duplicates", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "pip install 'hpcphotoz[sources]'" in done.stderr
