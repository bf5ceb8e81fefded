"""Jobs of a Slurm cluster for the benchmark of launches: start them, wait for their steps, end them."""

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpcphotoz.config.load import configure, to_toml
from hpcphotoz.heartbeat import read_heartbeat

NODES, RANKS_PER_NODE = 2, 2
SHAPE = (f"--nodes={NODES}", f"--ntasks-per-node={RANKS_PER_NODE}", "--cpus-per-task=1")
TIMEOUT_S = 300.0
POLL_S = 0.02
PYTHON = (sys.executable, "-m", "hpcphotoz")


def write_config(path: Path, checkpoint_steps: int) -> None:
    """Write the options of a small run that goes on until it is stopped, with metrics every step."""
    sizes: dict[str, object] = {
        "width": 8,
        "bins": 20,
        "validation": 0,
        "read_threads": 1,
        "global_batch": 16,
        "log_steps": 1,
    }
    sizes |= {"precision": "fp32"}
    path.write_text(to_toml(configure("benchmark", **sizes, epochs=10**6, checkpoint_steps=checkpoint_steps)))


def train_words(config: Path, data: Path, run: Path) -> list[str]:
    """The words of `train` for a run."""
    return ["train", str(config), "--data", str(data), "--out", str(run), "--device", "cpu"]


def launch(words: Sequence[str]) -> Callable[[], None]:
    """Start a run with `hpcphotoz launch slurm`; returns what ends it."""
    plan = ["--nodes", f"{NODES}", "--tasks-per-node", f"{RANKS_PER_NODE}", "--cpus-per-task", "1"]
    command([*PYTHON, "launch", "slurm", *plan, "--", *words])
    return end_all_jobs


def sbatch(words: Sequence[str]) -> Callable[[], None]:
    """Start a run with a batch script of four lines; returns what ends it."""
    run = Path(words[words.index("--out") + 1])
    script = run.with_suffix(".sh")
    options = "".join(f"#SBATCH {word}\n" for word in (*SHAPE, "--output=/dev/null"))
    exports = " ".join(f"{name}={value}" for name, value in meeting().items())
    step = shlex.join(["srun", "--cpus-per-task=1", "--kill-on-bad-exit=1", *PYTHON, *words])
    script.write_text(f"#!/bin/sh\n{options}export {exports}\n{step}\n")
    command(["sbatch", str(script)])
    return end_all_jobs


def srun(words: Sequence[str]) -> Callable[[], None]:
    """Start a run with srun alone; returns what ends it."""
    step = subprocess.Popen(
        ["srun", *SHAPE, "--kill-on-bad-exit=1", *PYTHON, *words],
        env={**os.environ, **meeting()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def end() -> None:
        end_all_jobs()
        step.wait(TIMEOUT_S)

    return end


def meeting() -> dict[str, str]:
    """Where the ranks of a run without the launcher meet: a random port, and one thread for each."""
    port = 20_000 + secrets.randbelow(12_000)
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}


def end_all_jobs() -> None:
    """Cancel this user's jobs, and wait until they have left the queue."""
    command(["scancel", "--user", str(os.geteuid())])
    until("an empty queue", lambda: not command(["squeue", "--noheader"]))


def command(words: Sequence[str]) -> str:
    """The output of a command.

    Raises:
        RuntimeError: it fails; with the end of what it said.
    """
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def until(what: str, condition: Callable[[], object]) -> None:
    """Poll until the condition holds; raises RuntimeError if that takes too long."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def last_step(run: Path) -> int:
    """The last step in the metrics of a run; 0: none yet."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return 0
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return max((line["step"] for line in lines if "loss" in line), default=0)


def starts(run: Path) -> list[dict[str, Any]]:
    """The recorded starts of a run; none yet before the first."""
    try:
        found: list[dict[str, Any]] = json.loads((run / "provenance.json").read_text())["starts"]
        return found
    except FileNotFoundError:
        return []


def preempt(run: Path) -> None:
    """Preempt the job by one of the partition `high` that needs all nodes."""
    words = [f"--nodes={NODES}", "--exclusive", "--output=/dev/null", "--wrap", "true"]
    command(["sbatch", "--partition=high", *words])


def kill_rank(run: Path) -> None:
    """Kill the last rank of a run with no warning; Slurm's nodes are this machine."""
    until("the heartbeat", lambda: read_heartbeat(run))
    found = read_heartbeat(run)
    if not found or not found.beats:
        raise RuntimeError(f"{run}: no heartbeat")
    os.kill(found.beats[-1].pid, signal.SIGKILL)
