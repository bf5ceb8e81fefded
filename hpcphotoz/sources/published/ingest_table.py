"""Builds a dataset of stamps from published image sets: `ingest table`.

The rows of all files are numbered, in the order of the files' names; shard k holds the usable rows of k R to
(k + 1) R - 1. Rows are read in contiguous slabs, and a stamp is the centre of the image in the file. Unusable
rows are listed in the manifest's provenance with the reason. A file that cannot be read ends the ingest with
an error that names it; after it is replaced, the same command keeps all finished shards without a row of it.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.folder import check_dataset_folder
from hpcphotoz.data.format.manifest import Header, Manifest
from hpcphotoz.errors import BadInput
from hpcphotoz.output import number_of
from hpcphotoz.sources.build import build_dataset
from hpcphotoz.sources.catalogue import Redshifts, read_redshifts
from hpcphotoz.sources.constants import MASKED_FRACTION, ZERO_POINT
from hpcphotoz.sources.identifiers import RULE
from hpcphotoz.sources.mpi import mpi_ranks
from hpcphotoz.sources.published.array_file import open_array_file
from hpcphotoz.sources.published.file_layouts import (
    FILE_LAYOUTS,
    IVAR_FIELD,
    MASK_FIELDS,
    ImageKind,
    inspect_file,
    pixel_zero_point,
)
from hpcphotoz.sources.published.row_reader import ReadRows, RowRange, SourceFile, read_ids


def ingest_table(
    out: Path,
    sources: Sequence[Path],
    layout: str,
    *,
    shard_rows: int = 8192,
    crop: int | None = None,
    redshifts: Path | None = None,
    keep_unlabelled: bool = False,
    zero_point: float | None = None,
    limit: int | None = None,
    storage: str = "float32",
    processes: int | None = None,
) -> tuple[Manifest, list[dict[str, Any]]]:
    """Writes a dataset of the objects in published files; returns its manifest, and the skipped objects.

    Object identifiers of all rows are read first, 8 bytes each; of rows with the same identifier, the first
    is used. Identifiers become int64 by the rule of `identifiers.py`. A redshift that is NaN, -1 or below is
    unknown. An object is left out and listed if its E(B-V) is not finite, -1 or below, or above 100 mag. For
    a file without E(B-V), 0 is stored, which is reported. An ra or dec out of range becomes NaN. The sky
    sigma is measured in the outer eighth of the uncropped image (`noise.py`).

    Args:
        out: folder to create, or with an unfinished run of the same ingest, which is continued.
        sources: files, or folders of `.hdf5`, `.h5` files searched at any depth; for `pasquet` an npz file or
            a folder with `cube.npy` and `labels.npy`.
        layout: one of FILE_LAYOUTS.
        shard_rows: rows of the files for each shard; a process holds as many stamps in memory.
        crop: stamp size in pixels, cut about the centre; None: as in the files.
        redshifts: `mmu` only: CSV, FITS or VOTable with `object_id` and `z_spec` or `z`. Objects without a
            redshift are counted and left out.
        keep_unlabelled: `mmu` only: keep these, with z_spec NaN.
        zero_point: AB magnitude of one unit of the pixels; None: the layout's own.
        limit: number of rows to use, from the first; None: all.
        storage: of the images, as in `Header`.
        processes: as in `build_dataset`.

    Raises:
        BadInput: an option is out of range, a file is not of the layout or differs from the first one in
            bands, size or pixel scale, the folder cannot be used, or no object is usable.
    """

    def plan_here() -> tuple[ReadRows, list[tuple[RowRange, ...]], dict[str, Any]]:
        if layout not in FILE_LAYOUTS:
            raise BadInput(f"format '{layout}': must be one of {', '.join(FILE_LAYOUTS)}")
        if shard_rows < 1:
            raise BadInput(f"shard rows {shard_rows}: must be at least 1")
        if crop is not None and crop < 4:
            raise BadInput(f"crop {crop}: must be at least 4 pixels")
        if zero_point is not None and not 0 <= zero_point <= 40:
            raise BadInput(f"zero point {zero_point:g}: must be an AB magnitude from 0 to 40")
        if limit is not None and limit < 1:
            raise BadInput(f"limit {limit}: must be at least 1")
        has_own = FILE_LAYOUTS[layout].z_spec is not None
        if has_own and (redshifts is not None or keep_unlabelled):
            raise BadInput(
                f"format {layout} holds redshifts: --redshifts, --keep-unlabelled are for those without"
            )
        if not has_own and redshifts is None and not keep_unlabelled:
            raise BadInput(
                f"format {layout} holds no redshifts: give --redshifts TABLE, or --keep-unlabelled"
            )
        check_dataset_folder(out)
        fields = FILE_LAYOUTS[layout]
        table = read_redshifts(redshifts) if redshifts is not None else None
        files: list[SourceFile] = []
        ids: list[npt.NDArray[np.int64]] = []
        first: tuple[Path, ImageKind] | None = None
        lacking: Counter[str] = Counter()
        without_ebv = 0
        for path, display_name in _source_files(sources, layout):
            left = None if limit is None else limit - sum(map(len, ids))
            if left == 0:
                break
            with open_array_file(path, layout) as opened:
                kind, rows = inspect_file(opened, fields)
                rows = rows if left is None else min(rows, left)
                if kind is None or not rows:
                    continue
                first = first or (path, kind)
                if kind != first[1]:
                    raise BadInput(f"{path}: {kind}, but {first[0]} has {first[1]}")
                without_ebv += opened.first(fields.ebv, "ebv" in fields.optional) is None
                ids.append(read_ids(opened, fields, 0, rows))
                if not fields.bands:
                    lacking[MASK_FIELDS[0]] += opened.first(MASK_FIELDS, optional=True) is None
                    lacking[IVAR_FIELD] += IVAR_FIELD not in opened
            parts = tuple(path / f"{part}.npy" for part in ("cube", "labels")) if path.is_dir() else (path,)
            files.append(SourceFile(path, display_name, parts))
        if first is None:
            raise BadInput(f"{', '.join(map(str, sources))}: no object in it")
        kind = first[1]
        stamp = kind.size if crop is None else crop
        if stamp > kind.size:
            raise BadInput(f"crop {stamp}: {first[0]} has images of {kind.size} pixels: crop to at most that")
        unit = zero_point if zero_point is not None else pixel_zero_point(fields, kind.bands, first[0])
        header = Header(kind.bands, stamp, kind.pixel_scale, storage)
        make = ReadRows(layout, header, kind.size, 10 ** (0.4 * (ZERO_POINT - unit)), keep_unlabelled)
        provenance = {
            "command": "ingest table",
            "format": layout,
            "sources": [{"name": one.name, "bytes": one.files[0].stat().st_size} for one in files],
            "rows": sum(map(len, ids)),
            "crop": crop,
            "zero_point_ab": unit,
            "nanomaggies_per_unit": make.nanomaggies_per_unit,
            "ebv": fields.ebv_rule,
            "files_without_ebv": without_ebv,
            "object_id": RULE,
            "sky_sigma": "clipped standard deviation of the image's outer eighth, before cropping",
        }
        if not fields.bands:
            provenance |= {
                "redshifts": None if redshifts is None else redshifts.name,
                "masked_fraction": MASKED_FRACTION,
                "files_without": dict(lacking),
            }
        if without_ebv:
            of = number_of(len(files), "file")
            print(f"no E(B-V) in {without_ebv} of {of}: for their objects 0 is stored", file=sys.stderr)
        return make, _units(files, ids, table, shard_rows), provenance

    make, units, provenance = mpi_ranks().on_first_rank(plan_here)
    return build_dataset(
        out,
        make.header,
        make,
        units,
        provenance=provenance,
        label="reading tables, shards",
        processes=processes,
    )


def _units(
    sources: Sequence[SourceFile],
    ids: Sequence[npt.NDArray[np.int64]],
    table: Redshifts | None,
    shard_rows: int,
) -> list[tuple[RowRange, ...]]:
    """Returns the ranges of rows of each shard, from one file or several."""
    every = np.concatenate(ids)
    order = np.argsort(every, kind="stable")
    again = np.zeros(len(every), np.bool_)
    again[order[1:]] = every[order[1:]] == every[order[:-1]]
    ends = np.cumsum([len(part) for part in ids])
    units = []
    for start in range(0, len(every), shard_rows):
        stop, row_ranges = min(start + shard_rows, len(every)), []
        while start < stop:
            k = int(np.searchsorted(ends, start, side="right"))
            base, until = int(ends[k]) - len(ids[k]), min(stop, int(ends[k]))
            z = None if table is None else table.lookup(every[start:until])
            repeated = tuple(np.flatnonzero(again[start:until]).tolist())
            row_ranges.append(RowRange(sources[k], start - base, until - base, z, repeated))
            start = until
        units.append(tuple(row_ranges))
    return units


def _source_files(paths: Sequence[Path], name: str) -> list[tuple[Path, str]]:
    """Returns every file once, in the order of the resolved paths, and its name in the provenance."""
    found: dict[Path, str] = {}
    for path in paths:
        if not path.exists():
            raise BadInput(f"{path}: no such file or folder")
        if name == "pasquet" or path.is_file():
            found.setdefault(path.resolve(), path.name)
            continue
        below = [p for p in path.rglob("*") if p.suffix.lower() in (".hdf5", ".h5") and p.is_file()]
        if not below:
            raise BadInput(f"{path}: no .hdf5 or .h5 file in it")
        for one in below:
            found.setdefault(one.resolve(), one.relative_to(path).as_posix())
    return sorted(found.items())
