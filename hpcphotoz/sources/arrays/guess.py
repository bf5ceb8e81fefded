"""Guesses the map of a file of arrays from its columns' names, shapes and types, as a TOML file to edit."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.files.array_file import ArrayFile, open_array_file

# Names by which columns go, from the likeliest on, in lower case and without signs between letters.
_NAMES = {
    "object_id": (
        "objectid",
        "objid",
        "specobjid",
        "photoobjid",
        "sourceid",
        "targetid",
        "galaxyid",
        "id",
        "inds",
    ),
    "z_spec": ("zspec", "speczredshift", "specz", "redshifts", "redshift", "ztrue", "zbest", "zhelio", "z"),
    "ebv": ("ebv", "ebvs", "ebvsfd", "ebvcsfd"),
    "ra": ("ra", "radeg", "raj2000", "alphaj2000", "rightascension"),
    "dec": ("dec", "decdeg", "dej2000", "decj2000", "deltaj2000", "declination"),
}
_IMAGES = ("images", "image", "imagearray", "imageflux", "cutouts", "cutout", "stamps", "cube", "flux")
_NOT_IMAGES = {
    "inverse_variance": ("imageivar", "ivar", "invvar", "inversevariance", "weight", "wht"),
    "mask": ("imagemask", "mask", "bitmask", "flags"),
}
_UNITS = {"nmgy": "nMgy", "nanomaggy": "nMgy", "nanomaggies": "nMgy", "njy": "nJy", "nanojansky": "nJy"}
_TODO = "NOT FOUND"


@dataclass(frozen=True)
class _Column:
    name: str
    shape: tuple[int, ...]
    kind: str  # of the numpy type
    dtype: str

    @property
    def plain(self) -> str:
        """The last part of the name, in lower case, of letters and digits alone."""
        return "".join(letter for letter in self.name.split("/")[-1].lower() if letter.isalnum())

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{self.shape}"


def guess_map(path: Path) -> str:
    """Returns a map of a file as TOML text with comments, which say what was found and what was not.

    Raises:
        BadInput: the file cannot be read, or holds no array that may be images.
    """
    with open_array_file(path) as table:
        columns = [one for name in table.names() if (one := _column(table, name)) is not None]
        images = _find_images(columns)
        if images is None:
            has = ", ".join(map(str, columns[:20])) or "nothing"
            raise BadInput(
                f"{path}: no array of images (N, band, y, x), (N, y, x, band) or (N, y, x): it has {has}"
            )
        axes = _axes(images.shape[1:])
        bands = images.shape[1:][axes.split().index("band")] if "band" in axes else 1
        names = _band_names(table)
        return "\n".join(_lines(path, table, columns, images, axes, bands, names)) + "\n"


def _column(table: ArrayFile, name: str) -> _Column | None:
    try:
        found = table[name]
    except BadInput:  # of a type or filter that is not read; the map cannot name it
        return None
    return _Column(name, tuple(int(n) for n in found.shape), found.dtype.kind, str(found.dtype))


def _find_images(columns: list[_Column]) -> _Column | None:
    """The largest array of numbers with the shape of images, one of a usual name before others."""
    others = {plain for names in _NOT_IMAGES.values() for plain in names}
    found = [
        one
        for one in columns
        if one.kind in "fiu" and len(one.shape) in (3, 4) and one.plain not in others and _axes(one.shape[1:])
    ]
    return max(found, key=lambda one: (one.plain in _IMAGES, _size(one)), default=None)


def _size(one: _Column) -> int:
    size = 1
    for n in one.shape:
        size *= n
    return size


def _axes(shape: tuple[int, ...]) -> str:
    """The order of an image's axes: y and x are the two equal ones; "" if none are."""
    if len(shape) == 2:
        return "y x" if shape[0] == shape[1] else ""
    if shape[1] == shape[2] and shape[0] <= shape[1]:
        return "band y x"
    if shape[0] == shape[1] and shape[2] <= shape[0]:
        return "y x band"
    return ""


