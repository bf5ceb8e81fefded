"""One checkpoint file: written atomically with a checksum, and loaded without unpickling code."""

import errno
from pathlib import Path
from typing import IO, Any

import torch

import hpcphotoz
from hpcphotoz.atomic import atomic_write
from hpcphotoz.errors import BadInput
from hpcphotoz.training.saving.content_checksum import content_checksum
from hpcphotoz.training.saving.temporary import owner

FORMAT = 2  # 1 has no checksum
State = dict[str, Any]
_NOT_READ = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOENT, errno.EISDIR)  # not damage


class OtherFormat(BadInput):
    """A checkpoint of a format that this version does not read."""


def complete(state: State) -> State:
    """A state with what a file says of itself: format, version of this package, checksum of the content."""
    content = {**state, "format": FORMAT, "hpcphotoz": hpcphotoz.__version__}
    content["checksum"] = content_checksum(_without_checksum(content))
    return content


def write_file(path: Path, content: State) -> None:
    """Write what `complete` gives, atomically; makes the folder if need be.

    Raises:
        OSError: as `atomic_write`.
    """
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path, owner()) as temporary, temporary.open("wb") as file:
        sink = _Sink(file)
        torch.save(content, sink)  # type: ignore[arg-type]
        if sink.error is not None:
            raise sink.error


class _Sink:
    """Writes what torch.save gives into a file, and keeps an OSError, which torch would hide in its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: closing the file flushes it."""


def load(path: Path) -> State:
    """Read one checkpoint into the memory of the host, tensors and plain values only.

    Raises:
        BadInput: a file that is unreadable or damaged.
        OtherFormat: a file of a format that this version does not read.
    """
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    # torch raises RuntimeError, EOFError, KeyError, UnpicklingError and others for a damaged file.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_READ:
            raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
        if path.suffix != ".pt":
            kind = f"a {path.suffix[1:].upper()} file, " if path.suffix else ""
            want = "give a run folder, a .pt file of its checkpoints, or a network as .safetensors"
            raise BadInput(f"{path}: {kind}not a checkpoint: {want}") from None
        raise BadInput(f"{path}: not a readable checkpoint, but damaged or cut off") from None
    number = state.get("format") if isinstance(state, dict) else None
    if not isinstance(number, int) or number < 1:
        raise BadInput(f"{path}: not a checkpoint: it does not say its format")
    damaged = f"{path}: damaged: its content does not have its checksum"
    # Content that has its checksum only as of this format: its number is what is damaged.
    if number > FORMAT and _has_its_checksum({**state, "format": FORMAT}):
        raise BadInput(damaged)
    if number > FORMAT:
        by = f"hpcphotoz {state['hpcphotoz']}" if "hpcphotoz" in state else "another version"
        raise OtherFormat(
            f"{path}: of checkpoint format {number}, written by {by}; this version "
            f"({hpcphotoz.__version__}) reads formats 1 to {FORMAT}: use the version that wrote it"
        )
    if number > 1 and not _has_its_checksum(state):
        raise BadInput(damaged)
    return state


def _has_its_checksum(state: State) -> bool:
    return state.get("checksum") == content_checksum(_without_checksum(state))


def _without_checksum(state: State) -> State:
    return {name: value for name, value in state.items() if name != "checksum"}


def network_weights(state: State) -> dict[str, Any]:
    """The weights with which a network is used: their average where the run keeps one, else the last ones."""
    weights: dict[str, Any] = state.get("ema") or state["model"]
    return weights
