"""The run folder: config.toml, provenance.json, metrics.jsonl, model.py.txt, logs and checkpoints."""

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hpcphotoz.atomic import atomic_write, check_output_folder, write_text
from hpcphotoz.config import Config
from hpcphotoz.config import load as configuration
from hpcphotoz.config.section import option_text
from hpcphotoz.data.format.manifest import MANIFEST
from hpcphotoz.errors import BadInput
from hpcphotoz.heartbeat import FILE as HEARTBEAT
from hpcphotoz.locks.judgement import refuse_held
from hpcphotoz.locks.lock import HeldLock, lock_file
from hpcphotoz.models.factory import NetworkSource
from hpcphotoz.output import say
from hpcphotoz.training.optimisation.schedules import cannot_extend
from hpcphotoz.training.run.checkpoint import BEST, KEPT, NEWEST, current_config, newest, paths, with_room
from hpcphotoz.training.run.signals import STOP_FILE
from hpcphotoz.training.saving.failed_write import NO_ROOM, explained
from hpcphotoz.training.saving.temporary import drop_abandoned
from hpcphotoz.world import World

# What a run folder holds before its config.toml, and logs that a shell or a launcher writes to it.
_OWN_NAMES = re.compile(
    r"logs|checkpoints|best|kept|weights|selection|launch|profile|STOP|tensorboard|wandb"
    r"|(config\.toml|provenance\.json|metrics\.jsonl)(\..*\.tmp)?|provenance\.json\.damaged"
    r"|model(-[0-9a-f]{8})?\.py(\.txt)?|.*\.(log|out|err)"
)
_FOLDERS = (NEWEST, BEST, KEPT, "weights", "selection", "logs")  # in which training writes
_BUSY, _WAIT = "another process is training in it", "wait, or choose another --out"


def check(run: Path, config: Config) -> None:
    """Refuse a dataset, and a folder with other files, a run with other options, or STOP; writes nothing.

    The folder need not exist. Precision `auto` stands for that of the run in it.
    """
    if (run / MANIFEST).exists():
        raise BadInput(f"{run}: is a dataset: choose another folder for the run")
    _check_writable(run)
    if run.exists() and not (run / "config.toml").exists():
        for path in sorted(run.iterdir()):
            if not _OWN_NAMES.fullmatch(path.name):
                raise BadInput(f"{run}: holds other files ({path.name}): choose an empty or new folder")
    if (run / STOP_FILE).exists():
        raise BadInput(f"{run / STOP_FILE}: this file keeps the run stopped: remove it to train in {run}")
    begun = _saved_config(run)
    if begun is None:
        return
    if config.compute.precision == "auto":
        compute = config.compute.model_copy(update={"precision": begun.compute.precision})
        config = config.model_copy(update={"compute": compute})
    differing = _differing(begun, config)
    if differing:
        raise BadInput(
            f"{run}: holds a run with another {', '.join(differing)}: give the same options, or a new --out"
        )
    old, new = begun.run.epochs, config.run.epochs
    if old != new and (why := cannot_extend(config.optimiser.schedule)):
        raise BadInput(f"{run}: run.epochs {old}, now {new}: schedule {config.optimiser.schedule}: {why}")


def _check_writable(run: Path) -> None:
    """Refuse a folder in which a file cannot be written, hours before it would be."""
    for folder in (run, *(path for name in _FOLDERS if (path := run / name).exists())):
        check_output_folder(folder)
    for log in run.glob("logs/rank-*.log"):
        if not os.access(log, os.W_OK):
            raise BadInput(f"{log}: no permission to write: remove it, or choose another --out")


def refuse_busy(run: Path, world: World) -> None:
    """Refuse, on rank 0, a folder in which another process is seen to train; `prepare` finds out the rest."""
    if world.is_first:
        refuse_held(run / "logs" / "lock", f"{run}: {_BUSY}", _WAIT)


def missing_folders(run: Path) -> list[Path]:
    """The run folder and its parents, as far as they do not exist, the innermost first."""
    return [folder for folder in (run, *run.parents) if not folder.exists()]


