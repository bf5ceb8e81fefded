"""torch.compile as attacks and training use it, and the folder of compiled code."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from hpcphotoz.errors import first_line

M = TypeVar("M", bound=Any)
_FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
_log = logging.getLogger(__name__)


def compiled(module: M, device: torch.device) -> M:
    """Wrap a module in torch.compile; the code is cached in the user's cache folder and found by later runs.

    Args:
        module: a network or a function.
        device: where it computes. For a GPU each shape is compiled by itself: otherwise torch would turn the
            batch sizes of attacks and of training into one dynamic shape.
    """
    keep_compiled_code()
    found: Any = torch.compile(module, dynamic=False if device.type == "cuda" else None)
    return cast(M, found)


def compiler_failure(call: Callable[[], object]) -> str:
    """Run a call that compiles; returns the type and first line of its error, or "" where it succeeds."""
    try:
        call()
    # Compilers, their back ends and the code that they make raise errors of no common type.
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def keep_compiled_code() -> None:
    """Let Inductor and Triton cache compiled code in the user's cache folder.

    Inductor's default is below /tmp, which is often empty when a batch job starts: the Inception then takes
    76 s to compile instead of 30 s. Folders that the environment names already are not changed, except
    Inductor's default, which torch itself writes into the environment when `torch._dynamo` is imported.

    Each release of torch and each kind of CPU has a folder of its own: nodes share a home, Inductor does not
    distinguish their vector units, and code made with AVX-512 gave wrong gradients on AVX2.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # takes 2 s: only where we compile

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpcphotoz"
    home /= f"torch-{torch.__version__}-{torch.backends.cpu.get_cpu_capability()}"
    for name, folder in _FOLDERS.items():
        if os.environ.get(name, default_cache_dir()) != default_cache_dir():
            continue
        try:
            (home / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _log.info("%s: cannot be created (%s): compiled code is not kept there", home / folder, error)
            continue
        os.environ[name] = str(home / folder)
