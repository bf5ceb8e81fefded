"""The runs of a sweep: products, ranges, quoted values, and names of folders that are safe and unique."""

import re

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.jobs.grid import MOST_RUNS, parse_sweep


def test_the_product_in_order_with_readable_names() -> None:
    runs = parse_sweep(["attack.eps=0.25,1", "run.seed=0:3"])
    assert [run.name for run in runs] == [f"eps={eps}_seed={seed}" for eps in ("0.25", "1") for seed in "012"]
    assert runs[4].values == {"attack.eps": "1", "run.seed": "1"}


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("run.seed=0:6:2,9", ["0", "2", "4", "9"]),
        ("run.seed=3:0:-1", ["3", "2", "1"]),
        ("attack.eps=1:3", ["1", "2"]),
        ("compute.deterministic=true,false", ["true", "false"]),
        ('data.where="z_spec in (1,2)",ebv < 0.1', ["z_spec in (1,2)", "ebv < 0.1"]),
        ('data.where="say ""a,b""",x', ['say "a,b"', "x"]),
        ("data.split_by=healpix:32,0:5", ["healpix:32", "0:5"]),  # text, and no range
    ],
)
def test_values(word: str, values: list[str]) -> None:
    key = word.partition("=")[0]
    assert [run.values[key] for run in parse_sweep([word])] == values


def test_names_are_safe_unique_and_do_not_depend_on_other_values() -> None:
    texts = ["a<1", "a>1", "A>1", "../../x", "x" * 300, "x" * 299 + "y", "100%", "a b", "-", "é"]
    values = ",".join(texts)
    names = [run.name for run in parse_sweep([f"data.where={values}"])]
    assert len({name.casefold() for name in names}) == len(texts)
    assert all(re.fullmatch(r"[A-Za-z0-9._+=-]{1,140}", name) for name in names)
    assert [run.name for run in parse_sweep(["data.where=a>1"])] == [names[1]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["attack.eps"], "want section.key=VALUES"),
        (["eps=1,2"], "want section.key=VALUES"),
        (["attack.eps="], "an empty value"),
        (["attack.eps=1,,2"], "an empty value"),
        (["attack.eps=0.5,0.50"], "0.50 is given twice, as 0.5"),
        (["attack.eps=1", "attack.eps=2"], "attack.eps: is given twice"),
        (["run.seed=5:5"], "this range is empty"),
        (["run.seed=0:5:0"], "this range is empty"),
        (["attack.eps=0.1:0.5:0.1"], "a range is a:b or a:b:step of whole numbers"),
        (["run.seed=0:2000"], "2000 values"),
        (["run.seed=0:99999999999999999999"], "99999999999999999999 values"),
        (["run.seed=0:100", "model.width=1:12"], "100 x 11 = 1100 runs"),
        (['data.where="a'], "double quotes"),
    ],
)
def test_mistakes_are_named(words: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=re.escape(says)):
        parse_sweep(words)


def test_the_limit_itself_is_let_pass() -> None:
    assert len(parse_sweep([f"run.seed=0:{MOST_RUNS}"])) == MOST_RUNS
