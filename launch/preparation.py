"""Steps before every launch: find its folder, check the run and its data, complete the job."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hpcphotoz.atomic import check_output_folder
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.errors import BadInput
from hpcphotoz.launch.command_job import CommandJob
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.training.reporting.sinks import check_sinks

Job = TrainJob | CommandJob
J = TypeVar("J", bound=Job)


def import_submitit() -> Any:
    """The module submitit; raises BadInput where it is not installed."""
    try:
        import submitit
    except ImportError:
        raise BadInput("submitit is not installed: pip install 'hpcphotoz[launch]'") from None
    return submitit


def launch_folder(job: Job) -> Path:
    """RUN/launch, for scripts, logs and code; raises BadInput for a name that Slurm would not write to."""
    check_name(job.out)
    return Path(job.out) / "launch"


def check_name(folder: str) -> None:
    """Raise BadInput for the name of a folder that Slurm would not write to."""
    if re.search(r"[%\\]", folder):
        raise BadInput(f"{folder}: Slurm would rewrite '%' and '\\' in this name: choose another name")
    if not folder.isprintable():
        raise BadInput(f"{folder!r}: a control character in this name: choose another name")


def check_folders(job: Job, origin_is_there: bool = True) -> None:
    """Make sure that the job can start or resume in its run folder on its datasets; writes nothing.

    Args:
        job: what to train.
        origin_is_there: False: another job is to write the weights of `job.start_from`.

    Raises:
        BadInput: no such dataset, a run folder that holds another run, weights that do not suit, or a package
            of `run.sinks` that is not installed.
    """
    if isinstance(job, CommandJob):  # the command line has checked its input and output
        check_output_folder(Path(job.out))
        return
    config, data, run = job.parsed, Datasets.of(job.data), Path(job.out)
    check_sinks(config)
    manifest = data.read_manifest(config.run.global_batch)
    if not run.exists() and not job.start_from:  # there are no weights to look at: torch takes a second
        check_output_folder(run)
        return
    from hpcphotoz.training.optimisation.origin import check_origin, read_origin
    from hpcphotoz.training.run import checkpoint, run_folder

    run_folder.check(run, config)
    newest = checkpoint.resumed(run)
    if job.start_from and newest is None and origin_is_there:
        read_origin(Path(job.start_from), config, manifest.header)
    if newest is not None:
        checkpoint.check_data(run, newest[1], data, manifest)
        if job.start_from:
            check_origin(run, Path(job.start_from), newest[1].get("from"))


def folders_of(job: Job) -> tuple[Path, ...]:
    """The absolute folders that a job reads and writes: run folder, datasets, the run it begins from."""
    if isinstance(job, CommandJob):
        return tuple(
            dict.fromkeys(Path(name) for name in (job.folder, str(Path(job.out).parent), *job.inputs))
        )
    data = [job.data] if isinstance(job.data, str) else list(job.data)
    return tuple(Path(name) for name in (job.out, *data, job.start_from) if name)


def with_placement(job: J, plan: LaunchPlan, code: Path) -> J:
    """The job with its code folder, CPUs, requeue limit and device filled in."""
    placed: dict[str, Any] = {
        "code": str(code),
        "cpus": plan.cpus_per_task,
        "max_requeues": plan.max_requeues,
    }
    if isinstance(job, CommandJob):
        return replace(job, **placed)
    device = "cuda" if plan.gpus and job.device == "auto" else job.device
    return replace(job, device=device, **placed)
