"""Folders of the repository and of the shared test data."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HPCPHOTOZ_DATA", ROOT.parent / "shared" / "data"))
