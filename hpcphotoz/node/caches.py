"""Caches of compiled code on the disk of this node, for ranks of a cluster."""

import logging
import os
import socket
from collections.abc import MutableMapping
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.node.folders import own_folder, temporary_base
from hpcphotoz.world import World

_FOLDERS = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
_ROCM_FOLDERS = {"MIOPEN_USER_DB_PATH": "miopen-db", "MIOPEN_CUSTOM_CACHE_DIR": "miopen"}
_ROCM_DEVICE = Path("/dev/kfd")  # of AMD's driver
_log = logging.getLogger(__name__)


def use_local_caches(world: World, env: MutableMapping[str, str] | None = None) -> Path | None:
    """Let Triton, Inductor and MIOpen cache compiled code in a temporary folder of this node.

    Their defaults are in the home folder, which nodes share: ranks then wait for its file server and its
    locks at every start. Call it before anything is compiled. A process that is alone and outside Slurm
    keeps the defaults. Variables that are set already stay as they are.

    Returns:
        The folder; None: none is used.
    """
    env = os.environ if env is None else env
    if world.size == 1 and "SLURM_JOB_ID" not in env:
        return None
    try:
        # With the host's name: where TMPDIR is shared after all, code for one kind of CPU stays on its host.
        base = own_folder(temporary_base(env)) / f"cache-{socket.gethostname()}"
        base.mkdir(mode=0o700, exist_ok=True)
        names = _FOLDERS | (_ROCM_FOLDERS if _ROCM_DEVICE.exists() else {})
        found = {name: base / folder for name, folder in names.items() if name not in env}
        for path in found.values():
            path.mkdir(mode=0o700, exist_ok=True)
    except (BadInput, OSError) as error:
        _log.warning("no local cache of compiled code: %s", error)
        return None
    env.update({name: str(path) for name, path in found.items()})
    _log.debug("compiled code is cached in %s", base)
    return base