def _band_names(table: ArrayFile) -> tuple[str, ...]:
    """Bands that an attribute of the file names."""
    for key in ("bands", "filters", "band", "filter"):
        if (found := table.text_attribute(key)) is not None:
            return found
    return ()


def _lines(
    path: Path,
    table: ArrayFile,
    columns: list[_Column],
    images: _Column,
    axes: str,
    bands: int,
    names: tuple[str, ...],
) -> list[str]:
    rows = images.shape[0]
    lines = [
        f"# Map of {path.name}: {rows} rows. Check every line; then",
        f"# hpcphotoz ingest arrays OUT {path.name} --map THIS_FILE",
        "# Columns of the file:",
        *(f"#   {one}" for one in columns),
        "",
        _set("images", images.name, f"{images.dtype}{images.shape}"),
        _set("axes", axes, "of one image; numpy's order, the last one lies together in the file"),
    ]
    if len(names) == bands:
        lines.append(_set("bands", list(names), "from the file's attribute"))
    else:
        placeholders = [f"band{k}" for k in range(bands)]
        lines.append(_set("bands", placeholders, f"{_TODO}: their names, in the order of the images"))
    scale = table.number_attribute("pixel_scale")
    text = "from the file's attribute" if scale else f"{_TODO}: arcsec a pixel"
    lines.append(_set("pixel_scale", scale or 1.0, text))
    said = (table.text_attribute("flux_unit") or table.text_attribute("unit") or ("",))[0]
    unit = _UNITS.get("".join(letter for letter in said.lower() if letter.isalpha()))
    text = (
        "from the file's attribute" if unit else f'{_TODO}: nMgy, nJy, or "ADU" or "counts/s" with zero_point'
    )
    lines += [_set("unit", unit or "nMgy", text)]
    if unit is None:
        lines.append("# zero_point = 27.0  # AB magnitude of one ADU or count/s, or a list of one a band")
    absent = {
        "object_id": "an object's id is then the number of its row",
        "z_spec": "give --redshifts TABLE or --keep-unlabelled",
        "ebv": "0 is stored",
        "ra": "not a number is stored",
        "dec": "not a number is stored",
    }
    for key, otherwise in absent.items():
        shape = (rows,) if key != "ebv" else None
        found = _named(columns, _NAMES[key], rows, shape)
        if found is None:
            lines.append(f'# {key} = ""  # {_TODO}: without it, {otherwise}')
            continue
        lines.append(_set(key, found.name, str(found)[len(found.name) + 1 :]))
        if key == "ebv" and len(found.shape) == 2:
            lines.append(
                _set("extinction_per_ebv", [1.0] * found.shape[1], f"{_TODO}: A_band / E(B-V) of each")
            )
    noise = _named(columns, ("skysigma", "skynoise", "rms"), rows, None)
    if noise is not None:
        lines += [_set("sky_sigma_from", "column", ""), _set("sky_sigma", noise.name, "in the pixels' unit")]
    else:
        lines.append(_set("sky_sigma_from", "outer pixels", "measured in the outer eighth of each image"))
    for key, likely in _NOT_IMAGES.items():
        found = _named(columns, likely, rows, images.shape)
        if found is not None:
            lines.append(_set(key, found.name, "pixels of 0 are unusable"))
    return lines


def _named(
    columns: list[_Column], likely: tuple[str, ...], rows: int, shape: tuple[int, ...] | None
) -> _Column | None:
    """The column of the likeliest of these names with a row for each image."""
    fits = [
        one
        for one in columns
        if one.shape[:1] == (rows,) and (one.shape == shape if shape else len(one.shape) < 3)
    ]
    return next((one for plain in likely for one in fits if one.plain == plain), None)


def _set(key: str, value: Any, comment: str) -> str:
    return f"{key} = {json.dumps(value)}" + (f"  # {comment}" if comment else "")
