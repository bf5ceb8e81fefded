"""Simulates an SDSS-like survey: a dataset of galaxies of known redshift on simulated sky.

Object k of seed s is the same to the bit for any number of objects, shards or processes: its random numbers
come from a Philox generator with the key (s, k).
"""

import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Header, Manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.errors import BadInput
from hpcphotoz.sources.build import Parts, UnitStamps, build_dataset
from hpcphotoz.sources.constants import BANDS, PIXEL_SCALE
from hpcphotoz.sources.engine.append import Append, Target, find_target
from hpcphotoz.sources.mpi import mpi_ranks
from hpcphotoz.sources.optional_imports import sources_extra
from hpcphotoz.sources.simulation.exposure import CAMERA, add_noise, draw_exposure
from hpcphotoz.sources.simulation.population import Galaxy, draw_galaxy, generator
from hpcphotoz.sources.simulation.rendering import STAMP, render
from hpcphotoz.sources.simulation.survey_tables import (
    CLASSES,
    TEMPLATES,
    Floats,
    Survey,
    SurveyTables,
    make_survey_tables,
)

with sources_extra():
    import galsim

PART = 32  # objects that a process makes at a time: 3 MB of images
Ranges = tuple[tuple[int, int], ...]  # galaxies of a shard: start, stop
FOOTPRINT = (120.0, 240.0, 0.0, 60.0)  # ra and dec ranges, deg


def simulate(
    out: Path,
    n: int,
    *,
    seed: int = 0,
    shard_rows: int = 1024,
    processes: int | None = None,
    storage: str | None = None,
    append: bool = False,
) -> Manifest:
    """Writes a dataset of `n` simulated galaxies: ugriz stamps of 64 x 64 pixels of 0.396", nanomaggies.

    A simulation that was killed is continued by the same call: it keeps finished shards.

    Args:
        out: folder to create.
        n: number of galaxies.
        seed: which universe, 0 to 2^31 - 1; `object_id` is `(seed << 32) | index`.
        shard_rows: objects a shard.
        processes: worker processes, which share each shard; None: one for each core that this process may
            use; 1: this process does everything. Under MPI the ranks are the processes, one shard a rank.
        storage: of the images: float32, float16 or int16; None: int16, or as in `out`.
        append: add new shards to the dataset in `out`, of those of the `n` galaxies that it does not have.

    Raises:
        BadInput: an argument is out of range, the folder cannot be used, or a worker process died.
    """

    def plan_here() -> tuple[Header, SimulateGalaxies, list[Ranges], dict[str, Any], Append | None]:
        check_arguments(n, seed, shard_rows, processes)
        target = find_target(out, append)
        tables = make_survey_tables()
        sky = {"camera": asdict(CAMERA), "footprint_deg": list(FOOTPRINT)}
        record = provenance(n, seed, tables.survey) | sky
        make = SimulateGalaxies(tables, seed, tuple(record["versions"].items()))
        there = indices_in(target, seed, n)
        header = Header(BANDS, STAMP, PIXEL_SCALE, storage or target.storage)
        return header, make, index_ranges(n, shard_rows, there), record, target.append(len(there))

    header, make, units, record, appended = mpi_ranks().on_first_rank(plan_here)
    manifest, _ = build_dataset(
        out,
        header,
        make,
        units,
        provenance=record,
        label="simulating galaxies, shards",
        processes=processes,
        parts=Parts(parts_of, f"simulating galaxies, parts of {PART}"),
        append=appended,
    )
    return manifest


def indices_in(target: Target, seed: int, n: int) -> npt.NDArray[np.int64]:
    """Returns which galaxies 0 to n - 1 of a seed are in the dataset that is appended to, ascending."""
    mine = target.object_id[target.object_id >> 32 == seed] & 0xFFFFFFFF
    return np.unique(mine[mine < n])


def index_ranges(n: int, shard_rows: int, there: npt.NDArray[np.int64]) -> list[Ranges]:
    """Returns the galaxies of each shard: 0 to n - 1 without those that are there already, ascending."""
    edges = np.concatenate([[-1], there, [n]])
    gaps = np.flatnonzero(np.diff(edges) > 1)
    units: list[list[tuple[int, int]]] = []
    free = 0
    for start, stop in zip((edges[gaps] + 1).tolist(), edges[gaps + 1].tolist(), strict=True):
        while start < stop:
            if not free:
                units.append([])
                free = shard_rows
            end = min(stop, start + free)
            units[-1].append((start, end))
            free -= end - start
            start = end
    return [tuple(unit) for unit in units]


