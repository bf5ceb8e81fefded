"""Object identifiers: one rule for every source; missing or rounded identifiers are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("astropy")

from astropy.table import MaskedColumn, Table

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.catalogue import (
    read_catalogue,
    read_redshifts,
)
from hpcphotoz.sources.identifiers import identifier, identifiers
from tests.helpers.datasets import load
from tests.helpers.sources.array_files import hayat, ingest
from tests.helpers.sources.sdss_files import write_table

EBOSS = 11_000_000_000_000_000_001  # specObjIDs of eBOSS plates from 8192 on are above 2^63
SDSS = 1237661971724599442
NUMBERS = [0, 7, SDSS, 2**53 + 1, 2**63 - 1, 2**63, EBOSS, 2**64 - 1]


def fail(k: int, what: str) -> BadInput:
    return BadInput(f"row {k} {what}")


def ids(values: Any) -> list[int]:
    return [int(one) for one in identifiers(np.asanyarray(values), fail)]


def test_every_number_is_recovered_from_any_type() -> None:
    unsigned = np.array(NUMBERS, np.uint64)
    found = identifiers(unsigned, fail)
    np.testing.assert_array_equal(found.astype(np.uint64), unsigned)
    for other in (
        np.array([str(one) for one in NUMBERS]),
        np.array([f" {one} ".encode() for one in NUMBERS]),
        np.array(NUMBERS, np.object_),
        unsigned.astype(">u8"),
    ):
        assert ids(other) == found.tolist()
    assert ids(np.array([-5, SDSS], np.int64)) == [-5, SDSS] == ids(["-5", str(SDSS)])
    assert ids(np.array([7, 255], np.uint8)) == [7, 255] == ids([7.0, 255.0]) == ids(["7.0", "255."])


def test_text_becomes_a_hash_and_no_two_texts_the_same_one() -> None:
    text = ["007", "+7", "a-1", "12e34567", "0001m002-5", str(2**64), "1_000", "-0", "\u0663"]
    found = ids(text)
    assert len(set(found)) == len(text) and all(0 <= one < 2**63 for one in found)
    assert not set(found) & {7, 1000, 0, 3}
    assert identifier("a-1") == 7276326368275286709  # stable between machines and versions


@pytest.mark.parametrize(
    ("values", "place", "what"),
    [
        (np.array([1.0, 2.0**53]), 1, "may have lost digits"),
        (np.array([1.0, 2.0**24], np.float32), 1, "may have lost digits"),
        (np.array([2.0, 1.5]), 1, "may have lost digits"),
        (np.array([1.0, np.inf]), 1, "may have lost digits"),
        (np.array([1.0, np.nan]), 1, "is no id"),
        (["1", "1.2376619717245994e+18"], 1, "may have lost digits"),
        (["1", "1.2376e18"], 1, "may have lost digits"),
        (["1", "1e+18"], 1, "may have lost digits"),
        (["1", f"{SDSS}.0"], 1, "may have lost digits"),
        (["1", "2.5"], 1, "may have lost digits"),
        (["1", " "], 1, "is no id"),
        (["1", "nan"], 1, "is no id"),
        (np.array([1, None], np.object_), 1, "is no id"),
        (np.ma.array([1, 2, 3], mask=[False, False, True]), 2, "is no id"),
        (np.array([b"\xff"]), 0, "is not text"),
        (np.array([1j]), 0, "is of type complex128"),
    ],
)
def test_ids_that_cannot_be_used_are_named(values: Any, place: int, what: str) -> None:
    with pytest.raises(BadInput, match=f"row {place} {what}"):
        ids(values)


def test_every_source_has_the_same_ids(tmp_path: Path) -> None:
    numbers = np.array(NUMBERS[1:], np.uint64)
    expected = numbers.view(np.int64).tolist()
    rows: list[dict[str, object]] = [{"object_id": one, "ra": 1, "dec": 2, "z": 0.1} for one in NUMBERS[1:]]
    csv = write_table(tmp_path / "t.csv", rows)
    assert read_catalogue(csv).object_id.tolist() == expected
    assert np.isfinite(read_redshifts(csv).lookup(np.array(expected))).all()
    table = Table({"object_id": [str(one) for one in NUMBERS[1:]], "z": [0.1] * 7, "ra": [1.0] * 7})
    table["dec"] = 2.0
    table.write(tmp_path / "t.fits")
    assert read_catalogue(tmp_path / "t.fits").object_id.tolist() == expected
    assert np.isfinite(read_redshifts(tmp_path / "t.fits").lookup(np.array(expected))).all()
    manifest, _ = ingest(
        tmp_path / "out", [hayat(tmp_path / "a.h5", 7, 16, ObjID=numbers)], "hayat", processes=1
    )
    assert load(tmp_path / "out", manifest).object_id.tolist() == expected
    assert "less 2^64" in manifest.provenance["object_id"]


def test_an_id_that_is_masked_is_no_id(tmp_path: Path) -> None:
    masked = MaskedColumn(np.array([5, 999999, 7], np.int64), mask=[False, True, False])
    table = Table({"object_id": masked, "z": [0.1, 0.2, 0.3], "ra": [1.0] * 3, "dec": [2.0] * 3})
    table.write(tmp_path / "t.vot", format="votable")
    for read in (read_redshifts, read_catalogue):
        with pytest.raises(BadInput, match="t.vot: row 2: object_id .* is no id"):
            read(tmp_path / "t.vot")
    (tmp_path / "t.csv").write_text("object_id,z,ra,dec\n1,0.1,1,2\n,0.2,1,2\n")
    for read in (read_redshifts, read_catalogue):
        with pytest.raises(BadInput, match="t.csv: line 3: object_id .* is no id"):
            read(tmp_path / "t.csv")
