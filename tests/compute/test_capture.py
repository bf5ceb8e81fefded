"""Capture of CUDA graphs, with a stand-in for torch.cuda."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from hpcphotoz.compute.capture import _capture_stream, capture


def test_a_capture_lets_other_threads_call_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that copies batches calls CUDA: in the default mode its calls would end the capture."""
    captures: list[dict[str, Any]] = []
    made = mock.Mock(return_value=SimpleNamespace(wait_stream=lambda other: None))

    @contextmanager
    def graph(cuda_graph: object, **options: Any) -> Iterator[None]:
        captures.append(options)
        yield

    stream = made.return_value
    monkeypatch.setattr("torch.cuda.Stream", made)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: stream)
    monkeypatch.setattr("torch.cuda.stream", lambda stream: nullcontext())
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())
    monkeypatch.setattr("torch.cuda.CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr("torch.cuda.graph", graph)
    calls: list[int] = []
    replay, out = capture(lambda: calls.append(1), torch.device("cuda"))
    assert captures == [{"stream": stream, "capture_error_mode": "thread_local"}] and len(calls) == 4
    capture(lambda: None, torch.device("cuda"))
    assert made.call_count == 1, "torch hands out 32 streams in turns"
    _capture_stream.cache_clear()
