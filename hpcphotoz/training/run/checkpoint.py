"""Checkpoint files: saved atomically, searched, and loaded without unpickling code."""

import errno
import io
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hpcphotoz.atomic import atomic_write
from hpcphotoz.config.renamed import to_current
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.data.format.appended import versions_of
from hpcphotoz.data.format.manifest import Manifest
from hpcphotoz.data.order import ORDER
from hpcphotoz.errors import BadInput

FORMAT = 1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = logging.getLogger(__name__)
State = dict[str, Any]


def save(run: Path, state: State, keep: int) -> Path:
    """Save `checkpoints/step-N.pt` atomically, then remove all but the newest `keep` checkpoints.

    A process killed at any instant leaves the earlier checkpoints intact. If the disk is full, the surplus
    checkpoints are removed first, but never the newest one that loads.

    Raises:
        BadInput: the disk is still full, or the file system fails otherwise; earlier checkpoints stay.
    """
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{state['step']:08d}.pt"
    # Serialised in memory first, because torch's writer hides the error of a full disk in one of its own.
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    try:
        with_room(run, keep, lambda: _write(path, content))
    except OSError as error:
        raise BadInput(_not_saved(path, content.tell(), error)) from None
    for old in paths(run)[keep:]:
        old.unlink()
    _drop_unfinished(folder)
    return path


def with_room(run: Path, keep: int, write: Callable[[], None]) -> None:
    """Write into the run folder; if the disk is full, remove surplus checkpoints and write again.

    The newest `keep` - 1 checkpoints stay, and the newest one that loads.

    Args:
        run: run folder.
        keep: number of checkpoints to keep, including the next one.
        write: raises OSError if it fails, and can be called again.
    """
    try:
        write()
    except OSError as error:
        if error.errno not in _NO_ROOM or not _make_room(run, keep):
            raise
        write()


def _write(path: Path, content: io.BytesIO) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _make_room(run: Path, keep: int) -> bool:
    """Remove surplus checkpoints; returns whether there were any."""
    unfinished = _drop_unfinished(run / "checkpoints")
    good = latest(run)
    surplus = [path for path in paths(run)[keep - 1 :] if path != good] if good else []
    for path in surplus:
        _log.warning("%s: dropped to make room for the next checkpoint", path)
        path.unlink()
    return bool(surplus) or unfinished


def _drop_unfinished(folder: Path) -> bool:
    """Remove unfinished files of a killed process; returns whether there were any."""
    left = list(folder.glob("*.tmp"))
    for path in left:
        path.unlink()
    return bool(left)


def _not_saved(path: Path, size: int, error: OSError) -> str:
    free = shutil.disk_usage(path.parent).free
    return (
        f"{path}: cannot save the checkpoint: {error.strerror or error} ({size / 1e6:.1f} MB are needed, "
        f"{free / 1e6:.1f} MB of the disk are free): make room, or choose a smaller "
        "run.keep_checkpoints; the same command resumes from the checkpoint before"
    )


def latest(run: Path) -> Path | None:
    """The newest checkpoint that loads, or None; damaged ones are skipped with a warning."""
    for path in paths(run):
        try:
            load(path)
        except BadInput as error:
            _log.warning("%s; trying the one before", error)
            continue
        return path
    return None


def load(path: Path, device: torch.device | str = "cpu") -> State:
    """Read one checkpoint, tensors and plain values only.

    Raises:
        BadInput: a file that is unreadable, damaged or of another format.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    # torch raises RuntimeError, EOFError, KeyError, UnpicklingError and others for a damaged file.
    except Exception as error:
        if path.suffix != ".pt":
            kind = f"a {path.suffix[1:].upper()} file, " if path.suffix else ""
            want = "give a run folder, a .pt file of its checkpoints, or a network as .safetensors"
            raise BadInput(f"{path}: {kind}not a checkpoint: {want}") from None
        why = type(error).__name__
        raise BadInput(f"{path}: not a readable checkpoint ({why}): use an earlier one") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BadInput(f"{path}: not a checkpoint of format {FORMAT}")
    return state


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
    """Checkpoint files of a run folder, newest first; some may be damaged."""
    return sorted((run / "checkpoints").glob("step-*.pt"), reverse=True)
