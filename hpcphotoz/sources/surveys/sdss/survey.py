"""The Sloan Digital Sky Survey: frames of DR7 and of DR8 and later.

Sources: classic.sdss.org/dr7 and data.sdss.org/datamodel. Tried on real frames of DR7 (Stripe 82), of DR8 on
synthetic files only.
"""

from collections.abc import Sequence

from hpcphotoz.sources.constants import BANDS, PIXEL_SCALE
from hpcphotoz.sources.surveys.fits import Window
from hpcphotoz.sources.surveys.frame import Frame
from hpcphotoz.sources.surveys.sdss.calibration import calibration_notes
from hpcphotoz.sources.surveys.sdss.fields import FILE_NAMES, find_frame_sets
from hpcphotoz.sources.surveys.sdss.frames import read_dr8_frame, read_fpc, read_frame_geometry
from hpcphotoz.sources.surveys.sdss.masks import BAD_PLANES
from hpcphotoz.sources.surveys.survey import BandFiles, FrameSet, Survey, SurveyNotes, missing_maps


def read_frame(files: BandFiles, window: Window | None = None) -> Frame:
    """Reads a frame of either kind; whole ones only, as they have 3 million pixels.

    Raises:
        BadInput: as `read_fpc` and `read_dr8_frame`.
    """
    assert window is None
    return read_dr8_frame(files) if files.image.name.startswith("frame-") else read_fpc(files)


def _notes(sets: Sequence[FrameSet]) -> SurveyNotes:
    lines, counts = calibration_notes(sets)
    return SurveyNotes((*missing_maps(sets, mask="fpM mask planes"), *lines), {"calibration": counts})


SURVEY = Survey(
    name="sdss",
    title="SDSS frames: fpC (DR7), frame (DR8 and later)",
    bands=BANDS,
    usual_bands=BANDS,
    reference="r",
    pixel_scale=PIXEL_SCALE,
    planes=BAD_PLANES,
    file_names=FILE_NAMES,
    calibration="of each frame",
    find=find_frame_sets,
    read=read_frame,
    read_geometry=read_frame_geometry,
    notes=_notes,
    windows=False,
)
