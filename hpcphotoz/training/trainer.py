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

from hpcphotoz.attacks.precision import fixed_shapes, tf32
from hpcphotoz.config import Config
from hpcphotoz.data.order import ORDER, rank_slice
from hpcphotoz.errors import BadInput
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.output import say
from hpcphotoz.progress import track
from hpcphotoz.training import checkpoint, group, runfolder
from hpcphotoz.training.agreement import Agreement, Verdict, reads_later
from hpcphotoz.training.assembly import Assembly
from hpcphotoz.training.attacker import serve
from hpcphotoz.training.cast import Cast, cast
from hpcphotoz.training.exchange import FromAttackers, ToLearners
from hpcphotoz.training.meter import Meter
from hpcphotoz.training.phases import Phases
from hpcphotoz.training.profile import Profile
from hpcphotoz.training.shares import Shares
from hpcphotoz.training.speed import settled, speed_of
from hpcphotoz.training.step import learning_rate
from hpcphotoz.training.stop import StopRequest
from hpcphotoz.training.validation import Abandoned, Unreadable, validate
from hpcphotoz.training.work import Work
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
            world, config.training.timeout_s, _common(config, data, out, device), device
        ) as chosen,
        StopRequest(config.training.wall_minutes) as stop,
    ):
        trainer, problem = None, None
        if chosen.type == "cpu":
            keep_freed_memory()
        try:
            trainer = _Trainer(config, data, out, world, chosen)
        except (BadInput, OSError) as error:
            problem = str(error)
        group.agree(problem, world)
        assert trainer is not None
        lock.enter_context(fixed_shapes(chosen))
        config = trainer.settle()
        try:
            lock.enter_context(runfolder.prepare(out, config, world))
        except (BadInput, OSError) as error:
            problem = str(error)
        group.agree(problem, world)
        lock.enter_context(tf32(trainer.tf32))
        trainer.count()
        with runfolder.rank_log(out, world):
            trainer.resume(sys.argv if command is None else command)
            with group.watching(trainer.where, config.training.timeout_s):
                return trainer.run(stop, profile)


def _common(config: Config, data: Path, out: Path, device: str) -> dict[str, str]:
    """What must be the same on all ranks, by the name of the option."""
    # Not `resolve`: links may differ between nodes.
    given = {"--out": repr(str(out.absolute())), "--data": repr(str(data.absolute())), "--device": device}
    for section, values in config.model_dump().items():
        given |= {f"--{section}.{key}": repr(value) for key, value in values.items()}
    return given


def doubtful(config: Config, rows: int, steps: int) -> list[str]:
    """What of a configuration is hardly meant for a dataset, one line each.

    Args:
        config: of the run.
        rows: objects of the training part.
        steps: of all epochs.
    """
    training, found = config.training, []
    if training.global_batch > rows:
        found.append(
            f"training.global_batch {training.global_batch}: the training part holds {rows} objects: an "
            "epoch is one step"
        )
    names = ("warmup_steps", *(("eps_warmup_steps", "k_warmup_steps") if config.attack.fraction else ()))
    for name in names:
        if getattr(training, name) > steps:
            found.append(
                f"training.{name} {getattr(training, name)}: all {training.epochs} epochs are {steps} steps: "
                "the run ends within this warm-up"
            )
    return found


