"""Conditions on labels: examples, and refusals that name the place in the text."""

import pickle
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from hpcphotoz.data.select.predicate import Predicate
from hpcphotoz.data.select.predicate_parser import FUNCTIONS, LABEL_NAMES, MAX_DEPTH, MAX_LENGTH
from hpcphotoz.errors import BadInput
from tests.helpers.data.labels import BANDS, table


@pytest.mark.parametrize(
    ("text", "rows", "columns"),
    [
        ("z_spec < 0.3 and ebv < 0.1", [0, 4, 5], {"z_spec", "ebv"}),
        ("0.1 <= z_spec < 0.3 or not (dec > 0)", [0, 2, 3, 4], {"z_spec", "dec"}),
        ("isfinite(z_spec)", [0, 2, 3, 4, 5], {"z_spec"}),
        ("not z_spec < 0.3", [1, 2], {"z_spec"}),
        ("z_spec != z_spec", [1], {"z_spec"}),
        ("z_spec <= 0.1", [0, 4, 5], {"z_spec"}),
        ("abs(dec) < 1.25", [1, 2, 5], {"dec"}),
        ("object_id % 10 == 3", [1, 2, 3], {"object_id"}),
        ("object_id == 9007199254740993", [1], {"object_id"}),
        ("object_id < 9223372036854775807", [0, 1, 2, 3, 4], {"object_id"}),
        ("-object_id > -(9007199254740993)", [0, 2, 3, 4], {"object_id"}),
        ("object_id / 2 == 1.5", [3], {"object_id"}),
        ("sky_sigma_r < 0.07", [0, 1], {"sky_sigma"}),
        ("sky_sigma_g - sky_sigma_u > 0 and ra < 50", [0, 1, 4], {"sky_sigma", "ra"}),
        ("1 < 2 and z_spec < 0", [5], {"z_spec"}),
        ("\n 0 < z_spec\n and\tz_spec < 0.3 ", [0, 3], {"z_spec"}),
        ("sqrt(ebv) < 0.2 and log10(ebv) > -2", [0, 5], {"ebv"}),
        ("1 / z_spec > 1e30", [4], {"z_spec"}),
        ("isfinite(1 / z_spec)", [0, 2, 3, 5], {"z_spec"}),
    ],
)
def test_examples(text: str, rows: list[int], columns: set[str]) -> None:
    if text.startswith(
        "-object_id"
    ):  # the last 8192 whole numbers are refused: test_whole_numbers_never_wrap_around
        data = {name: column[:5] for name, column in table().items()}
    else:
        data = table()
    predicate = Predicate.parse(text, BANDS)
    found = predicate(data)
    assert predicate.columns == columns
    assert found.dtype == np.bool_ and np.flatnonzero(found).tolist() == rows
    assert np.array_equal(predicate({name: data[name] for name in columns}), found)
    again = pickle.loads(pickle.dumps(predicate))
    assert again == predicate and np.array_equal(again(data), found)
    empty = predicate(table(0))
    assert empty.shape == (0,) and empty.dtype == np.bool_


