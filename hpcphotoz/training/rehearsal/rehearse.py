"""Rehearses a run of many ranks in one process: the plan of all ranks, and two steps of one of them."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hpcphotoz.compute.precision import cudnn_benchmark, tf32
from hpcphotoz.config import Config
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.errors import BadInput
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.distributed.rank_device import choose_device
from hpcphotoz.training.exact.deterministic import deterministic
from hpcphotoz.training.overlap.topology import RankSplit, refuse_one_rank
from hpcphotoz.training.rehearsal import memory
from hpcphotoz.training.rehearsal.fake_group import fake_process_group
from hpcphotoz.training.rehearsal.plan import RunPlan, plan_run
from hpcphotoz.training.rehearsal.ranks import RehearsedRanks
from hpcphotoz.training.rehearsal.steps import STEPS, RehearsedSteps, take_steps
from hpcphotoz.training.reporting.sinks import check_sinks
from hpcphotoz.training.run import checkpoint, run_folder
from hpcphotoz.training.trainer import RunPreparation
from hpcphotoz.world import detect


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal found."""

    ranks: RehearsedRanks
    out: Path
    components: TrainingComponents
    loader: RankLoader  # of rank 0
    start: int  # optimiser steps taken before
    last_step: int
    total_steps: int
    refused: str  # why the ranks cannot have roles, as training would say; "": they can
    steps: RehearsedSteps | None  # None: roles are refused, or the run is finished
    plan: RunPlan | None  # likewise
    checkpoint_bytes: int
    peak_bytes: int  # of this process, or of its GPU
    available_bytes: int  # of this machine, or of its GPU


def rehearse(
    config: Config,
    data: Path | Datasets,
    out: Path,
    ranks: RehearsedRanks,
    device: str = "auto",
    start_from: Path | None = None,
) -> Rehearsal:
    """Plan a run on many ranks, and take two steps as one of them, without writing anything.

    Args:
        config, data, out, device, start_from: as of `trainer.train`, which would refuse the same.
        ranks: how many, and which one takes steps.

    Raises:
        BadInput: as `trainer.train`, or this process is one of several ranks.
    """
    world = detect()
    if world.size > 1:
        raise BadInput(
            f"--rehearse {ranks.size}: this is one of {world.size} ranks of {world.launcher}, and a "
            "rehearsal takes one process: start it without a launcher"
        )
    datasets = Datasets.of(data)
    chosen = choose_device(world, device)
    if chosen.type == "cpu":
        keep_freed_memory()
    check_sinks(config)
    run_folder.check(out, config)
    run_folder.refuse_busy(out, world)
    with deterministic(config.compute.deterministic), fake_process_group(ranks):
        return _rehearse(config, datasets, out, ranks, chosen, start_from)


def _rehearse(
    config: Config,
    data: Datasets,
    out: Path,
    ranks: RehearsedRanks,
    device: torch.device,
    start_from: Path | None,
) -> Rehearsal:
    made = RunPreparation(config, data, out, ranks.first, device, start_from, writes=False)
    made.count()
    with cudnn_benchmark(device, on=not config.compute.deterministic):
        config = made.choose_compute()
        start = made.restore().step
        refused, steps, plan = _refusal(config, ranks), None, None
        last = range(start, min(start + STEPS, made.last_step))
        components, loader = made.components, made.loader
        schedule_steps = components.laid_over * loader.train.batches
        if last and not refused:
            with tf32(components.compute.tf32):
                given = last, made.total_steps, schedule_steps
                steps = take_steps(components, loader.for_world(ranks.world), ranks.world, *given)
                peak = memory.peak_bytes(device)
                left = range(start, made.last_step)
                plan = plan_run(components, loader, ranks, steps.role.split, left, made.total_steps)
        else:
            peak = memory.peak_bytes(device)
    state = components.state(torch.zeros(9, dtype=torch.float64), loader.train, start)
    size = checkpoint.bytes_of(state)
    if not components.optimiser.state:
        size += memory.network_bytes(components)["optimiser"]  # it has none before the first step
    return Rehearsal(
        ranks,
        out,
        components,
        loader,
        start,
        made.last_step,
        made.total_steps,
        refused,
        steps,
        plan,
        size,
        peak,
        memory.available_bytes(device),
    )


def _refusal(config: Config, ranks: RehearsedRanks) -> str:
    overlap = config.overlap
    if overlap.mode != "ranks":
        return ""
    try:
        refuse_one_rank(ranks.size)
        if overlap.attackers != "auto":
            RankSplit(ranks.size, overlap.attackers)
    except BadInput as error:
        return str(error)
    return ""
