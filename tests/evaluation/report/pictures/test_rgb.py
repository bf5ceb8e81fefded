"""Colour pictures of galaxies."""

import numpy as np
import pytest

from tests.helpers.evaluation_results import BANDS


@pytest.mark.parametrize("bands", [BANDS, ("g", "r", "z"), ("r",)])
def test_the_colour_picture_is_on_zero_to_one_and_the_same_stretch_compares(bands: tuple[str, ...]) -> None:
    from hpcphotoz.evaluation.report.pictures.rgb import rgb_image

    rng = np.random.default_rng(0)
    image = rng.normal(0, 0.02, (len(bands), 16, 16))
    image[:, 8, 8] = 5
    picture = rgb_image(image, image, bands)
    assert picture.shape == (16, 16, 3) and picture.min() >= 0 and picture.max() <= 1
    assert picture[8, 8].min() > 0.5 > np.median(picture)
    brighter = rgb_image(image * np.where(image > 1, 1, 1) + 0.05, image, bands)
    assert np.median(brighter) > np.median(picture)
