"""torch.compile as attacks and training use it, and where compiled code is kept."""

import logging
import os
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

M = TypeVar("M", bound=Any)
_FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
_log = logging.getLogger(__name__)


def compiled(module: M, device: torch.device) -> M:
    """The module through torch.compile; its code is kept with the module's own, and found again.

    Args:
        module: a network or a function.
        device: where it computes. For a GPU code is made for the shapes that there are: otherwise the numbers
            of images of an attack and of training would become one shape of any size.
    """
    keep_compiled_code()
    found: Any = torch.compile(module, dynamic=False if device.type == "cuda" else None)
    return cast(M, found)


def keep_compiled_code() -> None:
    """Let Inductor and Triton keep what they compile in the user's cache folder.

    Inductor's default is below /tmp, which a batch job often finds empty: the Inception then compiles for
    76 s anew instead of 30 s. Folders that the environment names already stay.

    Each release of torch and each kind of CPU has a folder of its own: a home is shared by nodes, Inductor
    does not tell their vector units apart, and code made with AVX-512 gave wrong gradients on AVX2.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpcphotoz"
    home /= f"torch-{torch.__version__}-{torch.backends.cpu.get_cpu_capability()}"
    for name, folder in _FOLDERS.items():
        if name in os.environ:
            continue
        try:
            (home / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _log.info("%s: cannot be made (%s): compiled code is not kept there", home / folder, error)
            continue
        os.environ[name] = str(home / folder)
