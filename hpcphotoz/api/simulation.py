"""Simulate a dataset from Python."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcphotoz.api.arguments import whole_number
from hpcphotoz.data.format.manifest import DEFAULT_STORAGE, STORAGE
from hpcphotoz.errors import BadInput


def simulate(
    out: Path | str,
    n: int,
    seed: int = 0,
    *,
    shard_rows: int = 1024,
    processes: int | None = None,
    storage: str = DEFAULT_STORAGE,
) -> Path:
    """Write a dataset of simulated galaxies of known redshift.

    Stamps have 64 x 64 pixels of 0.396 arcsec in the bands ugriz, in nanomaggies, with the noise of SDSS.

    Args:
        out: folder to make.
        n: number of galaxies.
        seed: which galaxies, 0 to 2^31 - 1; datasets of different seeds have no object in common.
        shard_rows: objects per shard.
        processes: worker processes; None: one per core.
        storage: of the pixels: "int16", in steps of 1/32 sky sigma, "float16", or "float32", twice as large,
            for programs that read `images` as they are stored.

    Returns:
        The folder.

    Raises:
        BadInput: an argument out of range, a folder that holds something already, or the extra `sources` is
            not installed.
    """
    n, seed, shard_rows = (
        whole_number("n", n),
        whole_number("seed", seed),
        whole_number("shard_rows", shard_rows),
    )
    processes = None if processes is None else whole_number("processes", processes)
    if storage not in STORAGE:
        raise BadInput(f"storage {storage!r}: want one of {', '.join(STORAGE)}")
    from hpcphotoz.sources.simulation import simulate

    out = Path(out)
    with _script_not_repeated():
        simulate.simulate(out, n, seed=seed, shard_rows=shard_rows, processes=processes, storage=storage)
    return out


@contextmanager
def _script_not_repeated() -> Iterator[None]:
    """Keep spawned processes from running the caller's script, which would make the same call again.

    Python's multiprocessing imports the main module in every process that it spawns, unless it has neither a
    file nor a name. Workers of this library need nothing of it.
    """
    main: dict[str, object] = vars(sys.modules["__main__"])
    saved: dict[str, object] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(saved)
