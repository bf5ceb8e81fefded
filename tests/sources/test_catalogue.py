"""Object tables: CSV, FITS and VOTable are read alike, and bad ones are named."""

import gzip
import math
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("astropy")

from astropy.io import fits
from astropy.table import MaskedColumn, Table

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.catalogue import (
    Catalogue,
    read_catalogue,
    read_redshifts,
)
from hpcphotoz.sources.identifiers import identifier

SDSS = 1237661971724599442  # 19 digits: a float64 keeps 16 of them


def survey_table() -> Table:
    """A table like those of survey servers: other column names, masked values, strings, units."""
    z = MaskedColumn([0.1, -9999.0, 0.3], mask=[False, True, False], dtype="f4")
    return Table(
        {
            "objID": np.array([SDSS, SDSS + 1, 7], np.int64),
            "RAJ2000": [351.5, 351.6, 351.7],
            "DEJ2000": np.array([0.1, -0.2, 0.3], ">f4"),
            "zsp": z,
            "EBV": [0.02, np.nan, 0.04],
            "class": ["GALAXY", "GALAXY", "QSO"],
        }
    )


NAMES = {"object_id": "objID", "ra": "RAJ2000", "dec": "DEJ2000", "z_spec": "zsp", "ebv": "EBV"}


def check(objects: Catalogue) -> None:
    assert objects.object_id.dtype == np.int64 and objects.object_id.tolist() == [SDSS, SDSS + 1, 7]
    np.testing.assert_allclose(objects.ra, [351.5, 351.6, 351.7])
    np.testing.assert_allclose(objects.dec, [0.1, -0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(objects.z_spec, [0.1, np.nan, 0.3], rtol=1e-6)
    np.testing.assert_allclose(objects.ebv, [0.02, np.nan, 0.04])
    assert objects.ebv_column == "EBV"


@pytest.mark.parametrize("name", ["t.fits", "t.fits.gz", "t.vot", "t.xml", "t.csv", "binary.xml"])
def test_every_format_gives_the_same(tmp_path: Path, name: str) -> None:
    path, table = tmp_path / name, survey_table()
    if name.startswith("t.fits"):
        table["RAJ2000"].unit = "deg"
        table.write(tmp_path / "t.fits", overwrite=True)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress((tmp_path / "t.fits").read_bytes()))
    elif name == "t.csv":
        table.write(path, format="ascii.csv")
    else:
        table.write(path, format="votable", tabledata_format="binary" if "binary" in name else "tabledata")
    check(read_catalogue(path, NAMES))


def test_ids_and_numbers_may_be_text(tmp_path: Path) -> None:
    table = survey_table()
    table["objID"] = [str(one) for one in table["objID"]]
    table["RAJ2000"] = [str(one) for one in table["RAJ2000"]]
    table.write(tmp_path / "t.fits")
    check(read_catalogue(tmp_path / "t.fits", NAMES))


def test_usual_names_need_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufeffobject_id, ra ,dec\n1,351,0.5\n\n2,352,0.6\n", encoding="utf-8")
    objects = read_catalogue(path, {"z_spec": "dec"})
    assert objects.object_id.tolist() == [1, 2] and objects.z_spec.tolist() == [0.5, 0.6]
    assert objects.ebv.tolist() == [0.0, 0.0] and objects.ebv_column is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("object_id,ra\n1,2\n", "no column dec or dec_deg: it has object_id, ra; --columns dec=NAME"),
        ("ra,dec\n1,2\n", "no column object_id"),
        ("", "it has none"),
        ("object_id,ra,dec\n", "lists no object"),
        ("object_id,ra,dec\n1,351,x\n", "line 2: dec x is not a number"),
        ("object_id,ra,dec\n1,351\n", "line 2 ends before column dec"),
        ("object_id,ra,dec,z\n1,351,0\n", "line 2 ends before column z"),
        ("object_id,ra,dec\n1,351,0\n# a comment\n", "line 3 ends before column ra"),
        ('object_id,ra,dec\n\n""\n1,351,x\n', "line 4: dec x is not a number"),
        ('object_id,ra,dec\n1,2,3\n"2,3,4\n5,6,7\n', "row that begins at line 3: is a quote stray"),
        ('object_id,ra,dec,name\n1,2,3,"a\n2,3,4,b\n3,4,5,"c"\n', "row that begins at line 2: is a quote"),
        ("object_id,ra,dec\n\n1,351,0\n2,351,95\n", "line 4: dec 95 is not between"),
        ("object_id,ra,dec\n1,nan,0\n", "line 2: ra nan is not between"),
        ("object_id,ra,dec\n1.5,351,0\n", "line 2: object_id 1.5 may have lost digits"),
        ("object_id,ra,dec\n1.2376e18,351,0\n", "object_id 1.2376e18 may have lost digits"),
        ("object_id,ra,dec\n,351,0\n", "object_id (empty) is no id"),
        ("object_id,ra,dec\n4,351,0\n4,350,0\n", "line 3: object_id 4 is there twice"),
        ("object_id,ra,dec,z\n4,351,0,inf\n", "z inf is not between"),
        ("object_id,ra,dec,z\n4,351,0,20.5\n", "z 20.5 is not between -1 and 20"),
        ("object_id,ra,ra_deg,dec\n4,1,2,0\n", "has columns ra and ra_deg: say by --columns ra=ra"),
        ("object_id,ra,dec,z,z_spec\n4,1,2,0,0\n", "has columns z and z_spec: say by --columns z_spec=z"),
        ("object_id,ra,ra,dec\n4,1,2,0\n", "has columns ra and ra: rename one"),
        ("object_id,ra,dec\n4,1,2\n\n5,M31, the galaxy,1,2\n", "line 4 has 5 values, but the header names 3"),
        ('object_id,ra,dec,name\n4,1,2,"a\nb"\n5,1,x,c\n', "line 4: dec x is not a number"),
    ],
)
def test_bad_csv_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "objects.csv"
    path.write_text(text)
    refused(path, message)


