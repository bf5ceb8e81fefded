"""The training loop that a user would write by hand, in its own environment.

.venv-peers/bin/torchrun --standalone --nproc-per-node R benchmarks/peers/train.py TASK.json [--tuned]
    [--precision fp32|tf32|bf16]

The plain network in float32, a DataLoader over h5py, DistributedDataParallel, torchattacks.PGD on the first
part of every batch, one forward and backward pass of the mixed batch. What is left to taste is chosen in its
favour: labels are kept in memory, so that an object is one h5py read; the attack runs on the network inside
DistributedDataParallel, whose wrapper would add collectives to every step of it; pixels are mapped to [0, 1]
for the attacked part alone. `--tuned`: channels_last weights and images; whoever starts it sets
MALLOC_TRIM_THRESHOLD_ for memory to be kept. `--precision`: bf16 by autocast around attack and forward pass;
tf32 and fp32 are the same on a CPU.

TASK.json holds what `attack.build` wants of a network (network, bins, stamp, scale, normalisation, width);
z_min and z_max of the bins; data, a folder of shards with images (N, B, H, W) float32 nMgy, z_spec and ebv;
eps (nMgy per band), attack_steps and fraction of PGD; batch, the objects a step over all ranks;
learning_rate, weight_decay, seed; schedule, "constant" or "one_cycle" of torch; label_width, the standard
deviation of a Gaussian label in bins, or 0; augment, whether images are flipped and turned; steps, log_steps;
workers, the processes that read for each rank; save, the file for the state dict of the network, or null.

Rank 0 prints a line of JSON every `log_steps` steps: step; images_per_s, over all ranks; data_wait, the
fraction of the time spent waiting for a batch; loss, the mean over these steps.
"""

import argparse
import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

sys.path.append(str(Path(__file__).parents[2]))  # last: its folders must not hide installed packages
from benchmarks.peers.attack import Pixels, allow_tf32, build  # noqa: E402
from hpcphotoz.models.bins import RedshiftBins  # noqa: E402

Sample = tuple[Tensor, Tensor, Tensor]  # image nMgy, E(B-V), redshift; of a batch, (N, ...) each


class Rows(Dataset[Sample]):
    """Rows of HDF5 shards, each file opened where it is first read: HDF5 does not survive a fork.

    Args:
        shards: paths.
        augment: flip images and turn them by right angles, at random.
    """

    def __init__(self, shards: list[Path], augment: bool) -> None:
        self._augment, self._files = augment, dict[Path, h5py.File]()
        self._places: list[tuple[Path, int]] = []
        ebv, z, low, high = [], [], [], []
        for path in shards:
            with h5py.File(path, "r") as file:
                ebv.append(torch.from_numpy(file["ebv"][...]))
                z.append(torch.from_numpy(file["z_spec"][...]))
                images = torch.from_numpy(file["images"][...])
            low.append(images.amin((0, 2, 3)))
            high.append(images.amax((0, 2, 3)))
            self._places += [(path, row) for row in range(len(images))]
        if not self._places:
            raise ValueError("no shards with objects")
        self._ebv, self._z = torch.cat(ebv), torch.cat(z)
        # (2, B, 1, 1) nMgy: the least and the largest pixel of each band, as two images.
        self.extremes = torch.stack([torch.stack(low).amin(0), torch.stack(high).amax(0)])[:, :, None, None]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        path, row = self._places[index]
        if path not in self._files:
            self._files[path] = h5py.File(path, "r")
        image = torch.from_numpy(self._files[path]["images"][row])
        if self._augment:
            turns, flip = torch.randint(4, ()), torch.randint(2, ())
            image = torch.rot90(image.flip(2) if flip else image, int(turns), (1, 2))
        return image, self._ebv[index], self._z[index]


