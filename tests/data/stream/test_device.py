"""Batches on their way to a GPU, on a CPU: which streams are asked for."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hpcphotoz.data.stream import device
from hpcphotoz.training import rank_batch
from hpcphotoz.training.rank_batch import make_rank_batch
from tests.training.test_step import batch, configured

GPU = torch.device("cuda", 0)


def test_all_epochs_are_copied_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has 32 streams and gives them out in turns: one an epoch would come to be the computing one."""
    stream = SimpleNamespace(synchronize=lambda: None, wait_event=lambda event: None)
    made = mock.Mock(return_value=stream)
    event = SimpleNamespace(record=lambda stream: None, query=lambda: True)
    monkeypatch.setattr("torch.cuda.Stream", made)
    monkeypatch.setattr("torch.cuda.Event", lambda: event)
    monkeypatch.setattr("torch.cuda.stream", lambda stream: nullcontext())
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: stream)
    monkeypatch.setattr(device, "batch_to_device", lambda batch, device, non_blocking: batch)
    for _ in range(40):
        assert len(list(device.prefetch_to_device(iter([batch(), batch()]), GPU))) == 2
    assert made.call_count == 1
    device._copy_stream.cache_clear()


def test_the_work_of_a_step_is_sent_to_a_gpu_without_waiting_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from memory that is not pinned would wait for the step before."""
    pinned = mock.Mock(side_effect=lambda tensor: tensor)
    copies: list[bool] = []
    copy = torch.Tensor.to

    def to(tensor: torch.Tensor, *given: object, **options: object) -> torch.Tensor:
        copies.append(bool(options.get("non_blocking")))
        return copy(tensor)

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned(tensor))
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(rank_batch, "_load_on", lambda kind: lambda images, unit, code: images)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.zeros(11, 3, 8, 8, device=GPU)
    make_rank_batch(replace(batch(), images=images), configured(augment=True), 0, 0)
    # Rows that are attacked and others, object ids, and how each image is turned.
    assert pinned.call_count == len(copies) == 4 and all(copies)
