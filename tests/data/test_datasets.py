"""Datasets of one run: words of a command line, weights, and what must be equal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hpcphotoz.config import Data
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.format.extra import ExtraColumn
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.stream.mixture import MixedStream
from hpcphotoz.errors import BadInput
from tests.helpers.datasets import make_stamps


def test_a_number_after_the_last_colon_is_the_weight() -> None:
    found = Datasets.parse(["some/a:0.7", "b:3e-1"])
    assert found == Datasets((Path("some/a"), Path("b")), (0.7, 0.3)) and found.several
    assert Datasets.of(found.given) == found == Datasets.of({Path("some/a"): 0.7, Path("b"): 0.3})
    assert str(found) == "some/a:0.7 b:0.3"
    assert str(found.absolute()) == f"{Path.cwd()}/some/a:0.7 {Path.cwd()}/b:0.3"
    assert (
        Datasets.parse(["a"]) == Datasets.of("a") == Datasets.of(Path("a")) and Datasets.of("a").given == "a"
    )


def test_the_name_of_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    odd = tmp_path / "a:0.7"
    word = str(odd)
    assert Datasets.parse([word]).folders == (tmp_path / "a",)
    odd.mkdir()
    assert Datasets.parse([word]).folders == (odd,)
    assert Datasets.parse([f"{word}:2", "b:1"]) == Datasets((odd, Path("b")), (2, 1))
    assert Datasets.parse(["a:b"]).folders == (Path("a:b"),), "no number: a name"


def test_several_need_weights() -> None:
    for words in (["a", "b"], ["a:0.5", "b"]):
        bare = "a" if words[0] == "a" else "b"
        with pytest.raises(
            BadInput,
            match=rf"--data: {bare} has no weight: .* such as --data a:0\.5 b:0\.5; .*`hpcphotoz merge`",
        ):
            Datasets.parse(words)


@pytest.mark.parametrize("weight", ["0", "-0.3", "nan", "inf", "-inf"])
def test_a_weight_is_a_number_above_0(weight: str) -> None:
    for words in ([f"a:{weight}", "b:1"], [f"a:{weight}"], [f"b:{weight}", f"a:{weight}"]):
        with pytest.raises(BadInput, match=r"[ab]: weight .*: want a number above 0"):
            Datasets.parse(words)


def test_a_weight_of_a_mapping_is_a_number() -> None:
    with pytest.raises(BadInput, match="want numbers"):
        Datasets.of({"a": "much", "b": 1})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no dataset"):
        Datasets.of({})


def test_a_folder_is_given_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(BadInput, match="link: is given twice"):
        Datasets.parse([f"{tmp_path}/a:1", f"{tmp_path}/link:1"])


def test_a_share_of_no_object_is_refused() -> None:
    with pytest.raises(
        BadInput, match=r"b: weight 0\.001, 0\.001 of all, is less than one object .* of 128: raise"
    ):
        Datasets.parse(["a:0.999", "b:0.001"]).shares(128)
    with pytest.raises(BadInput, match="a: weight 1e-300"):
        Datasets.parse(["a:1e-300", "b:1e300"]).shares(128)
    assert Datasets.parse(["a:0.999", "b:0.001"]).shares(1000) == (999, 1)
    with pytest.raises(BadInput, match="c: weight 1"):
        Datasets.parse(["a:1", "b:1", "c:1"]).shares(2)


def with_column(out: Path, column: ExtraColumn, values: npt.NDArray[Any]) -> Path:
    with DatasetWriter(out, Header(tuple("ugriz"), 16, 0.396, extra=(column,)), 16, {}) as writer:
        writer.append(replace(make_stamps(40), extra={column.name: values}))
    return out


@pytest.mark.parametrize("option", [{"where": "mag < 17"}, {"split_by": "night"}])
def test_selected_columns_are_in_all_and_alike(tmp_path: Path, option: dict[str, str]) -> None:
    name = "mag" if "where" in option else "night"
    dtype = "float32" if name == "mag" else "int32"
    values = np.arange(40).astype(dtype)
    options = Data.model_validate({"validation": 0.2, **option})

    def opened(other: ExtraColumn) -> MixedStream:
        folder = tmp_path / f"{other.name}-{other.dtype}-{other.unit}"
        if not folder.exists():
            with_column(folder, other, values.astype(other.dtype))
        return MixedStream(Datasets((first, folder), (1, 1)), options, global_batch=4, seed=0)

    first = with_column(tmp_path / "a", ExtraColumn(name, dtype, "mag"), values)
    assert opened(ExtraColumn(name, "float64" if name == "mag" else "int64", "mag")).rows
    with pytest.raises(BadInput, match=rf"{name}-{dtype}-s: column {name}, .* another type, unit or shape"):
        opened(ExtraColumn(name, dtype, "s"))
    with pytest.raises(BadInput, match=rf"other-{dtype}-.*{name}"):
        opened(ExtraColumn("other", dtype, "mag"))


def test_columns_that_select_nothing_may_differ(tmp_path: Path) -> None:
    values = np.arange(40).astype(np.float32)
    a = with_column(tmp_path / "a", ExtraColumn("mag", "float32", "mag"), values)
    b = with_column(tmp_path / "b", ExtraColumn("flux", "float32", "Jy"), values)
    stream = MixedStream(Datasets((a, b), (1, 1)), Data(validation=0), global_batch=4, seed=0)
    assert len(list(stream.epoch(0))) == 20 and stream.manifest.header.extra == ()
