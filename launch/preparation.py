"""Steps before every launch: find its folder, check the run and its data, complete the job."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcphotoz.data.datasets import Datasets
from hpcphotoz.errors import BadInput
from hpcphotoz.launch.job import TrainJob
from hpcphotoz.launch.request.plan import LaunchPlan
from hpcphotoz.training.optimisation.origin import check_origin, read_origin
from hpcphotoz.training.reporting.sinks import check_sinks
from hpcphotoz.training.run import checkpoint, run_folder


def import_submitit() -> Any:
    """The module submitit; raises BadInput where it is not installed."""
    try:
        import submitit
    except ImportError:
        raise BadInput("submitit is not installed: pip install 'hpcphotoz[launch]'") from None
    return submitit


def launch_folder(job: TrainJob) -> Path:
    """RUN/launch, for scripts, logs and code; raises BadInput for a name that Slurm would not write to."""
    if re.search(r"[%\\]", job.out):
        raise BadInput(f"{job.out}: Slurm would rewrite '%' and '\\' in this name: choose another run folder")
    if not job.out.isprintable():
        raise BadInput(f"{job.out!r}: a control character in this name: choose another run folder")
    return Path(job.out) / "launch"


def check_folders(job: TrainJob, origin_is_there: bool = True) -> None:
    """Make sure that the job can start or resume in its run folder on its datasets; writes nothing.

    Args:
        job: what to train.
        origin_is_there: False: another job is to write the weights of `job.start_from`.

    Raises:
        BadInput: no such dataset, a run folder that holds another run, weights that do not suit, or a package
            of `run.sinks` that is not installed.
    """
    config, data, run = job.parsed, Datasets.of(job.data), Path(job.out)
    check_sinks(config)
    manifest = data.read_manifest(config.run.global_batch)
    run_folder.check(run, config)
    newest = checkpoint.resumed(run)
    if job.start_from and newest is None and origin_is_there:
        read_origin(Path(job.start_from), config, manifest.header)
    if newest is not None:
        checkpoint.check_data(run, newest[1], data, manifest)
        if job.start_from:
            check_origin(run, Path(job.start_from), newest[1].get("from"))


def folders_of(job: TrainJob) -> tuple[Path, ...]:
    """The absolute folders that a job reads and writes: run folder, datasets, the run it begins from."""
    data = [job.data] if isinstance(job.data, str) else list(job.data)
    return tuple(Path(name) for name in (job.out, *data, job.start_from) if name)


def with_placement(job: TrainJob, plan: LaunchPlan, code: Path) -> TrainJob:
    """The job with its code folder, CPUs, requeue limit and device filled in."""
    device = "cuda" if plan.gpus and job.device == "auto" else job.device
    placed = {"code": str(code), "cpus": plan.cpus_per_task, "max_requeues": plan.max_requeues}
    return replace(job, device=device, **placed)  # type: ignore[arg-type]
