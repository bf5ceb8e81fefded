"""Checkpoints of a run folder: saved, searched, and removed when newer ones that load are there."""

import errno
import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from hpcphotoz.config.renamed import to_current
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.format.appended import versions_of
from hpcphotoz.data.format.manifest import Manifest
from hpcphotoz.data.order import ORDER
from hpcphotoz.errors import BadInput
from hpcphotoz.training.saving.checkpoint_file import OtherFormat, complete, write_file
from hpcphotoz.training.saving.checkpoint_file import State as State
from hpcphotoz.training.saving.checkpoint_file import load as load
from hpcphotoz.training.saving.failed_write import NO_ROOM, message
from hpcphotoz.training.saving.temporary import drop_abandoned

NEWEST, BEST, KEPT = "checkpoints", "best", "kept"  # folders of a run with checkpoints
_NAME = re.compile(r"step-(\d+)\.pt")
_SAVED = '"part": "checkpoint"'  # in a line of metrics.jsonl about a save
_log = logging.getLogger(__name__)


def save(run: Path, state: State, keep: int, verified: set[Path] | None = None) -> Path:
    """Save `checkpoints/step-N.pt` atomically, then remove earlier ones beyond the newest `keep`.

    A process killed at any instant leaves the earlier checkpoints intact. Checkpoints of later steps stay:
    another process may have saved them.

    Args:
        run: run folder.
        state: what `load` shall give, with the key `step`.
        keep: number of checkpoints to keep, including this one; damaged ones do not count.
        verified: checkpoints that are known to load; the new one is added.

    Raises:
        BadInput: as `write`.
    """
    verified = set() if verified is None else verified
    path = path_of(run, NEWEST, state["step"])
    write(run, path, state, keep, verified)
    _remove(_surplus(run, keep - 1, verified, below=state["step"]))
    drop_abandoned(path.parent)
    return path


def write(run: Path, path: Path, state: State, keep: int, verified: set[Path]) -> None:
    """Write one checkpoint atomically, where need be in the room of surplus ones; adds it to `verified`.

    Args:
        run, path: run folder, and the file to write.
        state, keep, verified: as `save`.

    Raises:
        BadInput: the disk is full, or the file system fails otherwise; earlier checkpoints stay.
    """
    content = complete(state)
    try:
        with_room(run, keep, lambda: write_file(path, content), verified)
    except OSError as error:
        what, before = "cannot save the checkpoint", "the checkpoint before"
        raise BadInput(message(path, error, before, what, bytes_of(state))) from None
    verified.add(path)


def path_of(run: Path, folder: str, step: int) -> Path:
    """Path of the checkpoint of a step in one of the folders of a run."""
    return run / folder / f"step-{step:08d}.pt"


def with_room(run: Path, keep: int, write: Callable[[], None], verified: set[Path] | None = None) -> None:
    """Write into the run folder; if the disk is full, remove surplus checkpoints and write again.

    The newest `keep` - 1 checkpoints that load stay.

    Args:
        run: run folder.
        keep: number of checkpoints to keep, including the next one.
        write: raises OSError if it fails, and can be called again. It is called again, too, if its temporary
            file is gone: another process took it for abandoned.
        verified: as `save`.
    """
    try:
        write()
    except OSError as error:
        if error.errno != errno.ENOENT and (
            error.errno not in NO_ROOM or not _make_room(run, keep, set() if verified is None else verified)
        ):
            raise
        write()


def _make_room(run: Path, keep: int, verified: set[Path]) -> bool:
    """Remove surplus checkpoints; returns whether there were any."""
    unfinished = drop_abandoned(run / NEWEST)
    surplus = _surplus(run, max(keep - 1, 1), verified)
    for path in surplus:
        _log.warning("%s: dropped to make room for the next checkpoint", path)
    _remove(surplus)
    return bool(surplus) or unfinished


def _surplus(run: Path, keep: int, verified: set[Path], below: int | None = None) -> list[Path]:
    """Checkpoints that are older than the newest `keep` that load, and of steps before `below`."""
    found = [path for path in in_folder(run / NEWEST) if below is None or step_of(path) < below]
    for number, path in enumerate(found):
        if keep <= 0:
            return found[number:]
        if path not in verified:
            try:
                load(path)
            except BadInput:  # `newest` has warned of it
                continue
            verified.add(path)
        keep -= 1
    return []


