"""Builds a dataset of stamps from files of arrays: `ingest arrays`, and `ingest table` for shipped maps.

The rows of all files are numbered, in the order of the files' names; shard k holds the usable rows of k R to
(k + 1) R - 1. Rows are read in contiguous slabs, and a stamp is the centre of the image in the file. Unusable
rows are listed in the manifest's provenance with the reason. A file that cannot be read ends the ingest with
an error that names it; after it is replaced, the same command keeps all finished shards without a row of it.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Header, Manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.output import number_of
from hpcphotoz.sources.arrays.array_map import ArrayMap
from hpcphotoz.sources.arrays.image_kind import zero_points
from hpcphotoz.sources.arrays.input_files import InputFile, inspect_files
from hpcphotoz.sources.arrays.planes import check_coverage
from hpcphotoz.sources.arrays.row_plan import plan_row_ranges
from hpcphotoz.sources.arrays.row_reader import ReadRows, RowRange, SourceFile
from hpcphotoz.sources.build import build_dataset
from hpcphotoz.sources.catalogue import read_redshifts
from hpcphotoz.sources.constants import EBV_MAPS, MASKED_FRACTION, ZERO_POINT
from hpcphotoz.sources.engine.append import Append, find_target, report_calibration
from hpcphotoz.sources.identifiers import RULE
from hpcphotoz.sources.mpi import mpi_ranks
from hpcphotoz.sources.tables.dust_maps import galactic_ebv
from hpcphotoz.sources.tables.kept_columns import check_kept_names


def ingest_arrays(
    out: Path,
    sources: Sequence[Path],
    array_map: ArrayMap,
    name: str,
    *,
    shard_rows: int = 8192,
    crop: int | None = None,
    redshifts: Path | None = None,
    keep_unlabelled: bool = False,
    zero_point: float | None = None,
    limit: int | None = None,
    keep: Mapping[str, str] | None = None,
    ebv_map: str | None = None,
    storage: str | None = None,
    processes: int | None = None,
    append: bool = False,
    damaged: str = "fail",
) -> tuple[Manifest, list[dict[str, Any]]]:
    """Writes a dataset of the objects in files of arrays; returns its manifest, and the skipped objects.

    Object identifiers of all rows are read first, 8 bytes each; of rows with the same identifier, the first
    is used. Identifiers become int64 by the rule of `identifiers.py`. A redshift that is NaN, -1 or below is
    unknown. An object is left out and listed if its E(B-V) is not finite, -1 or below, or above 100 mag. For
    a file without E(B-V), 0 is stored, which is reported. An ra or dec out of range becomes NaN. A measured
    sky sigma is that of the outer eighth of the uncropped image (`noise.py`).

    Args:
        out: folder to create, or with an unfinished run of the same ingest, which is continued.
        sources: HDF5, npz, npy, FITS, Parquet or Arrow files, Zarr stores, folders of npy files, or folders
            that are searched at any depth.
        array_map: names of the columns, and what they hold.
        name: of the map, for messages and the provenance.
        shard_rows: rows of the files for each shard; a process holds as many stamps in memory.
        crop: stamp size in pixels, cut about the centre; None: as in the files.
        redshifts: CSV, FITS or VOTable with `object_id` and `z_spec` or `z`, for a map without redshifts.
            Objects without a redshift are counted and left out.
        keep_unlabelled: keep these, with z_spec NaN.
        zero_point: AB magnitude of one unit of the pixels; None: the map's own.
        limit: number of rows to use, from the first; None: all.
        keep: the files' name for each column that the shards hold too, by the name that it gets there,
            beside those of the map.
        ebv_map: take E(B-V) from this map at ra and dec, as `galactic_ebv`; None: from the files.
        storage: of the images, as in `Header`; None: int16, or as in the dataset that is appended to.
        processes: as in `build_dataset`.
        append: add shards to the dataset in `out`, of the rows whose objects it does not have.
        damaged: "fail": a file that cannot be used, or is of other bands, size or pixel scale than the first
            one that can, ends the ingest; "skip": it is listed and left out, if the map names an object_id.

    Raises:
        BadInput: an option is out of range, a file does not fit the map or differs from the first one in
            bands, size, pixel scale or a column to keep, the folder cannot be used, or no object is usable.
    """

    kept_names = {**(array_map.keep or {}), **(keep or {})}

    def plan_here() -> tuple[ReadRows, list[tuple[RowRange, ...]], dict[str, Any], Append | None]:
        _check_options(array_map, name, shard_rows, crop, redshifts, keep_unlabelled, zero_point, limit)
        _check_map(array_map, name, append, ebv_map)
        check_kept_names(kept_names)
        target = find_target(out, append)
        table = read_redshifts(redshifts) if redshifts is not None else None
        files, extra, skipped = inspect_files(
            sources, array_map, kept_names, limit=limit, positions=ebv_map is not None, damaged=damaged
        )
        if skipped and not array_map.object_id:
            raise BadInput(
                f"{skipped[0]['reason']}; map {name} names no object_id: objects are numbered by their rows "
                "in all files, and none may be left out: mend it, or leave out --damaged skip"
            )
        kind, first = files[0].kind, files[0].source.path
        stamp = kind.size if crop is None else crop
        if stamp > kind.size:
            raise BadInput(f"crop {stamp}: {first} has images of {kind.size} pixels: crop to at most that")
        if array_map.planes:
            check_coverage(array_map.planes, stamp)
        if zero_point is not None:
            units = (zero_point,) * len(kind.bands)
        else:
            units = zero_points(array_map, kind.bands, first)
        header = Header(
            kind.bands, stamp, kind.pixel_scale, storage or target.storage, target.fit_text(extra)
        )
        per_unit = tuple(10 ** (0.4 * (ZERO_POINT - unit)) for unit in units)
        make = ReadRows(array_map, header, kind, per_unit, keep_unlabelled, kept_names, damaged)
        provenance = {
            "command": "ingest arrays",
            "format": name,
            "map": json.loads(json.dumps({key: value for key, value in asdict(array_map).items() if value})),
            "sources": [{"name": one.source.name, "bytes": _size(one.source)} for one in files],
            "rows": sum(len(one.ids) for one in files),
            "crop": crop,
            "zero_point_ab": _one_or_all(units),
            "nanomaggies_per_unit": _one_or_all(per_unit),
            **_origin_of_labels(array_map, files, redshifts, ebv_map),
            "skipped": skipped,
        }
        if kept_names:
            provenance["kept"] = {ours: f"column '{theirs}'" for ours, theirs in kept_names.items()}
        _report(files, provenance["files_without_ebv"], crop)
        report_calibration(target, provenance)
        row_ranges, already_there = plan_row_ranges(
            [one.source for one in files],
            [one.ids for one in files],
            table,
            None if ebv_map is None else _ebv_by_map(ebv_map, files),
            shard_rows,
            target,
        )
        return make, row_ranges, provenance, target.append(already_there)

    make, units, provenance, appended = mpi_ranks().on_first_rank(plan_here)
    return build_dataset(
        out,
        make.header,
        make,
        units,
        provenance=provenance,
        label="reading tables, shards",
        processes=processes,
        append=appended,
    )


def _check_options(
    array_map: ArrayMap,
    name: str,
    shard_rows: int,
    crop: int | None,
    redshifts: Path | None,
    keep_unlabelled: bool,
    zero_point: float | None,
    limit: int | None,
) -> None:
    if shard_rows < 1:
        raise BadInput(f"shard rows {shard_rows}: must be at least 1")
    if crop is not None and crop < 4:
        raise BadInput(f"crop {crop}: must be at least 4 pixels")
    if zero_point is not None and not 0 <= zero_point <= 40:
        raise BadInput(f"zero point {zero_point:g}: must be an AB magnitude from 0 to 40")
    if limit is not None and limit < 1:
        raise BadInput(f"limit {limit}: must be at least 1")
    if array_map.z_spec and (redshifts is not None or keep_unlabelled):
        raise BadInput(f"map {name} names z_spec: --redshifts and --keep-unlabelled are for maps without")
    if not array_map.z_spec and redshifts is None and not keep_unlabelled:
        raise BadInput(f"map {name} names no z_spec: give --redshifts TABLE, or --keep-unlabelled")


def _check_map(array_map: ArrayMap, name: str, append: bool, ebv_map: str | None) -> None:
    if append and not array_map.object_id:
        raise BadInput(f"map {name} names no object_id: without one, nothing can be appended")
    if ebv_map is not None and not (array_map.ra and array_map.dec):
        raise BadInput(f"map {name} names no ra and dec, which --ebv-map needs")


def _origin_of_labels(
    array_map: ArrayMap, files: Sequence[InputFile], redshifts: Path | None, ebv_map: str | None
) -> dict[str, Any]:
    """Says where labels, noise and masks come from, for the provenance."""
    lacking = {key: sum(one.lacks[key] for one in files) for key in files[0].lacks}
    without_ebv = lacking.pop("ebv")
    found: dict[str, Any] = {
        "ebv": array_map.ebv_rule if ebv_map is None else EBV_MAPS[ebv_map],
        "files_without_ebv": without_ebv if ebv_map is None else 0,
        "object_id": RULE if array_map.object_id else "the number of the row, over all files",
        "sky_sigma": array_map.sky_sigma_rule,
    }
    if not array_map.z_spec:
        found["redshifts"] = None if redshifts is None else redshifts.name
    if lacking:
        found |= {"masked_fraction": MASKED_FRACTION, "files_without": lacking}
    return found


def _report(files: Sequence[InputFile], without_ebv: int, crop: int | None) -> None:
    """Says once what is stored as unknown or as 0, and whether stamps are off the images' centre."""
    if without_ebv:
        of = number_of(len(files), "file")
        print(f"no E(B-V) in {without_ebv} of {of}: for their objects 0 is stored", file=sys.stderr)
    impossible = [one.impossible for one in files if one.impossible[0]]
    if impossible:
        of = number_of(sum(count for count, _ in impossible), "position is", "positions are")
        print(f"{of} out of range, stored as unknown; the first: {impossible[0][1]}", file=sys.stderr)
    size = files[0].kind.size
    if crop is not None and (size - crop) % 2:
        print(f"crop {crop} of {size} pixels is half a pixel off the centre", file=sys.stderr)


def _ebv_by_map(ebv_map: str, files: Sequence[InputFile]) -> list[npt.NDArray[np.float32]]:
    """Returns the map's E(B-V) of the objects of each file."""
    places = [one.positions for one in files if one.positions is not None]
    ra, dec = (np.concatenate(parts) for parts in zip(*places, strict=True))
    by_map = galactic_ebv(ebv_map, ra, dec).astype(np.float32)
    return np.split(by_map, np.cumsum([len(one.ids) for one in files])[:-1])


def _one_or_all(values: tuple[float, ...]) -> float | list[float]:
    return values[0] if len(set(values)) == 1 else list(values)


def _size(source: SourceFile) -> int:
    """Bytes of a source's first file; 0 for a Zarr store, which its digest identifies."""
    return source.files[0].stat().st_size if source.files else 0
