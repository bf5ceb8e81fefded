"""Overlap `streams` gives the loss curve of `off`."""

import logging
from pathlib import Path

import pytest

from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.overlap.streams import SerialOverlap
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.training.runs import SAME, arguments, assert_same_curve, config


def test_streams_give_the_loss_curve_of_off(alone: Path, dataset: Path, tmp_path: Path) -> None:
    assert train(config(mode="streams"), dataset, tmp_path / "one") is Outcome.FINISHED
    assert_same_curve(tmp_path / "one", alone, SAME)


@pytest.mark.slow
def test_streams_average_gradients_once_over_ranks(alone: Path, dataset: Path, tmp_path: Path) -> None:
    """Also with several micro-batches."""
    words = arguments(dataset, tmp_path / "run", tmp_path, mode="streams", micro_batch=3)
    for status, _, error in ranks.run(2, words):
        assert status == 0, error
    assert_same_curve(tmp_path / "run", alone, SAME)
    log = (tmp_path / "run" / "logs" / "rank-0.log").read_text()
    assert "clean passes and attack run one after the other" in log


def test_streams_without_a_gpu_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hpcphotoz"):
        SerialOverlap(lambda rank_batch: rank_batch.images)
    assert "no CUDA device: clean passes and attack run one after the other" in caplog.text
