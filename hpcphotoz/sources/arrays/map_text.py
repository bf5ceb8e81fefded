"""Describes the shipped maps in words, for `ingest table --help`."""

from hpcphotoz.sources.arrays.array_map import ArrayMap, load_map, shipped_maps
from hpcphotoz.sources.arrays.image_kind import NANOJANSKY
from hpcphotoz.sources.constants import ZERO_POINT


def describe_maps() -> str:
    """Describes the columns that the files of each shipped map must have, as lines of text."""
    return "\n".join(_describe(name, load_map(name)) for name in shipped_maps())


def _describe(name: str, one: ArrayMap) -> str:
    where = ", ".join(" or ".join(names) for names in (one.ra, one.dec) if names) or "not in the files"
    absent = "; unknown in files without" if "ra" in one.optional else ""
    known = f", where {one.z_known} is not 0" if one.z_known else ""
    lines = [
        f"{name}: {one.description}",
        f"  pixels    {' or '.join(one.images)} {_axes(one)}, square",
        f"  unit      {_unit(one)}",
        *_bands(one),
        f"  id        {one.object_id or 'the number of the row'}",
        f"  redshift  {one.z_spec or 'not in the files: --redshifts TABLE'}{known}",
        f"  E(B-V)    {one.ebv_rule}",
        f"  place     {where} (deg){absent}",
    ]
    if one.mask or one.inverse_variance:
        masks = f"{' or '.join(one.mask)} (true: {one.mask_true})"
        lines.append(f"  masks     if there: {masks}, {' or '.join(one.inverse_variance)} (0: bad)")
    return "\n".join(lines)


def _axes(one: ArrayMap) -> str:
    return "(N, pixel)" if one.flat else f"(N, {', '.join(one.order)})"


def _unit(one: ArrayMap) -> str:
    if one.planes:
        return "AB magnitudes of 1 by band"
    if one.unit in ("nMgy", "nJy"):
        return "nanomaggies" if one.unit == "nMgy" else f"nJy, AB magnitude {NANOJANSKY} each"
    if one.zero_points:
        known = ", ".join(f"{survey} {magnitude:g}" for survey, magnitude in one.zero_points.items())
        return f"1 is AB magnitude: {known}; of other surveys, --zero-point"
    same = one.zero_point == (ZERO_POINT,)
    return "nanomaggies" if same else f"1 is AB magnitude {', '.join(map(str, one.zero_point))}"


def _bands(one: ArrayMap) -> list[str]:
    if one.planes:
        return [
            f"  bands     {' '.join(planes.bands)}: {planes.size} x {planes.size} pixels of "
            f'{planes.pixel_scale}", AB {", ".join(map(str, planes.zero_point))}'
            for planes in one.planes
        ]
    bands = " ".join(one.bands) or f"named in {one.band_column} (N, band)"
    scale = f'{one.pixel_scale}"' if one.pixel_scale else f"{one.pixel_scale_column} (N, band), arcsec"
    return [f"  bands     {bands}; pixel scale {scale}"]
