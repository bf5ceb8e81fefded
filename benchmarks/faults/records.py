"""Reads what the ranks of each start have recorded, also while they write."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepLine:
    """One rank's part in one step."""

    step: int  # updates before it
    epoch: int
    objects: tuple[int, ...]  # ids of the rank's slice of the global batch
    attacked: tuple[int, ...]  # ids of those whose images were attacked


@dataclass
class RankRecord:
    """The record of one rank of one start; `update` reads what has been added."""

    path: Path
    steps: list[StepLine] = field(default_factory=list)
    marks: list[dict[str, Any]] = field(default_factory=list)
    _read: int = 0  # bytes

    def update(self) -> None:
        """Read the lines that were added since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in map(json.loads, whole.splitlines()):
            if "mark" in line:
                self.marks.append(line)
            else:
                objects, attacked = tuple(line["objects"]), tuple(line["attacked"])
                self.steps.append(StepLine(line["step"], line["epoch"], objects, attacked))

    def count(self, mark: str) -> int:
        """How often a mark was made."""
        return sum(each["mark"] == mark for each in self.marks)

    @property
    def saving(self) -> bool:
        """Whether the last checkpoint that this rank began to write has not been written."""
        return self.inside("saving", "saved")

    def inside(self, begin: str, end: str) -> bool:
        """Whether what is marked at its beginning and its end has begun and not ended."""
        return self.count(begin) > self.count(end)


@dataclass
class StartRecord:
    """The records of all ranks of one start."""

    ranks: list[RankRecord]

    @classmethod
    def in_folder(cls, folder: Path, number: int, world_size: int) -> "StartRecord":
        """The records of a start by its number."""
        return cls([RankRecord(folder / f"start-{number:03d}-rank-{k}.jsonl") for k in range(world_size)])

    def update(self) -> None:
        """Read the lines that were added since the last call."""
        for rank in self.ranks:
            rank.update()

    @property
    def resumed(self) -> int | None:
        """Step from which the start says that it goes on; None: it came to no step."""
        found = {mark["step"] for rank in self.ranks for mark in rank.marks if mark["mark"] == "resumed"}
        if len(found) > 1:
            raise ValueError(f"{self.ranks[0].path}: ranks resumed at different steps: {sorted(found)}")
        return next(iter(found), None)

    @property
    def loaded(self) -> int | None:
        """The step in the name of the checkpoint that was loaded; 0: there was none; None: not so far."""
        return next((mark["step"] for mark in self.ranks[0].marks if mark["mark"] == "loaded"), None)

    @property
    def copied(self) -> list[tuple[int, int | None]]:
        """Step in the name of every checkpoint, and the last step that rank 0 had begun; None: none."""
        marks = [mark for mark in self.ranks[0].marks if mark["mark"] == "copied"]
        return [(mark["step"], mark["begun"]) for mark in marks]

    @property
    def lines(self) -> list[StepLine]:
        """The steps of all ranks."""
        return [line for rank in self.ranks for line in rank.steps]

    @property
    def step(self) -> int:
        """The last step that a rank has begun; -1: none."""
        return max((line.step for line in self.lines), default=-1)

    def count(self, mark: str) -> int:
        """How often a mark was made, by all ranks."""
        return sum(rank.count(mark) for rank in self.ranks)
