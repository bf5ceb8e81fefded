"""Refuses a launch of a run that a job or another process works on already."""

import os
import re
import shlex
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.launch.jobs.after import active_job
from hpcphotoz.locks.judgement import is_held


def refuse_active(run: Path, dependency: str = "", chain: bool = True) -> None:
    """Refuse a run of which a job is queued or runs, or in which a process trains.

    Where Slurm cannot be asked, a held lock alone decides. A job that has ended is in nobody's way.

    Args:
        run: run folder, which may not exist yet.
        dependency: sbatch's --dependency of the new job: it may begin after a job of the same run.
        chain: whether jobs can be added to the run by --chain.

    Raises:
        BadInput: the run is worked on.
    """
    try:
        active = active_job(run)
    except BadInput:  # Slurm cannot be asked
        active = None
    if active is None:
        refuse_trained(run)
    elif active not in re.split("[:,]", dependency):
        first = f"cancel it first ({command('cancel', run)})"
        after = ", or add jobs after it with --chain" if chain else ""
        raise BadInput(f"{shown(run)}: job {active} of this run is queued or runs: {first}{after}")


def refuse_trained(run: Path) -> None:
    """Refuse a run in which a process is seen to train.

    Raises:
        BadInput: there is one.
    """
    if is_held(run / "logs" / "lock"):
        raise BadInput(
            f"{shown(run)}: another process trains in it: wait for its end, or stop it "
            f"({command('cancel', run)})"
        )


def command(name: str, run: Path) -> str:
    """A command line for a run, to be typed in the present folder: "hpcphotoz cancel runs/d"."""
    return f"hpcphotoz {name} {shlex.quote(shown(run))}"


def shown(run: Path) -> str:
    """A run folder as the user would type it: relative to the present folder, if it is below that."""
    here = os.getcwd()
    return os.path.relpath(run, here) if run.is_relative_to(here) else str(run)
