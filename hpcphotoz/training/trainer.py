"""Training of one network on any number of ranks: start, resume and end of a run."""

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from hpcphotoz.compute.precision import cudnn_benchmark, tf32
from hpcphotoz.config import Config
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.order import rank_slice
from hpcphotoz.data.select.groups import SplitShares
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.models.factory import change_of_source
from hpcphotoz.output import say
from hpcphotoz.provenance import record_start
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.compute import choose_compute, compute_options
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.distributed import group
from hpcphotoz.training.distributed.departure import leave_together, recording_failure
from hpcphotoz.training.distributed.preflight import options_of_all_ranks
from hpcphotoz.training.exact.deterministic import deterministic
from hpcphotoz.training.exact.rounding import rounding_facts, warn_of_changes
from hpcphotoz.training.loop import Outcome, TrainingLoop
from hpcphotoz.training.monitoring.lost_ranks import (
    RankMonitor,
    WaitLimits,
    detect_lost_ranks,
    monitoring,
)
from hpcphotoz.training.optimisation.origin import Origin, check_origin, read_origin
from hpcphotoz.training.optimisation.schedules import implausible_options
from hpcphotoz.training.optimisation.start import begin_from, resume, start_lines
from hpcphotoz.training.overlap.topology import refuse_one_rank
from hpcphotoz.training.rank_batch import image_shape
from hpcphotoz.training.reporting.sinks import check_sinks
from hpcphotoz.training.run import checkpoint, run_folder
from hpcphotoz.training.run.metrics import MetricsAccumulator
from hpcphotoz.training.run.signals import STOP_FILE, StopRequest
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.saving.failed_write import explained
from hpcphotoz.training.saving.start_facts import facts_of_start
from hpcphotoz.training.staging.staged_loader import staged_loader
from hpcphotoz.world import World, detect

_log = logging.getLogger(__name__)


def train(
    config: Config,
    data: Path | Datasets,
    out: Path,
    profile: bool = False,
    device: str = "auto",
    command: Sequence[str] | None = None,
    start_from: Path | None = None,
    stage: str | None = None,
) -> Outcome:
    """Train one network, or continue: the same arguments resume from the newest checkpoint in `out`.

    Call it on every rank (torchrun, srun, mpirun or a single process). A signal (USR1, USR2, TERM, INT, HUP),
    the wall-time budget or a file STOP in `out` stops all ranks after the same step with a checkpoint.

    Args:
        config: every option.
        data: dataset folder, or several with weights.
        out: run folder; made where it does not exist.
        profile: write where a step's time goes to `out`/profile and to standard output.
        device: "cuda", "cpu", or "auto": a GPU where there is one.
        command: the words that started this run, for its provenance; those of this process by default.
        start_from: run folder, checkpoint or *.safetensors whose weights a new run begins with; None: random.
        stage: an existing folder on a disk of every node, to which the datasets are copied first; "": $TMPDIR
            or the like; None: they are read where they are.

    Raises:
        BadInput: unusable data, a run folder that holds another run, weights that do not suit the options, or
            no GPU where one was asked for.
        loop.Diverged: loss or gradient of more than `run.max_skipped_steps` steps in a row are not finite.
        lost_ranks.RankLost: another rank died or hangs.
    """
    world, datasets = detect(), Datasets.of(data)
    stop = StopRequest(config.run.wall_minutes, out / STOP_FILE if world.is_first else None)
    limits = WaitLimits(config.run.start_timeout_s, config.run.timeout_s)
    options = options_of_all_ranks(config, datasets, out, device, start_from, stage)
    missing = run_folder.missing_folders(out)  # before the ranks meet: afterwards any may have made it
    with (
        ExitStack() as stack,
        deterministic(config.compute.deterministic),
        group.process_group(world, limits, options, device) as chosen,
    ):
        stack.enter_context(stop)  # until the ranks have parted: see `StopRequest.settle`
        if chosen.type == "cpu":
            keep_freed_memory()
        with detect_lost_ranks(lambda: f"{out}: rank {world.rank} before the first step", limits):
            with group.failing_together(world):
                if world.is_first:
                    check_sinks(config)
                run_folder.check(out, config)
                if config.overlap.mode == "ranks":
                    refuse_one_rank(world.size)
                run_folder.refuse_busy(out, world)
                trainer = RunPreparation(config, datasets, out, world, chosen, start_from)
                lock = stack.enter_context(run_folder.prepare(out, world, missing))
            monitor = stack.enter_context(monitoring(out, world, trainer.components.timers, limits))
            if stage is not None:
                staged = stack.enter_context(staged_loader(trainer.loader, stage, stop))
                if staged is None:
                    leave_together(out, world, stop, Outcome.STOPPED.value, 0)
                    return Outcome.STOPPED
                trainer.loader = staged
            trainer.count()  # refuses unusable labels, before the trial of precisions
            stack.enter_context(cudnn_benchmark(chosen, on=not config.compute.deterministic))
            config = trainer.choose_compute()
            with group.failing_together(world):
                run_folder.write_config(out, config, world)
            stack.enter_context(tf32(trainer.components.compute.tf32))
            stack.enter_context(run_folder.rank_log(out, world))
            loop = trainer.resume(sys.argv if command is None else command, monitor)
            loop = replace(loop, lock=lock)
        lost = detect_lost_ranks(loop.progress_message, limits)
        with recording_failure(out, world), lost:
            outcome = loop.run(stop, profile)
            leave_together(out, world, stop, outcome.value, loop.step)
            return outcome


