"""Fixtures that tests of the sources share; imports wait until one is used, as astropy may be absent."""

from pathlib import Path

import pytest


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A folder of five SDSS frames of one field, with two objects."""
    from tests.helpers.sources.sdss_files import DEC, RA, write_set

    write_set(tmp_path / "frames" / "run-000094", [(RA, DEC), (RA + 0.0031, DEC - 0.0022)])
    return tmp_path / "frames"
