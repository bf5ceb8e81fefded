"""Adversarially trained photometric redshifts, from a laptop to a multi-node GPU cluster.

The public functions are defined in `hpcphotoz.api` and imported when first used.
"""

from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["attack", "load", "open", "simulate", "train"]

for _link in ("kernels", "launch"):
    if not (Path(__file__).parent / _link).is_dir():
        raise ImportError(
            f"hpcphotoz/{_link} is not a folder: the link to ../{_link} was lost (a source zip does that): "
            "install from a git clone, a wheel or a tar archive"
        )

if TYPE_CHECKING:
    from hpcphotoz.api import attack, load, open, simulate, train
else:

    def __getattr__(name: str) -> object:
        if name in __all__:
            from hpcphotoz import api

            return getattr(api, name)
        raise AttributeError(f"module 'hpcphotoz' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
