"""The training loop: rank batch, step, agreement of all ranks, then metrics, checkpoint and validation."""

import enum
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcphotoz.locks.lock import HeldLock
from hpcphotoz.output import say
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.dataloader import RankLoader
from hpcphotoz.training.distributed import group
from hpcphotoz.training.distributed.agreement import Agreement, Verdict, reads_later
from hpcphotoz.training.monitoring.lost_ranks import RankMonitor
from hpcphotoz.training.optimisation.early_stopping import EarlyStopping
from hpcphotoz.training.optimisation.step_monitor import Diverged as Diverged
from hpcphotoz.training.optimisation.step_monitor import StepMonitor, diverged
from hpcphotoz.training.overlap.connect import connect
from hpcphotoz.training.overlap.exchange import AttackerEndpoint, LearnerEndpoint
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.rank_batch import RankBatch
from hpcphotoz.training.reporting.run_progress import RunProgress, validation_text
from hpcphotoz.training.run.metrics import MetricsAccumulator
from hpcphotoz.training.run.profiler import StepProfiler
from hpcphotoz.training.run.recorder import RunRecorder
from hpcphotoz.training.run.signals import StopRequest
from hpcphotoz.training.run.timers import AGREEMENT, SAVING, VALIDATION
from hpcphotoz.training.run.validation import ValidationEnded, validate
from hpcphotoz.world import World

_log = logging.getLogger(__name__)


