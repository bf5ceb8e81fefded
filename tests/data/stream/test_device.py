"""Copies of batches to a GPU, tested on a CPU: which CUDA streams are used."""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from hpcphotoz.data.stream import device
from tests.helpers.training.steps import batch

GPU = torch.device("cuda", 0)


def test_all_epochs_are_copied_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch hands out 32 streams in turns: a new one each epoch would at last be the computing stream."""
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
