"""Training commands on some ranks, ours and the peer's: started by torchrun, and their rates read."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.peers.driver import KEEP_MEMORY, peer_task
from benchmarks.streaming.stream_readers import PEERS_PYTHON, ROOT
from benchmarks.training.galaxies import SKY, STAMP, galaxies
from hpcphotoz.config import Config
from hpcphotoz.config.load import configure, to_toml
from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.format.writer import DatasetWriter

EPS, STEPS, FRACTION = 0.1, 3, 0.5  # of PGD: sky sigmas, steps, part of every batch
LEARNING_RATE = 1e-4
TIMEOUT_S = 600  # a run; on two slow cores the longest takes two minutes
POLL_S = 0.2  # seconds between checks of a run's progress
EPOCHS = 10_000  # of our runs, which are stopped early: `auto` must not see a short run
SHARD_ROWS = 256


@dataclass(frozen=True)
class RunPlan:
    """Settings that all compared training runs share."""

    network: str
    data: Path
    ranks: int
    batch: int  # objects a step, over all ranks
    log_steps: int  # steps a line; the first line is warm-up
    lines: int
    workers: int  # the peer's reading processes, per rank

    @property
    def steps(self) -> int:
        """Number of steps of a run."""
        return self.log_steps * self.lines

    def config(self, **options: object) -> Config:
        """Configuration of a run: the shared settings and, by bare name, further options."""
        shared: dict[str, object] = {
            **{"name": self.network, "validation": 0, "augment": False},
            **{"epochs": EPOCHS, "global_batch": self.batch, "log_steps": self.log_steps},
            "checkpoint_steps": 10**6,
            **{"learning_rate": LEARNING_RATE, "schedule": "constant", "warmup_steps": 0},
            **{"fraction": FRACTION, "method": "pgd", "eps": EPS, "steps": STEPS},
        }
        return configure("benchmark", **{**shared, **options})


@dataclass(frozen=True)
class Rate:
    """Speed and losses of a run after its warm-up."""

    images_per_s: float
    data_wait: float  # fraction of the time
    loss: float  # mean over the steps of the last line
    speed: Mapping[str, Any] = field(default_factory=dict)  # of ours: what the options called auto stood for


def write_dataset(out: Path, objects: int) -> None:
    """Galaxies of `benchmarks.training.galaxies` in shards, all with the same sky sigmas."""
    images, ebv, z = (tensor.numpy() for tensor in galaxies(objects, seed=1))
    sky, angle = torch.tensor(SKY).expand(objects, len(SKY)).numpy(), torch.zeros(objects).double().numpy()
    number = torch.arange(objects).numpy()
    with DatasetWriter(
        out, Header(tuple("ugriz"), STAMP, 0.396), SHARD_ROWS, {"made": "for a benchmark"}
    ) as writer:
        writer.append(Stamps(images, z, ebv, number, sky, angle, angle))


def ours(plan: RunPlan, options: Mapping[str, object] | None = None) -> Rate:
    """A run of `hpcphotoz train` with its defaults, except the shared settings and the given options.

    Args:
        plan: settings that all rivals share.
        options: by bare name; without, precision, compiler and graphs are their defaults.
    """
    config = plan.config(**(options or {}))
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-run-") as folder:
        file, out = Path(folder, "config.toml"), Path(folder, "run")
        file.write_text(to_toml(config))
        name = ", ".join(["hpcphotoz train", plan.network, *map(str, (options or {}).values())])
        words: list[str | Path] = ["-m", "hpcphotoz", "train", file, "--data", plan.data, "--out", out]
        metrics = out / "metrics.jsonl"

        def enough() -> bool:
            return metrics.exists() and metrics.read_text().count("\n") >= plan.lines

        launch(name, Path(sys.executable), plan.ranks, words, enough=enough)
        lines = "".join(metrics.read_text().splitlines(keepends=True)[: plan.lines])
        start = json.loads((out / "provenance.json").read_text())["starts"][-1]
        return replace(rate(name, lines, plan), speed=start["speed"])


def peer(plan: RunPlan, tuned: bool = False, precision: str = "fp32") -> Rate:
    """A run of `benchmarks/peers/train.py`.

    Args:
        plan: settings that all rivals share.
        tuned: channels_last and kept memory, set by hand.
        precision: fp32, tf32, or bf16 by autocast.
    """
    task = peer_task(plan.config(), plan.data, STAMP, SKY, plan.steps, plan.log_steps, plan.workers)
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-peer-") as folder:
        file = Path(folder, "task.json")
        file.write_text(json.dumps(task))
        name = f"the peer loop, {plan.network}{', tuned' * tuned}, {precision}"
        words: list[str | Path] = [ROOT / "benchmarks/peers/train.py", file, *["--tuned"] * tuned]
        words += ["--precision", precision]
        said = launch(name, peers_python(), plan.ranks, words, KEEP_MEMORY if tuned else {})
    return rate(name, said, plan)


def rate(name: str, lines: str, plan: RunPlan) -> Rate:
    """The JSON lines that a run prints, without the first.

    Raises:
        RuntimeError: not as many lines as planned, or a loss that is not finite.
    """
    found = [json.loads(line) for line in lines.splitlines()]
    if len(found) != plan.lines:
        raise RuntimeError(f"{name}: {len(found)} lines of progress, want {plan.lines}")
    seconds = [1 / line["images_per_s"] for line in found[1:]]  # per image: all lines have as many images
    waited = sum(line["data_wait"] * t for line, t in zip(found[1:], seconds, strict=True))
    loss = found[-1]["loss"]
    if not 0 < loss < float("inf"):
        raise RuntimeError(f"{name}: the loss is {loss}")
    return Rate(len(seconds) / sum(seconds), waited / sum(seconds), loss)


def peers_python() -> Path:
    """The interpreter that has the peer: of `.venv-peers`, else this one.

    Raises:
        RuntimeError: neither.
    """
    if PEERS_PYTHON.exists():
        return PEERS_PYTHON
    if importlib.util.find_spec("torchattacks"):
        return Path(sys.executable)
    raise RuntimeError("no .venv-peers, and no torchattacks in this environment: run `make peers` first")


def peer_versions() -> dict[str, str]:
    """Versions of the packages that the peer loop uses.

    Raises:
        RuntimeError: one of them is not there.
    """
    code = "import json, h5py, numpy, torch, torchattacks as t; mods = [h5py, numpy, torch, t]; "
    code += "print(json.dumps({m.__name__: str(m.__version__) for m in mods}))"
    found = subprocess.run([peers_python(), "-c", code], capture_output=True, text=True, timeout=300)
    if found.returncode:
        raise RuntimeError(f"{peers_python()}: run `make peers` again:\n{_tail(found.stderr)}")
    versions: dict[str, str] = json.loads(found.stdout)
    return versions


def launch(
    name: str,
    python: Path,
    ranks: int,
    words: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    enough: Callable[[], bool] = lambda: False,
    poll_s: float = POLL_S,
) -> str:
    """Start a program on some ranks of this machine, one thread each, and wait for its end, or end it.

    Args:
        name: for messages.
        python: interpreter, whose torchrun starts the ranks.
        ranks: how many; 0: the program alone, without torchrun and with its own number of threads.
        words: what torchrun shall run.
        environment: variables set for it, beside this process's; how memory is freed is not inherited.
        timeout_s: seconds it may take.
        enough: called repeatedly; when it returns true, the program is stopped.
        poll_s: seconds between these calls.

    Returns:
        Standard output.

    Raises:
        RuntimeError: it failed, or took too long; with the last of its standard error.
    """
    shared = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    shared |= {"OMP_NUM_THREADS": "1"} if ranks else {}
    with (
        tempfile.TemporaryDirectory(prefix="hpcphotoz-torchrun-") as logs,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+", errors="replace") as errors,
    ):
        torchrun = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            "--log-dir",
            logs,
        ]
        process = subprocess.Popen(
            [python, *(torchrun if ranks else []), *words],
            stdout=out,
            stderr=errors,
            env={**shared, **(environment or {})},
            cwd=ROOT,
        )
        until = time.monotonic() + timeout_s
        stopped = False
        try:
            while process.poll() is None and not (stopped := enough()):
                if time.monotonic() > until:
                    raise RuntimeError(f"{name} took more than {timeout_s:g} s:\n{_tail(_all(errors))}")
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=poll_s)
        finally:
            stop(process)
        status = 0 if stopped else process.returncode  # torchrun ends with a traceback when it is stopped
        if status:
            raise RuntimeError(f"{name} ended with status {status}:\n{_tail(_all(errors))}")
        return _all(out)


def stop(process: subprocess.Popen[Any]) -> None:
    """Stop torchrun, which stops its ranks: they have their own sessions, and would outlive a kill."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _all(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _tail(errors: str, lines: int = 12) -> str:
    """The last lines of the ranks, without those of torchrun that follow them."""
    theirs = re.split(r"(?m)^[EW]\d{4} .*torch[./]distributed", errors)[0].strip() or errors.strip()
    return "\n".join(theirs.splitlines()[-lines:]) or "(nothing on standard error)"
