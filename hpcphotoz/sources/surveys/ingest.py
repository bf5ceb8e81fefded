"""Builds a dataset of stamps from a survey's images and a table: `ingest images`, `ingest sdss-frames`."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcphotoz.data.format.extra import ExtraColumn, mask_column, variance_column
from hpcphotoz.data.format.manifest import Header, Manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.build import build_dataset, count_skipped
from hpcphotoz.sources.catalogue import EBV_UNKNOWN, read_catalogue
from hpcphotoz.sources.constants import EBV_MAPS, MASKED_FRACTION
from hpcphotoz.sources.cutouts import CutStamps
from hpcphotoz.sources.engine.append import Append, find_target
from hpcphotoz.sources.identifiers import RULE
from hpcphotoz.sources.mpi import mpi_ranks
from hpcphotoz.sources.surveys.plan import (
    EPOCHS,
    CutoutPlan,
    plan_cutouts,
    skipped_entries,
    sky_range,
    usable_sets,
)
from hpcphotoz.sources.surveys.survey import (
    FrameSet,
    Survey,
    SurveyNotes,
    complete_sets,
    load_survey,
    report_left_out,
)
from hpcphotoz.sources.tables.dust_maps import galactic_ebv

_REASON_LABELS = {  # part of a reason -> label in the closing line
    "outside": "outside every frame",
    "edge": "too near an edge",
    "masked": "masked",
    "finite in": "with a pixel that is not finite",
    "E(B-V)": "of unknown E(B-V)",
}


def ingest_images(
    out: Path,
    survey: str,
    images: Path,
    objects: Path,
    *,
    command: str = "ingest images",
    stamp: int = 64,
    shard_rows: int = 1024,
    bands: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    keep: Mapping[str, str] | None = None,
    ebv_map: str | None = None,
    masked_fraction: float = MASKED_FRACTION,
    epochs: str = "one",
    pixels: Sequence[str] = (),
    storage: str | None = None,
    processes: int | None = None,
    append: bool = False,
    damaged: str = "fail",
) -> Manifest:
    """Cuts stamps of a table's objects out of all frame sets of a survey below a folder.

    An object is cut from the frame set in which it lies farthest from the frame's edge: of overlapping tiles
    only one gives a stamp. If it is too near the edge there, or masked, it is listed with the reason in the
    manifest's provenance and reported on standard error; with one epoch, no other set is tried. Frame sets
    without one of the bands and objects of unknown E(B-V) are left out and listed. If the table has no column
    of E(B-V), 0 is stored, which is reported. A file that cannot be read ends the ingest with an error that
    names it, or with `damaged` "skip" is listed and left out, with the other bands of its place; after it is
    replaced, the same command keeps all finished shards without it.

    Args:
        out: folder to create.
        survey: one of SURVEYS.
        images: folder searched at any depth for the survey's files.
        objects: CSV, FITS or VOTable, as `read_catalogue` describes.
        command: the name of the command, for the manifest's provenance.
        stamp: pixels a side.
        shard_rows: most stamps in a shard.
        bands: some of the survey's, in the order of the images; None: its usual ones. The stamps have the
            grid of the survey's reference band, or without it of the first band's frame.
        columns: the table's names for object_id, ra, dec, z_spec, ebv, where they differ.
        keep: the table's name for each column that the shards hold too, by the name that it gets there.
        ebv_map: take E(B-V) from this map at the object's position, as `galactic_ebv`; None: from the table.
        masked_fraction: largest part of a stamp's pixels, in any one band, that the survey's fatal mask
            planes may flag.
        epochs: "one": one stamp for each object, with the table's `object_id`; "all": one for each object and
            SDSS run, with ids by `epoch_ids`, which a split by object id takes for different galaxies.
        pixels: of "variance" and "mask": per-pixel columns to keep, those of the frame's nearest pixel. The
            variance is in nanomaggies^2, and NaN where there is no map or no data.
        storage: of the images, as in `Header`; None: int16, or as in the dataset that is appended to.
        processes: worker processes; None: one a core.
        append: add shards to the dataset in `out`, with the stamps that it does not have.
        damaged: "fail" or "skip".

    Raises:
        BadInput: an option is out of range, a file cannot be read, no set has all bands, the table lacks a
            column or has a bad value, or there is no stamp at all.
    """
    described = load_survey(survey)
    bands = tuple(described.usual_bands if bands is None else bands)
    reference = bands.index(described.reference) if described.reference in bands else 0
    ranks = mpi_ranks()

    def plan_here() -> tuple[CutoutPlan, Header, str | None, SurveyNotes, Append | None]:
        _check_options(described, stamp, shard_rows, bands, masked_fraction, epochs)
        if unknown_pixels := set(pixels) - {"variance", "mask"}:
            raise BadInput(f"pixels '{min(unknown_pixels)}': must be some of variance, mask")
        target = find_target(out, append)
        table = read_catalogue(objects, columns, keep)
        header = Header(bands, stamp, described.pixel_scale, storage or target.storage, table.extra_columns)
        if ebv_map is not None:
            table = replace(table, ebv=galactic_ebv(ebv_map, table.ra, table.dec))
        unknown = np.isnan(table.ebv)
        without_ebv = skipped_entries(table.object_id[unknown], EBV_UNKNOWN)
        table = table[np.flatnonzero(~unknown)]
        if not len(table):
            raise BadInput(
                f"{objects}: E(B-V) is known of none of its {len(unknown)} objects: fill the column"
            )
        found = described.find(images, bands)
        if not found:
            raise BadInput(f"{images}: no {described.file_names} below")
        sets, incomplete = complete_sets(images, found, bands)
        report_left_out(images, incomplete, len(sets))
        if damaged == "skip":
            sets, broken = usable_sets(described, sets, reference, damaged)
            incomplete = [*incomplete, *broken]
            if not sets:
                raise BadInput(f"{images}: no frame set can be used; the first: {broken[0]['reason']}")
        for name, attribute in (("variance", "noise"), ("mask", "mask")):
            if name in pixels and all(
                getattr(files, attribute) is None for one in sets for files in one.files
            ):
                raise BadInput(f"{images}: has no {name} of any frame: leave out `--pixels {name}`")
        notes = described.notes(sets)
        plan = plan_cutouts(
            described,
            sets,
            table,
            reference=reference,
            stamp=stamp,
            shard_rows=shard_rows,
            epochs=epochs,
            target=target,
        )
        if not plan.units and not plan.already_there:
            raise BadInput(
                f"{objects}: none of its {len(table)} objects lies whole in a frame below {images}: they are "
                f"at {sky_range(table.ra, table.dec)}, the frames at {sky_range(*plan.covered.T)} (deg)"
            )
        measured = _measured_columns(sets if append else _used_sets(plan), len(bands), stamp, pixels)
        header = replace(header, extra=(*target.fit_text(header.extra), *measured))
        if table.ebv_column is None and ebv_map is None:
            print(f"{objects}: has no column of E(B-V): for its objects 0 is stored", file=sys.stderr)
        for line in (*notes.lines, *([_caution(plan.repeated)] if plan.repeated else [])):
            print(line, file=sys.stderr)
        plan = replace(plan, skipped=(*incomplete, *without_ebv, *plan.skipped))
        return plan, header, table.ebv_column, notes, target.append(plan.already_there)

    plan, header, ebv_column, notes, appended = ranks.on_first_rank(plan_here)
    used = _used_sets(plan)
    provenance = {
        "command": command,
        "survey": survey,
        "frame_sets": [one.label or one.name for one in used],
        "calibration": described.calibration,
        "objects": objects.name,
        "epochs": epochs,
        "object_id": f"{plan.rule}; {RULE}",
        "ebv": _ebv_rule(ebv_map, ebv_column),
        **({"kept": {ours: f"column '{theirs}'" for ours, theirs in keep.items()}} if keep else {}),
        **({"caution": _caution(plan.repeated)} if plan.repeated else {}),
        "resampling": f"Lanczos-3 onto the {bands[reference]} frame's grid",
        "masks": {
            "planes": list(described.planes),
            "masked_fraction": masked_fraction,
            "frames_without": sum(files.mask is None for one in used for files in one.files),
        },
        **notes.record,
        "skipped": list(plan.skipped),
    }
    from_frames = tuple(column.name for column in header.extra if column.name not in (keep or ()))
    manifest, skipped = build_dataset(
        out,
        header,
        CutStamps(survey, bands, reference, stamp, masked_fraction, from_frames, damaged),
        plan.units,
        provenance=provenance,
        label="cutting stamps, shards",
        processes=processes,
        append=appended,
    )
    if ranks.rank == 0:
        _report_skipped(manifest.rows, [one for one in skipped if "damaged" not in one])
    return manifest


def _ebv_rule(ebv_map: str | None, column: str | None) -> str:
    """Where E(B-V) comes from, in words."""
    if ebv_map is not None:
        return EBV_MAPS[ebv_map]
    return "not in the table: 0" if column is None else f"column '{column}'"


def _used_sets(plan: CutoutPlan) -> list[FrameSet]:
    return list(dict.fromkeys(cutout_list.frame_set for unit in plan.units for cutout_list in unit))


def _measured_columns(
    sets: Iterable[FrameSet], bands: int, stamp: int, pixels: Sequence[str]
) -> tuple[ExtraColumn, ...]:
    """Returns the columns taken from the frames: PSF widths where files give them, and what is asked for."""
    columns = []
    if any(files.psf or files.calibration for one in sets for files in one.files):
        columns.append(ExtraColumn("psf_fwhm", "float32", "arcsec", (bands,)))
    columns += [variance_column(bands, stamp)] if "variance" in pixels else []
    columns += [mask_column(bands, stamp)] if "mask" in pixels else []
    return tuple(columns)


def _check_options(
    survey: Survey,
    stamp: int,
    shard_rows: int,
    bands: tuple[str, ...],
    masked_fraction: float,
    epochs: str,
) -> None:
    if not 4 <= stamp <= 1024:
        raise BadInput(f"stamp {stamp}: must be from 4 to 1024 pixels")
    if shard_rows < 1:
        raise BadInput(f"shard rows {shard_rows}: must be at least 1")
    if not bands or len(set(bands)) < len(bands) or not set(bands) <= set(survey.bands):
        between = "" if max(map(len, survey.bands)) == 1 else ","
        raise BadInput(
            f"bands '{between.join(bands)}': must be some of {between.join(survey.bands)}, each once"
        )
    if not 0 <= masked_fraction <= 1:
        raise BadInput(f"masked fraction {masked_fraction:g}: must be from 0 to 1")
    if epochs not in EPOCHS:
        raise BadInput(f"epochs '{epochs}': must be one of {', '.join(EPOCHS)}")
    if epochs == "all" and survey.name != "sdss":
        raise BadInput(f"epochs 'all': frames of {survey.title} are coadds of all epochs: leave it out")


def _caution(objects: int) -> str:
    return (
        f"{objects} objects lie in several runs, each stamp with an id of its own: a split by object id can "
        "put one galaxy in train and test; ingest training and test objects as datasets of their own, or one "
        "epoch"
    )


def _report_skipped(stamps: int, skipped: Sequence[Mapping[str, Any]]) -> None:
    counts = {
        words: count_skipped([one for one in skipped if what in one["reason"]])
        for what, words in _REASON_LABELS.items()
    }
    if sum(counts.values()):
        named = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
        print(
            f"{stamps} stamps; skipped {sum(counts.values())}: {named} (listed in the manifest's provenance)",
            file=sys.stderr,
        )
