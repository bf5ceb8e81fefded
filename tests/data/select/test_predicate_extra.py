"""Conditions on extra columns of every type, on a dataset and in refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hpcphotoz.config import Data
from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.read.shard_files import ShardFiles
from hpcphotoz.data.select.census import condition_ranges
from hpcphotoz.data.select.predicate import Predicate
from hpcphotoz.data.select.subset import Subset
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from tests.helpers.data.extra import EXTRA, extra_stamps, write_extra_dataset

N = 40
STAMPS = extra_stamps(N)
E = STAMPS.extra


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_extra_dataset(tmp_path_factory.mktemp("where") / "d", N)


CASES = [
    ("petro_r <= 17.8", E["petro_r"] <= np.float32(17.8)),
    ("not petro_r > 17.8", ~(E["petro_r"] > np.float32(17.8))),
    ("isfinite(petro_r) and zwarning >= 64", np.isfinite(E["petro_r"]) & (E["zwarning"] >= 64)),
    ("zwarning * 2 > 127", E["zwarning"].astype(int) * 2 > 127),
    ("zwarning + 1000 > 1050", E["zwarning"] > 50),
    ("flags % 2 == 1", E["flags"] % 2 == 1),
    ("flags / 2 > 1e18", E["flags"] / 2 > 1e18),
    ("clean and zwarning < 50", E["clean"] & (E["zwarning"] < 50)),
    ("not clean", ~E["clean"]),
    ("spectype == 'GALAXY' or spectype == 'QSO'", (E["spectype"] == b"GALAXY") | (E["spectype"] == b"QSO")),
    ("spectype != 'GALAXY'", E["spectype"] != b"GALAXY"),
    (
        "psf_fwhm_g < 1.5 and psf_fwhm_r < psf_fwhm_g",
        (E["psf_fwhm"][:, 1] < 1.5) & (np.diff(E["psf_fwhm"])[:, 1] < 0),
    ),
    ("z_err < 5e-4 and z_spec < 0.2", (E["z_err"] < 5e-4) & (STAMPS.z_spec < np.float32(0.2))),
]


@pytest.mark.parametrize(("where", "expected"), CASES, ids=[text for text, _ in CASES])
def test_the_right_objects_are_read_and_trained_on(
    folder: Path, where: str, expected: npt.NDArray[np.bool_]
) -> None:
    manifest = read_manifest(folder)
    subset = Subset.from_options(Data(where=where), "all", manifest.header.bands, manifest.header.extra)
    found = Stamps.concatenate(list(read_rows(folder, manifest, 7, subset)))
    assert 0 < expected.sum() < N
    np.testing.assert_array_equal(found.object_id, STAMPS.object_id[expected])
    np.testing.assert_array_equal(found.extra["petro_r"], E["petro_r"][expected])
    options = Data(where=where, block_rows=4, validation=0.0)
    stream = Stream(folder, options, global_batch=1, seed=3)
    seen = np.concatenate([batch.object_id.numpy() for batch in stream.epoch(0)])
    assert sorted(seen.tolist()) == sorted(STAMPS.object_id[expected].tolist())


@pytest.mark.parametrize(
    ("text", "said", "at"),
    [
        ("petro_i < 1", "knows no 'petro_i'", 1),
        ("psf_fwhm < 1", "knows no 'psf_fwhm'", 1),
        ("psf_fwhm_i < 1", "knows no 'psf_fwhm_i'", 1),
        ("variance < 1", "knows no 'variance'", 1),
        ("mask == 1", "knows no 'mask'", 1),
        ("zwarning < 1.5", "mixes zwarning with real numbers", 1),
        ("ebv < 1 and flags + zwarning < petro_r", "mixes flags with real numbers", 13),
        ("spectype == 1", "has text beside '=='", 1),
        ("spectype < 'GALAXY'", "has text beside '<'", 1),
        ("'a' == ebv", "has text beside '=='", 1),
        ("isfinite(spectype)", "isfinite of text", 1),
        ("-spectype == 'a'", "has text beside '-'", 1),
        ("not spectype", "something else than conditions", 1),
        ("clean == 1", "something else than numbers", 1),
        ("clean + 1 > 0", "something else than numbers", 1),
        ("spectype", "is a number, not a condition", 1),
        ("'a' == 'a'", "asks nothing", 1),
    ],
)
def test_what_a_column_cannot_mean_is_refused(text: str, said: str, at: int) -> None:
    with pytest.raises(BadInput) as error:
        Predicate.parse(text, tuple("ugr"), EXTRA)
    line = str(error.value)
    assert said in line and f", at character {at};" in line and "\n" not in line
    assert all(name in line for name in ("petro_r", "psf_fwhm_u", "psf_fwhm_r", "spectype"))


def test_whole_numbers_beyond_63_bits_are_refused() -> None:
    predicate = Predicate.parse("ebv < 1 and flags > 0", tuple("ugr"), EXTRA)
    columns: dict[str, npt.NDArray[Any]] = {
        "ebv": np.zeros(2, np.float32),
        "flags": np.array([1, 2**63], np.uint64),
    }
    with pytest.raises(
        BadInput, match=r"reads 'flags', which has a value of 2\^63 or more.*, at character 13;"
    ):
        predicate(columns)


def test_a_long_list_of_names_is_cut() -> None:
    many = [ExtraColumn(f"column_{k}", "float32") for k in range(300)]
    assert Predicate.parse("column_299 < 1", tuple("ugr"), many).columns == {"column_299"}
    with pytest.raises(BadInput, match="and 268 more; functions") as error:
        Predicate.parse("nothing < 1", tuple("ugr"), many)
    assert len(str(error.value)) < 1000


def test_where_no_object_meets_a_condition_its_columns_are_described(folder: Path) -> None:
    manifest = read_manifest(folder)
    text = (
        "clean and not clean and petro_r > 1 and log10(psf_fwhm_g) > 0 and zwarning == 3 and flags > 1 "
        "and spectype == 'QSO'"
    )
    subset = Subset.from_options(Data(where=text), "all", manifest.header.bands, manifest.header.extra)
    petro, fwhm = E["petro_r"], E["psf_fwhm"][:, 1]
    assert condition_ranges(manifest, ShardFiles(folder, manifest), subset).split("; ") == [
        f": clean is true for {E['clean'].sum()} of them",
        f"petro_r is {np.nanmin(petro):.6g} to {np.nanmax(petro):.6g}, unknown for 1",
        f"psf_fwhm_g is {fwhm.min():.6g} to {fwhm.max():.6g}",
        f"zwarning is {E['zwarning'].min()} to {E['zwarning'].max()}",
        f"flags is {E['flags'].min()} to {E['flags'].max()}",
        "spectype is GALAXY, QSO, STAR",
    ]
    part = condition_ranges(manifest, ShardFiles(folder, manifest), subset, lost=range(1, 9))
    assert f"clean is true for {E['clean'][:8].sum()} of them" in part
