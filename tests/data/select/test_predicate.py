"""Conditions on labels mean what Python means row by row; anything else is refused in one line."""

import pickle
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hpcphotoz.data.select.predicate import Predicate
from hpcphotoz.data.select.predicate_parser import FUNCTIONS, LABEL_NAMES, MAX_DEPTH, MAX_LENGTH
from hpcphotoz.errors import BadInput

BANDS = ("u", "g", "r")
Columns = dict[str, npt.NDArray[Any]]


def table(n: int = 6) -> Columns:
    """Labels with an unknown redshift in row 1 and ids that float64 cannot tell apart."""
    return {
        "z_spec": np.array([0.1, np.nan, 0.3, 0.25, 0.0, -0.1], np.float32)[:n],
        "ebv": np.array([0.02, 0.05, 0.1, 0.2, 0.0, 0.03], np.float32)[:n],
        "object_id": np.array([2**53, 2**53 + 1, -7, 3, 0, 2**63 - 1], np.int64)[:n],
        "ra": np.array([0, 10, 359.9, 180, 45, 90], np.float64)[:n],
        "dec": np.array([-1.25, 1.2, 0, 30, -90, 0.5], np.float64)[:n],
        "sky_sigma": (np.arange(18).reshape(6, 3) / 100).astype(np.float32)[:n],
    }


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
        ("z_spec = 0.3", "not a condition", 8),
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
        ("object_id < 9223372036854775808", "64 bits", 13),
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
def test_what_is_no_condition_is_refused_where_it_stands(text: str, said: str, at: int) -> None:
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


# Random conditions as text. No constant divisor is zero, and ids are made small before they are divided:
# Python rounds the quotient of two whole numbers once and numpy thrice.
WHOLE = st.recursive(
    st.just("object_id"),
    lambda whole: st.one_of(
        st.tuples(whole, st.sampled_from("+-*"), st.integers(-9, 2**40)).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        st.tuples(whole, st.integers(1, 2**40)).map(lambda t: f"({t[0]} % {t[1]})"),
        st.tuples(whole, st.sampled_from("+-"), whole).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(st.sampled_from(["-", "abs"]), whole).map(lambda t: f"{t[0]}({t[1]})"),
    ),
    max_leaves=4,
)
LITERALS = st.one_of(
    st.integers(1, 50).map(str),
    st.floats(2.0**-10, 400, width=32).map(repr),
)
NUMBERS = st.recursive(
    st.one_of(
        LITERALS,
        st.sampled_from(["z_spec", "ebv", "ra", "dec", "sky_sigma_u", "sky_sigma_r"]),
        WHOLE.map(lambda whole: f"({whole} % 1000 / 7)"),
    ),
    lambda number: st.one_of(
        st.tuples(number, st.sampled_from("+-*"), number).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(number, st.sampled_from("/%"), LITERALS).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(number, st.sampled_from("/%"), st.sampled_from(["ebv", "dec"])).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        st.tuples(st.sampled_from(["-", "abs", "sqrt", "log10"]), number).map(lambda t: f"{t[0]}({t[1]})"),
    ),
    max_leaves=5,
)
COMPARES = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])


def chained(sides: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(sides, COMPARES, sides).map(" ".join),
        st.tuples(sides, COMPARES, sides, COMPARES, sides).map(" ".join),
    )


CONDITIONS = st.recursive(
    st.one_of(
        chained(NUMBERS),
        st.tuples(WHOLE, COMPARES, st.one_of(WHOLE, st.integers(0, 2**62).map(str))).map(" ".join),
        NUMBERS.map(lambda number: f"isfinite({number})"),
    ),
    lambda condition: st.one_of(
        st.lists(condition, min_size=2, max_size=3).map(lambda c: "(" + " and ".join(c) + ")"),
        st.lists(condition, min_size=2, max_size=3).map(lambda c: "(" + " or ".join(c) + ")"),
        condition.map(lambda c: f"not ({c})"),
    ),
    max_leaves=5,
)


class Id(int):
    """A Python integer whose quotients are float64, like those of a column."""

    def __truediv__(self, other: int) -> np.float64:
        return np.float64(int(self) / int(other))


def _keep(name: str) -> None:
    def method(self: Id, *other: int) -> Id:
        return Id(getattr(int, name)(int(self), *(int(x) for x in other)))

    setattr(Id, name, method)


for _name in ("add", "sub", "mul", "mod", "neg", "abs"):
    _keep(f"__{_name}__")


def plain(name: str) -> Any:
    """The function as plain Python, applied to numbers that are rounded like constants of a condition."""

    def call(x: Any) -> Any:
        if isinstance(x, int) and name == "abs":
            return abs(x)
        found = FUNCTIONS[name](x)
        return float(found) if type(x) in (int, float) and name != "isfinite" else found

    return call


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(CONDITIONS, st.lists(st.integers(-(2**62), 2**62) | st.integers(-20, 20), min_size=6, max_size=6))
def test_a_condition_means_what_python_says_row_by_row(text: str, ids: list[int]) -> None:
    data = {**table(), "object_id": np.array(ids, np.int64)}
    try:
        predicate = Predicate.parse(text, BANDS)
        found = predicate(data)
    except BadInput as error:  # constants alone, a constant that is not finite, ids beyond 64 bits
        assert any(why in str(error) for why in ("asks nothing", "comes to", "64 bits"))
        assume(False)
    functions = {name: plain(name) for name in FUNCTIONS}
    for row in range(6):
        labels = {name: data[name][row] for name in ("z_spec", "ebv", "ra", "dec")}
        sky = {f"sky_sigma_{band}": data["sky_sigma"][row, k] for k, band in enumerate(BANDS)}
        names = {**functions, **labels, **sky, "object_id": Id(ids[row]), "__builtins__": {}}
        with np.errstate(all="ignore"):
            assert found[row] == eval(text, names), f"row {row}: {text}"


@settings(deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="z_specbvobjtid<>=!()+-*/% andorot0123.#'\n", max_size=60))
def test_any_text_is_a_condition_or_refused_in_a_line(text: str) -> None:
    try:
        assert Predicate.parse(text, BANDS).columns
    except BadInput as error:
        assert "\n" not in str(error) and "at character" in str(error)


def test_numerical_warnings_are_suppressed() -> None:
    # Warnings are errors in tests: overflow, invalid values and division by zero must be suppressed.
    text = "1 / z_spec > 1 or log10(dec) > sqrt(ra - 1000) or ebv * 1e38 * 1e38 > 1 or z_spec % ebv < 0"
    assert Predicate.parse(text, BANDS)(table()).shape == (6,)
