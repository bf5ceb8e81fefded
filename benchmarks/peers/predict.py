"""Prediction as a user would write it by hand: the plain network behind a DataLoader over h5py.

Run by `benchmarks.bench_predict` as a process of its own, in this environment: it needs torch and h5py alone.

python benchmarks/peers/predict.py TASK.json

TASK.json holds what `attack.build` wants of a network (network, bins, stamp, scale, normalisation, width);
weights, a state dict of torch.save; data, a folder of shards with images (N, B, H, W) float32 nMgy and ebv;
batch; workers, processes that read; tuned, whether weights and images are channels_last; out, an npy file.

float32 throughout, in evaluation mode and without gradients; an object is one h5py read, E(B-V) is kept in
memory. Prints a line of JSON: seconds from the first batch asked for to the PDFs on the disk, without the
start of the process, the import of torch, the load of the network and a pass that warms up.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

sys.path.append(str(Path(__file__).parents[2]))  # last: its folders must not hide installed packages
from benchmarks.peers.attack import DEVICE, build, synchronise  # noqa: E402


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Images and E(B-V) of HDF5 shards, each file opened where it is first read: HDF5 survives no fork."""

    def __init__(self, shards: list[Path]) -> None:
        self._files, self._places, ebv = dict[Path, h5py.File](), list[tuple[Path, int]](), []
        for path in shards:
            with h5py.File(path, "r") as file:
                ebv.append(torch.from_numpy(file["ebv"][...]))
            self._places += [(path, row) for row in range(len(ebv[-1]))]
        self._ebv = torch.cat(ebv)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, row = self._places[index]
        if path not in self._files:
            self._files[path] = h5py.File(path, "r")
        return torch.from_numpy(self._files[path]["images"][row]), self._ebv[index]


@torch.inference_mode()
def main() -> None:
    """Predict the PDFs of all objects and write them."""
    task: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    network = build(task)
    network.load_state_dict(torch.load(task["weights"], weights_only=True))
    network.eval().to(DEVICE)
    layout = torch.channels_last if task["tuned"] else torch.contiguous_format
    network.to(memory_format=layout)  # type: ignore[call-overload]
    rows = Rows(sorted(Path(task["data"]).glob("shard-*.hdf5")))
    loader = DataLoader(
        rows, task["batch"], num_workers=task["workers"], pin_memory=DEVICE == "cuda", drop_last=False
    )
    warm = torch.zeros(task["batch"], len(task["scale"]), task["stamp"], task["stamp"], device=DEVICE)
    network(warm.contiguous(memory_format=layout), warm[:, 0, 0, 0])
    synchronise()
    start, pdfs = time.perf_counter(), []
    for images, ebv in loader:
        x = images.to(DEVICE, non_blocking=True).contiguous(memory_format=layout)
        pdfs.append(torch.softmax(network(x, ebv.to(DEVICE, non_blocking=True)), dim=1).cpu().numpy())
    np.save(task["out"], np.concatenate(pdfs))
    print(json.dumps(time.perf_counter() - start))


if __name__ == "__main__":
    main()
