"""A damaged manifest is refused in one line or gives the right data, in little memory."""

import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcphotoz.config import Data
from hpcphotoz.data.format.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    BandStatistics,
    Manifest,
    read_manifest,
    write_manifest,
)
from hpcphotoz.data.format.stamps import COLUMNS, Stamps
from hpcphotoz.data.read import rows
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import HEADER, make_dataset, make_stamps

N = 10
MEMORY = 32 << 20  # bytes that reading a manifest of some kilobytes may allocate
HOLE = "what is replaced"

# Valid JSON on which Python, pydantic, numpy or a file system may fail, as text.
RAW = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e308", "1e-999", "-0.0", "0", "1", "-1", "1.5"),
    *("true", "false", "null", "[]", "{}", '""', '"a"', '{"a": 1, "a": 2}', "[[[[0]]]]"),
    *(str(2**31), str(2**62 - 1), str(2**63), str(2**64), str(10**400), "1" + "0" * 5000),
    *('"\\ud800"', '"\\udcff"', '"\\u0000"', '"a\\nb"', '"\\u001b[2J"', '"\\u202e"', '"..."', '".."', '"."'),
    *(
        '"../shard-00000.hdf5"',
        '"/dev/zero"',
        '"/"',
        '"manifest.json"',
        '"shard-00001.hdf5"',
        f'"{"é" * 199}"',
    ),
    *(f'"{"a" * 100_000}"', "[" * 100_000, "[" * 500 + "]" * 500, '{"a":' * 500 + "1" + "}" * 500),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("fuzz") / "d", n=N, shard_rows=6, size=4)


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    return (folder / MANIFEST).read_bytes()


def places(tree: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every position in a JSON tree except its root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in ((*here, key), *places(value, (*here, key)))]


def at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def changed(data: st.DataObject, raw: bytes) -> bytes:
    """A manifest with one to three changes of its structure."""
    tree = json.loads(raw)
    holes: list[str] = []
    for _ in range(data.draw(st.integers(1, 3))):
        every = places(tree)
        *parents, last = data.draw(st.sampled_from(every))
        parent = at(tree, tuple(parents))
        what = data.draw(st.sampled_from(["raw", "raw", "value", "other", "remove", "add", "number"]))
        if what == "remove":
            del parent[last]
        elif what == "other":
            parent[last] = copy.deepcopy(at(tree, data.draw(st.sampled_from(every))))
        elif what == "number" and type(parent[last]) in (int, float):
            parent[last] += data.draw(st.sampled_from([-1, 1, 8, -512, 1 << 40]))
        elif what == "add" and isinstance(parent, dict):
            parent[data.draw(st.text(max_size=12))] = data.draw(JSON)
        elif what == "value":
            parent[last] = data.draw(JSON)
        else:
            parent[last] = f"{HOLE} {len(holes)}"
            holes.append(data.draw(st.sampled_from(RAW)))
    text = json.dumps(tree)
    for k, hole in enumerate(holes):
        text = text.replace(f'"{HOLE} {k}"', hole)
    return text.encode()


def flipped(data: st.DataObject, raw: bytes) -> bytes:
    """A manifest with bytes changed, removed or inserted."""
    content = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        stop = min(start + data.draw(st.sampled_from([0, 1, 1, 1, 7, 1 << 20])), len(content))
        content[start:stop] = data.draw(st.binary(max_size=8))
    return bytes(content)


def check(folder: Path, raw: bytes) -> None:
    """Asserts that every way of reading gives an error of one line, or the objects that were written."""
    (folder / MANIFEST).write_bytes(raw)
    expected = make_stamps(N, size=4)
    row = {int(key): k for k, key in enumerate(expected.object_id)}
    tracemalloc.start()
    try:
        manifest = read_manifest(folder)
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < MEMORY, peak
        found = Stamps.concatenate([expected[:0], *rows.read_rows(folder, manifest)])
        for name in COLUMNS:
            kept = getattr(expected, name)[[row[int(key)] for key in found.object_id]]
            np.testing.assert_array_equal(getattr(found, name), kept)
        write_manifest(folder, manifest)  # a manifest that can be read can be written
        json.dumps(dict(manifest.provenance), indent=1)
        if len(found) >= 3:
            stream = Stream(folder, Data(block_rows=2), global_batch=3, seed=1, part="all", shuffle=False)
            for batch in stream.epoch(0):
                kept = expected.images[[row[int(key)] for key in batch.object_id]]
                np.testing.assert_array_equal(batch.images.numpy(), kept)
    except BadInput as error:
        assert "\n" not in str(error) and str(folder) in str(error) and len(str(error)) < 1500
        assert str(error).isprintable()
    finally:
        tracemalloc.stop()


@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_any_change_of_its_structure(folder: Path, whole: bytes, data: st.DataObject) -> None:
    check(folder, changed(data, whole))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_change_of_its_bytes(folder: Path, whole: bytes, data: st.DataObject) -> None:
    check(folder, flipped(data, whole))


@given(raw=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=100, deadline=None)
def test_any_bytes(folder: Path, raw: bytes) -> None:
    check(folder, raw)


def test_an_unknown_name_among_the_offsets_is_refused(folder: Path, whole: bytes) -> None:
    tree = json.loads(whole)
    tree["shards"][0]["offsets"]["magnitude"] = 8
    (folder / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(BadInput, match=r"shard-00000\.hdf5: want labels_xxh3 and the offsets of images"):
        read_manifest(folder)


def test_a_manifest_that_would_not_be_read_is_not_written(folder: Path, whole: bytes) -> None:
    (folder / MANIFEST).write_bytes(whole)
    manifest = read_manifest(folder)
    statistics = BandStatistics((float("nan"),) * 5, (1.0,) * 5, (1.0,) * 5)
    with pytest.raises(BadInput, match="would not be readable"):
        write_manifest(folder, Manifest(HEADER, manifest.shards, statistics, {}))
    assert (folder / MANIFEST).read_bytes() == whole


def test_a_manifest_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / MANIFEST, "wb") as file:
        file.truncate(LARGEST_MANIFEST + 1)
    with pytest.raises(BadInput, match=f"{LARGEST_MANIFEST + 1} bytes, at most"):
        read_manifest(tmp_path)
