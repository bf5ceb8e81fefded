"""Checkpoints are written beside training: from a copy, one at a time, and none is lost at the end."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcphotoz.errors import BadInput
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.network import load_network
from hpcphotoz.training.saving.host_copy import HostCopy
from hpcphotoz.training.saving.writer import CheckpointWriter
from tests.helpers.training.runs import state_of

WAIT_S = 60


@pytest.fixture
def module() -> nn.Linear:
    return nn.Linear(50, 40)


class Gate:
    """A write of a checkpoint that begins when the gate is opened."""

    def __init__(self, write: Callable[..., Path]) -> None:
        self._write, self.reached, self.opened = write, threading.Event(), threading.Event()

    def __call__(self, *arguments: Any) -> Path:
        self.reached.set()
        assert self.opened.wait(WAIT_S)
        return self._write(*arguments)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setattr(checkpoint, "save", made := Gate(checkpoint.save))
    return made


def newest(run: Path) -> checkpoint.State:
    found = checkpoint.newest(run)
    assert found is not None
    return found[1]


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, module: nn.Linear, gate: Gate
) -> None:
    writer = CheckpointWriter(tmp_path, 2, 0)
    before = module.weight.detach().clone()
    writer.save(lambda: state_of(module, 1), 1)
    assert gate.reached.wait(WAIT_S) and checkpoint.newest(tmp_path) is None
    with torch.no_grad():
        module.weight.add_(1)  # the next steps
    gate.opened.set()
    writer.wait()
    assert torch.equal(newest(tmp_path)["model"]["weight"], before)


def test_a_second_save_waits_for_the_first_and_says_how_long(
    tmp_path: Path, module: nn.Linear, gate: Gate
) -> None:
    writer = CheckpointWriter(tmp_path, 2, 0)
    writer.save(lambda: state_of(module, 1), 1)
    asked = list[int]()

    def second() -> checkpoint.State:
        asked.append(2)
        return state_of(module, 2)

    saving = threading.Thread(target=lambda: writer.save(second, 2))
    saving.start()
    assert gate.reached.wait(WAIT_S) and not asked, "its state is not copied over the one being written"
    gate.opened.set()
    saving.join(WAIT_S)
    writer.wait()
    one, two = writer.figures()
    assert (one.step, two.step) == (1, 2) and writer.figures() == []
    assert 0 < two.waited_s <= two.blocked_s <= two.total_s and one.blocked_s < one.total_s
    assert one.bytes == checkpoint.path_of(tmp_path, "checkpoints", 1).stat().st_size
    assert writer.longest_s == max(one.total_s, two.total_s)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "cannot save the checkpoint: No space left on device",
        ),
        (RuntimeError("unexpected"), "cannot save the checkpoint: RuntimeError: unexpected"),
    ],
    ids=str,
)
def test_a_failure_in_the_thread_is_a_problem_of_the_run(
    error: Exception, said: str, tmp_path: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(tmp_path, 2, 0)
    writer.save(lambda: state_of(module, 1), 1)
    writer.wait()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "write_file", fail)
    writer.save(lambda: state_of(module, 2), 2)
    writer.wait()
    assert writer.problem is not None and said in writer.problem and "step-00000002.pt" in writer.problem
    assert newest(tmp_path)["step"] == 1 and [each.step for each in writer.figures()] == [1]


def test_the_best_replaces_the_best_before_and_is_a_second_name_where_it_was_saved(
    tmp_path: Path, module: nn.Module
) -> None:
    writer = CheckpointWriter(tmp_path, 2, 0)
    for step, saved_before in ((1, False), (2, True), (3, False)):
        if saved_before:
            writer.save(lambda: state_of(module, step), step)  # noqa: B023
        writer.save(lambda: state_of(module, step), step, best=True)  # noqa: B023
        writer.wait()
        (path,) = (tmp_path / "best").iterdir()
        assert path.name == f"step-{step:08d}.pt" and checkpoint.load(path)["step"] == step
        other = checkpoint.path_of(tmp_path, "checkpoints", step)
        assert path.stat().st_nlink == 1 + saved_before and other.exists() is saved_before
    assert writer.problem is None


def test_without_hard_links_the_best_is_a_file_of_its_own(
    tmp_path: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    writer = CheckpointWriter(tmp_path, 2, 0)
    for best in (False, True):
        writer.save(lambda: state_of(module, 1), 1, best)
    writer.wait()
    paths = [checkpoint.path_of(tmp_path, folder, 1) for folder in ("checkpoints", "best")]
    assert writer.problem is None and paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[1].stat().st_nlink == 1


@pytest.mark.parametrize(("hours", "kept"), [(0, []), (1e-9, [1, 2, 3, 4]), (1.0, [1, 3])])
def test_a_checkpoint_every_so_many_hours_stays_for_good(
    hours: float, kept: list[int], tmp_path: Path, module: nn.Module
) -> None:
    writer = CheckpointWriter(tmp_path, 2, hours)
    for step in (1, 2, 3, 4):
        if step == 3:  # an hour later
            for path in (tmp_path / "kept").glob("*.pt"):
                earlier = path.stat().st_mtime - 3600
                os.utime(path, (earlier, earlier))
        writer.save(lambda: state_of(module, step), step)  # noqa: B023
        writer.wait()
    assert writer.problem is None
    assert [checkpoint.step_of(path) for path in sorted((tmp_path / "kept").glob("*"))] == kept
    assert [checkpoint.step_of(path) for path in sorted((tmp_path / "checkpoints").iterdir())] == [3, 4]


def test_a_copy_keeps_values_and_memory_order_and_takes_memory_once() -> None:
    module = nn.Conv2d(3, 4, 5).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.randn(1, 3, 8, 8)).sum().backward()
    optimiser.step()
    copy = HostCopy()
    places = set[tuple[int, ...]]()
    for _ in range(2):
        given = {"model": module.state_dict(), "optimiser": optimiser.state_dict(), "lost": [1, (2, None)]}
        made = copy.of(given)
        assert made["model"]["weight"].stride() == module.weight.stride() != made["model"]["weight"].shape
        assert torch.equal(made["model"]["weight"], module.weight) and made["lost"] == [1, (2, None)]
        assert made["model"]._metadata == given["model"]._metadata
        moment = made["optimiser"]["state"][0]["exp_avg"]
        expected = moment.clone()
        places.add((made["model"]["weight"].data_ptr(), moment.data_ptr()))
        optimiser.step()
        optimiser.param_groups[0]["lr"] = 0.5
        assert torch.equal(moment, expected) and made["optimiser"]["param_groups"][0]["lr"] != 0.5
        optimiser.param_groups[0]["lr"] = 0.001
    assert len(places) == 1


def test_weights_without_safetensors_are_left_out(
    tmp_path: Path, module: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hpcphotoz.training.saving.writer.find_spec", lambda _: None)
    with caplog.at_level("INFO", logger="hpcphotoz"):
        writer = CheckpointWriter(tmp_path, 2, 0)
    writer.save(lambda: state_of(module, 1), 1)
    writer.wait()
    assert "no weights as safetensors: pip install 'hpcphotoz[export]'" in caplog.text
    assert writer.problem is None and not (tmp_path / "weights").exists()
    with pytest.raises(BadInput, match="cannot be read as safetensors"):
        load_network(tmp_path / "weights/last.safetensors")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/last.safetensors").touch()
    with caplog.at_level("INFO", logger="hpcphotoz"):
        CheckpointWriter(tmp_path, 2, 0)
    assert f"({tmp_path / 'weights'}: last.safetensors stay as an earlier start left them)" in caplog.text
