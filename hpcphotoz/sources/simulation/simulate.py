"""Galaxies of known redshift on simulated sky: the images of an SDSS-like survey, as a dataset.

Object k of seed s is the same to the bit whatever the number of objects, shards or processes: its random
numbers come from a Philox generator with the key (s, k).
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hpcphotoz.data.format.manifest import Header, Manifest, read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.errors import BadInput
from hpcphotoz.progress import track
from hpcphotoz.sources.extra import sources_extra
from hpcphotoz.sources.simulation.population import (
    BANDS,
    Galaxy,
    Survey,
    SurveyTables,
    draw_galaxy,
    make_survey_tables,
)
from hpcphotoz.sources.simulation.rendering import (
    PIXEL_SCALE,
    STAMP,
    Camera,
    Exposure,
    add_noise,
    draw_exposure,
    render,
)

with sources_extra():
    import galsim

CHUNK = 32  # objects a task: 3 MB of images
FOOTPRINT = (120.0, 240.0, 0.0, 60.0)  # ra and dec ranges, deg
_CAMERA = Camera()


def simulate(
    out: Path,
    n: int,
    *,
    seed: int = 0,
    shard_rows: int = 1024,
    processes: int | None = None,
    storage: str = "float32",
) -> Manifest:
    """Write a dataset of `n` simulated galaxies: ugriz stamps of 64 x 64 pixels of 0.396", nanomaggies.

    Args:
        out: folder to create.
        n: number of galaxies.
        seed: which universe, 0 to 2^31 - 1; `object_id` is `(seed << 32) | index`.
        shard_rows: objects a shard.
        processes: worker processes; None: one a core that this process may use. 1: none, all is done here.
        storage: of the images: float32, float16 or int16.

    Returns:
        The manifest of the finished dataset.

    Raises:
        BadInput: an argument out of range, a folder that cannot be used, or a worker process that died.
    """
    processes = _usable_cores() if processes is None else processes
    check_arguments(n, seed, processes)
    tables = make_survey_tables()
    header = Header(BANDS, STAMP, PIXEL_SCALE, storage)
    tasks = [(seed, start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    sky = {"camera": _CAMERA.record(), "footprint_deg": list(FOOTPRINT)}
    record = provenance(n, seed, tables.survey) | sky
    with DatasetWriter(out, header, shard_rows, record) as writer:
        chunks = _chunks(tables, tasks, min(processes, len(tasks)))
        for stamps in track(chunks, "simulating galaxies", total=n, weight=CHUNK):
            writer.append(stamps)
    return read_manifest(out)


def simulate_rows(tables: SurveyTables, seed: int, start: int, stop: int) -> Stamps:
    """The objects `start` to `stop - 1` of a seed, in memory."""
    objects = [simulate_object(tables, seed, index) for index in range(start, stop)]
    ra, dec = np.array([position for *_, position in objects]).T
    return Stamps(
        images=np.stack([image for _, _, image, _ in objects]),
        z_spec=np.array([galaxy.z for galaxy, *_ in objects], np.float32),
        ebv=np.array([galaxy.ebv for galaxy, *_ in objects], np.float32),
        object_id=(np.int64(seed) << np.int64(32)) | np.arange(start, stop, dtype=np.int64),
        sky_sigma=np.array([exposure.sky_sigma for _, exposure, *_ in objects], np.float32),
        ra=ra,
        dec=dec,
    )


def simulate_object(
    tables: SurveyTables, seed: int, index: int
) -> tuple[Galaxy, Exposure, np.ndarray[Any, np.dtype[np.float32]], tuple[float, float]]:
    """What object `index` is, how it is observed, its stamp (5, 64, 64) nMgy, and its (ra, dec) in deg."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    galaxy = draw_galaxy(tables, rng)
    exposure = draw_exposure(_CAMERA, rng)
    ra_min, ra_max, dec_min, dec_max = FOOTPRINT
    sin_dec = rng.uniform(np.sin(np.radians(dec_min)), np.sin(np.radians(dec_max)))
    position = (float(rng.uniform(ra_min, ra_max)), float(np.degrees(np.arcsin(sin_dec))))
    return galaxy, exposure, add_noise(render(galaxy, exposure, _CAMERA), exposure, _CAMERA, rng), position


def provenance(n: int, seed: int, survey: Survey) -> dict[str, Any]:
    """Which galaxies, made by what, for the manifest."""
    libraries = ("hpcphotoz", "galsim", "speclite", "astropy", "numpy")
    return {
        "command": "simulate",
        "n": n,
        "seed": seed,
        "versions": {name: _version(name) for name in libraries},
        "survey": survey.record(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def _usable_cores() -> int:
    # A batch system gives a job a part of the node; only Linux tells which.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_arguments(n: int, seed: int, processes: int) -> None:
    """Refuse arguments out of range.

    Raises:
        BadInput: names it.
    """
    if not 1 <= n <= 1 << 32:
        raise BadInput(f"n {n}: must be at least 1 and at most 2^32")
    if not 0 <= seed < 1 << 31:
        raise BadInput(f"seed {seed}: must be at least 0 and less than 2^31")
    if processes < 1:
        raise BadInput(f"processes {processes}: must be at least 1")


def _chunks(tables: SurveyTables, tasks: list[tuple[int, int, int]], processes: int) -> Iterator[Stamps]:
    """The tasks' stamps in order, at most a few tasks a process ahead of the reader."""
    if processes == 1:
        for task in tasks:
            yield simulate_rows(tables, *task)
        return
    # spawn, never fork: the caller may hold threads (torch, HDF5), and a forked child may then hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker, (tables,)) as pool:
        ahead: deque[Future[Stamps]] = deque()
        try:
            for task in tasks:
                ahead.append(pool.submit(_work, task))
                if len(ahead) >= 3 * processes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise BadInput(
                "a simulation process died (out of memory?): run again with fewer `processes`"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker_tables: list[SurveyTables] = []


def _start_worker(tables: SurveyTables) -> None:
    # Ctrl-C reaches the whole process group: the parent ends the workers, which need not print tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    galsim.set_omp_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_tables.append(tables)


def _end_with_parent() -> None:
    """Leave when the parent is gone: a worker whose parent was killed otherwise waits for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: tuple[int, int, int]) -> Stamps:
    return simulate_rows(_worker_tables[0], *task)
