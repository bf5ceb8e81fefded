"""The benchmark's side of a peer: a process in another environment that answers request lines."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from threading import Timer
from typing import Any

from hpcphotoz.config import Config, Model

# Keeps freed memory in a process on a CPU, as `hpcphotoz.memory` does for our commands.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}


def describe_network(model: Model, stamp: int, scale: list[float]) -> dict[str, Any]:
    """What a peer needs to build a network without the configuration's library."""
    options = model.model_dump(include={"bins", "normalisation", "width"})
    return {"network": model.name, "stamp": stamp, "scale": scale, **options}


def peer_task(
    config: Config,
    data: Path,
    stamp: int,
    sky_sigma: Sequence[float],
    steps: int,
    log_steps: int,
    workers: int,
    save: Path | None = None,
) -> dict[str, Any]:
    """TASK.json of `benchmarks/peers/train.py` for the options of a configuration that the loop has.

    Args:
        config: of network, optimiser, attack and run.
        data: dataset folder.
        stamp: pixels a side of its images.
        sky_sigma: (B,) nMgy, its typical sky noise.
        steps: optimiser steps.
        log_steps: steps a line of progress.
        workers: processes that read, per rank.
        save: file for the state dict of the network.

    Raises:
        ValueError: an option that the loop does not have.
    """
    optimiser, attack = config.optimiser, config.attack
    if optimiser.algorithm != "adamw" or optimiser.schedule not in ("constant", "one_cycle"):
        raise ValueError("the peer loop has adamw and the schedules constant and one_cycle alone")
    if attack.method != "pgd" or attack.ball != "linf" or config.adversarial.objective != "replace":
        raise ValueError("the peer loop has PGD in the linf ball and the objective replace alone")
    return {
        **describe_network(config.model, stamp, [config.model.softening * sigma for sigma in sky_sigma]),
        **config.model.model_dump(include={"z_min", "z_max"}),
        **optimiser.model_dump(include={"learning_rate", "weight_decay", "schedule", "label_width"}),
        "data": str(data),
        "eps": [attack.eps * sigma for sigma in sky_sigma],
        "attack_steps": attack.steps,
        "fraction": config.adversarial.fraction,
        "augment": config.data.augment,
        "batch": config.run.global_batch,
        "seed": config.run.seed,
        "steps": steps,
        "log_steps": log_steps,
        "workers": workers,
        "save": None if save is None else str(save),
    }


class Peer:
    """A process that says `ready VERSION`, then answers each line by one line of JSON.

    Args:
        name: for messages.
        command: program and arguments.
        ready_s: seconds it may take to be ready.
        environment: variables set for it, beside this process's.

    Raises:
        RuntimeError: it ended, or took too long; with the last of its standard error.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | PathLike[str]],
        ready_s: float = 300,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            self.version = self._answer(ready_s).removeprefix("ready").strip()
        except RuntimeError:
            self.close()
            raise

    def ask(self, line: str, timeout_s: float) -> Any:
        """The answer to a request; the peer is killed if it takes longer.

        Raises:
            RuntimeError: as above.
        """
        assert self._process.stdin
        with suppress(
            BrokenPipeError
        ):  # the process has ended: the empty answer is reported with its standard error
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return json.loads(self._answer(timeout_s))

    def close(self) -> None:
        """Close the input, at which the peer ends; it is killed if it does not within a minute."""
        try:
            self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def _answer(self, timeout_s: float) -> str:
        assert self._process.stdout
        timer = Timer(timeout_s, self._process.kill)
        timer.start()
        line: str = self._process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if not line:
            status = self._process.wait(timeout=60)
            self._errors.seek(0)
            how = f"took more than {timeout_s:g} s" if late else f"ended early with status {status}"
            raise RuntimeError(f"{self._name} {how}:\n{self._errors.read()[-2000:]}")
        return line
