"""Puts simulated galaxies of known redshift into real SDSS frames: `simulate --onto`.

This follows Balrog (Suchyta et al. 2016, MNRAS 457, 786). The galaxy is added to the pixels of each band's
frame: it is seen through the frame's point spread function at that place, and its photons are counted with
the frame's gain. Then the stamp is resampled from those pixels, as stamps of real galaxies are. The noise,
its correlations, the neighbours and the unevenness of the sky are real.

Galaxy k of seed s is the galaxy k that `simulate` makes of that seed. Its index gives the field, and its
place there is drawn from the same generator. So the place depends on the frames found, but not on the number
of objects, shards or processes.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcphotoz.data.format.manifest import Header, Manifest
from hpcphotoz.sources.build import UnitStamps, build_dataset
from hpcphotoz.sources.constants import BANDS, PIXEL_SCALE
from hpcphotoz.sources.engine.append import Append, find_target
from hpcphotoz.sources.mpi import mpi_ranks
from hpcphotoz.sources.noise import frame_sky_sigma
from hpcphotoz.sources.simulation.population import draw_galaxy, generator
from hpcphotoz.sources.simulation.real_sky import (
    PATCH,
    PLACEMENT,
    FieldBlock,
    RealField,
    complete_sets,
    field_blocks,
    find_place,
    load_field,
    patch_corner,
    project,
    used_files,
)
from hpcphotoz.sources.simulation.rendering import STAMP, render_in_pixels
from hpcphotoz.sources.simulation.simulate import (
    SimulatedGalaxy,
    check_arguments,
    index_ranges,
    indices_in,
    provenance,
    to_stamps,
)
from hpcphotoz.sources.simulation.survey_tables import R_BAND, SurveyTables, make_survey_tables
from hpcphotoz.sources.surveys.frame import Floats, resample


def simulate_onto(
    out: Path,
    n: int,
    frames: Path,
    *,
    seed: int = 0,
    shard_rows: int = 1024,
    processes: int | None = None,
    storage: str | None = None,
    append: bool = False,
) -> Manifest:
    """Writes a dataset of `n` simulated galaxies in real sky: ugriz stamps of 64 x 64 pixels, nanomaggies.

    `ebv` is that of the simulated galaxy, which dims its fluxes; `ra` and `dec` are its place in the frames;
    `sky_sigma` is measured there before the galaxy is added. A frame set that lacks a frame, a mask or its
    psField file is left out and listed in the manifest's provenance.

    Args:
        out, n, seed, storage, append: as `simulate`.
        frames: folder searched at any depth for fpC frames with their fpM and psField files.
        shard_rows: objects a shard; one process makes a shard, in its memory.
        processes: None: one a core; each holds up to 150 MB of frames. Under MPI the ranks are the processes.

    Raises:
        BadInput: an argument is out of range, no frame set is complete, a file cannot be read, a field has no
            empty place, the folder cannot be used, or a worker process died.
    """

    def plan_here() -> tuple[
        Header, InjectGalaxies, list[tuple[FieldBlock, ...]], dict[str, Any], Append | None
    ]:
        check_arguments(n, seed, shard_rows, processes)
        target = find_target(out, append)
        there = indices_in(target, seed, n)
        sets, incomplete = complete_sets(frames)
        files = [path for one in sets for path in used_files(one)]
        tables = make_survey_tables()
        record = provenance(n, seed, tables.survey) | {
            "onto": [path.name for path in files],
            "placement": asdict(PLACEMENT),
            "resampling": "Lanczos-3 onto the r frame's grid",
            "skipped": incomplete,
        }
        units = [
            tuple(block for start, stop in ranges for block in field_blocks(sets, start, stop))
            for ranges in index_ranges(n, shard_rows, there)
        ]
        make = InjectGalaxies(tables, seed, tuple(record["versions"].items()))
        header = Header(BANDS, STAMP, PIXEL_SCALE, storage or target.storage)
        return header, make, units, record, target.append(len(there))

    header, make, units, record, appended = mpi_ranks().on_first_rank(plan_here)
    manifest, _ = build_dataset(
        out,
        header,
        make,
        units,
        provenance=record,
        label="putting galaxies into frames, shards",
        processes=processes,
        append=appended,
    )
    return manifest


@dataclass(frozen=True)
class InjectGalaxies:
    """Makes the galaxies of a shard, block by block."""

    tables: SurveyTables
    seed: int
    versions: tuple[tuple[str, str], ...]  # of the libraries that draw galaxies: other versions keep no shard

    def __call__(self, unit: Any) -> UnitStamps:
        """Returns the objects of some blocks."""
        objects = [
            inject(self.tables, load_field(block.frame_set), self.seed, index)
            for block in unit
            for index in range(block.start, block.stop)
        ]
        return UnitStamps(to_stamps(objects, self.seed))


def inject(tables: SurveyTables, field: RealField, seed: int, index: int) -> SimulatedGalaxy:
    """Puts object `index` of a seed into a field.

    Raises:
        BadInput: the field has no empty place for it (`find_place`).
    """
    rng = generator(seed, index)
    galaxy = draw_galaxy(tables, rng)
    place = find_place(field, rng)
    corners = [patch_corner(x, y) for x, y in place]
    psfs = [field.psf.bands[b].at(*place[b]) for b in range(len(BANDS))]
    centres = [(x - x0, y - y0) for (x, y), (x0, y0) in zip(place, corners, strict=True)]
    light = count_photons(render_in_pixels(galaxy, psfs, centres, PATCH), field.electrons, rng)
    reference = field.frames[R_BAND]
    along_y, along_x = np.mgrid[:STAMP, :STAMP] - (STAMP - 1) / 2
    grid = place[R_BAND][0] + along_x, place[R_BAND][1] + along_y
    image = np.empty((len(BANDS), STAMP, STAMP), np.float32)
    for b, (frame, (x0, y0)) in enumerate(zip(field.frames, corners, strict=True)):
        x, y = grid if b == R_BAND else project(reference, frame, *grid)
        pixels = frame.image[y0 : y0 + PATCH, x0 : x0 + PATCH] + light[b]
        patch = replace(frame, image=np.asarray(pixels, np.float32))
        image[b] = resample(patch, x - x0, y - y0) * (
            reference.geometry.pixel_area / frame.geometry.pixel_area
        )
    ((ra, dec),) = reference.geometry.sky(np.array([place[R_BAND]]))
    noise = np.array(
        [frame_sky_sigma(frame.image, *at) for frame, at in zip(field.frames, place, strict=True)]
    )
    return SimulatedGalaxy(index, galaxy, image, noise, float(ra), float(dec), tuple(place))


def count_photons(
    light: Floats,  # (band, y, x) nanomaggies
    electrons: Floats,  # (band,) per nanomaggy
    rng: np.random.Generator,
) -> Floats:
    """Adds the noise of counted electrons to light; where a measured PSF is negative, light is unchanged."""
    scale = electrons[:, None, None]
    expected = np.maximum(light, 0) * scale
    return np.asarray(light + (rng.poisson(expected) - expected) / scale)