@contextmanager
def prepare(run: Path, world: World, missing: Sequence[Path] = ()) -> Iterator[HeldLock | None]:
    """Make the run folder, which `check` has let pass, and lock it against other processes.

    Rank 0 holds the lock, which ends with the process. After an error before `write_config` it removes the
    folders again that were missing.

    Args:
        run, world: run folder and ranks.
        missing: `missing_folders`, before any rank made them.

    Raises:
        BadInput: the folder cannot be made, or is in use.
    """
    try:
        (run / "logs").mkdir(parents=True, exist_ok=True)
        (run / "checkpoints").mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(f"{run}: cannot make the run folder: {error.strerror}") from None
    if not world.is_first:
        yield None
        return
    with _removed_if_unused(run, missing), lock_file(run / "logs" / "lock", f"{run}: {_BUSY}", _WAIT) as lock:
        for folder in ("", *_FOLDERS):
            drop_abandoned(run / folder)
        yield lock


@contextmanager
def _removed_if_unused(run: Path, missing: Sequence[Path]) -> Iterator[None]:
    """After an error, remove a new run folder in which nothing was begun; a folder with other files stays."""
    try:
        yield
    except BaseException:
        if run in missing and not (run / "config.toml").exists():
            for file in (*run.glob("selection/*"), run / "logs" / HEARTBEAT):
                with suppress(OSError):
                    file.unlink()
            for folder in (*(run / name for name in _FOLDERS), *missing):
                with suppress(OSError):
                    folder.rmdir()
        raise


def write_config(run: Path, config: Config, world: World) -> None:
    """Write the resolved config.toml, on rank 0."""
    if world.is_first:
        text, keep = configuration.to_toml(config), config.run.keep_checkpoints
        with explained(run):
            with_room(run, keep, lambda: write_text(run / "config.toml", text))


def precision_of(run: Path) -> str | None:
    """Precision of the run in a folder; None: the folder holds no run, or one without a chosen precision."""
    config = _saved_config(run)
    return None if config is None or config.compute.precision == "auto" else config.compute.precision


def _saved_config(run: Path) -> Config | None:
    """Configuration of the run in a folder, with the current names of options; None: it holds no run."""
    path = run / "config.toml"
    if not paths(run):
        return None
    if path.is_file():
        return configuration.load(str(path), convert=True)
    found = newest(run)  # of a run of which only the checkpoints were copied
    return configuration.parse(current_config(found[1], str(found[0])), str(found[0])) if found else None


def keep_source(run: Path, source: NetworkSource) -> str:
    """Copy the file of a user's network into the run folder; returns the name of the copy.

    The first is model.py.txt. A file that has changed since is kept beside it as model-SHA256.py.txt, with
    the first eight digits. A copy named *.py would be imported where Python runs in the run folder.
    """
    old, name = run / "model.py", f"model-{source.sha256[:8]}.py.txt"  # `old`: of an earlier version
    first = old if old.exists() else run / "model.py.txt"
    if not first.exists() or first.read_bytes() == source.text:
        name = first.name
    with atomic_write(run / name) as temporary:
        temporary.write_bytes(source.text)
    return name


@contextmanager
def rank_log(run: Path, world: World) -> Iterator[None]:
    """Write this rank's log to logs/rank-N.log; warnings of rank 0 go to standard error as well."""
    logger = logging.getLogger("hpcphotoz")
    handler, console = _Log(run / "logs" / f"rank-{world.rank}.log"), _Console()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console.setLevel(logging.WARNING)
    handlers: list[logging.Handler] = [handler, console] if world.is_first else [handler]
    level = logger.level
    logger.setLevel(logging.INFO)
    for each in handlers:
        logger.addHandler(each)
    try:
        yield
    finally:
        for each in handlers:
            logger.removeHandler(each)
        handler.close()
        logger.setLevel(level)


class _Log(logging.FileHandler):
    """A log file that loses lines on a full disk, instead of printing a traceback for each."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True)
        try:
            self.stream = self._open()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # Opened with the first line that finds room.

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, or drop it."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line."""

    def close(self) -> None:
        """Close the file, also where a line that was dropped is still in its buffer."""
        with suppress(OSError):
            super().close()


class _Console(logging.Handler):
    """Standard error as it is when a record comes: the live view of a run stands in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        say(self.format(record), sys.stderr)


def _differing(old: Config, new: Config) -> list[str]:
    before, after, found = old.model_dump(), new.model_dump(), []
    for section, values in after.items():
        options = configuration.sections()[section]
        for key, value in values.items():
            grown = key in options.may_grow and value > before[section][key]
            if before[section][key] != value and key not in options.may_change and not grown:
                was = option_text(before[section][key])
                found.append(f"{section}.{key} ({was}, now {option_text(value)})")
    return found
