"""Objects of one group fall into the same part of the split, whatever the group is."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash

from hpcphotoz.config import Data
from hpcphotoz.config.load import configure
from hpcphotoz.data import order
from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.format.manifest import Header, read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.read.shard_files import ShardFiles
from hpcphotoz.data.select.census import SelectedObjects, count_objects, load_objects, save_objects
from hpcphotoz.data.select.groups import MANY_GROUPS, SplitGroups, SplitShares
from hpcphotoz.data.select.healpix import nested_pixel
from hpcphotoz.data.select.predicate import Predicate
from hpcphotoz.data.select.subset import SplitPart, Subset
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import make_stamps

N, BANDS = 600, tuple("ugriz")
COLUMNS = (
    ExtraColumn("tract", "int16"),
    ExtraColumn("huge", "uint64"),
    ExtraColumn("field", "S12"),
    ExtraColumn("deep", "bool"),
    ExtraColumn("depth", "float32", "mag"),
    ExtraColumn("visits", "int32", "", (5,)),
)
OPTIONS = Data(validation=0.2, test=0.2, split_seed=3)
PARTS: tuple[SplitPart, ...] = ("train", "validation", "test")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects over the whole sky in 40 tracts, some of them negative, and 30 fields."""
    rng, stamps = np.random.default_rng(0), make_stamps(N, size=4)
    extra: dict[str, np.ndarray] = {
        "tract": rng.integers(-20, 20, N).astype(np.int16),
        "huge": rng.integers(2**63, 2**63 + 50, N, dtype=np.uint64),
        "field": np.array([f"field {k}".encode() for k in rng.integers(0, 30, N)], "S12"),
        "deep": rng.random(N) < 0.5,
        "depth": np.ones(N, np.float32),
        "visits": np.ones((N, 5), np.int32),
    }
    dec = np.degrees(np.arcsin(rng.uniform(-1, 1, N)))
    folder = tmp_path_factory.mktemp("groups") / "set"
    with DatasetWriter(folder, Header(BANDS, 4, 0.4, extra=COLUMNS), 250, {"made": "for a test"}) as writer:
        writer.append(replace(stamps, dec=dec, extra=extra))
    return folder


def stored(dataset: Path) -> dict[str, np.ndarray]:
    parts = []
    for path in sorted(dataset.glob("shard-*.hdf5")):
        with h5py.File(path) as file:
            parts.append({name: file[name][...] for name in file if name != "images"})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def part_of_each(dataset: Path, options: Data) -> np.ndarray:
    """The part of each object, by reading the stream of every part."""
    columns, found = stored(dataset), np.full(N, -1)
    for number, part in enumerate(PARTS):
        stream = Stream(dataset, options, global_batch=64, seed=1, part=part)
        for batch in stream.epoch(0):
            rows = np.searchsorted(columns["object_id"], batch.object_id.numpy())
            assert (found[rows] == -1).all(), "in two parts"
            found[rows] = number
    assert (found >= 0).all()
    return found


def options(split_by: str, **more: object) -> Data:
    return OPTIONS.model_copy(update={"split_by": split_by, **more})


@pytest.mark.parametrize("split_by", ["healpix:4", "tract", "huge", "field"])
def test_every_group_lies_in_one_part_and_every_part_has_some(dataset: Path, split_by: str) -> None:
    part, columns = part_of_each(dataset, options(split_by)), stored(dataset)
    healpix = split_by.startswith("healpix")
    group = nested_pixel(columns["ra"], columns["dec"], 4) if healpix else columns[split_by]
    for one in np.unique(group):
        assert len(np.unique(part[group == one])) == 1, one
    assert set(part.tolist()) == {0, 1, 2}
    by_id = part_of_each(dataset, OPTIONS)
    assert any(len(np.unique(by_id[group == one])) > 1 for one in np.unique(group)), "by id, they are torn"


