"""Commands that cut stamps out of survey images: ingest sdss-frames, ingest images."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hpcphotoz.cli.dataset_output import (
    CORES_OR_RANKS,
    WRITING,
    add_append,
    add_damaged,
    add_ebv_map,
    add_keep,
    add_writing,
    given,
    kept_columns,
    say_what_is_in,
)
from hpcphotoz.cli.parser import Commands, Parser, command, number, path
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.constants import MASKED_FRACTION, SURVEYS


def ingest_sdss_frames(options: argparse.Namespace) -> int:
    """Cut stamps of catalogued objects from SDSS frames and write them as a dataset."""
    return _cut_images(options, "sdss", options.frames, "ingest sdss-frames", tuple(options.bands))


def ingest_images(options: argparse.Namespace) -> int:
    """Cut stamps of catalogued objects from a survey's images and write them as a dataset."""
    from hpcphotoz.sources.surveys.survey import load_survey

    bands = options.bands
    if bands is not None:
        whole = "," in bands or bands in load_survey(options.survey).bands
        bands = tuple(bands.split(",") if whole else bands)
    return _cut_images(options, options.survey, options.images, "ingest images", bands)


def _cut_images(
    options: argparse.Namespace, survey: str, images: Path, name: str, bands: tuple[str, ...] | None
) -> int:
    from hpcphotoz.sources.surveys.ingest import ingest_images

    how = given(
        options, "stamp", "masked_fraction", "epochs", "pixels", "ebv_map", "append", "damaged", *WRITING
    )
    how |= {"columns": _columns(options.columns), "keep": kept_columns(options.keep)}
    manifest = ingest_images(options.out, survey, images, options.objects, command=name, bands=bands, **how)
    say_what_is_in(options.out, manifest, "stamp")
    return 0


def _columns(words: Sequence[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for word in words:
        key, equals, name = word.partition("=")
        if not (key and equals and name):
            raise BadInput(f"--columns {word}: must be of the form ra=RAJ2000")
        if key in columns:
            raise BadInput(f"--columns {word}: {key} is {columns[key]} already: name one column for it")
        columns[key] = name
    return columns


def add(kinds: Commands) -> None:
    """Add the parsers of these commands to the kinds of `ingest`."""
    p = command(kinds, "sdss-frames", ingest_sdss_frames)
    p.add_argument("out", type=path, help="dataset folder to make")
    p.add_argument(
        "--frames",
        type=path,
        required=True,
        help="folder with SDSS frames, searched recursively: fpC-*.fit[.gz] (DR7), frame-*.fits[.bz2] (DR8 "
        "and later); their mask planes fpM-*.fit[.gz], and the final calibration, tsField-*.fit or "
        "photoField-*.fits, which is used instead of the header's preliminary FLUX20",
    )
    p.add_argument(
        "--bands",
        default="ugriz",
        help="such as gri (default ugriz); stamps have the pixel grid of r, or of the first band without r",
    )
    _add_cutout_options(p, 'side of a stamp in pixels of 0.396" (default 64)')

    p = command(kinds, "images", ingest_images)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.epilog = "surveys: bands, pixel scale, names of the files\n\n" + "\n".join(
        f"{name:8s} {text}" for name, text in SURVEYS.items()
    )
    p.add_argument("out", type=path, help="dataset folder to make")
    p.add_argument("--survey", required=True, choices=tuple(SURVEYS), help="whose images: see below")
    p.add_argument(
        "--images",
        type=path,
        required=True,
        help="folder with the survey's images and their maps, searched recursively",
    )
    p.add_argument(
        "--bands",
        help="such as gri, or VIS,Y,J,H (default: the survey's usual ones); stamps have the pixel grid of "
        "the survey's reference band, or of the first band without it",
    )
    _add_cutout_options(p, "side of a stamp in pixels of the survey (default 64)")


def _add_cutout_options(p: Parser, stamp: str) -> None:
    p.add_argument(
        "--objects",
        type=path,
        required=True,
        help="CSV, FITS or VOTable with object_id, ra_deg or ra, dec_deg or dec (deg, or in FITS and VOTable "
        "the column's unit), and, if there, z_spec or z (empty, or -1 and below: unknown), ebv (E(B-V), mag; "
        "empty, or -1 and below: unknown, and the object is left out; without the column it is 0)",
    )
    p.add_argument(
        "--columns",
        nargs="+",
        default=(),
        metavar="OURS=THEIRS",
        help="the table's names for object_id, ra, dec, z_spec, ebv: ra=RAJ2000 dec=DEJ2000",
    )
    add_ebv_map(p, "the table's column")
    add_keep(p, "the table", "; a whole number may not be unknown")
    p.add_argument("--stamp", type=int, default=64, help=stamp)
    p.add_argument(
        "--epochs",
        choices=("one", "all"),
        default="one",
        help="one: a stamp per object, with the table's object_id, from the frame in which it is farthest "
        "from the edge (default); all, of SDSS: a stamp from every run that saw it, with object_id * 1000000 "
        "+ run, or a hash of both where that exceeds 63 bits (ra and dec still identify the object). The "
        "split is by this id: one galaxy can be in both train and test",
    )
    p.add_argument(
        "--masked-fraction",
        type=number,
        default=MASKED_FRACTION,
        help="skip a stamp with more of its pixels (0 to 1) flagged as unusable in any band: saturated, "
        f"without data, in SDSS also cosmic ray or ghost (default {MASKED_FRACTION})",
    )
    p.add_argument(
        "--pixels",
        nargs="+",
        choices=("variance", "mask"),
        default=(),
        help="keep these of every pixel beside the images: variance (float16, nMgy^2), mask (1: unusable)",
    )
    add_damaged(p)
    add_append(p)
    add_writing(p, 1024, "largest number of stamps in a shard", CORES_OR_RANKS)
