"""The benchmark of checkpoints: all ways to save write the same tensors, and a save is timed as a whole."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load

from benchmarks.bench_checkpoint import tensors_of
from benchmarks.training.savers import savers, timed
from hpcphotoz.training.run import checkpoint
from tests.helpers.training.runs import state_of


@pytest.fixture
def network() -> tuple[nn.Module, Callable[[], checkpoint.State]]:
    module = nn.Linear(30, 20)
    return module, lambda: state_of(module, 0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of torch's own checkpoints
def test_all_savers_write_the_state_as_it_was_when_they_were_called(
    network: tuple[nn.Module, Callable[[], checkpoint.State]], tmp_path: Path
) -> None:
    module, state = network
    before = copy.deepcopy(module.state_dict())
    for saver in savers(tmp_path, state).values():
        module.load_state_dict(before)
        saver.save()
        with torch.no_grad():
            module.weight.add_(1)  # type: ignore[operator]
        assert saver.wait() >= 0
    found = [checkpoint.load(tmp_path / "ours/checkpoints/step-00000001.pt")]
    found += [torch.load(tmp_path / "loop/checkpoint-1.pt", weights_only=True)]
    for name in ("fresh", "reused"):
        read = copy.deepcopy(state())
        load(read, checkpoint_id=tmp_path / name / "checkpoint-1", no_dist=True)
        found.append(read)
    for each in found:
        assert torch.equal(each["model"]["weight"], before["weight"])


def test_steps_are_timed_with_the_save_among_them(
    network: tuple[nn.Module, Callable[[], checkpoint.State]], tmp_path: Path
) -> None:
    _, state = network
    saver, steps = savers(tmp_path, state)["torch.save"], list[int]()
    found = timed(lambda: steps.append(len(list((tmp_path / "loop").iterdir()))), saver, 3)
    assert steps == [0, 1, 1], "saved after the first step"
    assert 0 < found.blocked_s == found.total_s < found.seconds
    assert timed(lambda: None, None, 2).blocked_s == 0


def test_the_bytes_of_a_state_are_those_of_all_its_tensors() -> None:
    state = {"a": torch.zeros(3), "b": [{"c": torch.zeros(2, dtype=torch.float64)}, 4, "text"]}
    assert sum(tensor.nbytes for tensor in tensors_of(state)) == 12 + 16