def test_whole_numbers_are_hashed_as_ids_are(dataset: Path) -> None:
    columns, by_id = stored(dataset), part_of_each(dataset, OPTIONS)
    assert np.array_equal(part_of_each(dataset, options("object_id")), by_id)
    assert np.array_equal(by_id, order.split_part(columns["object_id"], 0.2, 0.2, 3))
    wide = columns["tract"].astype(np.int64)
    assert np.array_equal(part_of_each(dataset, options("tract")), order.split_part(wide, 0.2, 0.2, 3))
    bits = columns["huge"].view(np.int64)
    assert np.array_equal(part_of_each(dataset, options("huge")), order.split_part(bits, 0.2, 0.2, 3))


def test_a_texts_word_is_its_hash_whatever_the_width_of_its_column() -> None:
    texts = [b"", b"a", b"b", b"longer text", b"a"]
    for width in (11, 30):
        columns = {"field": np.array(texts, f"S{width}")}
        groups = SplitGroups.parse("field", [ExtraColumn("field", f"S{width}")])
        assert groups is not None
        words = groups(columns).view(np.uint64).tolist()
        assert words == [xxhash.xxh3_64_intdigest(text) for text in texts]


def test_a_boolean_makes_two_groups() -> None:
    groups = SplitGroups.parse("deep", COLUMNS)
    assert groups is not None
    assert groups({"deep": np.array([0, 1, 255, 0], np.uint8)}).tolist() == [0, 1, 1, 0]


def test_without_groups_nothing_is_recorded_that_was_not_before() -> None:
    plain = Subset.from_options(OPTIONS, "test", BANDS, COLUMNS)
    split = {"validation": 0.2, "test": 0.2, "seed": 3}
    assert plain.groups is None and plain.record() == {"part": "test", "where": "", "split": split}
    assert plain.columns == {"object_id"}
    by = Subset.from_options(options("healpix:32"), "test", BANDS, COLUMNS)
    assert by.record()["split"] == {**split, "by": "healpix:32"} and by.columns == {"ra", "dec"}
    assert by.text() == " (test part of a split by healpix:32 into 0.2 validation, 0.2 test, seed 3)"
    assert Subset.from_options(options("nothing"), "all", BANDS).columns == frozenset(), "no part: no split"


@pytest.mark.parametrize(
    ("split_by", "says"),
    [
        (
            "tracts",
            r"'tracts' is no column that names groups \(did you mean tract\?\): possible are healpix:NSI",
        ),
        (
            "z_spec",
            "'z_spec' is no column that names groups: possible are healpix:NSIDE, object_id, tract, huge",
        ),
        ("depth", "'depth' holds float32, want whole numbers, booleans or text, one an object: possible"),
        ("visits", "'visits' holds int32 a band, want whole numbers, booleans or text, one an object"),
    ],
)
def test_columns_that_name_no_groups_are_refused(split_by: str, says: str) -> None:
    with pytest.raises(BadInput, match=f"data.split_by: {says}"):
        SplitGroups.parse(split_by, COLUMNS)


@pytest.mark.parametrize(
    "wrong", ["healpix:3", "healpix:", "healpix:16384", "healpix:-1", "pix:4", "a b", "1a"]
)
def test_an_option_of_another_form_is_refused(wrong: str) -> None:
    with pytest.raises(BadInput, match=r"split_by = '.*': must be healpix:NSIDE"):
        configure("test", split_by=wrong)


@pytest.mark.parametrize("nside", [1, 2, 32, 8192])
def test_every_power_of_two_is_taken(nside: int) -> None:
    assert configure("test", split_by=f"healpix:{nside}").data.split_by == f"healpix:{nside}"


