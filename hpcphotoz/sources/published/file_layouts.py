"""Field names, units and axes of published image sets, and the check of a file against them."""

from dataclasses import dataclass
from pathlib import Path

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import BANDS, PIXEL_SCALE, SDSS_EXTINCTION, ZERO_POINT
from hpcphotoz.sources.published.array_file import ArrayFile

HSC = 27.0  # AB magnitude of one count of an HSC coadd


@dataclass(frozen=True)
class FileLayout:
    """Layout of one published image set. Of several names for a field, the first that a file has is used."""

    images: str  # (N, band, y, x), or (N, y, x, band)
    object_id: str  # (N,)
    z_spec: str | None  # (N,); None: not in the files
    ebv: tuple[str, ...]  # (N,) mag, or (N, band) extinctions
    ra: tuple[str, ...] = ("ra",)
    dec: tuple[str, ...] = ("dec",)
    bands: tuple[str, ...] = ()  # (): every row names its own
    pixel_scale: float = 0.0  # arcsec; 0: every row gives its own
    zero_point: float | None = ZERO_POINT  # AB magnitude of one unit of the pixels; None: by the bands' names
    channels_last: bool = False
    per_band: tuple[float, ...] = ()  # `ebv` is a band's extinction; these, over E(B-V)
    optional: tuple[str, ...] = ()  # of ebv (else 0), ra and dec (else NaN)

    @property
    def ebv_rule(self) -> str:
        """Where E(B-V) comes from, in words."""
        if not self.ebv:
            return "not in the files: 0"
        if self.per_band:
            return f"mean over bands of '{self.ebv[0]}' over {list(self.per_band)}"
        names = " or ".join(f"'{name}'" for name in self.ebv)
        return names + (", 0 in files without it" if "ebv" in self.optional else "")


FILE_LAYOUTS = {
    "pasquet": FileLayout(
        "cube", "specObjID", "z", ("EBV",), bands=BANDS, pixel_scale=PIXEL_SCALE, channels_last=True
    ),
    "hayat": FileLayout(
        *("images", "ObjID", "specz_redshift", ("e_bv",)),
        bands=BANDS,
        pixel_scale=PIXEL_SCALE,
        per_band=SDSS_EXTINCTION,
    ),
    "galaxiesml": FileLayout(
        *("image", "object_id", "specz_redshift", ()),
        bands=("g", "r", "i", "z", "y"),
        pixel_scale=0.168,
        zero_point=HSC,
        optional=("ebv", "ra", "dec"),
    ),
    "mmu": FileLayout(
        *("image_array", "object_id", None, ("EBV", "ebv"), ("ra", "RA"), ("dec", "DEC")),
        zero_point=None,
        optional=("ebv",),
    ),
    "ssl-legacy": FileLayout("images", "inds", "z_spec", ("ebv",), bands=("g", "r", "z"), pixel_scale=0.262),
}
_DESCRIPTIONS = {  # publication, and kind of file
    "pasquet": "Pasquet et al. 2019: npz, or a folder with cube.npy and labels.npy (a record array)",
    "hayat": "Hayat et al. 2021: HDF5",
    "galaxiesml": "GalaxiesML: HDF5",
    "mmu": "Multimodal Universe: HDF5",
    "ssl-legacy": "ssl-legacysurvey: HDF5",
}
# AB magnitude of one unit in surveys of the Multimodal Universe, whose bands are called survey-filter.
ZERO_POINTS = {"des": ZERO_POINT, "decam": ZERO_POINT, "hsc": HSC}
BAND_FIELD, SCALE_FIELD = "image_band", "image_scale"  # (N, band) each
MASK_FIELDS = ("image_mask", "bit_mask")  # (N, band, y, x) or (N, y, x), true: clean
IVAR_FIELD = "image_ivar"  # (N, band, y, x)


def describe_formats() -> str:
    """Describes the fields that the files of each format must have, as lines of text."""
    return "\n".join(map(_describe_format, FILE_LAYOUTS))