def uneven_split(config: Config, shares: SplitShares | None) -> list[str]:
    """A warning about a part whose share is off by more than half of what the options ask for, if any is."""
    data = config.data
    problem = shares.problem(data.validation, data.test) if shares else None
    hint = "take smaller groups, or another data.split_seed"
    return [f"data.split_by {data.split_by}: {problem}: {hint}"] if problem else []


class Start(NamedTuple):
    """Where a run begins or continues."""

    step: int  # optimiser steps taken
    saved: checkpoint.State | None  # the checkpoint; None: a new run
    origin: Origin | None  # the run whose weights a new run begins with
    own_scale: tuple[float, ...]  # (B,) nMgy, of the normalisation that the dataset alone would have


class RunPreparation:
    """Prepares a run on one rank: data, network, precision, counts, and the state of a checkpoint."""

    def __init__(
        self,
        config: Config,
        data: Datasets,
        out: Path,
        world: World,
        device: torch.device,
        start_from: Path | None,
        writes: bool = True,
    ) -> None:
        self._config, self._out, self._world, self._data = config, out, world, data
        self._start_from = start_from
        self._begun_precision = run_folder.precision_of(out)
        timers = Timers(device)
        self.loader = RankLoader(data, out if writes else None, config, world, device, timers)
        manifest = self.loader.train.manifest
        # In float32 until `choose_compute`; the form of the network does not depend on the precision.
        compute = config.compute.model_copy(update={"precision": "fp32"})
        stamp, sky_sigma = manifest.header.stamp, manifest.statistics.sky_sigma
        first = config.model_copy(update={"compute": compute})
        self.components = TrainingComponents.create(first, stamp, sky_sigma, device, timers)
        if start_from and world.is_first and not checkpoint.paths(out):
            read_origin(start_from, config, manifest.header)  # refuses it before the run folder is made
        self._metrics = MetricsAccumulator(timers)
        self.total_steps = self.last_step = 0

    def choose_compute(self) -> Config:
        """Choose precision, compiler and graphs for the device and report them; returns the configuration."""
        config, manifest, device = self._config, self.loader.train.manifest, self.components.device
        run, header = config.run, manifest.header
        of_batch = rank_slice(run.global_batch, self._world.rank, self._world.size)
        n = max(of_batch.stop - of_batch.start, 1)
        shape = (n, *image_shape(config.model, header))
        objects = run.epochs * manifest.rows
        if run.max_steps:
            objects = min(objects, run.max_steps * run.global_batch)
        begun = group.gather_texts(self._begun_precision, self._world)[0]
        found = choose_compute(config, self._world, self.components.module, device, shape, objects, begun)
        self._config = config.model_copy(update={"compute": found.compute})
        options = compute_options(found.compute, device)
        self.components = replace(self.components, config=self._config, compute=options)
        if self._world.is_first:
            say(f"{self._out}: {found.message}")
            if found.warning:
                say(f"hpcphotoz: warning: {found.warning}", sys.stderr)
        return self._config

    def count(self) -> None:
        """Count objects and steps, the same on all ranks; raises BadInput as `RankLoader.count`."""
        source = self.components.source
        name = f"model.name {self._config.model.name}: its source file"
        own = source.sha256 if source else ""
        group.same_on_all_ranks(name, own, "copy it to all hosts", self._world)
        self.loader.count()
        self.total_steps = self._config.run.epochs * self.loader.train.batches
        self.last_step = min(self.total_steps, self._config.run.max_steps or self.total_steps)
        if self._world.is_first:
            texts = implausible_options(self._config, self.loader.train.rows, self.total_steps)
            for part in self.loader.train.parts:
                where = f"{part.folder}: " if self._data.several else ""
                texts += [where + text for text in uneven_split(self._config, part.census.split)]
            for text in texts:
                say(f"hpcphotoz: warning: {text}", sys.stderr)
            if self._data.several:
                say(f"{self._out}: {self.loader.shares_text()}")

    def restore(self) -> Start:
        """Load the newest checkpoint, or the weights to begin with, the same on every rank."""
        newest = None
        with group.failing_together(self._world):
            if self._world.is_first:
                newest = checkpoint.resumed(self._out)
        found = group.gather_texts(str(newest[0]) if newest else "", self._world)[0]
        manifest, census = self.loader.train.manifest, self.loader.train.census
        saved: checkpoint.State | None = None
        origin: Origin | None = None
        step, batches, own_scale = 0, self.loader.train.batches, self.components.scale
        with group.failing_together(self._world):
            if found:
                saved = newest[1] if newest else checkpoint.load(Path(found))
                checkpoint.check_data(self._out, saved, self._data, manifest)
                if self._start_from:
                    check_origin(self._out, self._start_from, saved.get("from"))
            elif self._start_from:
                origin = read_origin(self._start_from, self._config, manifest.header)
                self.components = begin_from(self.components, origin, manifest.header)
        if origin is not None:
            advice = "name a checkpoint if it is in training, or copy it to all hosts"
            group.same_on_all_ranks(f"--from {self._start_from}", origin.text, advice, self._world)
        if saved is not None:
            if changed := change_of_source(self.components.source, saved.get("source_sha256")):
                _log.warning("model.name %s: %s", self._config.model.name, changed)
            with group.failing_together(self._world):
                self.components = resume(self.components, saved, batches)
            self._metrics.sums[: len(saved["sums"])] = saved["sums"].cpu()
            step = int(saved["step"])
            _log.info("resumed at step %d of %d from %s", step, self.last_step, found)
            if newest is not None:
                where = newest[0].relative_to(self._out)
                say(f"{self._out}: resumed at step {step} of {self.last_step} from {where}")
            if tuple(saved.get("lost", ())) != census.lost:
                _log.warning("other shards are damaged than before: the rest of this epoch is ordered anew")
        return Start(step, saved, origin, own_scale)

    def resume(self, command: Sequence[str], monitor: RankMonitor) -> TrainingLoop:
        """Restore the state of the run, and record this start with its command."""
        step, saved, origin, own_scale = self.restore()
        batches = self.loader.train.batches
        rounding = rounding_facts(self._config, self._world, self.components.device)
        if self._world.is_first:
            for text in origin.warnings if origin else ():
                say(f"hpcphotoz: warning: {text}", sys.stderr)
            for text in start_lines(self.components, origin, saved, own_scale, batches):
                say(f"{self._out}: {text}")
        with group.failing_together(self._world), explained(self._out):
            if self._world.is_first:
                given = self._config, self._data, self.loader, self.components
                facts = facts_of_start(self._out, *given, step, command)
                known = {"last_step": self.last_step, "rounding": rounding}
                record_start(self._out, self._world, {**facts, **known})
                warn_of_changes(self._out)
        parts = self.components, self.loader, self._metrics
        steps = step, self.last_step, self.total_steps, self.components.laid_over * batches
        return TrainingLoop(self._out, self._world, *parts, *steps, monitor)
