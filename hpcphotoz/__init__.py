"""Adversarially trained photometric redshifts, from a laptop to a multi-node GPU cluster."""

from pathlib import Path

__version__ = "0.1.0"

for _link in ("kernels", "launch"):
    if not (Path(__file__).parent / _link).is_dir():
        raise ImportError(
            f"hpcphotoz/{_link} is not a folder: the link to ../{_link} was lost (a source zip does that): "
            "install from a git clone, a wheel or a tar archive"
        )
