"""The small training that the chaos test disturbs: its dataset, its options, and how two runs compare."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.faults.audit import Audit, audit, expected, lineage
from benchmarks.faults.job import Job
from benchmarks.faults.plan import Layout
from benchmarks.faults.records import StartRecord
from benchmarks.training.galaxies import SKY, galaxies
from hpcphotoz.config import Config
from hpcphotoz.config.load import configure, to_toml
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.training.run import checkpoint

SIDE, SHARD_ROWS = 16, 100  # pixels; objects, so that the last shard is a short one
OBJECTS = 266  # 243 of them to train on: 16 batches of 16, of which the last has 3: some ranks get none
TIMEOUT_S = 10.0  # run.timeout_s
_RUN_S = 900.0  # in which an undisturbed run ends


@dataclass(frozen=True)
class Training:
    """Dataset and options, with what an audit expects of every run."""

    data: Path
    config: Config
    options: Path  # TOML file

    @classmethod
    def make(cls, folder: Path, epochs: int, seed: int) -> "Training":
        """Write the dataset and the options into a folder."""
        config = configure(
            "chaos",
            **{"bins": 20, "width": 8, "precision": "fp32", "compiled": "off", "graphs": "off"},
            **{"block_rows": 8, "window_blocks": 3, "validation": 0.1, "seed": seed},
            **{"epochs": epochs, "global_batch": 16, "log_steps": 1, "checkpoint_steps": 5},
            **{"warmup_steps": 10, "learning_rate": 1e-3, "schedule": "constant"},
            **{"fraction": 0.5, "eps": 0.3, "steps": 2, "validation_objects": 8},
            **{"timeout_s": TIMEOUT_S, "start_timeout_s": TIMEOUT_S},
        )
        data, options = folder / "data", folder / "options.toml"
        _write(data, seed)
        options.write_text(to_toml(config))
        return cls(data, config, options)

    def words(self, out: Path, layout: Layout) -> list[str]:
        """The command line of a start."""
        fixed = ["train", str(self.options), "--data", str(self.data), "--out", str(out)]
        return [*fixed, *layout.words]

    def undisturbed(self, out: Path, layout: Layout, **environment: str) -> Audit:
        """Train without faults.

        Raises:
            RuntimeError: it did not finish; with what the ranks said.
        """
        with Job(out.parent, 0, layout.world_size, self.words(out, layout), environment) as job:
            left = job.ended(range(layout.world_size), _RUN_S)
            if left or set(job.statuses) != {0}:
                said = "\n".join(job.said(rank) for rank in range(layout.world_size))
                raise RuntimeError(f"an undisturbed run ended with {job.statuses}:\n{said}")
            job.record.update()
        return self.audit([job.record])

    def audit(self, records: Sequence[StartRecord]) -> Audit:
        """Audit a run of this training by the records of its starts."""
        return audit(lineage(records), *expected(self.data, self.config))


def _write(data: Path, seed: int) -> None:
    images, ebv, z = (tensor.numpy() for tensor in galaxies(OBJECTS, seed))
    edge = (images.shape[-1] - SIDE) // 2
    inner = slice(edge, edge + SIDE)
    sky, angle = np.tile(np.array(SKY, np.float32), (OBJECTS, 1)), np.zeros(OBJECTS)
    number = 10**6 + 7919 * np.arange(OBJECTS)
    with DatasetWriter(
        data, Header(tuple("ugriz"), SIDE, 0.396), SHARD_ROWS, {"made": "for chaos"}
    ) as writer:
        writer.append(Stamps(images[:, :, inner, inner], z, ebv, number, sky, angle, angle))


def weight_difference(run: Path, other: Path) -> float:
    """The greatest difference of a weight between the newest checkpoints of two runs.

    Raises:
        ValueError: they are not of the same step.
    """
    states = [checkpoint.newest(each) for each in (run, other)]
    if None in states:
        raise ValueError(f"{run} or {other}: no checkpoint")
    (_, mine), (_, theirs) = states  # type: ignore[misc]
    if mine["step"] != theirs["step"]:
        raise ValueError(f"{run} is at step {mine['step']}, {other} at {theirs['step']}")
    differences = [
        (weight.double() - theirs["model"][name].double()).abs().max()
        for name, weight in mine["model"].items()
    ]
    return float(torch.stack(differences).max())


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of every training line of metrics.jsonl."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]
