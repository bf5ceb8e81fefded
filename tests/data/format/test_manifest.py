"""Manifests that are absent, unreadable, impossible or of another version."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.__main__ import main
from hpcphotoz.data.format.manifest import MANIFEST, read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.errors import BadInput
from tests.helpers.commands import copy
from tests.helpers.datasets import HEADER, load, make_stamps


def test_a_shard_outside_the_folder_is_refused(dataset: Path, tmp_path: Path) -> None:
    folder = copy(dataset, tmp_path / "d")
    tree = json.loads((folder / "manifest.json").read_text())
    for path in ("../secret.h5", "/etc/passwd", "sub/../../secret.h5"):
        tree["shards"][0]["file"] = path
        (folder / "manifest.json").write_text(json.dumps(tree))
        with pytest.raises(BadInput, match="outside the dataset's folder"):
            read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "hpcphotoz-shards", "version": 99}', "\x00"])
def test_text_that_is_no_manifest_is_refused(dataset: Path, tmp_path: Path, text: str) -> None:
    folder = copy(dataset, tmp_path / "d")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BadInput, match=r"manifest\.json: not a manifest"):
        read_manifest(folder)


def test_a_manifest_without_read_permission_is_reported_as_such(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BadInput, match=r"manifest\.json: cannot be read: Permission denied$"):
        read_manifest(dataset)


BROKEN: list[tuple[str, object]] = [
    ("shards.0.file", 5),
    ("shards.0.file", None),
    ("shards.0.file", "shard\0.h5"),
    ("shards.0.file", "s" * 5000),
    ("shards.0.file", "../set/shard-00000.hdf5"),
    ("shards.0.file", "/etc/passwd"),
    ("shards.0.rows", 1.5),
    ("shards.0.rows", True),
    ("shards.0.rows", -32),
    ("shards.0.rows", 10**30),
    ("shards.0.bytes", "many"),
    ("shards.0.z_min", "low"),
    ("shards.0.unlabelled", None),
    ("shards.0.offsets.images", -1),
    ("shards.0.offsets.images", 1 << 40),
    ("shards.0.offsets.image_xxh3", "here"),
    ("shards.0.chunk_rows", 0),
    ("shards", {}),
    ("stamp", 0),
    ("stamp", 16.5),
    ("bands", []),
    ("bands", "ugriz"),
    ("pixel_scale", 0),
    ("pixel_scale", "0.396"),
    ("storage", "float64"),
    ("statistics.mean", [1.0]),
    ("provenance", None),
    ("rows", 74),
    ("version", 3),
    ("version", 4),
]


@pytest.mark.parametrize(("key", "value"), BROKEN, ids=[f"{k}={str(v)[:20]!r}" for k, v in BROKEN])
def test_a_manifest_that_cannot_be_true_is_refused_in_one_line(
    dataset: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for path in dataset.glob("*.hdf5"):
        (folder / path.name).hardlink_to(path)
    tree = json.loads((dataset / MANIFEST).read_text())
    place: object = tree
    *parents, last = key.split(".")
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]  # type: ignore[index]
    place[last] = value  # type: ignore[index]
    (folder / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(BadInput) as caught:
        read_manifest(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_int16_has_a_version_that_older_software_refuses(tmp_path: Path) -> None:
    for storage, version in (("float32", 1), ("float16", 1), ("int16", 2)):
        with DatasetWriter(tmp_path / storage, replace(HEADER, storage=storage), 8, {}) as writer:
            writer.append(make_stamps(3))
        assert json.loads((tmp_path / storage / MANIFEST).read_text())["version"] == version


def test_int16_of_version_1_is_read(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "d", replace(HEADER, storage="int16"), 8, {}) as writer:
        writer.append(make_stamps(3))
    path = tmp_path / "d" / MANIFEST
    before = load(tmp_path / "d").images
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 1}))
    np.testing.assert_array_equal(load(tmp_path / "d").images, before)


def test_control_characters_of_a_manifest_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"made\x1b[2J": "here\x1b]0;title\x07", "note": ["\u202eabc"]}
    with DatasetWriter(tmp_path / "d", HEADER, 8, record) as writer:
        writer.append(make_stamps(3))
    assert main(["inspect", str(tmp_path / "d")]) == 0
    printed = capsys.readouterr().out
    assert "made" in printed and "title" in printed and printed.replace("\n", "").isprintable()