def test_csv_fields_are_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        '\n#id,object_id,,ra,dec\n#1,007, x,1, 2 \n,"a,b",,3,4\n  \n,12345678901234567890,"y ""z""",5,6'
    )
    objects = read_catalogue(path)
    expected = [identifier(one) for one in ("007", "a,b", 12345678901234567890)]
    assert objects.object_id.tolist() == expected
    assert objects.ra.tolist() == [1, 3, 5] and objects.dec.tolist() == [2, 4, 6]
    # A row may lack what nobody asks for, and end in empty cells.
    path.write_text("object_id,z,note\n5,0.1\n6,,x,,\n7,0.3,x, ,\n")
    assert read_redshifts(path).object_id.tolist() == [5, 7]
    path.write_text("object_id,z\n5,0.1\n6,0.2\n7")
    with pytest.raises(BadInput, match="line 4 ends before column z"):
        read_redshifts(path)
    path.write_bytes(b"object_id,z\n\xff,1\n")
    with pytest.raises(BadInput, match="not a readable CSV table: 'utf-8' codec"):
        read_redshifts(path)


def test_only_line_ends_outside_quotes_end_a_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    names = [f"a{end}b" for end in ("\u2028", "\x85", "\x0b", "\x1c", "\0", "\r", "\n\n")] + ["a", "a\0"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write("object_id,z\n" + "".join(f'"{name}",0.{k}\n' for k, name in enumerate(names, 1)))
    z = read_redshifts(path).lookup(np.array([identifier(name) for name in names]))
    np.testing.assert_allclose(z, np.arange(1, 10) / 10)


def test_a_long_cell_costs_its_own_length(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    long = "x" * 50_000
    path.write_text(
        "object_id,z,note\n" + "".join(f"{k},0.1,\n" for k in range(2000)) + f"{long},0.2,{long}\n"
    )
    tracemalloc.start()
    try:
        assert len(read_redshifts(path).z) == 2001
        assert tracemalloc.get_traced_memory()[1] < 20e6  # numpy's text would be 400 MB a column
    finally:
        tracemalloc.stop()


def test_fits_and_votable_need_astropy_and_csv_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("object_id,ra,dec,z\n1,2,3,0.1\n")
    (tmp_path / "t.xml").write_text("<?xml version='1.0'?><VOTABLE/>")
    for module in ("astropy", "astropy.table", "astropy.io", "astropy.units"):
        monkeypatch.setitem(sys.modules, module, None)
    assert len(read_redshifts(path).z) == len(read_catalogue(path)) == 1
    with pytest.raises(BadInput, match=r"this command needs `pip install 'hpcphotoz\[sources\]'`"):
        read_redshifts(tmp_path / "t.xml")


def test_minus_one_and_below_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    values = ["", "nan", "-1", "-9.999", "-9999", "0", "-0.001", "0.3"]
    path.write_text("object_id,ra,dec,z,ebv\n" + "".join(f"{k},1,2,{z},{z}\n" for k, z in enumerate(values)))
    expected = [np.nan] * 5 + [0.0, -0.001, 0.3]
    np.testing.assert_array_equal(read_catalogue(path).z_spec, expected)
    np.testing.assert_array_equal(read_catalogue(path).ebv, expected)
    path.write_text("object_id,ra,dec,ebv\n1,2,3,100\n2,2,3,100.1\n3,2,3,inf\n4,2,3,-inf\n")
    np.testing.assert_array_equal(read_catalogue(path).ebv, [100.0, np.nan, np.nan, np.nan])
    table = Table({"object_id": [1, 2, 3], "ra": [1.0] * 3, "dec": [2.0] * 3, "z": [-1.0, -99.0, 0.1]})
    table.write(tmp_path / "t.fits")
    np.testing.assert_array_equal(read_catalogue(tmp_path / "t.fits").z_spec, [np.nan, np.nan, 0.1])


def test_columns_of_another_case_are_hinted_at_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("object_id,ra,dec,Z,EBV\n1,2,3,0.4,0.5\n")
    objects = read_catalogue(path)
    assert np.isnan(objects.z_spec).all() and objects.ebv_column is None
    assert capsys.readouterr().err.splitlines() == [
        f"{path}: column {name} is not read: if it is {key}, say --columns {key}={name}"
        for key, name in (("z_spec", "Z"), ("ebv", "EBV"))
    ]
    objects = read_catalogue(path, {"z_spec": "Z", "ebv": "EBV"})
    assert (objects.z_spec[0], objects.ebv[0]) == (0.4, 0.5) and not capsys.readouterr().err
    path.write_text("object_id,RA,dec\n1,2,3\n")
    with pytest.raises(BadInput, match="--columns ra=RA names another"):
        read_catalogue(path)


def test_a_mapping_of_z_is_told_the_name_of_the_redshift(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("object_id,ra,dec,Z\n4,1,2,0\n")
    with pytest.raises(BadInput, match="'z' is none of .*: write z_spec=Z$"):
        read_catalogue(path, {"z": "Z"})


def test_a_mapping_chooses_between_two_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("object_id,ra,ra_deg,dec\n4,1,15,0\n")
    assert read_catalogue(path, {"ra": "ra"}).ra.tolist() == [1]
    assert read_catalogue(path, {"ra": "ra_deg"}).ra.tolist() == [15]


@pytest.mark.parametrize("kind", ["fits", "vot"])
@pytest.mark.parametrize(
    ("units", "ra", "dec"),
    [
        (("deg", "deg"), 351.5, 0.25),
        (("degrees", "Degree [J2000]"), 351.5, 0.25),
        (("rad", "rad"), math.radians(351.5), math.radians(0.25)),
        (("hourangle", "arcmin"), 351.5 / 15, 15.0),
        (("h", "arcsec"), 351.5 / 15, 900.0),
        (("hours", "deg"), 351.5 / 15, 0.25),
        (("deg", "mas"), 351.5, 9e5),
    ],
)
def test_units_of_places_are_heeded(
    tmp_path: Path, kind: str, units: tuple[str, str], ra: float, dec: float
) -> None:
    path = write_units(tmp_path / f"t.{kind}", units, ra, dec)
    objects = read_catalogue(path)
    np.testing.assert_allclose([objects.ra[0], objects.dec[0]], [351.5, 0.25], rtol=1e-12)


def write_units(path: Path, units: tuple[str, str], ra: float, dec: float) -> Path:
    """Write a table with units as services write them, which astropy does not."""
    if path.suffix == ".fits":
        columns = [
            fits.Column(name, "D", unit=unit, array=[value])
            for name, unit, value in (("ra", units[0], ra), ("dec", units[1], dec))
        ]
        columns.append(fits.Column("object_id", "K", array=[1]))
        fits.BinTableHDU.from_columns(columns).writeto(path)
        return path
    fields = "".join(
        f'<FIELD name="{name}" datatype="{kind}" {unit}/>'
        for name, kind, unit in (
            ("object_id", "long", ""),
            ("ra", "double", f'unit="{units[0]}"'),
            ("dec", "double", f'unit="{units[1]}"'),
        )
    )
    path.write_text(
        f'<?xml version="1.0"?>\n<VOTABLE version="1.3"><RESOURCE><TABLE>{fields}<DATA><TABLEDATA>'
        f"<TR><TD>1</TD><TD>{ra!r}</TD><TD>{dec!r}</TD></TR></TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>"
    )
    return path


def test_units_that_are_no_angle_are_named(tmp_path: Path) -> None:
    for k, (units, message) in enumerate(
        [
            (("mag", "deg"), "column ra has the unit mag, which is no angle"),
            (("deg", "h"), "column dec has the unit h, which"),
            (("deg", "h:m:s"), "column dec has the unit h:m:s"),
        ]
    ):
        for kind in ("fits", "vot"):
            refused(write_units(tmp_path / f"{k}.{kind}", units, 1.0, 2.0), message)
    refused(write_units(tmp_path / "far.fits", ("h", "deg"), 25.0, 2.0), "ra 25.0 is not between -24 and 24")


def refused(path: Path, message: str, columns: dict[str, str] | None = None) -> None:
    with pytest.raises(BadInput) as caught:
        read_catalogue(path, columns)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_bad_tables_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.fits"
    survey_table().write(good)
    refused(good, "no column dej for dec: it has objID, RAJ2000", NAMES | {"dec": "dej"})
    refused(good, "no column object_id", {"ra": "RAJ2000"})
    refused(good, "row 1: class GALAXY is not a number", NAMES | {"ebv": "class"})
    refused(good, "row 1: RAJ2000 351.5 is not between", NAMES | {"z_spec": "RAJ2000"})
    cut = tmp_path / "cut.fits"
    cut.write_bytes(good.read_bytes()[:-2880])
    refused(cut, "not a readable FITS", NAMES)
    masked = survey_table()
    masked["RAJ2000"] = MaskedColumn(masked["RAJ2000"], mask=[False, True, False])
    masked.write(tmp_path / "masked.vot", format="votable")
    refused(tmp_path / "masked.vot", "row 2: RAJ2000 (empty) is not a number", NAMES)
    (tmp_path / "broken.vot").write_text('<?xml version="1.0"?>\n<VOTABLE><RESOURCE>\n<TABLE>')
    refused(tmp_path / "broken.vot", "not a readable VOTable")
    vectors = survey_table()
    vectors["zsp"] = np.zeros((3, 2))
    vectors.write(tmp_path / "vectors.fits")
    refused(tmp_path / "vectors.fits", "zsp holds more than one value", NAMES)
    with pytest.raises(BadInput, match="'redshift' is none of object_id, ra"):
        read_catalogue(good, {"redshift": "zsp"})
    refused(tmp_path / "none.csv", "none.csv: not a readable table: No such file")
