"""The end of a run: rank 0 records how it ended, and all ranks leave together."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcphotoz.errors import first_line, out_of_memory
from hpcphotoz.provenance import record_end
from hpcphotoz.training.distributed import group
from hpcphotoz.training.run.signals import StopRequest
from hpcphotoz.world import World


def leave_together(run: Path, world: World, stop: StopRequest, outcome: str, step: int) -> None:
    """Record the end of a run on rank 0, and wait for it on all: nothing is left to do afterwards.

    srun and Open MPI end all ranks as soon as one leaves with a status that is not 0.

    Args:
        run, world: run folder, and all ranks.
        stop: told that further signals mean nothing.
        outcome, step: "finished" or "stopped", and the last step.
    """
    stop.settle()
    reasons = group.gather_texts(stop.reason, world) if outcome == "stopped" else []
    if world.is_first:
        record_end(run, outcome, next((text for text in reasons if text), None), step=step)
    group.gather_texts(None, world)


@contextmanager
def recording_failure(run: Path, world: World) -> Iterator[None]:
    """Record on rank 0 the error that ends the block, as the end of the run."""
    try:
        yield
    except BaseException as error:
        if world.is_first:
            record_end(run, "failed", _reason(error).removeprefix(f"{run}: "))
        raise


def _reason(error: BaseException) -> str:
    """Why a run failed, in words; the class of an error is named only where its message may say nothing."""
    if isinstance(error, SystemExit):  # another rank reports the reason
        return "another rank failed"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = first_line(error)
    if words := out_of_memory(error):
        return words
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else text
    own = type(error).__module__.partition(".")[0] == "hpcphotoz"
    return text if own and text else f"unexpected {type(error).__name__}: {text}"
