"""Fixtures that tests of the simulation share; imports wait until one is used, as galsim may be absent."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hpcphotoz.sources.simulation.real_sky import RealField
    from hpcphotoz.sources.simulation.survey_tables import SurveyTables


@pytest.fixture(scope="session")
def tables() -> "SurveyTables":
    from hpcphotoz.sources.simulation.survey_tables import make_survey_tables

    return make_survey_tables()


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of frames of two fields of empty sky, of runs 94 and 125."""
    from tests.helpers.sources.sky_fields import write_field

    folder = tmp_path_factory.mktemp("frames")
    write_field(folder / "run-000094")
    write_field(folder / "run-000125", run=125)
    return folder


@pytest.fixture
def field(frames: Path) -> "RealField":
    from hpcphotoz.sources.simulation.real_sky import load_field
    from hpcphotoz.sources.surveys.sdss.fields import find_frame_sets

    return load_field(find_frame_sets(frames)[0])
