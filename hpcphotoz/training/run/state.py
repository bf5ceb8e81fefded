"""What a checkpoint holds: the state of a run between two steps, saved and restored."""

from hpcphotoz.data.order import ORDER
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.run.checkpoint import State
from hpcphotoz.training.run.metrics import MetricsAccumulator


def training_state(
    components: TrainingComponents, metrics: MetricsAccumulator, stream: Stream, step: int
) -> State:
    """The state after `step` optimiser steps, from which `restore` continues the same loss curve.

    Args:
        components: network, optimiser and configuration.
        metrics: sums since the last line of metrics.jsonl.
        stream: the training objects.
        step: number of optimiser steps taken.
    """
    header = stream.manifest.header
    return {
        "model": components.module.state_dict(),
        "optimiser": components.optimiser.state_dict(),
        "step": step,
        "sums": metrics.sums.clone(),
        "manifest_sha256": stream.manifest.sha256,
        "lost": list(stream.census.lost),
        "order": ORDER,
        "config": components.config.model_dump(),
        "bands": list(header.bands),
        "stamp": header.stamp,
        "pixel_scale": header.pixel_scale,
        "scale": list(components.scale),
    }


def restore(state: State, components: TrainingComponents, metrics: MetricsAccumulator) -> int:
    """Load a state into network, optimiser and metrics; returns the number of optimiser steps taken."""
    components.module.load_state_dict(state["model"])
    # `fused` is an option of this process, not of the one that saved. It is set before loading, because it
    # decides on which device the optimiser keeps its own `step`.
    for entry in state["optimiser"]["param_groups"]:
        entry["fused"] = components.compute.fused_adam
    components.optimiser.load_state_dict(state["optimiser"])
    metrics.sums[: len(state["sums"])] = state["sums"].cpu()
    return int(state["step"])


def lost_shards(state: State) -> tuple[int, ...]:
    """Numbers of the shards that could not be read when the state was saved."""
    return tuple(state.get("lost", ()))
