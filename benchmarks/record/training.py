"""Trains an entry as its user would, and takes the time from the start of the process to its end."""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import COMMIT, machine, versions
from benchmarks.peers.driver import peer_task
from benchmarks.record.entry import Entry
from benchmarks.record.task import Task
from benchmarks.streaming.stream_readers import ROOT
from benchmarks.training.train_runs import launch, peer_versions, peers_python
from hpcphotoz.atomic import write_text
from hpcphotoz.config import Config
from hpcphotoz.config.load import to_toml
from hpcphotoz.data.format.manifest import Manifest, read_manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import bins_of, build, load_weights
from hpcphotoz.training.run.network import TrainedNetwork, save_network

TIMEOUT_S = 4 * 3600


def train(entry: Entry, seed: int, task: Task, data: Path, folder: Path) -> tuple[float, Path]:
    """Train once.

    Args:
        entry: what to train.
        seed: `run.seed`.
        task: names the device, and may shorten the training.
        data: the training galaxies.
        folder: where the network is put; an earlier one of the same entry and seed is replaced.

    Returns:
        Seconds from the start of the process, torchrun included, to its end, when the checkpoint is on the
        disk; and the network, as `hpcphotoz evaluate` takes it: a run folder, or a safetensors file.

    Raises:
        RuntimeError: the training failed, or took longer than `TIMEOUT_S`.
    """
    config, name = configured(entry.config, seed, task), f"{entry.name}-seed-{seed}"
    for shard in sorted(data.glob("*.hdf5")):
        shard.read_bytes()  # every entry finds the page cache warm
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if entry.program == "peer":
        return _train_peer(entry, config, name, task, data, out)
    file, run = out / "recipe.toml", out / name
    file.write_text(to_toml(config))
    words: list[str | Path] = ["-m", "hpcphotoz", "train", file, "--data", data, "--out", run]
    words += ["--device", task.device]
    return _timed(entry, name, task, Path(sys.executable), words), run


def train_once(entry: Entry, seed: int, task: Task, data: Path, folder: Path) -> tuple[float, Path]:
    """As `train`, unless `folder` has a network that this function trained in the same way.

    That is at this commit, without changes, on this machine with its versions of torch, with the same
    recipe, ranks and galaxies. A network is not reused where the state of the source is not known.
    """
    note = folder / f"{entry.name}-seed-{seed}" / "trained.json"
    peer = entry.program == "peer"
    way = {
        **{"commit": COMMIT, "recipe": to_toml(configured(entry.config, seed, task))},
        **{"program": entry.program, "ranks": entry.ranks, "workers": task.workers},
        **{"device": task.device, "machine": machine(), "data": read_manifest(data).sha256},
        "versions": peer_versions() if peer else versions(),
    }
    if _source_is_known() and note.exists():
        found = json.loads(note.read_text())
        if found["way"] == way and Path(found["network"]).exists():
            return float(found["seconds"]), Path(found["network"])
    seconds, network = train(entry, seed, task, data, folder)
    write_text(note, json.dumps({"way": way, "seconds": seconds, "network": str(network)}))
    return seconds, network


def say_what_is_reused() -> None:
    """Print a line if `train_once` reuses nothing here."""
    if not _source_is_known():
        why = "files differ from the commit" if COMMIT else "the commit is not known"
        print(f"--resume: {why}: every network is trained", flush=True)


def check_peer(entry: Entry) -> None:
    """Check that the loop a user would write can be started.

    Raises:
        BadInput: its packages are not there, or an option of the entry that it does not have.
    """
    try:
        peers_python()
        peer_task(entry.config, ROOT, stamp=64, sky_sigma=[1.0] * 5, steps=1, log_steps=1, workers=1)
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"entry '{entry.name}': {error}") from None


def _source_is_known() -> bool:
    return COMMIT is not None and not COMMIT.endswith("-dirty")


def configured(config: Config, seed: int, task: Task) -> Config:
    """The configuration of an entry with a seed, shortened where the task says so."""
    short = {"epochs": task.epochs, "global_batch": task.global_batch}
    given = {"seed": seed, **{key: value for key, value in short.items() if value is not None}}
    return config.model_copy(update={"run": config.run.model_copy(update=given)})


def _train_peer(
    entry: Entry, config: Config, name: str, task: Task, data: Path, out: Path
) -> tuple[float, Path]:
    manifest = read_manifest(data)
    steps = config.run.epochs * (manifest.rows // config.run.global_batch)
    file, weights = out / "task.json", out / "weights.pt"
    sky, stamp = manifest.statistics.sky_sigma, manifest.header.stamp
    given = data.resolve(), stamp, sky, steps, config.run.log_steps, task.workers, weights.resolve()
    spec = peer_task(config, *given)
    file.write_text(json.dumps(spec))
    words: list[str | Path] = [ROOT / "benchmarks/peers/train.py", file.resolve()]
    words += ["--precision", config.compute.precision]
    seconds = _timed(entry, name, task, peers_python(), words)
    network = out / f"{name}.safetensors"
    state = torch.load(weights, weights_only=True)
    save_network(as_network(name, config, state, manifest, tuple(spec["scale"]), steps), network)
    return seconds, network


def as_network(
    name: str,
    config: Config,
    state: Mapping[str, Tensor],
    manifest: Manifest,
    scale: tuple[float, ...],
    step: int,
) -> TrainedNetwork:
    """The peer's network as one of ours: its parameters have the same names.

    Args:
        name: of the network.
        config: of its training.
        state: state dict of the peer's network.
        manifest: of the training galaxies.
        scale: (B,) nMgy, softening of its normalisation.
        step: optimiser steps.
    """
    header = manifest.header
    module = build(config.model, stamp=header.stamp, scale=scale)
    load_weights(module, state, name)
    bins: RedshiftBins = bins_of(config.model)
    facts: dict[str, Any] = {"bands": header.bands, "stamp": header.stamp, "pixel_scale": header.pixel_scale}
    facts |= {"config": config, "step": step, "manifest_sha256": manifest.sha256, "scale": scale}
    return TrainedNetwork(name=name, module=module, bins=bins, **facts)


def _timed(entry: Entry, name: str, task: Task, python: Path, words: list[str | Path]) -> float:
    # The loop a user would write takes a GPU where it sees one.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if task.device == "cpu" else {}
    start = time.perf_counter()
    launch(name, python, entry.ranks, words, hidden, timeout_s=TIMEOUT_S)
    return time.perf_counter() - start