@pytest.fixture
def usual_recursion() -> Iterator[None]:
    """Python's default recursion limit, which torch's compiler raises: the parser's own limit must hold."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    ("text", "said", "at"),
    [
        ("", "empty", 1),
        (" \n", "empty", 1),
        ("z_spek < 0.3", "knows no 'z_spek'", 1),
        ("z_spec < 1 and sky_sigma_i < 1", "knows no 'sky_sigma_i'", 16),
        ("sky_sigma < 1", "knows no 'sky_sigma'", 1),
        ("ebv < é", "knows no 'é'", 7),
        ("'éé' < ebv", "str", 1),
        ("(ebv < 1) or éé < 1 or x", "knows no 'éé'", 14),
        ("z_spec = 0.3", "did you mean ==", 8),
        ("z_spec >= 0.3 and (ebv = 1)", "did you mean ==", 24),
        ("  z_spec = 0.3", "not a condition", 10),
        ("(z := 3) < z_spec", "NamedExpr", 2),
        ("z_spec <", "not a condition", 8),
        ("z_spec < 1) or (ebv < 1", "not a condition", 11),
        ("z_spec < 1; ebv < 1", "not a condition", 11),
        ("z_spec < 1 or # ebv", "comment", 15),
        ("z_spec < 1or ebv < 1", "not a condition", 10),
        ("z_spec.real < 1", "Attribute", 1),
        ("z_spec[0] < 1", "Subscript", 1),
        ("z_spec < '1'", "str", 10),
        ("z_spec < 1j", "complex", 10),
        ("z_spec < True", "bool", 10),
        ("z_spec < None", "NoneType", 10),
        ("z_spec in (1, 2)", "Tuple", 11),
        ("z_spec is 1", "compare with", 1),
        ("z_spec < 1 & ebv < 2", "write and, or, not", 10),
        ("z_spec ** 2 < 1", "BinOp", 1),
        ("~object_id == 1", "UnaryOp", 1),
        ("lambda: z_spec", "Lambda", 1),
        ("[z_spec for z in ra]", "ListComp", 1),
        ("z_spec if ebv else ra", "IfExp", 1),
        ("__import__('os').system('true')", "calls", 1),
        ("exp(z_spec) < 1", "calls", 1),
        ("abs < 1", "knows no 'abs'", 1),
        ("abs() < ebv", "calls", 1),
        ("abs(ebv, 1) < 1", "calls", 1),
        ("abs(x=ebv) < 1", "calls", 1),
        ("abs(*ebv) < 1", "Starred", 5),
        ("z_spec + 1", "is a number", 1),
        ("1 < 2", "asks nothing", 1),
        ("z_spec", "is a number", 1),
        ("not z_spec", "something else than conditions", 1),
        ("z_spec and ebv < 1", "something else than conditions", 1),
        ("(z_spec < 1) + 1 < 2", "something else than numbers", 1),
        ("(z_spec < 1) == (ebv < 1)", "something else than numbers", 1),
        ("abs(z_spec < 1) < 1", "wants a number", 1),
        ("z_spec / 0 < 1", "divides by zero", 1),
        ("ebv < 1 and z_spec % (1 - 1) < 1", "divides by zero", 13),
        ("object_id % 0 == 0", "divides by zero", 1),
        ("1 / 0 < z_spec", "divides by zero", 1),
        ("sqrt(-1) < z_spec", "comes to nan", 1),
        ("1e308 * 10 < z_spec", "comes to inf", 1),
        ("object_id == 3.0", "mixes object_id", 1),
        ("object_id < z_spec", "mixes object_id", 1),
        ("object_id + ra < 3", "mixes object_id", 1),
        ("object_id < 9223372036854775808", "64 bits with sign, at most 2^63 - 1", 13),
        ("object_id < 9223372036854775807 + 1", "64 bits", 13),
        ("z_spec < 1\0", "cannot be printed", 11),
        ("z_spec < \ud800", "cannot be printed", 10),
        ("-" * (MAX_LENGTH - 10) + "ebv < 1", "nested too deeply", 1),
        ("-" * (MAX_DEPTH + 1) + "ebv < 1", "nested too deeply", MAX_DEPTH + 1),
        ("(" * 1000 + "ebv < 1" + ")" * 1000, "not a condition", 201),
        ("ebv < 1 or " * 2000 + "ebv < 1", "at most 4096", MAX_LENGTH + 1),
        ("ebv < " + "9" * 4090, "beyond 64 bits", 7),
    ],
)
@pytest.mark.usefixtures("usual_recursion")
def test_text_that_is_no_condition_is_refused_with_its_place(text: str, said: str, at: int) -> None:
    with pytest.raises(BadInput) as error:
        Predicate.parse(text, BANDS)
    line = str(error.value)
    assert said in line and f", at character {at};" in line
    assert "\n" not in line and len(line) < 400
    assert all(name in line for name in (*LABEL_NAMES, "sky_sigma_u", "sky_sigma_r", *FUNCTIONS))


@pytest.mark.parametrize(
    "text",
    [
        "object_id * 10 < 5",
        "object_id + 9223372036854775807 > 0",
        "-9223372036854775807 - object_id < 0",
        "-object_id < 0",
    ],
)
def test_whole_numbers_never_wrap_around(text: str) -> None:
    predicate = Predicate.parse(text, BANDS)
    data = table()
    with pytest.raises(BadInput, match="leaves the 64 bits of a whole number, at character 1;"):
        predicate(data)
    sign = -1 if "9223" in text else 1
    assert predicate({"object_id": np.array([sign * 2**20])}).shape == (1,)


def test_a_whole_number_modulo_zero_is_refused() -> None:
    with pytest.raises(BadInput, match="divides a whole number by zero, at character 12;"):
        Predicate.parse("ebv < 1 or object_id % object_id == 0", BANDS)(table())


def test_a_long_flat_condition_is_fine() -> None:
    ids = [3 * k for k in range(150)]
    predicate = Predicate.parse(" or ".join(f"object_id == {k}" for k in ids), BANDS)
    found = predicate({"object_id": np.arange(500)})
    assert np.flatnonzero(found).tolist() == ids