class _Trainer:
    def __init__(self, config: Config, data: Path, out: Path, world: World, device: torch.device) -> None:
        self._config, self._out, self._world, self._data = config, out, world, data
        self._begun = runfolder.precision_of(out)
        self._cast, phases = Cast(world), Phases(device)
        self._shares = Shares(data, out, config, world, device, phases)
        manifest = self._shares.train.manifest
        self._digest = manifest.sha256
        # asinh with a scale of 1 sky sigma bends the noise itself: it cost 5 to 10 % of sigma_MAD against 10.
        self._scale = tuple(config.model.softening * sigma for sigma in manifest.statistics.sky_sigma)
        torch.manual_seed(config.training.seed)
        # In float32 until `settle`; the form of the network does not depend on it.
        speed = speed_of(config.training.model_copy(update={"precision": "fp32"}), device)
        module = build(config.model, stamp=manifest.header.stamp, scale=self._scale)
        module = speed.placed(module, device)
        optimiser = torch.optim.AdamW(
            module.parameters(),
            lr=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
            fused=speed.fused_adam,
        )
        self._parts = Assembly(module, optimiser, config, bins_of(config.model), speed, device, phases)
        self._meter = Meter(phases)
        self._total = self._last = self._step = 0
        self._cannot_write: str | None = None  # on rank 0: why a checkpoint or a line of metrics was not

    def settle(self) -> Config:
        """Decide what the device computes in and say so; returns the configuration with it."""
        config, manifest, device = self._config, self._shares.train.manifest, self._parts.device
        training, header = config.training, manifest.header
        of_batch = rank_slice(training.global_batch, self._world.rank, self._world.size)
        n = max(of_batch.stop - of_batch.start, 1)
        shape = (n, len(header.bands), header.stamp, header.stamp)
        objects = training.epochs * manifest.rows
        if training.max_steps:
            objects = min(objects, training.max_steps * training.global_batch)
        begun = group.gather(self._begun, self._world)[0]
        found = settled(config, self._world, self._parts.module, device, shape, objects, begun)
        self._config = config.model_copy(update={"training": found.training})
        self._parts = replace(self._parts, config=self._config, speed=speed_of(found.training, device))
        self._say(f"{self._out}: {found.said}")
        if found.warning and self._world.is_first:
            say(f"hpcphotoz: warning: {found.warning}", sys.stderr)
        return self._config

    @property
    def tf32(self) -> bool:
        """Whether a GPU may round the factors of training's products to TF32."""
        return self._parts.speed.tf32

    def count(self) -> None:
        """Agree on how many objects and steps there are.

        Raises:
            BadInput: an empty part, or labels that cannot be trained on.
        """
        self._shares.count()
        self._total = self._config.training.epochs * self._shares.train.batches
        self._last = min(self._total, self._config.training.max_steps or self._total)
        if self._world.is_first:
            for text in doubtful(self._config, self._shares.train.rows, self._total):
                say(f"hpcphotoz: warning: {text}", sys.stderr)

    def resume(self, command: Sequence[str]) -> None:
        """Load the newest checkpoint, the same on every rank, and record this start and its command."""
        found = group.gather(
            str(checkpoint.latest(self._out) or "") if self._world.is_first else None, self._world
        )[0]
        state: checkpoint.State | None = None
        problem = None
        try:
            state = checkpoint.load(Path(found)) if found else None
            if state is not None:
                checkpoint.check_data(self._out, state, self._data, self._digest)
        except BadInput as error:
            problem = str(error)
        group.agree(problem, self._world)
        if state is not None:
            self._parts.module.load_state_dict(state["model"])
            # As this process computes, not as the one before did; before loading: it decides where `step`
            # lies.
            for entry in state["optimiser"]["param_groups"]:
                entry["fused"] = self._parts.speed.fused_adam
            self._parts.optimiser.load_state_dict(state["optimiser"])
            self._step = state["step"]
            self._meter.sums[: len(state["sums"])] = state["sums"].cpu()
            _log.info("resumed at step %d of %d from %s", self._step, self._last, found)
            if tuple(state.get("lost", ())) != self._shares.train.census.lost:
                _log.warning("other shards are damaged than before: the rest of this epoch is ordered anew")
        if self._world.is_first:
            facts = {"data": str(self._data.resolve()), "manifest_sha256": self._digest, "step": self._step}
            census, manifest = self._shares.train.census, self._shares.train.manifest
            facts |= {
                "lost_shards": [manifest.shards[number].file for number in census.lost],
                "lost_objects": census.lost_rows(manifest),
            }
            facts |= {"device": str(self._parts.device), "speed": self._parts.speed.facts()}
            facts |= {"command": list(command)}
            runfolder.record_start(self._out, self._world, facts)

    def where(self) -> str:
        """What this rank is, and what it was doing, for messages."""
        part = ("attacker" if self._cast.attacks else "learner") if self._cast.split else "rank"
        doing = f" waiting for {self._meter.waiting_for}" if self._meter.waiting_for else ""
        return f"{self._out}: {part} (rank {self._world.rank}) at step {self._step + 1}{doing}"

    def run(self, stop: StopRequest, profile: bool = False) -> Outcome:
        """Take steps until the end or until the ranks agree to stop."""
        problem = None
        try:
            self._metrics = runfolder.Metrics(self._out, self._step) if self._world.is_first else None
        except (BadInput, OSError) as error:
            problem = str(error)
        group.agree(problem, self._world)
        if not self._catch_up(stop):
            return self._end(Verdict.STOP, None, stop)
        if self._step >= self._last:
            self._say(f"{self._out}: finished already, at step {self._step}")
            return Outcome.FINISHED
        exchange = self._take_part()
        if isinstance(exchange, ToLearners):
            works = self._noted(self._shares.works(self._step, self._last))
            return self._end(None, serve(exchange, works, self._parts.generator(), stop), stop)
        return self._end(*self._learn(exchange, stop, profile), stop)

    def _catch_up(self, stop: StopRequest) -> bool:
        """Validate the epoch at whose end the run was stopped, on all ranks; False: stopped once more.

        Raises:
            BadInput: a rank cannot read its share.
        """
        if not self._ends_epoch():
            return True
        written = self._metrics is not None and self._metrics.validated(self._step)  # on rank 0
        if group.gather("written" if written else None, self._world)[0]:
            return True
        try:
            self._validate(stop)
        except Unreadable as error:
            group.agree(error.problem, self._world)
        except Abandoned:
            return False
        group.agree(self._cannot_write, self._world)
        return True

    def _ends_epoch(self) -> bool:
        """Whether the last step ended an epoch after which there is something to validate on."""
        ended = self._step > 0 and self._step % self._shares.train.batches == 0
        return ended and self._shares.validation is not None

    def _is_looked_at(self) -> bool:
        """Whether something is written, saved or validated after the step."""
        training = self._config.training
        regular = any(self._step % every == 0 for every in (training.log_steps, training.checkpoint_steps))
        return regular or self._step in (self._last, self._total) or self._ends_epoch()

    def _learn(
        self, exchange: FromAttackers | None, stop: StopRequest, profile: bool
    ) -> tuple[Verdict, str | None]:
        parts, training = self._parts, self._config.training
        take = parts.taker(exchange or parts.adversaries(), self._cast)
        # Attackers are told the verdict with the next weights.
        lags = exchange is None and reads_later(parts.device)
        agreement = Agreement(self._cast.world, self._cast.among, self._meter, lags)
        steps: Iterator[int] = iter(range(self._step, self._last))
        watch = None
        if self._world.is_first:
            steps = track(steps, f"training {self._out.name} (steps)", self._last, done=self._step)
            watch = Profile(self._out / "profile", parts.device, parts.phases) if profile else None
        works, per_epoch = self._shares.works(self._step, self._last), self._shares.train.batches
        for step in steps:
            work = next(works)
            for entry in parts.optimiser.param_groups:
                entry["lr"] = learning_rate(step, self._total, training)
            sums, problem = take(work), work.problem
            self._step = step + 1
            flags = exchange.flags if exchange else None
            ours = bool(stop.reason), bool(problem or self._cannot_write)
            verdict = agreement.after(sums, work, *ours, flags, now=self._is_looked_at())
            if exchange:
                exchange.publish(self._step, verdict)
            if verdict in (Verdict.PROBLEM, Verdict.DIVERGED):
                self._step = agreement.step
                break
            if watch and watch.took(work):
                self._say(watch.summary(parts.module, parts.attack_by, work, self._config, parts.speed))
                watch = None
            if self._step % training.log_steps == 0 or self._step == self._total:
                self._write_line(step // per_epoch)
            # After the line of metrics: what is in the checkpoint must not be reported a second time on
            # resuming. Before the validation, which may take longer than a scheduler waits after its signal.
            asked = verdict is Verdict.STOP
            due = asked or self._step == self._last or self._step % training.checkpoint_steps == 0
            if due:
                self._save()
            if asked:
                break
            if self._ends_epoch():
                try:
                    self._validate(stop)
                except (Unreadable, Abandoned) as error:
                    if exchange:
                        exchange.give_up(self._step)
                    if isinstance(error, Unreadable):
                        verdict, problem = Verdict.PROBLEM, error.problem
                    else:
                        verdict = Verdict.STOP
                        if not due:
                            self._save()
                    break
        if watch:
            self._say(watch.too_short())
        if exchange:
            exchange.end(self._step, verdict)
        return verdict, problem

    def _end(self, verdict: Verdict | None, problem: str | None, stop: StopRequest) -> Outcome:
        """What all ranks do together at the end; attackers (None) learn here what the learners decided."""
        if self._cast.split:
            said = group.gather(None if verdict is None else f"{verdict.name} {self._step}", self._world)
            name, step = str(said[0]).split()
            verdict, self._step = Verdict[name], int(step)
        group.agree(self._cannot_write or (problem if verdict is Verdict.PROBLEM else None), self._world)
        if verdict is Verdict.PROBLEM:
            raise AssertionError("a rank said that it cannot go on, and not why")
        if verdict is Verdict.DIVERGED:
            raise Diverged(
                f"{self._out}: the loss is not finite at step {self._step}: "
                "lower training.learning_rate, or check the images with `hpcphotoz inspect --verify`; "
                "then start from an earlier checkpoint or anew"
            )
        if verdict is Verdict.STOP:
            reason = next(text for text in group.gather(stop.reason, self._world) if text)
            if self._step < self._last or self._ends_epoch():
                _log.info("stopped after step %d: %s", self._step, reason)
                self._say(f"{self._out}: {reason}: saved and stopped after step {self._step} of {self._last}")
                return Outcome.STOPPED
        self._say(f"{self._out}: finished at step {self._step}")
        return Outcome.FINISHED

    def _take_part(self) -> FromAttackers | ToLearners | None:
        """Become a learner, an attacker or (None) neither; a part has its own share of every batch."""
        self._cast = cast(self._config, self._world, self._costs, self._parts.device)
        if self._cast.split is None:
            return None
        self._shares = self._shares.apart(self._cast.world)
        rank, first, last = self._world.rank, self._step, self._last
        return self._parts.exchange(self._cast, rank, self._shares, first, last, self._meter.waiting)

    def _costs(self) -> tuple[float, float]:
        """Of this rank's share of the next batch, with the attack that comes after all its warm-ups."""
        work = next(self._shares.works(self._step, self._last))
        group.agree(work.problem, self._world)
        return self._parts.costs(replace(work, step=self._total))

    def _noted(self, works: Iterator[Work]) -> Iterator[Work]:
        """The same, with the step kept for messages."""
        for work in works:
            self._step = work.step
            yield work

    def _save(self) -> None:
        if not self._world.is_first:
            return
        header = self._shares.train.manifest.header
        state = {
            "model": self._parts.module.state_dict(),
            "optimiser": self._parts.optimiser.state_dict(),
            "step": self._step,
            "sums": self._meter.sums.clone(),
            "manifest_sha256": self._digest,
            "lost": list(self._shares.train.census.lost),
            "order": ORDER,
            "config": self._config.model_dump(),
            "bands": list(header.bands),
            "stamp": header.stamp,
            "pixel_scale": header.pixel_scale,
            "scale": list(self._scale),
        }
        try:
            checkpoint.save(self._out, state, self._config.training.keep_checkpoints)
        except BadInput as error:  # the other ranks learn of it after the next step, or at the end
            self._cannot_write = str(error)

    def _write_line(self, epoch: int) -> None:
        figures = self._meter.line(self._shares, apart=self._cast.split is not None)
        self._write(epoch, learning_rate=self._parts.optimiser.param_groups[0]["lr"], **figures)

    def _write(self, epoch: int, **figures: Any) -> None:
        """Add a line to the metrics."""
        if self._metrics is None:
            return
        try:
            self._metrics.write(step=self._step, epoch=epoch, **figures)
        except OSError as error:
            self._cannot_write = (
                f"{self._out / 'metrics.jsonl'}: {error.strerror}: make room; the same command resumes from "
                "the newest checkpoint"
            )

    def _validate(self, stop: StopRequest) -> None:
        """Measure after the last step of an epoch, and write the figures.

        Raises:
            Unreadable: some learner cannot read its share.
            Abandoned: some learner is asked to stop.
        """
        assert self._shares.validation is not None
        start, parts = time.monotonic(), self._parts
        stream, epoch = self._shares.validation, (self._step - 1) // self._shares.train.batches
        figures = validate(parts.module, stream, parts.bins, self._cast, parts.speed, parts.device, stop)
        if figures["n"]:
            self._write(epoch, part="validation", **figures)
            named = ", ".join(f"{name} {figures[name]:.4f}" for name in ("bias", "sigma_mad", "eta"))
            self._say(
                f"{self._out.name}: epoch {epoch + 1} of {self._config.training.epochs}: validation {named}"
            )
        self._meter.leave_out(time.monotonic() - start)

    def _say(self, text: str) -> None:
        if self._world.is_first:
            say(text)