class Outcome(enum.Enum):
    """How a call of `train` ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # all ranks stopped and saved after the same step; the same call resumes


@dataclass
class TrainingLoop:
    """Takes the steps of a run on one rank, as a learner or as an attacker."""

    out: Path  # run folder
    world: World  # all ranks
    components: TrainingComponents
    loader: RankLoader  # this rank's slices of the global batches
    metrics: MetricsAccumulator  # sums since the last line of metrics
    step: int  # optimiser steps taken
    last_step: int  # after which this process ends
    total_steps: int  # of all epochs
    schedule_steps: int  # over which the schedule of the learning rate is laid
    rank_monitor: RankMonitor  # tells others what this rank does, and sets how long it waits for them
    lock: HeldLock | None = None  # on the run folder, of the rank that writes

    def __post_init__(self) -> None:
        self._config, self._role = self.components.config, RankRole(self.world)
        self.rank_monitor.beats.state = lambda: (self._role.name, self.step)
        self._monitor: StepMonitor | None = None  # on learners

    def progress_message(self) -> str:
        """Role, rank and step of this process, for error messages."""
        doing = f" waiting for {self.metrics.waiting_for}" if self.metrics.waiting_for else ""
        return f"{self.out}: {self._role.name} (rank {self.world.rank}) at step {self.step + 1}{doing}"

    def run(self, stop: StopRequest, profile: bool = False) -> Outcome:
        """Take steps until the end, or until the ranks agree to stop."""
        with group.failing_together(self.world):
            self._recorder = RunRecorder(self.out, self.step, self._config, self.world.is_first, self.lock)
            self._save(finish=True)
        stop.budget.save_s = lambda: self._recorder.save_s
        self._early = EarlyStopping.resumed(self._config, self._recorder.validations, self.world)
        try:
            return self._run(stop, profile)
        finally:
            self._recorder.close()

    def _run(self, stop: StopRequest, profile: bool) -> Outcome:
        if not self._validate_interrupted_epoch(stop):
            return self._conclude(Verdict.STOP, None, stop)
        if self.step >= self.last_step or self._early.reason:
            self._say(f"{self.out}: finished already, at step {self.step}{self._early.because}")
            return Outcome.FINISHED
        steps = range(self.step, self.last_step)
        given = self.components, self.loader, self.world, steps, self.total_steps, self.metrics.waiting
        connection = connect(*given)
        self._role, self.loader, exchange = connection.role, connection.loader, connection.endpoint
        if isinstance(exchange, AttackerEndpoint):
            rank_batches = self._recording_step(self.loader.rank_batches(self.step, self.last_step))
            return self._conclude(None, exchange.run(rank_batches, self.components.step_attack(), stop), stop)
        return self._conclude(*self._run_learner(exchange, stop, profile), stop)

    def _run_learner(
        self, exchange: LearnerEndpoint | None, stop: StopRequest, profile: bool
    ) -> tuple[Verdict, str | None]:
        """Take steps; returns why they ended, and this rank's problem if it has one."""
        components, run, recorder = self.components, self._config.run, self._recorder
        train_step = components.build_step(exchange or components.adversaries(), self._role)
        self.rank_monitor.beats.work.watch(components.module, components.device, self._role.world.size)
        # Attackers learn the verdict with the next weights, so it cannot come a step later.
        lags = exchange is None and reads_later(components.device)
        limits = run.max_skipped_steps, self.last_step, components.optimiser, self.step == 0
        self._monitor = StepMonitor(*limits, self.world, self._role, self.metrics, recorder.write)
        agreement = Agreement(self._role.world, self._role.subgroup, self._monitor.take_down, lags)
        rank_batches = self.loader.rank_batches(self.step, self.last_step)
        steps: Iterator[int] = iter(range(self.step, self.last_step))
        profiler = None
        if self.world.is_first:
            shown = self.out.name, self.step, self.last_step, self.loader.train.batches, run.epochs
            steps = recorder.show(steps, RunProgress(*shown))
            if profile:
                profiler = StepProfiler(self.out / "profile", components.device, components.timers)
        for step in steps:
            self.rank_monitor.begin_step()
            batch = next(rank_batches)
            outcome = components.take_step(train_step, batch, self._role, self.schedule_steps)
            problem = batch.problem
            self.step = step + 1
            flags = exchange.flags if exchange else None
            own_flags = bool(stop.reason), bool(problem or recorder.problem)
            with components.timers(AGREEMENT):
                verdict = agreement.after(outcome, batch, *own_flags, flags, now=self._outcome_needed_now())
            if exchange:
                exchange.publish(self.step, verdict)
            if verdict in (Verdict.PROBLEM, Verdict.DIVERGED):
                self.step = agreement.step
                break
            if profiler and profiler.record_step(batch):
                model, attack = components.module, components.attack_eagerly
                self._say(profiler.summary(model, attack, batch, self._config, components.compute))
                profiler = None
            if self.step % run.log_steps == 0 or self.step == self.total_steps:
                self._write_metrics(step // self.loader.train.batches)
            # The checkpoint comes after the line of metrics: sums in it would be reported a second time after
            # a resume. It comes before the validation, which may take longer than a scheduler waits after its
            # signal.
            due = self.step == self.last_step or self.step % run.checkpoint_steps == 0
            if verdict is Verdict.STOP or due:
                self._save()
            if verdict is Verdict.STOP:
                break
            if self._ends_epoch():
                try:
                    verdict = self._validate(stop)
                except ValidationEnded as end:
                    verdict, problem = end.verdict, end.problem
                if verdict is not Verdict.GO_ON:
                    if exchange:
                        exchange.give_up(self.step)
                    if verdict is not Verdict.PROBLEM and not due:
                        self._save()
                    break
        if profiler:
            self._say(profiler.end_early())
        if exchange:
            exchange.end(self.step, verdict)
        return verdict, problem

    def _conclude(self, verdict: Verdict | None, problem: str | None, stop: StopRequest) -> Outcome:
        """Agree on how the run ends; attackers (verdict None) learn it from the learners."""
        with self.components.timers(SAVING):
            self._recorder.close()
        if self._role.split:
            own = None if verdict is None else f"{verdict.name} {self.step}"
            name, step = str(group.gather_texts(own, self.world)[0]).split()
            verdict, self.step = Verdict[name], int(step)
        problem = self._recorder.problem or (problem if verdict is Verdict.PROBLEM else None)
        group.fail_together(problem, self.world)
        if verdict is Verdict.PROBLEM:
            raise AssertionError("a rank reported a problem without its reason")
        if verdict is Verdict.DIVERGED:
            found = (self._monitor.problem, self._monitor.none_taken) if self._monitor else ("", False)
            raise diverged(self.out, self.step, *found)
        if verdict is Verdict.STOP:
            reason = next(text for text in group.gather_texts(stop.reason, self.world) if text)
            if self.step < self.last_step or self._ends_epoch():
                _log.info("stopped after step %d: %s", self.step, reason)
                saved = f"saved and stopped after step {self.step} of {self.last_step}"
                self._say(f"{self.out}: {reason}: {saved}")
                return Outcome.STOPPED
        skipped = self._monitor.last_skipped if self._monitor else ""
        self._say(f"{self.out}: finished at step {self.step}{self._early.because}{skipped}")
        return Outcome.FINISHED

    def _recording_step(self, rank_batches: Iterator[RankBatch]) -> Iterator[RankBatch]:
        """The same batches; keeps their step for `progress_message`."""
        for batch in rank_batches:
            self.step = batch.step
            self.rank_monitor.begin_attack(batch.step, self.loader.train.batches, self._config)
            yield batch

    def _ends_epoch(self) -> bool:
        """Whether the last step ended an epoch that is followed by a validation."""
        ended = self.step > 0 and self.step % self.loader.train.batches == 0
        return ended and self.loader.validation is not None

    def _outcome_needed_now(self) -> bool:
        """Whether something is written, saved or validated after the step."""
        run = self._config.run
        regular = any(self.step % every == 0 for every in (run.log_steps, run.checkpoint_steps))
        last = self.step in (self.last_step, self.total_steps)
        return self.rank_monitor.limits.in_first_step or regular or last or self._ends_epoch()

    def _validate_interrupted_epoch(self, stop: StopRequest) -> bool:
        """Validate the epoch whose validation a stop has prevented, on all ranks; False: stopped again."""
        if not self._ends_epoch():
            return True
        written = "written" if self._recorder.validated(self.step) else None  # rank 0 knows
        if group.gather_texts(written, self.world)[0]:
            return True
        try:
            self._validate(stop)
        except ValidationEnded as end:
            group.fail_together(end.problem, self.world)
            return False
        self._recorder.wait()
        group.fail_together(self._recorder.problem, self.world)
        return True

    def _validate(self, stop: StopRequest) -> Verdict:
        """Validate after an epoch, and write the figures: GO_ON or ENDED_EARLY; raises ValidationEnded."""
        stream = self.loader.validation
        assert stream is not None
        start, epoch = time.monotonic(), (self.step - 1) // self.loader.train.batches
        with self.components.timers(VALIDATION):
            figures = validate(self.components, stream, self._role, stop)
        if figures["n"]:
            self._recorder.write(self.step, epoch, part="validation", **figures)
            line = {"epoch": epoch, **figures}
            self._early.add(line)
            self._say(f"{self.out.name}: {validation_text(line, 'bias', 'eta')}")
            if self._recorder.is_best(figures):
                self._save(best=True)
        self.metrics.exclude_time(time.monotonic() - start)
        return Verdict.ENDED_EARLY if self._early.reason and self.step < self.last_step else Verdict.GO_ON

    def _write_metrics(self, epoch: int) -> None:
        figures = self.metrics.summarise(self.loader, with_rank_wait=self._role.split is not None)
        rate = self.components.optimiser.param_groups[0]["lr"]
        figures |= self.rank_monitor.beats.straggler_figures()
        self._recorder.write(self.step, epoch, learning_rate=rate, **figures)

    def _save(self, best: bool = False, finish: bool = False) -> None:
        sums, train, step = self.metrics.sums, self.loader.train, self.step
        given = (lambda: self.components.state(sums, train, step)), step, (step - 1) // train.batches
        with self.components.timers(SAVING):
            if finish:  # what a killed process has begun
                self._recorder.finish(*given)
            else:
                self._recorder.save(*given, best)

    def _say(self, text: str) -> None:
        if self.world.is_first:
            say(text)
