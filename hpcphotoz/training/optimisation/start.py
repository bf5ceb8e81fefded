"""Where training begins: at a checkpoint, perhaps with more epochs, or with the weights of another run."""

from dataclasses import replace
from typing import Any

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.models.build import load_weights
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.optimisation.freezing import frozen_names, frozen_text
from hpcphotoz.training.optimisation.origin import Origin
from hpcphotoz.training.optimisation.schedules import learning_rate, schedule_epochs
from hpcphotoz.training.run.checkpoint import State, begun_epochs, current_config


def begin_from(components: TrainingComponents, origin: Origin, header: Header) -> TrainingComponents:
    """The components with the weights of another run, and with the scale of its normalisation.

    Raises:
        BadInput: the weights do not fit the network.
    """
    found = components.with_scale(origin.scale, header.stamp)
    load_weights(found.module, origin.weights, f"--from {origin.facts['run']}")
    if found.average:
        found.average.load_state_dict(origin.weights)
    return replace(found, origin=origin.facts)


def resume(components: TrainingComponents, state: State, batches: int) -> TrainingComponents:
    """The components with the state of a checkpoint.

    Args:
        components: of the configuration of this run.
        state: the checkpoint.
        batches: optimiser steps of an epoch.

    Raises:
        BadInput: as `TrainingComponents.restore`.
    """
    found = components.with_scale(tuple(state["scale"]), state["stamp"])
    found.restore(state)
    begun, epochs = begun_epochs(state), components.config.run.epochs
    laid_over = state.get("schedule_epochs", begun)
    schedule = components.config.optimiser.schedule
    laid_over = schedule_epochs(schedule, laid_over, epochs, begun, int(state["step"]), batches)
    return replace(found, origin=state.get("from"), schedule_epochs=laid_over)


def start_lines(
    components: TrainingComponents,
    origin: Origin | None,
    state: State | None,
    own_scale: tuple[float, ...],
    batches: int,
) -> list[str]:
    """What the user is told of the start, one line each.

    Args:
        components: as they begin.
        origin: the run whose weights a new run begins with; None: there is none.
        state: the checkpoint from which a run is resumed; None: it is new.
        own_scale: (B,) nMgy, the scale that the normalisation would have for the dataset.
        batches: optimiser steps of an epoch.
    """
    config, lines = components.config, []
    if origin:
        ratios = [theirs / ours for theirs, ours in zip(origin.scale, own_scale, strict=True)]
        scale = (
            f"its normalisation keeps its scale, {min(ratios):.3g} to {max(ratios):.3g} times the dataset's"
        )
        lines.append(
            f"begins with the weights of {origin.facts['run']} (step {origin.facts['step']}); {scale}"
        )
    if state is not None and (begun := begun_epochs(state)) != config.run.epochs:
        before, step = state.get("schedule_epochs", begun), int(state["step"])
        rates = [
            learning_rate(number, epochs * batches, config.optimiser)
            for number, epochs in ((max(step - 1, 0), before), (step, components.laid_over))
        ]
        fallen = components.laid_over != config.run.epochs  # `halfway`, past its half
        goes_on = (
            f"the learning rate stays at a fifth, {rates[1]:.3g}"
            if fallen
            else f"goes on over {components.laid_over} epochs, learning rate {rates[1]:.3g} "
            f"(before: {rates[0]:.3g})"
        )
        schedule = config.optimiser.schedule + (":" if fallen else "")
        lines.append(f"extended from {begun} to {config.run.epochs} epochs: schedule {schedule} {goes_on}")
    before = current_config(state, "checkpoint")["run"].get("criterion") if state else None
    if before not in (None, config.run.criterion):
        lines.append(
            f"run.criterion {config.run.criterion}, before {before}: best/ keeps the best by {before} until "
            f"a validation betters all before it by {config.run.criterion}"
        )
    if names := frozen_names(components.module):
        lines.append(frozen_text(components.module, names))
    return lines


def start_facts(components: TrainingComponents) -> dict[str, Any]:
    """The origin of the weights, and the frozen parameters, for the provenance; empty if there are none."""
    names = frozen_names(components.module)
    return {
        **({"from": dict(components.origin)} if components.origin else {}),
        **({"frozen": names} if names else {}),
    }