class Loop:
    """Network, attack and optimiser of one rank.

    Args:
        task: TASK.json.
        tuned, precision: as above.
        extremes: of `Rows`.
        device: where to train.
    """

    def __init__(
        self, task: dict[str, Any], tuned: bool, precision: str, extremes: Tensor, device: torch.device
    ) -> None:
        import torchattacks  # type: ignore[import-not-found]

        torch.manual_seed(task["seed"])
        network = build(task).to(device).train()
        if tuned:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._ddp = DistributedDataParallel(network, [device.index] if device.type == "cuda" else None)
        self._pixels = Pixels(self._ddp.module, extremes, torch.tensor(task["eps"])).to(device).train()
        eps, steps = self._pixels.eps01, task["attack_steps"]
        self._attack = torchattacks.PGD(self._pixels, eps=eps, alpha=2.5 * eps / steps, steps=steps)
        self._bins = RedshiftBins(task["bins"], task["z_min"], task["z_max"])
        self._optimiser = torch.optim.AdamW(
            network.parameters(), lr=task["learning_rate"], weight_decay=task["weight_decay"]
        )
        self._schedule = None
        if task["schedule"] == "one_cycle":
            self._schedule = torch.optim.lr_scheduler.OneCycleLR(
                self._optimiser, max_lr=task["learning_rate"], total_steps=task["steps"]
            )
        self._device, self._tuned, self._fraction = device, tuned, task["fraction"]
        self._label_width = task["label_width"]
        self._autocast = precision == "bf16"
        allow_tf32(precision != "fp32")

    def step(self, batch: Sample) -> Tensor:
        """Attack, forward, backward, update; the mean loss of this rank's objects."""
        images, ebv, z = (tensor.to(self._device, non_blocking=True) for tensor in batch)
        if self._tuned:
            images = images.contiguous(memory_format=torch.channels_last)
        label, attacked = self._bins.index(z), round(self._fraction * len(images))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            self._pixels.ebv = ebv[:attacked]
            found = self._attack(self._pixels.pixels(images[:attacked]), label[:attacked])
            logits = self._ddp(torch.cat([self._pixels.images(found), images[attacked:]]), ebv)
        loss = functional.cross_entropy(logits.float(), self._target(label, z))
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        if self._schedule:
            self._schedule.step()
        return loss.detach()

    def _target(self, label: Tensor, z: Tensor) -> Tensor:
        if not self._label_width:
            return label
        distance = (self._bins.centres(z.device) - z[:, None]) / (self._label_width * self._bins.width)
        return torch.softmax(-0.5 * distance**2, dim=1)

    def save(self, path: str) -> None:
        """Write the state dict of the network alone."""
        torch.save(self._ddp.module.state_dict(), path)


def batches(rows: Rows, task: dict[str, Any], pinned: bool) -> Iterator[Sample]:
    """This rank's share of every batch, epoch after epoch without end."""
    sampler: DistributedSampler[Sample] = DistributedSampler(rows, shuffle=True, seed=task["seed"])
    loader = DataLoader(
        rows,
        batch_size=task["batch"] // dist.get_world_size(),
        sampler=sampler,
        num_workers=task["workers"],
        persistent_workers=True,
        pin_memory=pinned,
        drop_last=True,
    )
    if not len(loader):
        raise ValueError(f"{len(rows)} objects are fewer than a batch of {task['batch']}")
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        yield from loader


def train(task: dict[str, Any], tuned: bool, precision: str, device: torch.device) -> None:
    """Take the steps, print their speed, and save the network if asked to."""
    rows, ranks = Rows(sorted(Path(task["data"]).glob("*.hdf5")), task["augment"]), dist.get_world_size()
    loop = Loop(task, tuned, precision, rows.extremes, device)
    source = batches(rows, task, device.type == "cuda")
    waited, seen, start = 0.0, 0, time.perf_counter()
    total = torch.zeros((), device=device)
    for step in range(1, task["steps"] + 1):
        asked = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - asked
        total += loop.step(batch)
        seen += len(batch[0]) * ranks
        if step % task["log_steps"] == 0:
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            dist.all_reduce(total)
            loss = float(total) / (task["log_steps"] * ranks)
            line = {"step": step, "images_per_s": seen / seconds, "data_wait": waited / seconds, "loss": loss}
            if dist.get_rank() == 0:
                print(json.dumps(line), flush=True)
            waited, seen, start = 0.0, 0, time.perf_counter()
            total.zero_()
    if task["save"] and dist.get_rank() == 0:
        loop.save(task["save"])


def main() -> None:
    """Join the other ranks, train, leave; an error is one line."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("task", type=Path)
    words.add_argument("--tuned", action="store_true")
    words.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32")
    options = words.parse_args()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=300))
    try:
        train(json.loads(options.task.read_text()), options.tuned, options.precision, device)
    except (OSError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        print(f"train.py: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    finally:
        gc.collect()  # DistributedDataParallel lies in cycles, and aborts if it outlives the process group
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
