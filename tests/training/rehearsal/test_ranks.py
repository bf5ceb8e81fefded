"""The words of --rehearse."""

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.training.rehearsal.ranks import RehearsedRanks
from hpcphotoz.world import World


def test_number_and_rank() -> None:
    assert RehearsedRanks.parse("1024") == RehearsedRanks(1024, 0)
    found = RehearsedRanks.parse("1024:7")
    assert found.world == World(7, 1024, launcher="rehearsal") and found.first.is_first


@pytest.mark.parametrize("text", ["", "four", "-4", "4:", "4:-1", "1.5", "4:1:2", " 4", "٤", "9999999"])
def test_other_words(text: str) -> None:
    with pytest.raises(BadInput, match="want a number of ranks"):
        RehearsedRanks.parse(text)


def test_ranks_that_there_are_not() -> None:
    with pytest.raises(BadInput, match="at least one rank"):
        RehearsedRanks.parse("0")
    with pytest.raises(BadInput, match="0 to 3: there is no rank 4"):
        RehearsedRanks.parse("4:4")
