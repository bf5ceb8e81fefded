"""Guesses the map of a file of arrays from its columns' names, shapes and types, as a TOML file to edit."""

import json
import math
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.arrays.files.array_file import ArrayFile, open_array_file
from hpcphotoz.sources.arrays.files.listing import Column, bands_apart, list_columns, printable

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
        "ids",
        "inds",
    ),
    "z_spec": ("zspec", "speczredshift", "specz", "redshifts", "redshift", "ztrue", "zbest", "zhelio", "z"),
    "ebv": ("ebv", "ebvs", "ebvsfd", "ebvcsfd"),
    "ra": ("ra", "radeg", "raj2000", "alphaj2000", "rightascension"),
    "dec": ("dec", "decdeg", "dej2000", "decj2000", "deltaj2000", "declination"),
}
_TELLING = ("objectid", "zspec", "specz", "zbest", "ebv")  # that a longer name may hold
_IMAGES = ("images", "image", "imagearray", "imageflux", "cutouts", "cutout", "stamps", "cube", "flux")
_NOT_IMAGES = {
    "inverse_variance": ("imageivar", "ivar", "invvar", "inversevariance", "weight", "wht"),
    "mask": ("imagemask", "mask", "bitmask", "flags"),
}
_UNITS = {"nmgy": "nMgy", "nanomaggy": "nMgy", "nanomaggies": "nMgy", "njy": "nJy", "nanojansky": "nJy"}
_TODO = "NOT FOUND"
_SMALLEST = 4  # pixels a side
_LISTED = 20  # columns that a message lists


def guess_map(path: Path) -> str:
    """Returns a map of a file as TOML text with comments, which say what was found and what was not.

    Raises:
        BadInput: the file cannot be read, or holds no array that may be images.
    """
    with open_array_file(path) as table:
        columns, refused = list_columns(path, table)
        known = {word for names in (_IMAGES, *_NOT_IMAGES.values()) for word in names}
        together = [*columns, *bands_apart(columns, known)]
        images = _find_images(together)
        if images is None:
            has = ", ".join(map(str, columns[:_LISTED])) or "nothing else" * bool(refused) or "nothing"
            not_read = "".join(f"; {one}" for one in refused[:_LISTED])
            raise BadInput(
                f"{path}: no array of images (N, band, y, x), (N, y, x, band) or (N, y, x), of numbers and "
                f"square: it has {has}{not_read}"
            )
        return "\n".join(_lines(path, table, together, refused, images)) + "\n"


def _find_images(columns: list[Column]) -> Column | None:
    """The largest array of numbers with the shape of images, one of a usual name before others."""
    others = {plain for names in _NOT_IMAGES.values() for plain in names}
    found = [
        one
        for one in columns
        if one.kind in "fiu" and len(one.shape) in (3, 4) and one.plain not in others and _axes(one.shape[1:])
    ]
    return max(found, key=lambda one: (one.plain in _IMAGES, _size(one)), default=None)


def _size(one: Column) -> int:
    size = 1
    for n in one.shape:
        size *= n
    return size


def _axes(shape: tuple[int, ...]) -> str:
    """The order of an image's axes: y and x are the two equal ones; "" if none are."""
    if len(shape) == 2:
        return "y x" if shape[0] == shape[1] >= _SMALLEST else ""
    if shape[1] == shape[2] >= _SMALLEST:
        return "band y x"
    return "y x band" if shape[0] == shape[1] >= _SMALLEST else ""


def _attribute(table: ArrayFile, images: Column, names: tuple[str, ...]) -> Any:
    """The first of these attributes that the images or the file have; None: they have none."""
    found = (table.attribute(name, column) for column in (images.first, "") for name in names)
    return next((value for value in found if value is not None), None)


def _band_names(table: ArrayFile, images: Column, bands: int) -> list[str]:
    """Names of all bands, from an attribute: a list, a text such as grz, or one with commas; else none.

    Those of arrays that hold one band each are in the arrays' names.
    """
    if images.bands:
        return list(images.bands)
    found = _attribute(table, images, ("bands", "filters", "band", "filter"))
    names = list(found) if isinstance(found, tuple) else []
    if len(names) == 1 and bands > 1:
        names = [part.strip() for part in names[0].split(",")] if "," in names[0] else list(names[0])
    return names if len(set(names)) == bands else []


def _scale(table: ArrayFile, images: Column) -> float:
    """Arcsec a pixel, from an attribute; 0: there is none."""
    found = _attribute(table, images, ("pixel_scale", "pixscale", "pixelscale"))
    return found if isinstance(found, float) and 0 < found < math.inf else 0.0


