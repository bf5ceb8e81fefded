"""The peer mosaicml-streaming in its own environment, which answers requests so that it can take turns.

.venv-peers/bin/python benchmarks/peers/mds.py SHARDS_FOLDER MDS_FOLDER

Writes the stamps of the HDF5 shards in SHARDS_FOLDER as MDS to MDS_FOLDER, says `ready VERSION`, and then
answers each line `pass WORKERS` on standard input by the seconds of one shuffled epoch in batches of 256.
"""

import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
from torch.utils.data import DataLoader

# The package imports torchvision for data sets not used here; torchvision's PyPI wheel is for CUDA and fails
# to load beside torch's CPU build ("operator torchvision::nms does not exist").
sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")
import streaming  # type: ignore[import-not-found]  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]  # noqa: E402

BATCH = 256
LABELS = ("z_spec", "ebv", "object_id", "sky_sigma")


def write(shards: list[Path], out: Path) -> None:
    """Write every row of the shards as a sample of fixed-shape arrays; 64 MiB a shard, no compression."""
    with h5py.File(shards[0]) as first:
        shape = ",".join(map(str, first["images"].shape[1:]))
        bands = first["sky_sigma"].shape[1]
    columns = {
        "images": f"ndarray:float32:{shape}",
        "sky_sigma": f"ndarray:float32:{bands}",
        "z_spec": "float32",
        "ebv": "float32",
        "object_id": "int64",
    }
    with streaming.MDSWriter(out=str(out), columns=columns) as writer:
        for path in shards:
            with h5py.File(path) as file:
                labels = {name: file[name][...] for name in LABELS}
                for row in range(len(file["images"])):
                    sample = {name: column[row] for name, column in labels.items()}
                    writer.write({"images": file["images"][row], **sample})


def reader(folder: Path, workers: int) -> Callable[[], float]:
    """Seconds of an epoch; every call is the next epoch, in another order."""
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
    )

    def epoch() -> float:
        start, seen = time.perf_counter(), 0
        for batch in loader:
            for tensor in batch.values():
                tensor[(0,) * tensor.ndim].item()
            seen += len(batch["images"])
        seconds = time.perf_counter() - start
        if seen != len(dataset):
            raise RuntimeError(f"{seen} of {len(dataset)} stamps came")
        return seconds

    return epoch


def main() -> None:
    """Write, then answer until standard input ends."""
    shards, out = Path(sys.argv[1]), Path(sys.argv[2])
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    # A killed run leaves its shared memory behind, and the next one then hangs or fails.
    clean_stale_shared_memory()
    write(sorted(shards.glob("*.hdf5")), out)
    readers: dict[int, Callable[[], float]] = {}
    print("ready", streaming.__version__, flush=True)
    try:
        for line in sys.stdin:
            workers = int(line.removeprefix("pass"))
            if workers not in readers:
                readers[workers] = reader(out, workers)
            print(readers[workers](), flush=True)
    finally:
        readers.clear()
        clean_stale_shared_memory()


if __name__ == "__main__":
    main()
