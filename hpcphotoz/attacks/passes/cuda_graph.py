"""A whole attack as one CUDA graph: one launch instead of thousands. Shapes are fixed.

Buffers: a call copies its batch and key into the tensors that were captured, replays, and returns copies of
the graph's outputs, so that the next call may overwrite both. Weights are read in place: the next call sees
an in-place optimiser step.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hpcphotoz.attacks.ball import AttackBatch
from hpcphotoz.attacks.losses import Loss
from hpcphotoz.attacks.passes.gradient import Model, Passes, image_loss_of
from hpcphotoz.attacks.passes.runner import AttackLoop, match_model_layout, restore_layout
from hpcphotoz.compute.capture import capture
from hpcphotoz.config import Attack

_MAX_GRAPHS = 8  # each holds the memory of an attack


def graph_key(attack: Attack) -> str:
    """Name shared by all configured attacks that one graph can replay: eps and step size are inputs."""
    return attack.model_copy(update={"eps": 0.0, "step_size": 0.0}).model_dump_json()


class AttackGraphs:
    """Keeps the CUDA graphs of attacks on one model, one per attack and shape; drops the oldest."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[object, AttackGraph] = OrderedDict()

    def __call__(
        self,
        name: object,
        model: Model,
        batch: AttackBatch,
        loss: Loss,
        loop: AttackLoop,
        key: Tensor | None,
        passes: Passes,
    ) -> tuple[Tensor, ...]:
        """Attack as `run_attack`; the first call of its kind captures a graph.

        Calls with the same name of the attack must have the same loss and loop.
        """
        images = batch.images
        kind = (name, batch.ball, images.shape, images.stride(), batch.ebv is None, batch.labels.dtype)
        if kind not in self._graphs:
            self._graphs[kind] = AttackGraph(model, loss, loop, passes)
        self._graphs.move_to_end(kind)
        while len(self._graphs) > _MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return self._graphs[kind](batch, key)


class AttackGraph:
    """An attack on images of one shape, captured at the first call.

    Args:
        model: a CUDA module; the attack is captured again where its parameters have been replaced.
        loss, loop, passes: as `run_attack`. The loop may not stop early on the host; no loop here does.
    """

    def __init__(self, model: Model, loss: Loss, loop: AttackLoop, passes: Passes) -> None:
        if passes.rows is not None:
            raise ValueError(f"rows {passes.rows}: a CUDA graph takes all objects at once: give fewer images")
        self._model, self._loss, self._loop, self._passes = model, loss, loop, passes
        self._replay: Callable[[], object] | None = None

    def __call__(self, batch: AttackBatch, key: Tensor | None) -> tuple[Tensor, ...]:
        """Attack; raises ValueError for other shapes than those captured."""
        if self._replay is None or self._captured_addresses != self._addresses():
            self._capture(batch, key)
        assert self._replay is not None
        self._fill(batch, key)
        self._replay()
        return restore_layout(tuple(tensor.clone() for tensor in self._out), batch)

    def _capture(self, batch: AttackBatch, key: Tensor | None) -> None:
        self._batch = match_model_layout(self._model, batch).map_tensors(_clone)
        self._key = None if key is None else _clone(key)
        # The casts of the weights are captured too, so that they follow the weights in training.
        self._replay, self._out = capture(lambda: self._run(batch.images.device), batch.images.device)
        self._captured_addresses = self._addresses()

    def _addresses(self) -> list[int]:
        # Replaced weights (not changed in place) are elsewhere: the graph would read freed memory.
        tensors = self._model.state_dict().values() if isinstance(self._model, nn.Module) else ()
        return [tensor.data_ptr() for tensor in tensors]

    def _run(self, device: torch.device) -> tuple[Tensor, ...]:
        with image_loss_of(self._model, self._loss, device, self._passes) as image_loss:
            return self._loop(image_loss, self._batch, self._key)

    def _fill(self, batch: AttackBatch, key: Tensor | None) -> None:
        given_tensors = {**batch.tensors(), "key": key}
        for name, mine in {**self._batch.tensors(), "key": self._key}.items():
            given = given_tensors[name]
            was, now = (None if tensor is None else tuple(tensor.shape) for tensor in (mine, given))
            if was != now:
                raise ValueError(f"{name} {now}: this graph was captured with {was}: make another for it")
            if mine is not None and given is not None:
                mine.copy_(given, non_blocking=True)


def _clone(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.preserve_format)
