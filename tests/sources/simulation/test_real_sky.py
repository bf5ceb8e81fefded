"""Fields of real sky: calibration, empty places for galaxies, and the order of fields."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("astropy")
pytest.importorskip("galsim")
pytest.importorskip("speclite")

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import BANDS, PIXEL_SCALE
from hpcphotoz.sources.simulation.inject import InjectGalaxies
from hpcphotoz.sources.simulation.real_sky import RealField, field_blocks, find_place
from hpcphotoz.sources.simulation.rendering import STAMP
from hpcphotoz.sources.simulation.survey_tables import R_BAND, SurveyTables
from hpcphotoz.sources.surveys.sdss.fields import find_frame_sets
from tests.helpers.sources.psfield_files import GAIN
from tests.helpers.sources.sky_fields import FLUX20, SHAPE


def test_electrons_per_nanomaggy_are_gain_times_calibration(field: RealField) -> None:
    np.testing.assert_allclose(field.electrons, np.array(GAIN) * FLUX20 / 10, rtol=1e-6)


def test_places_are_empty_and_whole(field: RealField) -> None:
    star, speck = (60, 150), (140, 60)  # y, x: a star of r = 20, a bad pixel in u
    images = [frame.image.copy() for frame in field.frames]
    images[R_BAND][star] += 10.0
    bright = tuple(replace(f, image=image) for f, image in zip(field.frames, images, strict=True))
    masks = [np.zeros(SHAPE, np.uint8) for _ in BANDS]
    masks[0][speck] = 1
    crowded, rng = replace(field, frames=bright, masks=tuple(masks)), np.random.default_rng(2)
    places = np.array([find_place(crowded, rng) for _ in range(300)])  # (300, band, 2)
    from_star = np.hypot(places[:, R_BAND, 0] - star[1], places[:, R_BAND, 1] - star[0])
    assert from_star.min() > 3.0 / PIXEL_SCALE - 1
    assert from_star.min() < 3.0 / PIXEL_SCALE + 6  # and no farther than asked
    away = np.abs(places[:, 0] - [speck[1], speck[0]]).max(axis=1)
    assert away.min() >= STAMP / 2
    low = places.min(axis=0), np.array(SHAPE[::-1]) - 1 - places.max(axis=0)
    assert min(edge.min() for edge in low) >= STAMP / 2


def test_a_field_without_an_empty_place_is_one_line(field: RealField) -> None:
    full = replace(field, masks=tuple(np.ones(SHAPE, np.uint8) for _ in BANDS))
    with pytest.raises(BadInput, match="run 94 camcol 4 field 12: no empty place") as caught:
        find_place(full, np.random.default_rng(0))
    assert "\n" not in str(caught.value)


def test_fields_take_turns(frames: Path, tables: SurveyTables) -> None:
    sets = find_frame_sets(frames)
    blocks = [(block.frame_set.epoch, block.start, block.stop) for block in field_blocks(sets, 5, 130)]
    assert blocks == [(94, 5, 64), (125, 64, 128), (94, 128, 130)]
    last_first = InjectGalaxies(tables, 1, ())(field_blocks(sets, 63, 65)).stamps
    assert last_first is not None and np.abs(last_first.images[0] - last_first.images[1]).max() > 0
