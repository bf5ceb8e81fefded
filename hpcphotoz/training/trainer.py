"""The loop: batches in, steps, metrics and checkpoints out, on any number of ranks."""

import enum
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
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
from hpcphotoz.training.step import autocast, flux, learning_rate, optimisation_step
from hpcphotoz.training.stop import StopRequest
from hpcphotoz.world import World, detect

_log = logging.getLogger(__name__)


class Outcome(enum.Enum):
    """How a call of `train` ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # saved at a step all ranks agreed on; the same call resumes


class Diverged(Exception):
    """The loss is not finite."""


def train(config: Config, data: Path, out: Path) -> Outcome:
    """Train one network, or continue: the same arguments resume from the newest checkpoint in `out`.

    Call it on every rank (torchrun, srun, mpirun or a single process). A signal (USR2, TERM, INT) on any
    rank, or the wall-time budget, stops all ranks after the same step with a checkpoint.

    Args:
        config: every option.
        data: dataset folder.
        out: run folder; made where it does not exist.

    Raises:
        BadInput: unusable data, or a run folder that holds another run.
        Diverged: the loss became NaN or infinite; the last checkpoint is from before.
    """
    world = detect()
    with (
        ExitStack() as lock,
        group.process_group(world) as device,
        StopRequest(config.training.wall_minutes) as stop,
    ):
        trainer, problem = None, None
        if device.type == "cpu":
            keep_freed_memory()
        try:
            trainer = _Trainer(config, data, out, world, device)
            lock.enter_context(runfolder.prepare(out, config, world))
        except (BadInput, OSError) as error:
            problem = str(error)
        group.agree(problem, world)
        assert trainer is not None
        trainer.count()
        with runfolder.rank_log(out, world):
            trainer.resume()
            return trainer.run(stop)


class _Trainer:
    def __init__(self, config: Config, data: Path, out: Path, world: World, device: torch.device) -> None:
        self._config, self._out, self._world, self._device = config, out, world, device
        self._data, self._bins = data, bins_of(config.model)
        self._stream = self._open("train")
        self._validation = self._open("validation") if config.data.validation else None
        manifest = self._stream.manifest
        self._digest = manifest.sha256
        # asinh with a scale of 1 sky sigma bends the noise itself: it cost 5 to 10 % of sigma_MAD against 10.
        self._scale = tuple(config.model.softening * sigma for sigma in manifest.statistics.sky_sigma)
        torch.manual_seed(config.training.seed)
        model = build(config.model, stamp=manifest.header.stamp, scale=self._scale)
        self._module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimiser = torch.optim.AdamW(
            self._module.parameters(),
            lr=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
        )
        self._total = self._last = self._step = 0
        # Since the last line of metrics, all ranks: loss and number of clean, of attacked objects; skipped.
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._waited, self._since, self._busy = 0.0, time.monotonic(), 0.0
        self._seen = 0

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
            runfolder.record_start(self._out, self._world, {**facts, "device": str(self._device)})

    def run(self, stop: StopRequest) -> Outcome:
        """Take steps until the end or until the ranks agree to stop."""
        self._metrics = runfolder.Metrics(self._out, self._step) if self._world.is_first else None
        if self._step >= self._last:
            self._say(f"{self._out}: finished already, at step {self._step}")
            return Outcome.FINISHED
        model = self._wrapped()
        batches = self._batches()
        name = f"training {self._out.name} (steps)"
        steps: Iterator[int] = iter(range(self._step, self._last))
        if self._world.is_first:
            steps = track(steps, name, self._last, done=self._step)
        for step in steps:
            epoch, batch, problem = self._next(batches, step)
            for entry in self._optimiser.param_groups:
                entry["lr"] = learning_rate(step, self._total, self._config.training)
            sums = optimisation_step(
                model,
                self._optimiser,
                batch,
                self._config,
                self._bins,
                epoch=epoch,
                world_size=self._world.size,
            )
            asked = self._account(sums, batch, stop, problem)
            self._step = step + 1
            if self._step % self._config.training.log_steps == 0 or self._step == self._total:
                self._write_line(epoch)
            if self._step % self._stream.batches == 0 and self._validation is not None:
                self._validate(epoch)
            # After the lines of metrics: what is in the checkpoint must not be reported a second time on
            # resuming.
            if asked or self._step == self._last or self._step % self._config.training.checkpoint_steps == 0:
                self._save()
            if asked and self._step < self._last:
                reason = next(text for text in group.gather(stop.reason, self._world) if text)
                _log.info("stopped after step %d: %s", self._step, reason)
                self._say(f"{self._out}: {reason}: saved and stopped after step {self._step} of {self._last}")
                return Outcome.STOPPED
        self._say(f"{self._out}: finished at step {self._step}")
        return Outcome.FINISHED

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        epoch, start = divmod(self._step, self._stream.batches)
        for number in range(epoch, self._config.training.epochs):
            host = self._stream.epoch(number, start if number == epoch else 0)
            for batch in on_device(host, self._device):
                yield number, batch

    def _next(self, batches: Iterator[tuple[int, Batch]], step: int) -> tuple[int, Batch, str | None]:
        """The next batch; an empty one beside the reason if it cannot be read.

        The other ranks are about to average gradients: a rank that left here would end them with an error of
        their own, so it takes this step with nothing and says why after it.
        """
        start, problem = time.monotonic(), None
        try:
            epoch, batch = next(batches)
        except (BadInput, OSError, StopIteration) as error:
            epoch, batch = step // self._stream.batches, to_device(self._stream.empty(), self._device)
            early = f"{self._data}: fewer objects than were counted: has it been changed since the start?"
            problem = early if isinstance(error, StopIteration) else str(error)
        self._waited += time.monotonic() - start
        return epoch, batch, problem

    def _account(self, sums: Tensor, batch: Batch, stop: StopRequest, problem: str | None) -> bool:
        """Add up the step's sums over ranks; whether any rank asks to stop. One small collective a step."""
        flags = torch.tensor(
            [batch.skipped, bool(stop.reason), problem is not None], dtype=torch.float64, device=self._device
        )
        both = group.add_up(torch.cat([sums, flags]), self._world).cpu()
        if both[6] > 0:
            group.agree(problem, self._world)
        if not math.isfinite(both[:4].sum()):
            raise Diverged(
                f"{self._out}: the loss is not finite at step {self._step + 1}: "
                "lower training.learning_rate, and start from an earlier checkpoint or anew"
            )
        self._sums += both[:5]
        self._seen += batch.size
        return bool(both[5] > 0)

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
                # How many times faster the reading threads could deliver; None: nothing was read since.
                loader_headroom=(now - self._since) * self._stream.threads / busy if busy else None,
                skipped=int(skipped),
                lost=self._stream.census.lost_rows(self._stream.manifest),
            )
        self._sums.zero_()
        self._waited, self._since, self._seen = 0.0, now, 0
        self._busy = self._stream.busy_s

    @torch.no_grad()
    def _validate(self, epoch: int) -> None:
        assert self._validation is not None
        start = time.monotonic()
        self._module.eval()
        rows = [torch.zeros(0, 2, device=self._device)]
        problem = None
        try:
            for batch in on_device(self._validation.epoch(0), self._device):
                with autocast(self._config.training, self._device):
                    logits = self._module(flux(batch), batch.ebv)
                rows.append(torch.stack([self._bins.mean(logits), batch.z_spec], dim=1))
        except (BadInput, OSError) as error:
            problem = str(error)
        group.agree(problem, self._world)
        self._module.train()
        z_phot, z_spec = group.collect(torch.cat(rows), self._world).cpu().double().numpy().T
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

    def _wrapped(self) -> nn.Module:
        module: nn.Module = self._module.train()
        if self._world.size == 1:
            return module
        devices = [self._device.index] if self._device.type == "cuda" else None
        wrapped: nn.Module = DistributedDataParallel(self._module, device_ids=devices)
        return wrapped

    def _open(self, part: Part) -> Stream:
        training = self._config.training
        return Stream(
            self._data,
            self._config.data,
            global_batch=training.global_batch,
            seed=training.seed,
            part=part,
            world=self._world,
            shuffle=part == "train",
            pinned=self._device.type == "cuda",
        )

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
