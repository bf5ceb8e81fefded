"""Imports code of the documentation as modules, and writes the images that it reads."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.wcs import WCS

from tests.helpers.paths import ROOT


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def example(page: str, name: str) -> str:
    """The Python block of a page below the line that names this file."""
    text = (ROOT / page).read_text()
    found = re.search(rf"^[^\n]*{re.escape(name)}`:\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found, f"{page}: no example {name}"
    return found[1]


def module(code: str, folder: Path, name: str) -> ModuleType:
    """Write code as a file and import it."""
    path = folder / f"{name}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


def write_coadd(path: Path) -> npt.NDArray[np.float64]:
    """Write an image (100, 120) of noise 0.02 with a pixel of 7 at x = 60, y = 50.

    Returns:
        Right ascension and declination, deg, of that pixel and of a place 2 pixels from the edge, (2, 2).
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix, wcs.wcs.crval = [61, 51], [150.0, 2.0]
    wcs.wcs.cd = np.array([[-0.262, 0], [0, 0.262]]) / 3600
    header = wcs.to_header()
    header.update({f"CD{i}_{j}": wcs.wcs.cd[i - 1, j - 1] for i in (1, 2) for j in (1, 2)})
    image = np.random.default_rng(0).normal(0, 0.02, (100, 120)).astype(np.float32)
    image[50, 60] = 7
    fits.writeto(path, image, header)
    sky: npt.NDArray[np.float64] = wcs.wcs_pix2world([[60, 50], [2, 50]], 0)
    return sky
