"""Sends the lines of metrics.jsonl to Weights & Biases, offline unless WANDB_MODE says otherwise."""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcphotoz.atomic import write_text
from hpcphotoz.config import Config
from hpcphotoz.training.reporting.scalars import scalars

FOLDER = "wandb"  # of a run
_WAIT_S = 60.0  # at the end, for the last lines to be sent; what is not stays in the folder
_RECORD = "run.json"  # in it: id of the run there, step of the last line sent, whether it was online


class WeightsAndBiasesSink:
    """One run of Weights & Biases for a run folder, also after resumes.

    Online, lines up to the last one sent before a resume are not sent again: a curve has each step once.
    Offline, wandb continues no run: each start writes files of its own, and when they are synced, those of
    one start replace those of another. The files of a start therefore hold the whole curve.
    WANDB_PROJECT, WANDB_ENTITY and other variables of wandb hold.

    Args:
        out: run folder; the files are in its folder `wandb`.
        config: options of the run, which are sent too.
        seen: step of the last line that the processes before have written to metrics.jsonl, 0: none.
        earlier: the lines from which the run goes on.
    """

    name = "Weights & Biases"

    def __init__(
        self, out: Path, config: Config, seen: int, earlier: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        import wandb

        record = out / FOLDER / _RECORD
        saved = json.loads(record.read_text()) if record.exists() else {}
        run_id = saved.get("id") or secrets.token_hex(6)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        online = mode == "online"
        # A process that was killed twice between two checkpoints sent more than the last one has written.
        self._seen = max(seen, saved["step"]) if online and saved.get("online") else 0
        self._step = self._seen
        record.parent.mkdir(exist_ok=True)
        write_text(record, json.dumps({"id": run_id, "step": self._seen, "online": online}) + "\n")
        self._run = wandb.init(
            id=run_id,
            name=out.resolve().name,
            project=os.environ.get("WANDB_PROJECT", "hpcphotoz"),
            dir=out,
            mode=mode,
            config=config.model_dump(),
            resume="allow" if online else None,
            # Its own capture of the streams would take lines from the view of the run. Without limits, the
            # other ranks would wait until a network is there.
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=_WAIT_S / 2,
                finish_timeout=_WAIT_S,
                finish_timeout_raises=True,
            ),
        )
        for line in earlier:
            self.write(line)

    def write(self, line: Mapping[str, Any]) -> None:
        """Send every number of a line but its step."""
        if line["step"] <= self._seen:
            return
        # It takes no line of an earlier step: that of a save may come after lines of later steps.
        self._step = max(self._step, line["step"])
        self._run.log(scalars(line), step=self._step)

    def close(self) -> None:
        """Write what is open to the disk, or send it."""
        self._run.finish()
