"""Redshifts from a table of their own, which belong to image files without redshifts."""

from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.catalogue import read_redshifts
from hpcphotoz.sources.identifiers import identifier


def test_redshift_tables(tmp_path: Path) -> None:
    from astropy.table import Table

    rows = Table({"object_id": np.array([b"b", b"a", b"c"]), "z": [0.2, 0.1, np.nan]})
    for kind, name in (("fits", "z.fits"), ("votable", "z.vot")):
        rows.write(tmp_path / name, format=kind)
        found = read_redshifts(tmp_path / name)
        ids = np.array([identifier(one) for one in ("a", "b", "c", "d")])
        np.testing.assert_allclose(found.lookup(ids), [0.1, 0.2, np.nan, np.nan])
    for text, says in (
        ("id,z\n1,2\n", "needs columns object_id and z_spec or z; it has id, z"),
        ("object_id,z\n1,x\n", "line 2: z x is not a number"),
        ("object_id,z\n1,0.1\n1,0.2\n", "object_id 1 has redshifts 0.1 and 0.2: keep one"),
    ):
        (tmp_path / "z.csv").write_text(text)
        with pytest.raises(BadInput, match=says):
            read_redshifts(tmp_path / "z.csv")