def test_unknown_positions_are_counted_and_refused_unless_left_out(dataset: Path, tmp_path: Path) -> None:
    stamps = make_stamps(40, size=4)
    ra, dec = stamps.ra.copy(), stamps.dec.copy()
    ra[3], ra[17], dec[30], dec[31], dec[32] = np.nan, np.inf, np.nan, 90.5, -90
    with DatasetWriter(tmp_path / "set", Header(BANDS, 4, 0.4), 16, {"made": "for a test"}) as writer:
        writer.append(replace(stamps, ra=ra, dec=dec))
    says = "4 of 40 objects have no position on the sky, by which data.split_by healpix:8 would put them"
    asked = options("healpix:8", validation=0.3)
    with pytest.raises(BadInput, match=says):
        Stream(tmp_path / "set", asked, global_batch=8, seed=0).census  # noqa: B018
    subset = Subset.from_options(asked, "train", BANDS)
    columns = {name: getattr(replace(stamps, ra=ra, dec=dec), name) for name in ("ra", "dec", "object_id")}
    with pytest.raises(BadInput, match="4 of 40 objects"):
        subset(columns)
    with pytest.raises(
        BadInput, match="40 of 40 .* a part: ingest them with ra and dec, or split by a column"
    ):
        subset(columns | {"ra": np.full(40, np.nan)})
    left = asked.model_copy(update={"where": "isfinite(ra) and abs(dec) <= 90"})
    rows = [Stream(tmp_path / "set", left, global_batch=8, seed=0, part=part).rows for part in PARTS]
    assert sum(rows) == 36
    mask = sum(Subset.from_options(left, part, BANDS)(columns).astype(int) for part in PARTS)
    assert np.flatnonzero(mask == 0).tolist() == [3, 17, 30, 31]
    assert Subset.from_options(asked, "all", BANDS)(columns).all(), "without a split no position is needed"


def test_the_split_of_selected_objects_is_that_of_all(dataset: Path) -> None:
    """A predicate leaves objects out and moves none to another part."""
    columns = stored(dataset)
    where = Predicate.parse("z_spec < 0.2", BANDS)
    for split_by in ("", "healpix:4", "tract", "field"):
        for part in PARTS:
            subset = Subset.from_options(options(split_by), part, BANDS, COLUMNS)
            both = replace(subset, where=where)
            assert np.array_equal(both(columns), subset(columns) & (columns["z_spec"] < np.float32(0.2)))


def test_the_census_counts_all_parts_and_groups(dataset: Path, tmp_path: Path) -> None:
    manifest, columns = read_manifest(dataset), stored(dataset)
    asked = options("field", where="z_spec < 0.3")
    subsets = [Subset.from_options(asked, part, BANDS, COLUMNS) for part in PARTS]
    found = count_objects(manifest, ShardFiles(dataset, manifest), subsets)
    rows = [one.census.rows for one in found]
    low = columns["z_spec"] < np.float32(0.3)
    shares = replace(SplitShares(*rows), groups=len(np.unique(columns["field"][low])))
    assert [one.census.split for one in found] == [shares] * 3 and sum(rows) == low.sum()
    kept = save_objects(tmp_path, manifest, subsets[0], found[0])
    assert kept.census == found[0].census
    again = load_objects(tmp_path, manifest, subsets[0], ())
    assert again is not None and again.census == found[0].census
    other = replace(subsets[0], groups=SplitGroups.parse("tract", COLUMNS))
    assert load_objects(tmp_path, manifest, other, ()) is None, "another split"
    facts = found[0].facts()
    del facts["census"]["split"]  # as an earlier version wrote it
    assert SelectedObjects.from_facts(facts, tmp_path, manifest).census.split is None
    huge = count_objects(
        manifest, ShardFiles(dataset, manifest), [Subset.from_options(OPTIONS, "train", BANDS, COLUMNS)]
    )
    assert huge[0].census.split is None, "by id, nothing is counted"


def test_shares_far_from_those_asked_for_are_named_with_numbers() -> None:
    assert SplitShares(850, 50, 100, groups=700).problem(0.05, 0.1) is None
    assert SplitShares(850, 26, 124, groups=700).problem(0.05, 0.1) is None
    assert SplitShares(950, 0, 50, groups=12).problem(0.05, 0.1) == (
        "12 groups: training 950, validation 0, test 50 objects (validation 0.0% instead of 5.0%)"
    )
    far = SplitShares(40, 960, 0, groups=MANY_GROUPS + 1).problem(0.05, 0.0)
    assert far is not None and far.startswith("more than 1000 groups: training 40, validation 960")
    assert "(training 4.0% instead of 95.0%, validation 96.0% instead of 5.0%)" in far
    assert SplitShares(5, groups=1).text().startswith("1 group: ")
