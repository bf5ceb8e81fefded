"""The datasets of a run, by its provenance.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from hpcphotoz.provenance import datasets_of


@pytest.mark.parametrize(
    ("start", "folders"),
    [
        ({"datasets": [{"folder": "/a", "weight": 0.5}, {"folder": "/b"}]}, ["/a", "/b"]),
        ({"data": "/a"}, ["/a"]),
        ({}, []),
        ({"datasets": 7}, []),
        ({"datasets": [1, {"folder": 7}, {"folder": "/a"}]}, ["/a"]),
        ({"data": 5}, []),
    ],
)
def test_what_is_no_folder_is_left_out(tmp_path: Path, start: dict[str, Any], folders: list[str]) -> None:
    (tmp_path / "provenance.json").write_text(json.dumps({"starts": [{"data": "/earlier"}, start]}))
    assert datasets_of(tmp_path) == folders
