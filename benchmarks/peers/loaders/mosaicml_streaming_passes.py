"""mosaicml-streaming: stamps as MDS, shuffled over shards by its default algorithm (py1e).

.venv-peers/bin/python -m benchmarks.peers.loaders.mosaicml_streaming_passes SHARDS_FOLDER MDS_FOLDER
"""

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import h5py
from torch.utils.data import DataLoader

from benchmarks.peers.loaders.passes import BATCH, Pass, answer, rows_of, shards_of, timed

# The package imports torchvision for data sets not used here; torchvision's PyPI wheel is for CUDA and fails
# to load beside torch's CPU build ("operator torchvision::nms does not exist").
sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")
import streaming  # type: ignore[import-not-found]  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]  # noqa: E402


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
        for row in rows_of(shards):
            writer.write(row)


def open_pass(folder: Path, workers: int) -> Pass:
    """A `StreamingDataset` in a DataLoader; every pass is the next epoch, in another order."""
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: timed(loader, len(dataset))


def main() -> None:
    """Write unless it is there, then answer until standard input ends."""
    shards, out = Path(sys.argv[1]), Path(sys.argv[2])
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    # A killed run leaves its shared memory behind, and the next one then hangs or fails.
    clean_stale_shared_memory()
    if not out.exists():
        write(shards_of(shards), out)
    try:
        answer(streaming.__version__, lambda workers: open_pass(out, workers))
    finally:
        clean_stale_shared_memory()


if __name__ == "__main__":
    main()