def _describe_format(name: str) -> str:
    layout = FILE_LAYOUTS[name]
    axes = "(N, y, x, band)" if layout.channels_last else "(N, band, y, x)"
    bands = (
        " ".join(layout.bands) if layout.bands else f"named in {BAND_FIELD} (N, band), 'des-g' for instance"
    )
    scale = f'{layout.pixel_scale}"' if layout.pixel_scale else f"{SCALE_FIELD} (N, band), arcsec"
    unit = "nanomaggies" if layout.zero_point == ZERO_POINT else f"1 is AB magnitude {layout.zero_point}"
    if layout.zero_point is None:
        known = ", ".join(f"{survey} {magnitude:g}" for survey, magnitude in ZERO_POINTS.items())
        unit = f"1 is AB magnitude: {known}; of other surveys, --zero-point"
    where = ", ".join(" or ".join(names) for names in (layout.ra, layout.dec))
    absent = "; unknown in files without" if "ra" in layout.optional else ""
    masks = f"\n  masks     if there: {' or '.join(MASK_FIELDS)} (true: clean), {IVAR_FIELD} (0: bad)"
    return f"""\
{name}: {_DESCRIPTIONS[name]}
  pixels    {layout.images} {axes}, square
  unit      {unit}
  bands     {bands}; pixel scale {scale}
  id        {layout.object_id}
  redshift  {layout.z_spec or "not in the files: --redshifts TABLE"}
  E(B-V)    {layout.ebv_rule}
  place     {where} (deg){absent}{"" if layout.bands else masks}"""


@dataclass(frozen=True)
class ImageKind:
    """Bands, size and pixel scale of images, which all files of a set must share."""

    bands: tuple[str, ...]
    size: int
    pixel_scale: float

    def __str__(self) -> str:
        return f"{','.join(self.bands)} of {self.size} pixels of {self.pixel_scale:g} arcsec"


def inspect_file(table: ArrayFile, layout: FileLayout) -> tuple[ImageKind | None, int]:
    """Checks shapes and types of a file's fields without reading them.

    It returns bands, size and scale of the images (None: the file is empty), and the number of rows.

    Raises:
        BadInput: a field is missing, or its shape or type does not fit.
    """
    images = table[layout.images]
    if len(images.shape) != 4 or images.dtype.kind not in "fiu":
        raise BadInput(
            f"{table.path}: '{layout.images}' is {images.dtype}{images.shape}, not images (N, band, y, x)"
        )
    rows, *row = images.shape
    bands, height, width = (row[2], row[0], row[1]) if layout.channels_last else row
    expected: dict[str, tuple[int, ...]] = {layout.object_id: ()}
    if layout.z_spec is not None:
        expected[layout.z_spec] = ()
    for what in ("ebv", "ra", "dec"):
        field = table.first(getattr(layout, what), what in layout.optional)
        if field is not None:
            expected[field] = (len(layout.per_band),) if what == "ebv" and layout.per_band else ()
    if not layout.bands:
        expected |= {BAND_FIELD: (bands,), SCALE_FIELD: (bands,)}
        mask = table.first(MASK_FIELDS, optional=True)
        if mask is not None:
            expected[mask] = (bands, height, width) if len(table[mask].shape) == 4 else (height, width)
        if IVAR_FIELD in table:
            expected[IVAR_FIELD] = (bands, height, width)
    for field, shape in expected.items():
        if table[field].shape != (rows, *shape):
            raise BadInput(
                f"{table.path}: '{field}' has shape {table[field].shape}, "
                f"but {rows} images in '{layout.images}' need {(rows, *shape)}"
            )
        if field not in (layout.object_id, BAND_FIELD) and table[field].dtype.kind not in "fiub":
            raise BadInput(f"{table.path}: '{field}' is {table[field].dtype}, not numbers")
    if layout.bands and bands != len(layout.bands):
        raise BadInput(
            f"{table.path}: '{layout.images}' has shape {images.shape}: {bands} bands, "
            f"not {len(layout.bands)} ({', '.join(layout.bands)})"
        )
    if height != width or height < 4:
        raise BadInput(
            f"{table.path}: '{layout.images}' holds images of {height} x {width} pixels: need squares"
        )
    if not rows:
        return None, 0
    if layout.bands:
        return ImageKind(layout.bands, height, layout.pixel_scale), rows
    named = band_names(table, 0, 1)[0]
    scale = round(float(table.rows(SCALE_FIELD, 0, 1)[0, 0]), 6)
    if len(set(named)) < len(named) or not scale > 0:
        raise BadInput(f"{table.path}: bands {named} of {scale:g} arcsec a pixel in its first row")
    return ImageKind(named, height, scale), rows


def band_names(table: ArrayFile, start: int, stop: int) -> list[tuple[str, ...]]:
    """Returns the bands that rows `start` to `stop - 1` name."""
    return [
        tuple(v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in row)
        for row in table.rows(BAND_FIELD, start, stop).tolist()
    ]


def pixel_zero_point(layout: FileLayout, bands: tuple[str, ...], path: Path) -> float:
    if layout.zero_point is not None:
        return layout.zero_point
    surveys = {band.lower().split("-")[0] for band in bands}
    found = {ZERO_POINTS.get(survey) for survey in surveys}
    unit = found.pop()
    if found or unit is None:
        raise BadInput(
            f"{path}: bands {', '.join(bands)}: give the pixels' --zero-point (AB mag of one unit)"
        )
    return unit
