"""This rank's share of the data: streams opened and counted, and the work of every step made from them."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from hpcphotoz.config import Config
from hpcphotoz.data import shards
from hpcphotoz.data.census import Census, Objects
from hpcphotoz.data.device import on_device, to_device
from hpcphotoz.data.stream import Batch, Stream
from hpcphotoz.data.subset import Part
from hpcphotoz.errors import BadInput
from hpcphotoz.training import group
from hpcphotoz.training.phases import Phases
from hpcphotoz.training.work import Work, prepare
from hpcphotoz.world import World


class Shares:
    """The training and the validation part of a dataset, as one rank sees them.

    Args:
        data: dataset folder.
        run: run folder; its `selection/` keeps which objects belong to the parts.
        config: of the run.
        world: this rank among those that share a global batch.
        device: where batches go.
        phases: told when data is waited for.

    Raises:
        BadInput: as `data.stream.Stream`.
    """

    def __init__(
        self, data: Path, run: Path, config: Config, world: World, device: torch.device, phases: Phases
    ) -> None:
        self._data, self._run, self._config, self._world = data, run, config, world
        self._device, self._phases = device, phases
        self.train = self._open("train")
        self.validation = self._open("validation") if config.data.validation else None
        self.waited_s = 0.0  # for data, since the start

    def apart(self, world: World) -> "Shares":
        """The same data shared among other ranks, with what has been counted."""
        other = Shares(self._data, self._run, self._config, world, self._device, self._phases)
        for mine, theirs in ((self.train, other.train), (self.validation, other.validation)):
            if mine is not None and theirs is not None:
                theirs.objects = mine.objects
        return other

    def count(self) -> None:
        """Agree on which objects there are: rank 0 finds them, for all.

        Raises:
            BadInput: an empty part, or labels that cannot be trained on.
        """
        streams = [s for s in (self.train, self.validation) if s is not None]
        if len(set(group.gather(self.train.manifest.sha256, self._world))) > 1:
            differs = f"{self._data}: {shards.MANIFEST} is not the same on all ranks: copy the dataset again"
            group.agree(differs if self._world.is_first else None, self._world)
        problem, text, folder = None, None, self._run / "selection"
        try:
            if self._world.is_first:
                Stream.count_together(streams, folder)
                text = json.dumps([stream.objects.facts() for stream in streams])
                for stream in streams:
                    check_labels(self._data, stream.census, self._config)
        except (BadInput, OSError) as error:
            problem = str(error)
        group.agree(problem, self._world)
        facts = json.loads(group.gather(text, self._world)[0] or "")
        try:
            for stream, found in zip(streams, facts, strict=True):
                stream.objects = Objects.from_facts(found, folder, stream.manifest)
        except BadInput as error:
            problem = str(error)
        group.agree(problem, self._world)

    def size_of(self, step: int) -> int:
        """Objects in the global batch of a step."""
        size = self._config.training.global_batch
        return min(size, self.train.rows - step % self.train.batches * size)

    def works(self, first: int, last: int) -> Iterator[Work]:
        """This rank's share of the steps from `first` on.

        The other ranks are about to average gradients: a rank that left here would end them with an error of
        their own, so it takes its steps with nothing, and `problem` says why.
        """
        batches, problem = self._batches(first), None
        for step in range(first, last):
            start = time.monotonic()
            with self._phases("data"):
                try:
                    batch = next(batches)
                except (BadInput, OSError, StopIteration) as error:
                    batch = to_device(self.train.empty(), self._device)
                    early = f"{self._data}: fewer objects than were counted: has it changed since the start?"
                    problem = problem or (early if isinstance(error, StopIteration) else str(error))
                self.waited_s += time.monotonic() - start
                work = prepare(batch, self._config, step // self.train.batches, step)
            yield replace(work, problem=problem)

    def _batches(self, first: int) -> Iterator[Batch]:
        epoch, start = divmod(first, self.train.batches)
        for number in range(epoch, self._config.training.epochs):
            yield from on_device(self.train.epoch(number, start if number == epoch else 0), self._device)

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
