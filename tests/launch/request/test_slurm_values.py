"""Slurm's spellings of times, GPUs and memory."""

import re

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.request.slurm_values import parse_gpus, parse_memory, parse_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90 * 60),
        ("2:30", 150),
        ("4:00:05", 4 * 3600 + 5),
        ("100:00:00", 360_000),
        ("1-2", 26 * 3600),
        ("1-02:03", 26 * 3600 + 180),
        ("1-02:03:04", 26 * 3600 + 184),
        ("0:30", 30),
    ],
)
def test_every_form_of_a_time(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "1h", "-5", "1:2:3:4", "1-", "1-2:3:4:5", "1.5", "UNLIMITED", "5\n", " 5", "1--2", "٣"]
)
def test_another_form_of_a_time_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="write minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s"):
        parse_time(text)


@pytest.mark.parametrize("text", ["0", "0:00", "0-00:00:00"])
def test_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="must be above 0"):
        parse_time(text)


def test_gpus_with_and_without_type() -> None:
    assert parse_gpus("4") == ("", 4)
    assert parse_gpus("h100:4") == ("h100", 4)
    assert parse_gpus("nvidia_a100-sxm4-80gb:2") == ("nvidia_a100-sxm4-80gb", 2)
    assert parse_gpus("0") == ("", 0)


@pytest.mark.parametrize("text", ["", "h100", "h100:", ":4", "4:h100", "-1", "h100:4,a100:2", "4 "])
def test_other_gpus_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"--gpus-per-node {text}: write a number or type:number")):
        parse_gpus(text)


def test_the_spelling_of_gres_is_recognised() -> None:
    with pytest.raises(BadInput, match="that is the spelling of --gres: write 4"):
        parse_gpus("gpu:4")


@pytest.mark.parametrize(
    ("text", "memory"), [("0", "0"), ("64G", "64G"), ("64gb", "64G"), ("128000M", "128000M"), ("1T", "1T")]
)
def test_memory(text: str, memory: str) -> None:
    assert parse_memory(text) == memory


@pytest.mark.parametrize("text", ["", "1.5G", "much", "-1", "64 G", "G", "nan"])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="write a whole number with K, M, G or T"):
        parse_memory(text)


def test_a_number_without_unit_is_refused() -> None:
    """Slurm takes 64 for 64 MB, and the job dies of it."""
    with pytest.raises(BadInput, match="Slurm takes that for MB: write 64G or 64M"):
        parse_memory("64")