def _remove(paths: list[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s: cannot be removed: %s", path, error.strerror)


def bytes_of(state: State) -> int:
    """Bytes of all tensors of a state."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(bytes_of(item) for item in state.values())
    return sum(map(bytes_of, state)) if isinstance(state, list | tuple) else 0


def latest(run: Path) -> Path | None:
    """The newest checkpoint that loads, or None; damaged ones are skipped with a warning.

    Raises:
        BadInput: as `newest`.
    """
    found = newest(run)
    return found[0] if found else None


def newest(run: Path) -> tuple[Path, State] | None:
    """The newest checkpoint that loads, and its content; damaged ones are skipped with a warning.

    Raises:
        OtherFormat: one of a format of another version lies before it: that version continues the run.
    """
    for path in paths(run):
        try:
            return path, load(path)
        except OtherFormat:
            raise
        except BadInput as error:
            _log.warning("%s: skipped", error)
    return None


def resumed(run: Path) -> tuple[Path, State] | None:
    """The checkpoint from which a run continues, and its content; None: the run has saved none yet.

    Raises:
        BadInput: none of the run's checkpoints loads, or all that it saved are gone; or as `newest`.
    """
    found = newest(run)
    if found is None and (damaged := paths(run)):
        raise BadInput(
            f"{run}: none of its {len(damaged)} checkpoints loads, the newest is {damaged[0].name}: restore "
            "one, or choose a new --out; a run does not begin anew in the place of what it has saved"
        )
    if found is None and (step := _last_saved(run)) is not None:
        raise BadInput(
            f"{run}: its checkpoints are gone, the last of step {step}: restore one in {NEWEST}, or choose a "
            "new --out; a run does not begin anew in the place of its record"
        )
    return found


def _last_saved(run: Path) -> int | None:
    """The step of the last checkpoint that metrics.jsonl tells of; None: it tells of none."""
    try:
        text = (run / "metrics.jsonl").read_text(errors="replace")
    except FileNotFoundError:
        return None
    steps = []
    for line in text.splitlines():
        if _SAVED in line:
            with suppress(ValueError, KeyError, TypeError):  # cut off by a kill, or damaged
                steps.append(int(json.loads(line)["step"]))
    return max(steps, default=None)


def begun_epochs(state: State) -> int:
    """Epochs of the run when its checkpoint was saved."""
    epochs: int = current_config(state, "checkpoint")["run"]["epochs"]
    return epochs


def check_data(run: Path, state: State, data: Datasets, manifest: Manifest) -> None:
    """Refuse to continue a run on another dataset, or with another order of the same objects.

    Args:
        run, data: run folder and datasets.
        state: state in the newest checkpoint.
        manifest: of `Datasets.read_manifest`.

    Raises:
        BadInput: the datasets, their shares or the order differs from that of the saved state, or objects
            were appended to the dataset.
    """
    if state.get("order") != ORDER:
        another = "another order of objects and another split"
        raise BadInput(f"{run}: was begun by a version with {another}: choose a new --out")
    if state["manifest_sha256"] != manifest.sha256:
        if state["manifest_sha256"] in versions_of(manifest):
            raise BadInput(
                f"{run}: was trained on {data} before objects were appended to it: choose a new --out, with "
                "the same split: every object keeps its part"
            )
        what, on = "another dataset", "the same dataset"
        if data.several:
            what, on = "other datasets, or with other weights,", "the same, in the same order"
        raise BadInput(f"{run}: was trained on {what} than {data}: resume on {on}, or choose a new --out")


def current_config(state: State, source: str) -> dict[str, Any]:
    """The configuration in a checkpoint, with the current names of sections and keys."""
    tree = to_current(state["config"], source)
    # Before checkpoints had the key `order`, `seed` drew the split too, and `read_ahead` counted batches.
    if "order" not in state:
        tree["data"].pop("windows_ahead", None)
        tree["data"].setdefault("split_seed", tree["run"]["seed"])
    return tree


def paths(run: Path) -> list[Path]:
    """All checkpoint files of a run folder, of the newest step first; some may be damaged."""
    found = [path for folder in (NEWEST, BEST, KEPT) for path in in_folder(run / folder)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


def in_folder(folder: Path) -> list[Path]:
    """Checkpoint files of one folder, newest first."""
    found = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)
