"""All steps of an attack as one CUDA graph: one launch instead of thousands, where shapes are fixed.

Buffers of a graph: `images`, `eps`, ... of the captured problem and the key are written by a call and read by
the replay; the replay's results lie in the graph's own memory, and a call returns copies of them, so that the
next may overwrite both. Weights are read where they lie: a step of an optimiser in place is seen by the next
call.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from hpcphotoz.attacks.gradient import Model, Passes, objective
from hpcphotoz.attacks.losses import Loss
from hpcphotoz.attacks.problem import Problem
from hpcphotoz.attacks.run import Steps, as_given, as_the_model
from hpcphotoz.config import Attack

_MOST = 8  # graphs that are kept: each holds the memory of an attack
_WARM_UP = 3  # libraries choose algorithms and take workspace in their first calls, which a capture may not
T = TypeVar("T")


def capture(work: Callable[[], T], device: torch.device) -> tuple[Callable[[], object], T]:
    """Capture a call as a CUDA graph: how to replay it, and what each replay fills.

    Args:
        work: what is called, a few times before the capture too.
        device: a CUDA device.
    """
    side = _capturing(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads go on calling CUDA, as the one that copies batches: by default that ends a capture.
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
    ):
        out = work()
    return graph.replay, out


@cache
def _capturing(device: torch.device) -> torch.cuda.Stream:
    """The stream for captures on a device: one a process, for torch has 32 and gives them out in turns."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def kind_of(attack: Attack) -> str:
    """A name for all attacks that one graph can replay: eps and step size are read by it."""
    return attack.model_copy(update={"eps": 0.0, "step_size": 0.0, "fraction": 0.0}).model_dump_json()


class Graphs:
    """Graphs of attacks on one model, by attack and by shapes; the ones used last are kept."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[object, Graphed] = OrderedDict()

    def __call__(
        self,
        name: object,
        model: Model,
        problem: Problem,
        loss: Loss,
        steps: Steps,
        key: Tensor | None,
        passes: Passes,
    ) -> tuple[Tensor, ...]:
        """Attack; captured at the first call of its kind.

        Args:
            name: stands for loss and steps: calls of one name have the same.
            model, problem, loss, steps, key, passes: as `run`.
        """
        given = problem
        kind = (name, given.images.shape, given.images.stride(), given.ebv is None, given.labels.dtype)
        if kind not in self._graphs:
            self._graphs[kind] = Graphed(model, loss, steps, passes)
        self._graphs.move_to_end(kind)
        while len(self._graphs) > _MOST:
            self._graphs.popitem(last=False)
        return self._graphs[kind](problem, key)


class Graphed:
    """An attack on images of one shape, captured at the first call.

    Args:
        model: a CUDA module; captured anew where its parameters have been replaced.
        loss, steps, passes: as `run`; no early stop on the host, which none of the attacks has on a GPU.
    """

    def __init__(self, model: Model, loss: Loss, steps: Steps, passes: Passes) -> None:
        if passes.rows is not None:
            raise ValueError(f"rows {passes.rows}: a CUDA graph takes all objects at once: give fewer images")
        self._model, self._loss, self._steps, self._passes = model, loss, steps, passes
        self._replay: Callable[[], object] | None = None

    def __call__(self, problem: Problem, key: Tensor | None) -> tuple[Tensor, ...]:
        """Attack; every call must have the shapes of the first.

        Raises:
            ValueError: images that are not on a GPU, or other shapes than those captured.
        """
        if not problem.images.is_cuda:
            raise ValueError(f"images on {problem.images.device}: a CUDA graph wants them on a GPU")
        if self._replay is None or self._where != self._addresses():
            self._capture(problem, key)
        assert self._replay is not None
        self._fill(problem, key)
        self._replay()
        return as_given(tuple(tensor.clone() for tensor in self._out), problem)

    def _capture(self, problem: Problem, key: Tensor | None) -> None:
        self._problem = as_the_model(self._model, problem).mapped(_own)
        self._key = None if key is None else _own(key)
        # The casts of the weights are captured too: they follow the weights as these are trained.
        self._replay, self._out = capture(lambda: self._run(problem.images.device), problem.images.device)
        self._where = self._addresses()

    def _addresses(self) -> list[int]:
        # Weights that were replaced, not changed, are elsewhere: the graph would read freed memory.
        tensors = self._model.state_dict().values() if isinstance(self._model, nn.Module) else ()
        return [tensor.data_ptr() for tensor in tensors]

    def _run(self, device: torch.device) -> tuple[Tensor, ...]:
        with objective(self._model, self._loss, device, self._passes) as goal:
            return self._steps(goal, self._problem, self._key)

    def _fill(self, problem: Problem, key: Tensor | None) -> None:
        theirs = {**problem.tensors(), "key": key}
        for name, mine in {**self._problem.tensors(), "key": self._key}.items():
            given = theirs[name]
            was, now = (None if tensor is None else tuple(tensor.shape) for tensor in (mine, given))
            if was != now:
                raise ValueError(f"{name} {now}: this graph was captured with {was}: make another for it")
            if mine is not None and given is not None:
                mine.copy_(given, non_blocking=True)


def _own(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.preserve_format)
