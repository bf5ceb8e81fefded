"""The loop: batches in, steps, metrics and checkpoints out, on any number of ranks."""

import enum
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hpcphotoz.compute.precision import cudnn_benchmark, tf32
from hpcphotoz.config import Config
from hpcphotoz.data.order import ORDER, rank_slice
from hpcphotoz.errors import BadInput
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.output import say
from hpcphotoz.progress import track
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.compute import choose_compute, compute_options
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.distributed import group
from hpcphotoz.training.distributed.agreement import Agreement, Verdict, reads_later
from hpcphotoz.training.overlap.attacker import run_attacker
from hpcphotoz.training.overlap.exchange import AttackerEndpoint, LearnerEndpoint
from hpcphotoz.training.overlap.roles import RankRole, assign_role
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run import checkpoint, run_folder
from hpcphotoz.training.run.metrics import MetricsAccumulator
from hpcphotoz.training.run.profiler import StepProfiler
from hpcphotoz.training.run.signals import StopRequest
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.run.validation import UnreadableData, ValidationStopped, validate
from hpcphotoz.training.step import learning_rate
from hpcphotoz.world import World, detect

_log = logging.getLogger(__name__)


class Outcome(enum.Enum):
    """How a call of `train` ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # saved at a step all ranks agreed on; the same call resumes


class Diverged(Exception):
    """The loss is not finite."""


def train(
    config: Config,
    data: Path,
    out: Path,
    profile: bool = False,
    device: str = "auto",
    command: Sequence[str] | None = None,
) -> Outcome:
    """Train one network, or continue: the same arguments resume from the newest checkpoint in `out`.

    Call it on every rank (torchrun, srun, mpirun or a single process). A signal (USR2, TERM, INT, HUP) on any
    rank, or the wall-time budget, stops all ranks after the same step with a checkpoint.

    Args:
        config: every option.
        data: dataset folder.
        out: run folder; made where it does not exist.
        profile: write where a step's time goes to `out`/profile and to standard output.
        device: "cuda", "cpu", or "auto": a GPU where there is one.
        command: the words that started this run, for its provenance; those of this process by default.

    Raises:
        BadInput: unusable data, a run folder that holds another run, or no GPU where one was asked for.
        Diverged: the loss became NaN or infinite; the last checkpoint is from before.
        group.RankLost: another rank died or hangs.
    """
    world = detect()
    with (
        ExitStack() as lock,
        group.process_group(
            world, config.run.timeout_s, _options_of_all_ranks(config, data, out, device), device
        ) as chosen,
        StopRequest(config.run.wall_minutes) as stop,
    ):
        trainer, problem = None, None
        if chosen.type == "cpu":
            keep_freed_memory()
        try:
            trainer = _Trainer(config, data, out, world, chosen)
        except (BadInput, OSError) as error:
            problem = str(error)
        group.fail_together(problem, world)
        assert trainer is not None
        lock.enter_context(cudnn_benchmark(chosen))
        config = trainer.choose_compute()
        try:
            lock.enter_context(run_folder.prepare(out, config, world))
        except (BadInput, OSError) as error:
            problem = str(error)
        group.fail_together(problem, world)
        lock.enter_context(tf32(trainer.tf32))
        trainer.count()
        with run_folder.rank_log(out, world):
            trainer.resume(sys.argv if command is None else command)
            with group.detect_lost_ranks(trainer.progress_message, config.run.timeout_s):
                return trainer.run(stop, profile)


def _options_of_all_ranks(config: Config, data: Path, out: Path, device: str) -> dict[str, str]:
    """What must be the same on all ranks, by the name of the option."""
    # Not `resolve`: links may differ between nodes.
    given = {"--out": repr(str(out.absolute())), "--data": repr(str(data.absolute())), "--device": device}
    for section, values in config.model_dump().items():
        given |= {f"--{section}.{key}": repr(value) for key, value in values.items()}
    return given


def implausible_options(config: Config, rows: int, steps: int) -> list[str]:
    """What of a configuration is hardly meant for a dataset, one line each.

    Args:
        config: of the run.
        rows: objects of the training part.
        steps: of all epochs.
    """
    run, found = config.run, []
    if run.global_batch > rows:
        found.append(
            f"run.global_batch {run.global_batch}: the training part holds {rows} objects: an "
            "epoch is one step"
        )
    warmups = {"optimiser.warmup_steps": config.optimiser.warmup_steps}
    if config.adversarial.fraction:
        warmups["adversarial.eps_warmup_steps"] = config.adversarial.eps_warmup_steps
        warmups["adversarial.k_warmup_steps"] = config.adversarial.k_warmup_steps
    for name, length in warmups.items():
        if length > steps:
            found.append(
                f"{name} {length}: all {run.epochs} epochs are {steps} steps: "
                "the run ends within this warm-up"
            )
    return found


class _Trainer:
    def __init__(self, config: Config, data: Path, out: Path, world: World, device: torch.device) -> None:
        self._config, self._out, self._world, self._data = config, out, world, data
        self._begun_precision = run_folder.precision_of(out)
        self._role, timers = RankRole(world), Timers(device)
        self._loader = RankLoader(data, out, config, world, device, timers)
        manifest = self._loader.train.manifest
        self._manifest_sha256 = manifest.sha256
        # asinh with a scale of 1 sky sigma bends the noise itself: it cost 5 to 10 % of sigma_MAD against 10.
        self._scale = tuple(config.model.softening * sigma for sigma in manifest.statistics.sky_sigma)
        torch.manual_seed(config.run.seed)
        # In float32 until `choose_compute`; the form of the network does not depend on it.
        compute = compute_options(config.compute.model_copy(update={"precision": "fp32"}), device)
        module = build(config.model, stamp=manifest.header.stamp, scale=self._scale)
        module = compute.placed(module, device)
        optimiser = torch.optim.AdamW(
            module.parameters(),
            lr=config.optimiser.learning_rate,
            weight_decay=config.optimiser.weight_decay,
            fused=compute.fused_adam,
        )
        self._components = TrainingComponents(
            module, optimiser, config, bins_of(config.model), compute, device, timers
        )
        self._metrics = MetricsAccumulator(timers)
        self._total_steps = self._last_step = self._step = 0
        self._write_problem: str | None = None  # on rank 0: why a checkpoint or a line of metrics was not

    def choose_compute(self) -> Config:
        """Decide what the device computes in and say so; returns the configuration with it."""
        config, manifest, device = self._config, self._loader.train.manifest, self._components.device
        run, header = config.run, manifest.header
        of_batch = rank_slice(run.global_batch, self._world.rank, self._world.size)
        n = max(of_batch.stop - of_batch.start, 1)
        shape = (n, len(header.bands), header.stamp, header.stamp)
        objects = run.epochs * manifest.rows
        if run.max_steps:
            objects = min(objects, run.max_steps * run.global_batch)
        begun = group.gather_texts(self._begun_precision, self._world)[0]
        found = choose_compute(config, self._world, self._components.module, device, shape, objects, begun)
        self._config = config.model_copy(update={"compute": found.compute})
        self._components = replace(
            self._components, config=self._config, compute=compute_options(found.compute, device)
        )
        self._say(f"{self._out}: {found.message}")
        if found.warning and self._world.is_first:
            say(f"hpcphotoz: warning: {found.warning}", sys.stderr)
        return self._config

    @property
    def tf32(self) -> bool:
        """Whether a GPU may round the factors of training's products to TF32."""
        return self._components.compute.tf32

    def count(self) -> None:
        """Agree on how many objects and steps there are.

        Raises:
            BadInput: an empty part, or labels that cannot be trained on.
        """
        self._loader.count()
        self._total_steps = self._config.run.epochs * self._loader.train.batches
        self._last_step = min(self._total_steps, self._config.run.max_steps or self._total_steps)
        if self._world.is_first:
            for text in implausible_options(self._config, self._loader.train.rows, self._total_steps):
                say(f"hpcphotoz: warning: {text}", sys.stderr)

    def resume(self, command: Sequence[str]) -> None:
        """Load the newest checkpoint, the same on every rank, and record this start and its command."""
        found = group.gather_texts(
            str(checkpoint.latest(self._out) or "") if self._world.is_first else None, self._world
        )[0]
        state: checkpoint.State | None = None
        problem = None
        try:
            state = checkpoint.load(Path(found)) if found else None
            if state is not None:
                checkpoint.check_data(self._out, state, self._data, self._manifest_sha256)
        except BadInput as error:
            problem = str(error)
        group.fail_together(problem, self._world)
        if state is not None:
            self._components.module.load_state_dict(state["model"])
            # As this process computes, not as the one before did; before loading: it decides where `step`
            # lies.
            for entry in state["optimiser"]["param_groups"]:
                entry["fused"] = self._components.compute.fused_adam
            self._components.optimiser.load_state_dict(state["optimiser"])
            self._step = state["step"]
            self._metrics.sums[: len(state["sums"])] = state["sums"].cpu()
            _log.info("resumed at step %d of %d from %s", self._step, self._last_step, found)
            if tuple(state.get("lost", ())) != self._loader.train.census.lost:
                _log.warning("other shards are damaged than before: the rest of this epoch is ordered anew")
        if self._world.is_first:
            facts = {
                "data": str(self._data.resolve()),
                "manifest_sha256": self._manifest_sha256,
                "step": self._step,
            }
            census, manifest = self._loader.train.census, self._loader.train.manifest
            facts |= {
                "lost_shards": [manifest.shards[number].file for number in census.lost],
                "lost_objects": census.lost_rows(manifest),
            }
            facts |= {"device": str(self._components.device), "speed": self._components.compute.facts()}
            facts |= {"command": list(command)}
            run_folder.record_start(self._out, self._world, facts)

    def progress_message(self) -> str:
        """What this rank is, and what it was doing, for messages."""
        part = ("attacker" if self._role.is_attacker else "learner") if self._role.split else "rank"
        doing = f" waiting for {self._metrics.waiting_for}" if self._metrics.waiting_for else ""
        return f"{self._out}: {part} (rank {self._world.rank}) at step {self._step + 1}{doing}"

    def run(self, stop: StopRequest, profile: bool = False) -> Outcome:
        """Take steps until the end or until the ranks agree to stop."""
        problem = None
        try:
            self._metrics_file = (
                run_folder.MetricsFile(self._out, self._step) if self._world.is_first else None
            )
        except (BadInput, OSError) as error:
            problem = str(error)
        group.fail_together(problem, self._world)
        if not self._validate_interrupted_epoch(stop):
            return self._conclude(Verdict.STOP, None, stop)
        if self._step >= self._last_step:
            self._say(f"{self._out}: finished already, at step {self._step}")
            return Outcome.FINISHED
        exchange = self._join_exchange()
        if isinstance(exchange, AttackerEndpoint):
            rank_batches = self._recording_step(self._loader.rank_batches(self._step, self._last_step))
            return self._conclude(
                None, run_attacker(exchange, rank_batches, self._components.step_attack(), stop), stop
            )
        return self._conclude(*self._run_learner(exchange, stop, profile), stop)

    def _validate_interrupted_epoch(self, stop: StopRequest) -> bool:
        """Validate the epoch at whose end the run was stopped, on all ranks; False: stopped once more.

        Raises:
            BadInput: a rank cannot read its share.
        """
        if not self._ends_epoch():
            return True
        written = self._metrics_file is not None and self._metrics_file.validated(self._step)  # on rank 0
        if group.gather_texts("written" if written else None, self._world)[0]:
            return True
        try:
            self._validate(stop)
        except UnreadableData as error:
            group.fail_together(error.problem, self._world)
        except ValidationStopped:
            return False
        group.fail_together(self._write_problem, self._world)
        return True

    def _ends_epoch(self) -> bool:
        """Whether the last step ended an epoch after which there is something to validate on."""
        ended = self._step > 0 and self._step % self._loader.train.batches == 0
        return ended and self._loader.validation is not None

    def _outcome_needed_now(self) -> bool:
        """Whether something is written, saved or validated after the step."""
        run = self._config.run
        regular = any(self._step % every == 0 for every in (run.log_steps, run.checkpoint_steps))
        return regular or self._step in (self._last_step, self._total_steps) or self._ends_epoch()

    def _run_learner(
        self, exchange: LearnerEndpoint | None, stop: StopRequest, profile: bool
    ) -> tuple[Verdict, str | None]:
        components, run = self._components, self._config.run
        train_step = components.build_step(exchange or components.adversaries(), self._role)
        # Attackers are told the verdict with the next weights.
        lags = exchange is None and reads_later(components.device)
        agreement = Agreement(self._role.world, self._role.subgroup, self._metrics, lags)
        steps: Iterator[int] = iter(range(self._step, self._last_step))
        profiler = None
        if self._world.is_first:
            steps = track(steps, f"training {self._out.name} (steps)", self._last_step, done=self._step)
            profiler = (
                StepProfiler(self._out / "profile", components.device, components.timers) if profile else None
            )
        rank_batches, per_epoch = (
            self._loader.rank_batches(self._step, self._last_step),
            self._loader.train.batches,
        )
        for step in steps:
            batch = next(rank_batches)
            for entry in components.optimiser.param_groups:
                entry["lr"] = learning_rate(step, self._total_steps, self._config.optimiser)
            sums, problem = train_step(batch), batch.problem
            self._step = step + 1
            flags = exchange.flags if exchange else None
            ours = bool(stop.reason), bool(problem or self._write_problem)
            verdict = agreement.after(sums, batch, *ours, flags, now=self._outcome_needed_now())
            if exchange:
                exchange.publish(self._step, verdict)
            if verdict in (Verdict.PROBLEM, Verdict.DIVERGED):
                self._step = agreement.step
                break
            if profiler and profiler.record_step(batch):
                self._say(
                    profiler.summary(
                        components.module, components.attack_eagerly, batch, self._config, components.compute
                    )
                )
                profiler = None
            if self._step % run.log_steps == 0 or self._step == self._total_steps:
                self._write_line(step // per_epoch)
            # After the line of metrics: what is in the checkpoint must not be reported a second time on
            # resuming. Before the validation, which may take longer than a scheduler waits after its signal.
            stop_requested = verdict is Verdict.STOP
            save_due = (
                stop_requested or self._step == self._last_step or self._step % run.checkpoint_steps == 0
            )
            if save_due:
                self._save()
            if stop_requested:
                break
            if self._ends_epoch():
                try:
                    self._validate(stop)
                except (UnreadableData, ValidationStopped) as error:
                    if exchange:
                        exchange.give_up(self._step)
                    if isinstance(error, UnreadableData):
                        verdict, problem = Verdict.PROBLEM, error.problem
                    else:
                        verdict = Verdict.STOP
                        if not save_due:
                            self._save()
                    break
        if profiler:
            self._say(profiler.end_early())
        if exchange:
            exchange.end(self._step, verdict)
        return verdict, problem

    def _conclude(self, verdict: Verdict | None, problem: str | None, stop: StopRequest) -> Outcome:
        """What all ranks do together at the end; attackers (None) learn here what the learners decided."""
        if self._role.split:
            said = group.gather_texts(
                None if verdict is None else f"{verdict.name} {self._step}", self._world
            )
            name, step = str(said[0]).split()
            verdict, self._step = Verdict[name], int(step)
        group.fail_together(
            self._write_problem or (problem if verdict is Verdict.PROBLEM else None), self._world
        )
        if verdict is Verdict.PROBLEM:
            raise AssertionError("a rank said that it cannot go on, and not why")
        if verdict is Verdict.DIVERGED:
            raise Diverged(
                f"{self._out}: the loss is not finite at step {self._step}: "
                "lower optimiser.learning_rate, or check the images with `hpcphotoz inspect --verify`; "
                "then start from an earlier checkpoint or anew"
            )
        if verdict is Verdict.STOP:
            reason = next(text for text in group.gather_texts(stop.reason, self._world) if text)
            if self._step < self._last_step or self._ends_epoch():
                _log.info("stopped after step %d: %s", self._step, reason)
                self._say(
                    f"{self._out}: {reason}: saved and stopped after step {self._step} of {self._last_step}"
                )
                return Outcome.STOPPED
        self._say(f"{self._out}: finished at step {self._step}")
        return Outcome.FINISHED

    def _join_exchange(self) -> LearnerEndpoint | AttackerEndpoint | None:
        """Become a learner, an attacker or (None) neither; a part has its own share of every batch."""
        self._role = assign_role(self._config, self._world, self._costs, self._components.device)
        if self._role.split is None:
            return None
        self._loader = self._loader.for_world(self._role.world)
        rank, first, last = self._world.rank, self._step, self._last_step
        return self._components.exchange(self._role, rank, self._loader, first, last, self._metrics.waiting)

    def _costs(self) -> tuple[float, float]:
        """Of this rank's share of the next batch, with the attack that comes after all its warm-ups."""
        batch = next(self._loader.rank_batches(self._step, self._last_step))
        group.fail_together(batch.problem, self._world)
        return self._components.costs(replace(batch, step=self._total_steps))

    def _recording_step(self, rank_batches: Iterator[RankBatch]) -> Iterator[RankBatch]:
        """The same, with the step kept for messages."""
        for batch in rank_batches:
            self._step = batch.step
            yield batch

    def _save(self) -> None:
        if not self._world.is_first:
            return
        header = self._loader.train.manifest.header
        state = {
            "model": self._components.module.state_dict(),
            "optimiser": self._components.optimiser.state_dict(),
            "step": self._step,
            "sums": self._metrics.sums.clone(),
            "manifest_sha256": self._manifest_sha256,
            "lost": list(self._loader.train.census.lost),
            "order": ORDER,
            "config": self._config.model_dump(),
            "bands": list(header.bands),
            "stamp": header.stamp,
            "pixel_scale": header.pixel_scale,
            "scale": list(self._scale),
        }
        try:
            checkpoint.save(self._out, state, self._config.run.keep_checkpoints)
        except BadInput as error:  # the other ranks learn of it after the next step, or at the end
            self._write_problem = str(error)

    def _write_line(self, epoch: int) -> None:
        figures = self._metrics.summarise(self._loader, with_rank_wait=self._role.split is not None)
        self._write(epoch, learning_rate=self._components.optimiser.param_groups[0]["lr"], **figures)

    def _write(self, epoch: int, **figures: Any) -> None:
        """Add a line to the metrics."""
        if self._metrics_file is None:
            return
        try:
            self._metrics_file.write(step=self._step, epoch=epoch, **figures)
        except OSError as error:
            self._write_problem = (
                f"{self._out / 'metrics.jsonl'}: {error.strerror}: make room; the same command resumes from "
                "the newest checkpoint"
            )

    def _validate(self, stop: StopRequest) -> None:
        """Measure after the last step of an epoch, and write the figures.

        Raises:
            UnreadableData: some learner cannot read its share.
            ValidationStopped: some learner is asked to stop.
        """
        assert self._loader.validation is not None
        start, components = time.monotonic(), self._components
        stream, epoch = self._loader.validation, (self._step - 1) // self._loader.train.batches
        figures = validate(
            components.module,
            stream,
            components.bins,
            self._role,
            components.compute,
            components.device,
            stop,
        )
        if figures["n"]:
            self._write(epoch, part="validation", **figures)
            named = ", ".join(f"{name} {figures[name]:.4f}" for name in ("bias", "sigma_mad", "eta"))
            self._say(f"{self._out.name}: epoch {epoch + 1} of {self._config.run.epochs}: validation {named}")
        self._metrics.exclude_time(time.monotonic() - start)

    def _say(self, text: str) -> None:
        if self._world.is_first:
            say(text)
