"""The training loop: rank batch, step, agreement of all ranks, then metrics, checkpoint and validation."""

import enum
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.output import say
from hpcphotoz.progress import track
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.distributed import group
from hpcphotoz.training.distributed.agreement import Agreement, Verdict, reads_later
from hpcphotoz.training.overlap.attacker import run_attacker
from hpcphotoz.training.overlap.exchange import AttackerEndpoint, LearnerEndpoint
from hpcphotoz.training.overlap.roles import RankRole, assign_role
from hpcphotoz.training.overlap.topology import ExchangeTopology
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.run.metrics import MetricsAccumulator
from hpcphotoz.training.run.profiler import StepProfiler
from hpcphotoz.training.run.recorder import RunRecorder
from hpcphotoz.training.run.signals import StopRequest
from hpcphotoz.training.run.state import training_state
from hpcphotoz.training.run.validation import UnreadableData, ValidationStopped, validate
from hpcphotoz.training.step import learning_rate
from hpcphotoz.world import World

_log = logging.getLogger(__name__)


class Outcome(enum.Enum):
    """How a call of `train` ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # all ranks stopped and saved after the same step; the same call resumes


class Diverged(Exception):
    """The loss is not finite."""


class TrainingLoop:
    """Takes the steps of a run on one rank, as a learner or as an attacker.

    Args:
        out: run folder.
        world: all ranks.
        components: network, optimiser, options and configuration.
        loader: this rank's slices of the global batches.
        metrics: sums since the last line of metrics.
        step: optimiser steps taken before.
        last_step: step after which this process ends.
        total_steps: steps of all epochs.
    """

    def __init__(
        self,
        out: Path,
        world: World,
        components: TrainingComponents,
        loader: RankLoader,
        metrics: MetricsAccumulator,
        step: int,
        last_step: int,
        total_steps: int,
    ) -> None:
        self._out, self._world, self._role = out, world, RankRole(world)
        self._components, self._loader, self._metrics = components, loader, metrics
        self._config = components.config
        self._step, self._last_step, self._total_steps = step, last_step, total_steps

    def progress_message(self) -> str:
        """Role, rank and step of this process, for error messages."""
        part = ("attacker" if self._role.is_attacker else "learner") if self._role.split else "rank"
        doing = f" waiting for {self._metrics.waiting_for}" if self._metrics.waiting_for else ""
        return f"{self._out}: {part} (rank {self._world.rank}) at step {self._step + 1}{doing}"

    def run(self, stop: StopRequest, profile: bool = False) -> Outcome:
        """Take steps until the end, or until the ranks agree to stop."""
        problem = None
        try:
            keep = self._config.run.keep_checkpoints
            self._recorder = RunRecorder(self._out, self._step, keep, self._world.is_first)
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

    def _run_learner(
        self, exchange: LearnerEndpoint | None, stop: StopRequest, profile: bool
    ) -> tuple[Verdict, str | None]:
        """Take steps; returns why they ended, and this rank's problem if it has one."""
        components, run, recorder = self._components, self._config.run, self._recorder
        train_step = components.build_step(exchange or components.adversaries(), self._role)
        # Attackers learn the verdict with the next weights, so it cannot come a step later.
        lags = exchange is None and reads_later(components.device)
        agreement = Agreement(self._role.world, self._role.subgroup, self._metrics.add, lags)
        rank_batches = self._loader.rank_batches(self._step, self._last_step)
        steps: Iterator[int] = iter(range(self._step, self._last_step))
        profiler = None
        if self._world.is_first:
            steps = track(steps, f"training {self._out.name} (steps)", self._last_step, done=self._step)
            if profile:
                profiler = StepProfiler(self._out / "profile", components.device, components.timers)
        for step in steps:
            batch = next(rank_batches)
            for entry in components.optimiser.param_groups:
                entry["lr"] = learning_rate(step, self._total_steps, self._config.optimiser)
            sums, problem = train_step(batch), batch.problem
            self._step = step + 1
            flags = exchange.flags if exchange else None
            own_flags = bool(stop.reason), bool(problem or recorder.problem)
            verdict = agreement.after(sums, batch, *own_flags, flags, now=self._outcome_needed_now())
            if exchange:
                exchange.publish(self._step, verdict)
            if verdict in (Verdict.PROBLEM, Verdict.DIVERGED):
                self._step = agreement.step
                break
            if profiler and profiler.record_step(batch):
                attack = components.attack_eagerly
                self._say(
                    profiler.summary(components.module, attack, batch, self._config, components.compute)
                )
                profiler = None
            if self._step % run.log_steps == 0 or self._step == self._total_steps:
                self._write_metrics(step // self._loader.train.batches)
            # The checkpoint comes after the line of metrics: sums in it would be reported a second time after
            # a resume. It comes before the validation, which may take longer than a scheduler waits after its
            # signal.
            stop_requested = verdict is Verdict.STOP
            save_due = stop_requested or self._step == self._last_step
            save_due = save_due or self._step % run.checkpoint_steps == 0
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
        """Agree on how the run ends; attackers (verdict None) learn it from the learners."""
        if self._role.split:
            said = group.gather_texts(
                None if verdict is None else f"{verdict.name} {self._step}", self._world
            )
            name, step = str(said[0]).split()
            verdict, self._step = Verdict[name], int(step)
        problem = self._recorder.problem or (problem if verdict is Verdict.PROBLEM else None)
        group.fail_together(problem, self._world)
        if verdict is Verdict.PROBLEM:
            raise AssertionError("a rank reported a problem without its reason")
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
        """Decide whether this rank learns or attacks, and connect it to the others; None: no attackers."""
        components, config = self._components, self._config
        role = self._role = assign_role(config, self._world, self._costs, components.device)
        if role.split is None:
            return None
        self._loader = self._loader.for_world(role.world)
        topology = ExchangeTopology(
            role.split,
            self._world.rank,
            config.adversarial.fraction,
            config.overlap,
            self._last_step,
            self._loader.global_batch_size,
            role.weights_group,
        )
        topology.connect_peers(components.device)
        header = self._loader.train.manifest.header
        shape = (len(header.bands), header.stamp, header.stamp)
        endpoint = AttackerEndpoint if role.is_attacker else LearnerEndpoint
        return endpoint(
            topology, components.module, shape, components.device, self._step, self._metrics.waiting
        )

    def _costs(self) -> tuple[float, float]:
        """`TrainingComponents.costs` for the next rank batch, with the attack after its warm-up."""
        batch = next(self._loader.rank_batches(self._step, self._last_step))
        group.fail_together(batch.problem, self._world)
        return self._components.costs(replace(batch, step=self._total_steps))

    def _recording_step(self, rank_batches: Iterator[RankBatch]) -> Iterator[RankBatch]:
        """The same batches; keeps their step for `progress_message`."""
        for batch in rank_batches:
            self._step = batch.step
            yield batch

    def _ends_epoch(self) -> bool:
        """Whether the last step ended an epoch that is followed by a validation."""
        ended = self._step > 0 and self._step % self._loader.train.batches == 0
        return ended and self._loader.validation is not None

    def _outcome_needed_now(self) -> bool:
        """Whether something is written, saved or validated after the step."""
        run = self._config.run
        regular = any(self._step % every == 0 for every in (run.log_steps, run.checkpoint_steps))
        return regular or self._step in (self._last_step, self._total_steps) or self._ends_epoch()

    def _validate_interrupted_epoch(self, stop: StopRequest) -> bool:
        """Validate the epoch whose validation a stop has prevented, on all ranks; False: stopped again.

        Raises:
            BadInput: a rank cannot read its validation data.
        """
        if not self._ends_epoch():
            return True
        written = "written" if self._recorder.validated(self._step) else None  # rank 0 knows
        if group.gather_texts(written, self._world)[0]:
            return True
        try:
            self._validate(stop)
        except UnreadableData as error:
            group.fail_together(error.problem, self._world)
        except ValidationStopped:
            return False
        group.fail_together(self._recorder.problem, self._world)
        return True

    def _validate(self, stop: StopRequest) -> None:
        """Validate after the last step of an epoch, and write the figures.

        Raises:
            UnreadableData: a learner cannot read its validation data.
            ValidationStopped: a learner is asked to stop.
        """
        stream = self._loader.validation
        assert stream is not None
        start, epoch = time.monotonic(), (self._step - 1) // self._loader.train.batches
        figures = validate(self._components, stream, self._role, stop)
        if figures["n"]:
            self._recorder.write(self._step, epoch, part="validation", **figures)
            named = ", ".join(f"{name} {figures[name]:.4f}" for name in ("bias", "sigma_mad", "eta"))
            self._say(f"{self._out.name}: epoch {epoch + 1} of {self._config.run.epochs}: validation {named}")
        self._metrics.exclude_time(time.monotonic() - start)

    def _write_metrics(self, epoch: int) -> None:
        figures = self._metrics.summarise(self._loader, with_rank_wait=self._role.split is not None)
        rate = self._components.optimiser.param_groups[0]["lr"]
        self._recorder.write(self._step, epoch, learning_rate=rate, **figures)

    def _save(self) -> None:
        if self._world.is_first:
            state = training_state(self._components, self._metrics, self._loader.train, self._step)
            self._recorder.save(state)

    def _say(self, text: str) -> None:
        if self._world.is_first:
            say(text)
