"""The loop: batches in, steps, metrics and checkpoints out, on any number of ranks."""

import enum
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.config import Config
from hpcphotoz.data import shards
from hpcphotoz.data.census import Census
from hpcphotoz.data.device import on_device, to_device
from hpcphotoz.data.order import ORDER
from hpcphotoz.data.stream import Batch, Stream
from hpcphotoz.data.subset import Part
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.memory import keep_freed_memory
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.progress import track
from hpcphotoz.training import checkpoint, group, runfolder
from hpcphotoz.training.attacker import serve
from hpcphotoz.training.cast import Cast, cast, timed
from hpcphotoz.training.exchange import FromAttackers, Link, ToLearners, Verdict, Waiting
from hpcphotoz.training.free import FreeStep
from hpcphotoz.training.generate import Generator
from hpcphotoz.training.graphed import GraphedStep
from hpcphotoz.training.objective import Objective
from hpcphotoz.training.overlap import Adversaries, Off, Serial, Streams
from hpcphotoz.training.phases import Phases
from hpcphotoz.training.profile import Profile
from hpcphotoz.training.speed import resolved, speed_of
from hpcphotoz.training.step import Step, learning_rate
from hpcphotoz.training.stop import StopRequest
from hpcphotoz.training.work import Work, flux, prepare
from hpcphotoz.world import World, detect

_log = logging.getLogger(__name__)


Share = tuple[Work, int, str | None]  # of a step: work, objects left out, why it is empty if it is broken


