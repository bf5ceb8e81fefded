"""Matching by position, against astropy."""

import numpy as np
import pytest

from hpcphotoz.data.select.match import match_positions

coordinates = pytest.importorskip("astropy.coordinates")


def test_pairs_are_mutual_nearest_neighbours_as_astropy_finds_them() -> None:
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(-0.02, 0.02, 300) % 360, rng.uniform(-0.02, 0.02, 300)  # across ra = 0
    order = rng.permutation(300)[:200]
    other = (ra[order] + rng.normal(0, 1 / 3600, 200)) % 360, dec[order] + rng.normal(0, 1 / 3600, 200)
    one, two = (coordinates.SkyCoord(*place, unit="deg") for place in ((ra, dec), other))
    nearest, separation, _ = one.match_to_catalog_sky(two)
    back = two.match_to_catalog_sky(one)[0]
    expected = [
        (i, int(nearest[i])) for i in range(300) if separation[i].arcsec < 2 and int(back[nearest[i]]) == i
    ]
    found = match_positions((ra, dec), other, 2.0)
    assert [tuple(pair) for pair in found.tolist()] == expected and len(expected) > 100


def test_objects_without_a_position_are_in_no_pair() -> None:
    ra, dec = np.array([np.nan, 10.0, 20.0]), np.array([0.0, 5.0, 6.0])
    assert match_positions((ra, dec), (ra, dec), 1.0).tolist() == [[1, 1], [2, 2]]
    empty = np.zeros(0)
    assert match_positions((ra, dec), (empty, empty), 1.0).shape == (0, 2)
    assert match_positions((ra[:1], dec[:1]), (ra, dec), 1.0).shape == (0, 2)
