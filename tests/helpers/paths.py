"""Where the repository and the shared test data are."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HPCPHOTOZ_DATA", ROOT.parent / "shared" / "data"))
