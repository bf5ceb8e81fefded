"""Maps of files of image arrays: names of columns, order of axes, bands, pixel scale, unit."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Strict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from hpcphotoz.errors import BadInput, nearest
from hpcphotoz.sources.arrays.files.array_file import BAND

# Columns that a file may lack if the map lists them in `optional`.
OPTIONAL = ("ebv", "ra", "dec", "mask", "inverse_variance")
PIXEL_SCALES = (0.001, 100.0)  # arcsec, the least and the largest
_AXES = {"band", "y", "x"}
_LONGEST = 1 << 16  # characters of a map
_CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Text = Annotated[str, Strict()]
Number = Annotated[float, Strict()]
Names = Annotated[tuple[Text, ...], BeforeValidator(_as_tuple)]
Numbers = Annotated[tuple[Number, ...], BeforeValidator(_as_tuple)]


@dataclass(frozen=True, config=_CLOSED)
class Planes:
    """Bands of one size and pixel scale in a row of flattened images."""

    bands: Names
    size: Annotated[int, Strict()]  # pixels a side
    pixel_scale: Number  # arcsec
    zero_point: Numbers = ()  # AB magnitude of one unit: one for all bands, or one a band

    @model_validator(mode="after")
    def _check(self) -> "Planes":
        if self.size < 4 or not self.pixel_scale > 0:
            raise ValueError(
                f"planes of {self.size} pixels of {self.pixel_scale:g} arcsec: want 4 or more, > 0"
            )
        if len(self.zero_point) not in (0, 1, len(self.bands)):
            raise ValueError(f"planes: {len(self.zero_point)} zero points for {len(self.bands)} bands")
        return self


@dataclass(frozen=True, config=_CLOSED)
class ArrayMap:
    """How a file of image arrays is read. All columns have one row an object.

    BAND in a name stands for each of `bands`: their columns (N, ...) are read as one (N, band, ...).
    """

    images: Names  # (N, ...) in the order of `axes`; of several names, the first that a file has
    description: Text = ""
    axes: Text = "band y x"  # of one image: band, y and x in any order; "y x": one band; "flat": see `planes`
    bands: Names = ()  # in the order of the images; with `band_column`, those to use
    band_column: Text = ""  # (N, band) the bands' names
    planes: Annotated[tuple[Planes, ...], BeforeValidator(_as_tuple)] = ()  # of a flat row, in its order
    pixel_scale: Number = 0.0  # arcsec
    pixel_scale_column: Text = ""  # (N,) or (N, band) arcsec
    unit: Literal["nMgy", "nJy", "ADU", "counts/s"] = "nMgy"  # of a pixel; the last two need a zero point
    zero_point: Numbers = ()  # AB magnitude of one ADU or count/s: one for all bands, or one a band
    # AB magnitude of one unit by the bands' survey: the part of a band's name before the first "-"
    zero_points: dict[Text, Number] | None = None
    object_id: Text = ""  # (N,) integers or text; "": the number of the row, over all files
    z_spec: Text = ""  # (N,); "": the files have no redshifts
    z_known: Text = ""  # (N,) 0: the redshift is not known
    ebv: Names = ()  # (N,) mag, or with `extinction_per_ebv` (N, band) extinctions
    extinction_per_ebv: Numbers = ()  # a band's extinction over E(B-V), one a band of the column
    ra: Names = ()  # (N,) deg
    dec: Names = ()  # (N,) deg
    sky_sigma_from: Literal["outer pixels", "unmasked pixels", "column", "inverse variance"] = "outer pixels"
    sky_sigma: Text = ""  # (N,) or (N, band), in the unit of the pixels
    mask: Names = ()  # as the images, or (N, y, x)
    mask_true: Literal["usable", "unusable"] = "usable"  # what a value other than 0 means
    inverse_variance: Names = ()  # as the images; 0: a pixel without data
    optional: Names = ()  # of OPTIONAL, what a file may lack
    # The files' names of columns, (N,) or (N, band), that the shards hold too, by the names they get there
    keep: dict[Text, Text] | None = None

    @model_validator(mode="after")
    def _check(self) -> "ArrayMap":
        for problem in _problems(self):
            raise ValueError(problem)
        return self

    @property
    def flat(self) -> bool:
        return self.axes == "flat"

    @property
    def order(self) -> tuple[str, ...]:
        """The axes of one image, in the order of the file; () of flattened ones."""
        return () if self.flat else tuple(self.axes.split())

    @property
    def columns(self) -> tuple[str, ...]:
        """Every name of a column."""
        single = (self.band_column, self.pixel_scale_column, self.object_id, self.z_spec, self.z_known)
        lists = (self.images, self.ebv, self.ra, self.dec, self.mask, self.inverse_variance)
        return tuple(
            name for name in (*single, self.sky_sigma, *(n for names in lists for n in names)) if name
        )

    @property
    def ebv_rule(self) -> str:
        """Where E(B-V) comes from, in words."""
        if not self.ebv:
            return "not in the files: 0"
        if self.extinction_per_ebv:
            return f"mean over bands of '{self.ebv[0]}' over {list(self.extinction_per_ebv)}"
        names = " or ".join(f"'{name}'" for name in self.ebv)
        return names + (", 0 in files without it" if "ebv" in self.optional else "")

    @property
    def sky_sigma_rule(self) -> str:
        """Where the sky sigma comes from, in words."""
        return {
            "outer pixels": "clipped standard deviation of the image's outer eighth, before cropping",
            "unmasked pixels": "clipped standard deviation of unmasked pixels in the image's outer eighth",
            "column": f"'{self.sky_sigma}'",
            "inverse variance": "median of 1 / sqrt(inverse variance) in the image's outer eighth",
        }[self.sky_sigma_from]


def _problems(one: ArrayMap) -> list[str]:
    """What contradicts itself in a map, in words."""
    from_table = (
        ("column", "sky_sigma"),
        ("inverse variance", "inverse_variance"),
        ("unmasked pixels", "mask"),
    )
    bands = [band for planes in one.planes for band in planes.bands] or list(one.bands)
    values = [*one.zero_point, *(one.zero_points or {}).values()]
    values += [value for planes in one.planes for value in planes.zero_point]
    scales = [one.pixel_scale, *(planes.pixel_scale for planes in one.planes)]
    by_planes = [bool(planes.zero_point) for planes in one.planes]
    by_band = any(BAND in name for name in (*one.columns, *(one.keep or {}).values()))
    given = bool(one.zero_point or one.zero_points) or any(by_planes)
    checks = {
        f'axes = "{one.axes}": want band, y and x in any order, "y x" or "flat"': not one.flat
        and sorted(one.order) not in (sorted(_AXES), ["x", "y"]),
        'axes = "y x": name its one band in bands': one.order in (("y", "x"), ("x", "y"))
        and (len(one.bands) != 1 or bool(one.band_column)),
        'axes = "flat" and planes belong together: give both or neither': one.flat != bool(one.planes),
        "planes name bands, scales and zero points: leave out bands, band_column, pixel_scale, "
        "pixel_scale_column and zero_point": bool(one.planes)
        and bool(one.bands or one.band_column or one.pixel_scale or one.pixel_scale_column or one.zero_point),
        "planes: masks and inverse variances of flattened images are not read: leave them out": bool(
            one.planes
        )
        and bool(one.mask or one.inverse_variance),
        "planes: their sky sigma is measured: leave out sky_sigma_from": bool(one.planes)
        and one.sky_sigma_from != "outer pixels",
        f"{BAND} in the name of a column: name the bands in bands, without band_column": by_band
        and (not one.bands or bool(one.band_column)),
        f'{BAND} in images: want axes = "band y x" or "band x y"': any(BAND in name for name in one.images)
        and one.order[:1] != ("band",),
        "bands: name them, or the column that does in band_column": not bands and not one.band_column,
        "bands: one is there twice": len(set(bands)) < len(bands),
        "pixel_scale: give arcsec a pixel, or the column that does in pixel_scale_column": not one.planes
        and (one.pixel_scale > 0) == bool(one.pixel_scale_column),
        **{
            f"pixel_scale = {scale:g}: must be from 0.001 to 100 arcsec": not PIXEL_SCALES[0]
            <= scale
            <= PIXEL_SCALES[1]
            for scale in scales
            if scale > 0
        },
        **{
            f"zero_point = {value:g}: must be an AB magnitude from 0 to 40": not 0 <= value <= 40
            for value in values
        },
        f'unit = "{one.unit}": give zero_point, the AB magnitude of one unit': one.unit in ("ADU", "counts/s")
        and not (given and all(by_planes)),
        f'unit = "{one.unit}" is calibrated: leave out zero points': one.unit in ("nMgy", "nJy") and given,
        "zero_point and zero_points: give one of them": bool(one.zero_point and one.zero_points),
        f"zero_point: {len(one.zero_point)} for {len(bands)} bands": len(one.zero_point) > 1
        and len(one.zero_point) != len(bands),
        "extinction_per_ebv: needs the column of extinctions in ebv": bool(one.extinction_per_ebv)
        and not one.ebv,
        "extinction_per_ebv: want numbers above 0": not all(value > 0 for value in one.extinction_per_ebv),
        "z_known: needs z_spec": bool(one.z_known) and not one.z_spec,
        "sky_sigma: set sky_sigma_from to 'column'": bool(one.sky_sigma) and one.sky_sigma_from != "column",
        f"optional: want some of {', '.join(OPTIONAL)}": not set(one.optional) <= set(OPTIONAL),
    } | {
        f"sky_sigma_from = '{source}': name it in {key}": one.sky_sigma_from == source
        and (not getattr(one, key) or key in one.optional)
        for source, key in from_table
    }
    return [problem for problem, found in checks.items() if found]


_ADAPTER = TypeAdapter(ArrayMap)


def shipped_maps() -> list[str]:
    """Names of the maps that are part of the package."""
    folder = resources.files("hpcphotoz.sources.arrays") / "maps"
    return sorted(one.name.removesuffix(".toml") for one in folder.iterdir() if one.name.endswith(".toml"))


def load_map(source: str) -> ArrayMap:
    """Reads a map: a TOML file, or the name of one of `shipped_maps`.

    Raises:
        BadInput: no such file or name, not TOML, an unknown key (the message lists the valid ones), a
            value of another type, or keys that contradict each other.
    """
    shipped = shipped_maps()
    try:
        if source in shipped and not Path(source).is_file():
            place = resources.files("hpcphotoz.sources.arrays") / "maps" / f"{source}.toml"
            text = place.read_text(encoding="utf-8")
        else:
            with open(source, encoding="utf-8-sig") as file:
                text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:  # a device such as /dev/zero has no end
            raise BadInput(f"{source}: more than {_LONGEST} characters: not a map")
        tree = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a text"
        raise BadInput(
            f"{source}: not a readable map nor a shipped one ({', '.join(shipped)})"
            f"{nearest(source, shipped)}: {why}"
        ) from None
    except ValueError as error:
        raise BadInput(f"{source}: not TOML: {error}") from None
    return parse_map(tree, source)


def parse_map(tree: Mapping[str, Any], source: str) -> ArrayMap:
    """Validates the keys of a map; `source` begins the message of an error.

    Raises:
        BadInput: as `load_map`.
    """
    try:
        return _ADAPTER.validate_python(dict(tree))
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        valid = list((Planes if place[:1] == ["planes"] else ArrayMap).__dataclass_fields__)
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise BadInput(
                f"{source}: unknown key '{place[-1]}'{nearest(place[-1], valid)}; valid: {', '.join(valid)}"
            ) from None
        if first["type"] in ("missing", "missing_argument"):
            raise BadInput(f"{source}: the key {place[-1]} is missing") from None
        reason = str(first["msg"]).removeprefix("Value error, ").replace("Input should be ", "must be ")
        given = "" if first["type"] == "value_error" else f" = {first['input']!r}"
        raise BadInput(f"{source}: {'.'.join(place) + given + ': ' if place else ''}{reason}") from None
