"""Temporary folders on the disk of this node, one for each user, that nobody else can have prepared."""

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpcphotoz.errors import BadInput

_MOUNTS = Path("/proc/self/mounts")
_NETWORK = frozenset(
    "9p afs beegfs ceph cifs fuse.sshfs gpfs lustre nfs nfs4 panfs pvfs2 smb3 smbfs virtiofs wekafs".split()
)
_ESCAPES = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}  # of names in the list of mounts


def temporary_base(env: Mapping[str, str] | None = None) -> Path:
    """The folder for temporary files on a disk of this node: $SLURM_TMPDIR, $TMPDIR or /tmp.

    The first that exists, may be written and is on no network file system; /tmp if none is.

    Args:
        env: environment to read; the process's own by default.
    """
    for folder in _candidates(os.environ if env is None else env):
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and not network_file_system(folder):
            return folder
    return Path("/tmp")


def own_folder(base: Path) -> Path:
    """BASE/hpcphotoz-<uid>, which this user alone may enter; made where it does not exist.

    In a folder in which everybody may write, such as /tmp, another user may have put something at that name:
    compiled code from there would run in this process.

    Raises:
        BadInput: it is a link, no folder, or of another user.
        OSError: it cannot be made.
    """
    folder = base / f"hpcphotoz-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        what = "is no folder of its own" if not stat.S_ISDIR(status.st_mode) else "belongs to another user"
        raise BadInput(
            f"{folder}: {what}, so it is not used: take another folder (TMPDIR, or --stage FOLDER)"
        )
    if status.st_mode & 0o777 != 0o700:
        folder.chmod(0o700)
    return folder


def network_file_system(folder: Path) -> str:
    """The kind of the network file system of a folder, such as "lustre"; "": a local disk, or not known."""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:  # no Linux
        return ""
    real, kind, longest = folder.resolve(), "", -1
    for fields in map(str.split, lines):
        if len(fields) < 3:
            continue
        mount = Path(_unescape(fields[1]))
        # Of two mounts at one place the later one is seen.
        if len(mount.parts) >= longest and real.is_relative_to(mount):
            kind, longest = fields[2], len(mount.parts)
    return kind if kind in _NETWORK else ""


def _candidates(env: Mapping[str, str]) -> Iterator[Path]:
    for name in ("SLURM_TMPDIR", "TMPDIR"):
        if (text := env.get(name, "")) and Path(text).is_absolute():
            yield Path(text)
    yield Path("/tmp")


def _unescape(text: str) -> str:
    for code, character in _ESCAPES.items():
        text = text.replace(code, character)
    return text
