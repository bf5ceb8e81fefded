"""Random conditions mean what Python means row by row, and any text is a condition or refused in one line."""

from typing import Any

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hpcphotoz.data.select.predicate import Predicate
from hpcphotoz.data.select.predicate_parser import FUNCTIONS
from hpcphotoz.errors import BadInput
from tests.helpers.data.labels import BANDS, table

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