def parts_of(unit: Ranges) -> list[Ranges]:
    """Cuts the galaxies of a shard into parts."""
    return [((first, min(first + PART, stop)),) for start, stop in unit for first in range(start, stop, PART)]


@dataclass(frozen=True)
class SimulateGalaxies:
    """Simulates the objects of a part of a shard; sent to each worker process once."""

    tables: SurveyTables
    seed: int
    versions: tuple[tuple[str, str], ...] = ()  # of the libraries: other versions keep no finished shard

    def __call__(self, unit: Ranges) -> UnitStamps:
        """Returns the objects `start` to `stop - 1` of each range (start, stop)."""
        if multiprocessing.parent_process() is not None or mpi_ranks().size > 1:
            galsim.set_omp_threads(1)  # every core has a worker already
        objects = [
            simulate_object(self.tables, self.seed, k) for start, stop in unit for k in range(start, stop)
        ]
        return UnitStamps(to_stamps(objects, self.seed))


@dataclass(frozen=True)
class SimulatedGalaxy:
    """Galaxy `index` of a seed, its stamp, and its place on the sky."""

    index: int
    galaxy: Galaxy
    image: npt.NDArray[np.float32]  # (band, 64, 64) nanomaggies
    sky_sigma: Floats  # (band,) nanomaggies per pixel
    ra: float  # deg
    dec: float
    place: tuple[tuple[float, float], ...] = ()  # x, y in each band's frame, pixels from 0; (): in no frame


def to_stamps(objects: Sequence[SimulatedGalaxy], seed: int) -> Stamps:
    """Returns simulated galaxies as stamps with the ids `(seed << 32) | index`."""
    return Stamps(
        images=np.stack([one.image for one in objects]),
        z_spec=np.array([one.galaxy.z for one in objects], np.float32),
        ebv=np.array([one.galaxy.ebv for one in objects], np.float32),
        object_id=(np.int64(seed) << np.int64(32)) | np.array([one.index for one in objects], np.int64),
        sky_sigma=np.array([one.sky_sigma for one in objects], np.float32),
        ra=np.array([one.ra for one in objects]),
        dec=np.array([one.dec for one in objects]),
    )


def simulate_object(tables: SurveyTables, seed: int, index: int) -> SimulatedGalaxy:
    """Simulates object `index` of a seed."""
    rng = generator(seed, index)
    galaxy, exposure = draw_galaxy(tables, rng), draw_exposure(rng)
    ra_min, ra_max, dec_min, dec_max = FOOTPRINT
    sin_dec = rng.uniform(np.sin(np.radians(dec_min)), np.sin(np.radians(dec_max)))
    ra, dec = float(rng.uniform(ra_min, ra_max)), float(np.degrees(np.arcsin(sin_dec)))
    image = add_noise(render(galaxy, exposure), exposure, rng)
    return SimulatedGalaxy(index, galaxy, image, exposure.sky_sigma, ra, dec)


def provenance(n: int, seed: int, survey: Survey) -> dict[str, Any]:
    """Returns the record of the galaxies and of the libraries that made them, for the manifest."""
    libraries = ("hpcphotoz", "galsim", "speclite", "astropy", "numpy")
    return {
        "command": "simulate",
        "n": n,
        "seed": seed,
        "versions": {name: _version(name) for name in libraries},
        "survey": {
            **asdict(survey),
            "classes": [asdict(one) for one in CLASSES],
            "templates": "CWW " + " ".join(TEMPLATES),
        },
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def check_arguments(n: int, seed: int, shard_rows: int, processes: int | None) -> None:
    """Refuses arguments that are out of range.

    Raises:
        BadInput: names the argument.
    """
    if not 1 <= n <= 1 << 32:
        raise BadInput(f"n {n}: must be at least 1 and at most 2^32")
    if not 0 <= seed < 1 << 31:
        raise BadInput(f"seed {seed}: must be at least 0 and less than 2^31")
    if shard_rows < 1:
        raise BadInput(f"shard rows {shard_rows}: must be at least 1")
    if processes is not None and processes < 1:
        raise BadInput(f"processes {processes}: must be at least 1")