class Outcome(enum.Enum):
    """How a call of `train` ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # saved at a step all ranks agreed on; the same call resumes


class Diverged(Exception):
    """The loss is not finite."""


def train(config: Config, data: Path, out: Path, profile: bool = False) -> Outcome:
    """Train one network, or continue: the same arguments resume from the newest checkpoint in `out`.

    Call it on every rank (torchrun, srun, mpirun or a single process). A signal (USR2, TERM, INT) on any
    rank, or the wall-time budget, stops all ranks after the same step with a checkpoint.

    Args:
        config: every option.
        data: dataset folder.
        out: run folder; made where it does not exist.
        profile: write where a step's time goes to `out`/profile and to standard output.

    Raises:
        BadInput: unusable data, or a run folder that holds another run.
        Diverged: the loss became NaN or infinite; the last checkpoint is from before.
        group.RankLost: another rank died or hangs.
    """
    world = detect()
    with (
        ExitStack() as lock,
        group.process_group(world, config.training.timeout_s) as device,
        StopRequest(config.training.wall_minutes) as stop,
    ):
        trainer, problem = None, None
        if device.type == "cpu":
            keep_freed_memory()
        try:
            config = resolved(config, device, world)
            trainer = _Trainer(config, data, out, world, device)
            lock.enter_context(runfolder.prepare(out, config, world))
        except (BadInput, OSError) as error:
            problem = str(error)
        group.agree(problem, world)
        assert trainer is not None
        trainer.count()
        with runfolder.rank_log(out, world):
            trainer.resume()
            with group.watching(trainer.where, config.training.timeout_s):
                return trainer.run(stop, profile)


class _Trainer:
    def __init__(self, config: Config, data: Path, out: Path, world: World, device: torch.device) -> None:
        self._config, self._out, self._world, self._device = config, out, world, device
        self._data, self._bins = data, bins_of(config.model)
        self._cast = Cast(world)
        self._stream, self._validation = self._open(world)
        manifest = self._stream.manifest
        self._digest = manifest.sha256
        # asinh with a scale of 1 sky sigma bends the noise itself: it cost 5 to 10 % of sigma_MAD against 10.
        self._scale = tuple(config.model.softening * sigma for sigma in manifest.statistics.sky_sigma)
        torch.manual_seed(config.training.seed)
        model = build(config.model, stamp=manifest.header.stamp, scale=self._scale)
        self._speed = speed_of(config.training, device)
        self._module = self._speed.placed(model, device)
        self._optimiser = torch.optim.AdamW(
            self._module.parameters(),
            lr=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
            fused=self._speed.fused_adam,
        )
        self._phases = Phases(device)
        self._generate = Generator(self._module, config, self._bins, self._speed, self._phases)
        self._objective = Objective(config, self._bins)
        self._total = self._last = self._step = 0
        # Since the last line of metrics, all ranks: loss and number of clean, of attacked objects; skipped.
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._waited, self._since, self._busy = 0.0, time.monotonic(), 0.0
        self._seen, self._for = 0, ""
        self._waited_for_ranks = 0.0

    def count(self) -> None:
        """Agree on how many objects there are: rank 0 counts, for all.

        Raises:
            BadInput: an empty part, or labels that cannot be trained on.
        """
        streams = [s for s in (self._stream, self._validation) if s is not None]
        if len(set(group.gather(self._digest, self._world))) > 1:
            differs = f"{self._data}: {shards.MANIFEST} is not the same on all ranks: copy the dataset again"
            group.agree(differs if self._world.is_first else None, self._world)
        problem, text = None, None
        try:
            if self._world.is_first:
                Stream.count_together(streams)
                text = json.dumps([asdict(stream.census) for stream in streams])
                for stream in streams:
                    check_labels(self._data, stream.census, self._config)
        except (BadInput, OSError) as error:
            problem = str(error)
        group.agree(problem, self._world)
        for stream, found in zip(streams, json.loads(group.gather(text, self._world)[0] or ""), strict=True):
            stream.census = Census(**{**found, "lost": tuple(found["lost"])})
        self._total = self._config.training.epochs * self._stream.batches
        self._last = min(self._total, self._config.training.max_steps or self._total)

    def resume(self) -> None:
        """Load the newest checkpoint, the same on every rank."""
        found = group.gather(
            str(checkpoint.latest(self._out) or "") if self._world.is_first else None, self._world
        )[0]
        state: checkpoint.State | None = None
        problem = None
        try:
            state = checkpoint.load(Path(found)) if found else None
            if state is not None and state.get("order") != ORDER:
                problem = (
                    f"{self._out}: was begun by a version with another order of objects and another split: "
                    "choose a new --out"
                )
            elif state is not None and state["manifest_sha256"] != self._digest:
                problem = (
                    f"{self._out}: was trained on another dataset than {self._data}: "
                    "resume on the same dataset, or choose a new --out"
                )
        except BadInput as error:
            problem = str(error)
        group.agree(problem, self._world)
        if state is not None:
            self._module.load_state_dict(state["model"])
            # How this process computes, not how the one before did; before loading: it decides where `step`
            # lies.
            for entry in state["optimiser"]["param_groups"]:
                entry["fused"] = self._speed.fused_adam
            self._optimiser.load_state_dict(state["optimiser"])
            self._step = state["step"]
            self._sums[: len(state["sums"])] = state["sums"].cpu()
            _log.info("resumed at step %d of %d from %s", self._step, self._last, found)
            if tuple(state.get("lost", ())) != self._stream.census.lost:
                _log.warning("other shards are damaged than before: the rest of this epoch is ordered anew")
        if self._world.is_first:
            facts = {"data": str(self._data.resolve()), "manifest_sha256": self._digest, "step": self._step}
            census, manifest = self._stream.census, self._stream.manifest
            facts |= {
                "lost_shards": [manifest.shards[number].file for number in census.lost],
                "lost_objects": census.lost_rows(manifest),
            }
            facts |= {"device": str(self._device), "speed": self._speed.facts()}
            runfolder.record_start(self._out, self._world, facts)

    def where(self) -> str:
        """What this rank is, and what it was doing, for messages."""
        part = ("attacker" if self._cast.attacks else "learner") if self._cast.split else "rank"
        doing = f" waiting for {self._for}" if self._for else ""
        return f"{self._out}: {part} (rank {self._world.rank}) at step {self._step + 1}{doing}"

    def run(self, stop: StopRequest, profile: bool = False) -> Outcome:
        """Take steps until the end or until the ranks agree to stop."""
        self._metrics = runfolder.Metrics(self._out, self._step) if self._world.is_first else None
        if self._step >= self._last:
            self._say(f"{self._out}: finished already, at step {self._step}")
            return Outcome.FINISHED
        self._take_part()
        problem: str | None
        if self._cast.attacks:
            problem = serve(ToLearners(*self._exchange()), self._noted(self._work()), self._generate, stop)
            verdict = None
        else:
            verdict, problem = self._learn(stop, profile)
        return self._end(verdict, problem, stop)

    def _learn(self, stop: StopRequest, profile: bool) -> tuple[Verdict, str | None]:
        adversaries = self._adversaries()
        take = self._step_taker(adversaries)
        exchange = adversaries if isinstance(adversaries, FromAttackers) else None
        name = f"training {self._out.name} (steps)"
        steps: Iterator[int] = iter(range(self._step, self._last))
        if self._world.is_first:
            steps = track(steps, name, self._last, done=self._step)
        work = self._work()
        watch = (
            Profile(self._out / "profile", self._device, self._phases)
            if profile and self._world.is_first
            else None
        )
        for step in steps:
            share, skipped, problem = next(work)
            for entry in self._optimiser.param_groups:
                entry["lr"] = learning_rate(step, self._total, self._config.training)
            sums = take(share)
            verdict = self._account(sums, share, skipped, stop, problem, exchange)
            self._step = step + 1
            if exchange:
                exchange.publish(self._step, verdict)
            if verdict in (Verdict.PROBLEM, Verdict.DIVERGED):
                break
            if watch and watch.took(share):
                self._say(watch.summary(self._module, self._attack_by, share, self._config, self._speed))
                watch = None
            if self._step % self._config.training.log_steps == 0 or self._step == self._total:
                self._write_line(step // self._stream.batches)
            if self._step % self._stream.batches == 0 and self._validation is not None:
                broken, trouble = self._validate(step // self._stream.batches)
                if broken:
                    if exchange and verdict is Verdict.GO_ON:  # else attackers have been told to end already
                        exchange.give_up(self._step)
                    verdict, problem = Verdict.PROBLEM, trouble
                    break
            # After the lines of metrics: what is in the checkpoint must not be reported a second time on
            # resuming.
            asked = verdict is Verdict.STOP
            if asked or self._step == self._last or self._step % self._config.training.checkpoint_steps == 0:
                self._save()
            if asked:
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
        if verdict is Verdict.PROBLEM:
            group.agree(problem, self._world)
            raise AssertionError("a rank said that it cannot read, and not why")
        if verdict is Verdict.DIVERGED:
            raise Diverged(
                f"{self._out}: the loss is not finite at step {self._step}: "
                "lower training.learning_rate, and start from an earlier checkpoint or anew"
            )
        if verdict is Verdict.STOP:
            reason = next(text for text in group.gather(stop.reason, self._world) if text)
            if self._step < self._last:
                _log.info("stopped after step %d: %s", self._step, reason)
                self._say(f"{self._out}: {reason}: saved and stopped after step {self._step} of {self._last}")
                return Outcome.STOPPED
        self._say(f"{self._out}: finished at step {self._step}")
        return Outcome.FINISHED

    def _take_part(self) -> None:
        """Become a learner, an attacker or neither; a part has its own share of every batch."""
        self._cast = cast(self._config, self._world, self._costs, self._device)
        if self._cast.split is None:
            return
        before = self._stream, self._validation
        self._stream, self._validation = self._open(self._cast.world)
        for stream, counted in zip((self._stream, self._validation), before, strict=True):
            if stream is not None and counted is not None:
                stream.census = counted.census

    def _costs(self) -> tuple[float, float]:
        """Seconds to attack, and to train, this rank's share of the next batch; nothing is updated."""
        work, _, problem = next(self._work())
        group.agree(problem, self._world)
        work = replace(work, step=self._total)  # after all warm-ups of the attack
        objective = self._objective
        step = Step(
            self._module.train(),
            self._optimiser,
            Off(lambda work: work.images[work.attacked]),
            objective,
            self._speed,
        )
        attack, train = (
            timed(lambda: self._generate(work), self._device),
            timed(lambda: step.gradients(work), self._device),
        )
        self._optimiser.zero_grad()
        return attack, train

    def _attack_by(self, module: nn.Module, work: Work) -> Tensor:
        return Generator(module, self._config, self._bins, replace(self._speed, graphs="off"))(work)

    def _adversaries(self) -> Adversaries:
        overlap = self._config.training.overlap
        if self._cast.split:
            return FromAttackers(*self._exchange())
        if overlap == "streams" and self._config.attack.fraction:
            return (
                Streams(self._generate, self._device)
                if self._device.type == "cuda"
                else Serial(self._generate)
            )
        return Off(self._generate)

    def _exchange(self) -> tuple[Link, nn.Module, tuple[int, ...], torch.device, int, Waiting]:
        assert self._cast.split is not None
        config = self._config
        link = Link(
            self._cast.split,
            self._world.rank,
            config.attack.fraction,
            config.training,
            self._last,
            self._size_of,
            self._cast.weights,
        )
        link.greet(self._device)
        header = self._stream.manifest.header
        shape = (len(header.bands), header.stamp, header.stamp)
        return link, self._module, shape, self._device, self._step, self._waiting

    def _step_taker(self, adversaries: Adversaries) -> Step | FreeStep | GraphedStep:
        learners = self._cast.world.size
        if self._speed.graphs == "step":
            module = self._module.train()
            bare = Step(module, self._optimiser, adversaries, self._objective, self._speed, learners)
            return GraphedStep(
                bare,
                module,
                self._optimiser,
                self._config.training,
                learners,
                self._cast.among,
                self._phases,
            )
        model = self._wrapped()
        if self._config.training.objective == "free":
            return FreeStep(
                model, self._optimiser, self._config, self._bins, self._speed, learners, self._phases
            )
        return Step(model, self._optimiser, adversaries, self._objective, self._speed, learners, self._phases)

    def _noted(self, shares: Iterator[Share]) -> Iterator[Share]:
        """The same, with the step kept for messages."""
        for share in shares:
            self._step = share[0].step
            yield share

    def _size_of(self, step: int) -> int:
        """Objects in the global batch of a step."""
        size, before = self._config.training.global_batch, step % self._stream.batches
        return min(size, self._stream.rows - before * size)

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        start, self._for = time.monotonic(), what
        with self._phases("wait for other ranks"):
            yield
        self._waited_for_ranks += time.monotonic() - start
        self._for = ""

    def _work(self) -> Iterator[Share]:
        """This rank's share of every step, objects it left out, and why the share is empty if it is broken.

        The other ranks are about to average gradients: a rank that left here would end them with an error of
        their own, so it takes its steps with nothing and says why after.
        """
        batches, problem = self._batches(), None
        for step in range(self._step, self._last):
            start = time.monotonic()
            with self._phases("data"):
                try:
                    epoch, batch = next(batches)
                except (BadInput, OSError, StopIteration) as error:
                    epoch, batch = step // self._stream.batches, to_device(self._stream.empty(), self._device)
                    early = (
                        f"{self._data}: fewer objects than were counted: has it been changed since the start?"
                    )
                    problem = problem or (early if isinstance(error, StopIteration) else str(error))
                self._waited += time.monotonic() - start
                work = prepare(batch, self._config, epoch, step)
            yield work, batch.skipped, problem

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        epoch, start = divmod(self._step, self._stream.batches)
        for number in range(epoch, self._config.training.epochs):
            host = self._stream.epoch(number, start if number == epoch else 0)
            for batch in on_device(host, self._device):
                yield number, batch

    def _account(
        self,
        sums: Tensor,
        work: Work,
        skipped: int,
        stop: StopRequest,
        problem: str | None,
        exchange: FromAttackers | None,
    ) -> Verdict:
        """Add up the step's sums over the learners and agree on what comes next. One small collective a
        step.
        """
        flags = torch.tensor(
            [skipped, bool(stop.reason), problem is not None], dtype=torch.float64, device=self._device
        )
        if exchange:
            flags[1:] += exchange.flags.to(self._device)
        both = torch.cat([sums, flags])
        both = group.add_up(both, self._cast.world, self._cast.among).cpu()
        if both[6] > 0:
            return Verdict.PROBLEM
        if not math.isfinite(both[:4].sum()):
            return Verdict.DIVERGED
        self._sums += both[:5]
        self._seen += work.size
        return Verdict.STOP if both[5] > 0 else Verdict.GO_ON

    def _save(self) -> None:
        if not self._world.is_first:
            return
        header = self._stream.manifest.header
        state = {
            "model": self._module.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "step": self._step,
            "sums": self._sums.clone(),
            "manifest_sha256": self._digest,
            "lost": list(self._stream.census.lost),
            "order": ORDER,
            "config": self._config.model_dump(),
            "bands": list(header.bands),
            "stamp": header.stamp,
            "pixel_scale": header.pixel_scale,
            "scale": list(self._scale),
        }
        checkpoint.save(self._out, state, self._config.training.keep_checkpoints)

    def _write_line(self, epoch: int) -> None:
        clean, n_clean, attacked, n_attacked, skipped = self._sums.tolist()
        now, busy = time.monotonic(), self._stream.busy_s - self._busy
        if self._metrics is not None:
            self._metrics.write(
                step=self._step,
                epoch=epoch,
                loss=(clean + attacked) / max(n_clean + n_attacked, 1),
                loss_clean=clean / n_clean if n_clean else None,
                loss_adversarial=attacked / n_attacked if n_attacked else None,
                learning_rate=self._optimiser.param_groups[0]["lr"],
                images_per_s=self._seen / (now - self._since),
                data_wait=self._waited / (now - self._since),
                **({"rank_wait": self._waited_for_ranks / (now - self._since)} if self._cast.split else {}),
                # How many times faster the reading threads could deliver; None: nothing was read since.
                loader_headroom=(now - self._since) * self._stream.threads / busy if busy else None,
                skipped=int(skipped),
                lost=self._stream.census.lost_rows(self._stream.manifest),
            )
        self._sums.zero_()
        self._waited, self._since, self._seen = 0.0, now, 0
        self._waited_for_ranks = 0.0
        self._busy = self._stream.busy_s

    @torch.no_grad()
    def _validate(self, epoch: int) -> tuple[bool, str | None]:
        """Measure and write; whether any learner cannot read its share, and why this one cannot."""
        assert self._validation is not None
        start = time.monotonic()
        self._module.eval()
        rows = [torch.zeros(0, 2, device=self._device)]
        problem = None
        try:
            for batch in on_device(self._validation.epoch(0), self._device):
                with self._speed.autocast(self._device):
                    logits = self._module(flux(batch), batch.ebv)
                rows.append(torch.stack([self._bins.mean(logits), batch.z_spec], dim=1))
        except (BadInput, OSError) as error:
            problem = str(error)
        self._module.train()
        if any(group.gather(problem, self._cast.world, self._cast.among)):
            return True, problem
        found = group.collect(torch.cat(rows), self._cast.world, self._cast.among)
        z_phot, z_spec = found.cpu().double().numpy().T
        skipped = self._validation.rows - len(z_spec)
        if self._metrics is not None and len(z_spec):
            dz = (z_phot - z_spec) / (1 + z_spec)
            figures = {"bias": metrics.bias(dz), "sigma_mad": metrics.sigma_mad(dz), "eta": metrics.eta(dz)}
            figures = {name: float(value) for name, value in figures.items()}
            self._metrics.write(
                step=self._step, epoch=epoch, part="validation", n=len(z_spec), skipped=skipped, **figures
            )
            text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            self._say(
                f"{self._out.name}: epoch {epoch + 1} of {self._config.training.epochs}: validation {text}"
            )
        self._since += time.monotonic() - start  # not part of the training rate
        return False, None

    def _wrapped(self) -> nn.Module:
        module: nn.Module = self._module.train()
        if self._speed.compiled:
            module = torch.compile(module)  # type: ignore[assignment]
        if self._cast.world.size == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[self._device.index] if self._device.type == "cuda" else None,
            process_group=self._cast.among,
            bucket_cap_mb=self._config.training.bucket_mb,
            gradient_as_bucket_view=True,
        )

    def _open(self, world: World) -> tuple[Stream, Stream | None]:
        training, parts = self._config.training, list[Part](("train", "validation"))
        streams = [
            Stream(
                self._data,
                self._config.data,
                global_batch=training.global_batch,
                seed=training.seed,
                part=part,
                world=world,
                shuffle=part == "train",
                pinned=self._device.type == "cuda",
            )
            for part in parts[: 2 if self._config.data.validation else 1]
        ]
        return streams[0], streams[1] if len(streams) > 1 else None

    def _say(self, text: str) -> None:
        if self._world.is_first:
            print(text, flush=True)


def check_labels(data: Path, census: Census, config: Config) -> None:
    """Refuse objects that cannot be trained on.

    Raises:
        BadInput: a z_spec that is unknown or outside the bins; names a shard.
    """
    low, high = config.model.z_min, config.model.z_max
    leave_out = "or leave those objects out with data.where"
    if census.unlabelled:
        raise BadInput(
            f"{data / census.unlabelled_in}: {census.unlabelled} of the {census.rows} objects have no z_spec "
            f"(the first in this shard): training needs all; add them, {leave_out}: isfinite(z_spec)"
        )
    assert census.z_min is not None and census.z_max is not None
    if census.z_min < low or census.z_max >= high:
        where = census.z_min_in if census.z_min < low else census.z_max_in
        raise BadInput(
            f"{data / where}: z_spec from {census.z_min:.4f} to {census.z_max:.4f} leaves the bins "
            f"[{low}, {high}): widen model.z_min, model.z_max, {leave_out}"
        )
