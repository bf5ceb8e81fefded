"""Loads this rank's slice of every global batch, from the training and validation parts of the datasets."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hpcphotoz.config import Config
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.format.manifest import MANIFEST
from hpcphotoz.data.select.census import Census, SelectedObjects
from hpcphotoz.data.stream.batch import Batch, empty_batch
from hpcphotoz.data.stream.device import batch_to_device, prefetch_to_device
from hpcphotoz.data.stream.mixture import open_training_stream, open_validation_stream
from hpcphotoz.data.stream.stream import Stream
from hpcphotoz.errors import BadInput
from hpcphotoz.training.distributed import group
from hpcphotoz.training.rank_batch import RankBatch, make_rank_batch
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.world import World


@dataclass
class RankLoader:
    """Loads this rank's slice of every global batch. Raises BadInput as `data.stream.Stream`."""

    data: Datasets
    # Run folder; `selection/` in it lists the objects of both parts. None: the list stays in memory.
    run: Path | None
    config: Config
    world: World  # the ranks that divide a global batch, and this rank's place among them
    device: torch.device  # where batches are copied
    timers: Timers
    staged: Datasets | None = None  # copies of `data` on this node's disk, which are read instead

    def __post_init__(self) -> None:
        run, options = self.config.run, self.config.data
        how: dict[str, Any] = {"global_batch": run.global_batch, "seed": run.seed, "world": self.world}
        how["pinned"] = self.device.type == "cuda"
        read = self.staged or self.data
        self.train = open_training_stream(read, options, **how)
        self.validation = open_validation_stream(read, options, **how) if options.validation else None
        self.waited_s = 0.0  # seconds of waiting for data since the start

    def for_world(self, world: World) -> "RankLoader":
        """A loader of the same counted objects, divided among other ranks."""
        other = replace(self, world=world)
        for mine, theirs in ((self.train, other.train), (self.validation, other.validation)):
            if mine is not None and theirs is not None:
                for counted, part in zip(mine.parts, theirs.parts, strict=True):
                    part.objects = counted.objects
        return other

    def count(self) -> None:
        """Find the objects of both parts: rank 0 reads the datasets, and the others receive its result.

        Raises:
            BadInput: a part without objects, or labels that cannot be trained on.
        """
        both = [s.parts for s in (self.train, self.validation) if s is not None]
        of_datasets = list(zip(*both, strict=True))
        streams = [stream for of_one in of_datasets for stream in of_one]
        what, found = f"{self.data}: {MANIFEST}", self.train.manifest.sha256
        group.same_on_all_ranks(what, found, "copy the dataset again", self.world)
        text, folder = None, self.run and self.run / "selection"
        with group.failing_together(self.world):
            if self.world.is_first:
                for of_one in of_datasets:
                    Stream.count_together(of_one, folder)
                text = json.dumps([stream.objects.facts() for stream in streams])
                for stream in streams:
                    _check_labels(stream.folder, stream.census, self.config)
        if folder is None:
            return
        facts = json.loads(group.gather_texts(text, self.world)[0] or "")
        with group.failing_together(self.world):
            for stream, found in zip(streams, facts, strict=True):
                stream.objects = SelectedObjects.from_facts(found, folder, stream.manifest)

    def shares_text(self) -> str:
        """What every global batch of several datasets holds, for the user."""
        train, size = self.train, self.config.run.global_batch
        each = [f"{part.batch_size(0)} of {part.folder}" for part in train.parts]
        seen = [
            f"{train.batches * part.batch_size(0) / part.rows:.2f} times {part.folder}"
            for part in train.parts
        ]
        steps = f"an epoch of {train.batches} steps sees {', '.join(seen)}"
        return f"every global batch of {size} objects holds {', '.join(each)}; {steps}"

    def datasets_facts(self) -> dict[str, object]:
        """The datasets of a run on several, for the provenance; empty: it is on one."""
        if not self.data.several:
            return {}
        found = zip(self.data.resolve().folders, self.data.weights, self.train.parts, strict=True)
        by = self.config.data.split_by
        return {
            "datasets": [
                {
                    "folder": str(folder),
                    "weight": weight,
                    "manifest_sha256": part.manifest.sha256,
                    "objects": part.rows,
                    "objects_of_a_batch": part.batch_size(0),
                    **({"split": {"by": by, **asdict(part.census.split)}} if part.census.split else {}),
                }
                for folder, weight, part in found
            ]
        }

    def global_batch_size(self, step: int) -> int:
        """Number of objects in the global batch of a step."""
        return self.train.batch_size(step % self.train.batches)

    def rank_batches(self, first: int, last: int) -> Iterator[RankBatch]:
        """Yields this rank's slice of the global batch of each step from `first` to `last` - 1.

        A rank that cannot read yields empty batches, with the reason in `problem`. If it raised an error,
        the other ranks would fail while averaging gradients, with a message that does not name the cause.
        """
        batches, problem = self._batches(first), None
        for step in range(first, last):
            start = time.monotonic()
            with self.timers("data"):
                try:
                    batch = next(batches)
                except (BadInput, OSError, StopIteration) as error:
                    batch = batch_to_device(empty_batch(self.train.manifest.header), self.device)
                    early = f"{self.data}: fewer objects than were counted: has it changed since the start?"
                    problem = problem or (early if isinstance(error, StopIteration) else str(error))
                self.waited_s += time.monotonic() - start
                rank_batch = make_rank_batch(batch, self.config, step // self.train.batches, step)
            yield replace(rank_batch, problem=problem)

    def _batches(self, first: int) -> Iterator[Batch]:
        for batches in self.train.runs(first, self.config.run.epochs):
            yield from prefetch_to_device(batches, self.device)


def _check_labels(data: Path, census: Census, config: Config) -> None:
    """Refuse objects whose z_spec is unknown or outside the bins."""
    low, high = config.model.z_min, config.model.z_max
    leave_out = "or leave those objects out with data.where"
    if census.unlabelled and census.unlabelled == census.rows:
        known = "train on a spectroscopic sample, and predict this dataset"
        raise BadInput(f"{data}: none of its {census.rows} objects has a z_spec: {known}")
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