def _unit(table: ArrayFile, images: Column) -> str:
    """The pixels' unit, from an attribute; "": it has none, or one that maps do not know."""
    found = _attribute(table, images, ("flux_unit", "unit", "units", "BUNIT"))
    said = found[0].lower().replace(" ", "") if isinstance(found, tuple) else ""
    return _UNITS.get(said.removesuffix("/pixel").removesuffix("/pix"), "")


def _lines(
    path: Path,
    table: ArrayFile,
    columns: list[Column],
    refused: list[str],
    images: Column,
) -> list[str]:
    rows, axes = images.shape[0], _axes(images.shape[1:])
    bands = images.shape[1 + axes.split().index("band")] if "band" in axes else 1
    names, scale, unit = _band_names(table, images, bands), _scale(table, images), _unit(table, images)
    lines = [
        f"# Map of {path.name}: {rows} rows. Check every line; then",
        f"# hpcphotoz ingest arrays OUT {path.name} --map THIS_FILE",
        "# Columns of the file:",
        *(f"#   {one}" for one in columns if not one.bands),
        *(f"#   not read: {one}" for one in refused),
        "",
        *_others_of_equal_shape(columns, images),
        *["# {band} stands for each of bands: the file has one array (N, y, x) a band."] * bool(images.bands),
        _set("images", images.name, f"{images.dtype}{images.shape}"),
        _set("axes", axes, "of one image; numpy's order, the last one lies together in the file"),
    ]
    if "band" not in axes:
        lines.append("# The first axis must count objects: bands of one large image are no stamps.")
    if names:
        origin = "the arrays' names" if images.bands else "the file's attribute"
        lines.append(_set("bands", names, f"from {origin}"))
    else:
        placeholders = [f"band{k}" for k in range(bands)]
        lines.append(_set("bands", placeholders, f"{_TODO}: their names, in the order of the images"))
    text = "from the file's attribute" if scale else f"{_TODO}: arcsec a pixel"
    lines.append(_set("pixel_scale", scale, text))
    text = (
        "from the file's attribute" if unit else f'{_TODO}: nMgy, nJy, or "ADU" or "counts/s" with zero_point'
    )
    lines += [_set("unit", unit, text)]
    if not unit:
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
        lines.append(_set(key, found.name, f"{found.dtype}{found.shape}"))
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
        if found is None:
            continue
        text = "as the images" if key == "mask" else "pixels of 0 have no data"
        lines.append(_set(key, found.name, text))
        if key == "mask":  # flags say what is wrong with a pixel
            means = "unusable" if found.plain in ("bitmask", "flags") else "usable"
            lines.append(_set("mask_true", means, "check: what a value other than 0 means"))
    return lines


def _others_of_equal_shape(columns: list[Column], images: Column) -> list[str]:
    """A comment on other arrays of the images' shape, which may be bands, masks or inverse variances."""
    others = [printable(one.name) for one in columns if one.shape == images.shape and one.name != images.name]
    plain = {name for names in _NOT_IMAGES.values() for name in names}
    others = [one for one in others if Column(one, (), "", "").plain not in plain]
    if not others:
        return []
    found = f"# {len(others) + 1} arrays have this shape: {', '.join([printable(images.name), *others])}."
    if "band" not in _axes(images.shape[1:]):
        more = (
            "# one band, write {band} in images in place of its name, name all in bands, and leave out axes."
        )
        return [f"{found} If each is", more]
    return [f"{found} One of", "# the others may be the mask or inverse_variance: add the key if so."]


def _named(
    columns: list[Column], likely: tuple[str, ...], rows: int, shape: tuple[int, ...] | None
) -> Column | None:
    """The column of the likeliest of these names with a row for each image."""
    fits = [
        one
        for one in columns
        if one.shape[:1] == (rows,)
        and (one.shape == shape if shape else len(one.shape) < 3)
        and (one.kind in "fiub" or likely is _NAMES["object_id"])
    ]
    return next((one for plain in likely for one in fits if one.plain == plain), None) or _containing(
        fits, likely
    )


def _containing(fits: list[Column], likely: tuple[str, ...]) -> Column | None:
    """The first column whose name holds a telling name of these, as `sdss_object_id` and `z_best_2` do."""
    telling = [plain for plain in likely if plain in _TELLING]
    return next((one for plain in telling for one in fits if plain in one.plain), None)


def _set(key: str, value: Any, comment: str) -> str:
    return f"{key} = {json.dumps(value, ensure_ascii=False)}" + (f"  # {comment}" if comment else "")
