"""The library in five functions: simulate a dataset, train a network, load it, open a dataset, attack it.

    import hpcphotoz

    hpcphotoz.simulate("galaxies", n=4096, seed=1)
    hpcphotoz.simulate("test", n=512, seed=2)
    run = hpcphotoz.train("adversarial", "galaxies", "run", epochs=10)
    network = hpcphotoz.load(run)
    for batch in hpcphotoz.open("test"):
        attacked = hpcphotoz.attack(network, batch, eps=0.1)
        pdf = network.pdf(attacked, batch.ebv)

The command line does the same on more: predictions as files, reports, clusters.
"""

import operator
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcphotoz.attacks import perturb
from hpcphotoz.config import Config
from hpcphotoz.config import load as configuration
from hpcphotoz.data.format.manifest import STORAGE, Manifest, read_manifest
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import attack_labels, count_subset_objects, to_tensors
from hpcphotoz.evaluation.inference import PASSES
from hpcphotoz.evaluation.network import check_tensors, compute_pdfs
from hpcphotoz.training import trainer
from hpcphotoz.training.distributed.rank_device import choose_device
from hpcphotoz.training.run.network import TrainedNetwork, load_network
from hpcphotoz.world import World


@dataclass(frozen=True)
class StampBatch:
    """Images and labels of N objects as tensors on one device."""

    images: Tensor  # (N, bands, y, x) float32, nanomaggies
    ebv: Tensor  # (N,) float32, mag
    z_spec: Tensor  # (N,) float32, NaN: unknown
    sky_sigma: Tensor  # (N, bands) float32, nanomaggies per pixel
    object_id: Tensor  # (N,) int64
    bands: tuple[str, ...]  # of the images, in their order

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk; iterate over it for batches in the order in which objects are stored."""

    folder: Path
    manifest: Manifest  # number of objects, bands, stamp size, pixel scale, statistics and provenance
    batch: int  # greatest number of objects in a batch; the last batch of a shard may hold fewer
    subset: Subset  # which objects are read
    device: torch.device  # where the tensors are put

    def __repr__(self) -> str:
        header, rows = self.manifest.header, self.manifest.rows
        bands, side = " ".join(header.bands), f"{header.stamp} x {header.stamp} pixels"
        return (
            f"<Dataset {self.folder}: {rows:,} objects{self.subset.text()}, bands {bands}, stamps of {side}>"
        )

    def __iter__(self) -> Iterator[StampBatch]:
        """Batches, checked against the checksums.

        Raises:
            BadInput: a shard that is damaged or does not match the manifest.
        """
        row_filter = self.subset if self.subset.columns else None
        for stamps in read_rows(self.folder, self.manifest, self.batch, row_filter):
            yield StampBatch(**to_tensors(stamps, self.device), bands=self.manifest.header.bands)


def simulate(
    out: Path | str,
    n: int,
    seed: int = 0,
    *,
    shard_rows: int = 1024,
    processes: int | None = None,
    storage: str = "float32",
) -> Path:
    """Write a dataset of simulated galaxies of known redshift.

    Stamps have 64 x 64 pixels of 0.396 arcsec in the bands ugriz, in nanomaggies, with the noise of SDSS.

    Args:
        out: folder to make.
        n: number of galaxies.
        seed: which galaxies, 0 to 2^31 - 1; datasets of different seeds have no object in common.
        shard_rows: objects per shard.
        processes: worker processes; None: one per core.
        storage: of the pixels: "float32", "float16" or "int16".

    Returns:
        The folder.

    Raises:
        BadInput: an argument out of range, a folder that holds something already, or the extra `sources` is
            not installed.
    """
    n, seed, shard_rows = _whole("n", n), _whole("seed", seed), _whole("shard_rows", shard_rows)
    processes = None if processes is None else _whole("processes", processes)
    if storage not in STORAGE:
        raise BadInput(f"storage {storage!r}: want one of {', '.join(STORAGE)}")
    from hpcphotoz.sources.simulation import simulate

    out = Path(out)
    with _script_not_repeated():
        simulate.simulate(out, n, seed=seed, shard_rows=shard_rows, processes=processes, storage=storage)
    return out


def train(
    config: Config | Path | str,
    data: Path | str,
    out: Path | str,
    *,
    device: str = "auto",
    profile: bool = False,
    **options: object,
) -> Path:
    """Train a network, or continue its training: the same call resumes from the newest checkpoint in `out`.

    Under torchrun, srun or mpirun every rank makes this call. Ctrl-C, SIGTERM and the option `wall_minutes`
    end the training early, with a checkpoint. Where the network is compiled, TORCHINDUCTOR_CACHE_DIR and
    TRITON_CACHE_DIR stay set, to a folder of the user's cache, unless they were set before.

    Args:
        config: name of a recipe ("standard", "adversarial", ...), path of a TOML file, or a `Config`.
        data: dataset folder.
        out: run folder; made where it does not exist.
        device: "cuda", "cpu", or "auto": a GPU where there is one.
        profile: write where the time of a step goes to `out`/profile.
        options: options of the configuration by name, such as epochs=10 or eps=0.2; they replace those of
            `config`.

    Returns:
        The run folder.

    Raises:
        BadInput: an unknown option, a value out of range, an unusable dataset, no such device, or a folder
            that holds another run.
        Diverged: the loss became NaN or infinite; the newest checkpoint is from before.
    """
    settings = config if isinstance(config, Config) else configuration.load(str(config))
    if options:
        tree = settings.model_dump()
        for section, values in configuration.nested(configuration.named(options, "train")).items():
            tree[section] |= values
        settings = configuration.parse(tree, "train")
    trainer.train(settings, Path(data), Path(out), profile, device)
    return Path(out)


def load(run: Path | str, device: str = "auto") -> TrainedNetwork:
    """Load the network of a run's newest checkpoint, or of a safetensors file, in evaluation mode.

    `network.pdf(images, ebv)` gives the PDFs; `network.module` is the torch module, `network.bins` its
    redshift bins, `network.config` the configuration of the run.

    Args:
        run: run folder, one checkpoint file in it, or a file *.safetensors that `save_network` wrote.
        device: "cuda", "cpu", or "auto": a GPU where there is one.

    Raises:
        BadInput: no such run, no checkpoint in it that loads, or no such device.
    """
    return load_network(run, choose_device(World(), device))


def open(
    folder: Path | str, *, batch: int = 256, subset: Subset = ALL_OBJECTS, device: str = "auto"
) -> Dataset:
    """Open a dataset.

    Args:
        folder: dataset folder.
        batch: greatest number of objects in a batch.
        subset: which objects to read. `Subset.from_options(network.config.data, "test", network.bands)` (of
            `hpcphotoz.data.select.subset`) is the test part of the split with which a network was trained.
        device: where batches are put: "cuda", "cpu", or "auto": a GPU where there is one.

    Raises:
        BadInput: no finished dataset, a shard that is missing, a subset without objects (all labels are read
            to count them), a batch below 1, or no such device.
    """
    if (batch := _whole("batch", batch)) < 1:
        raise BadInput(f"batch {batch}: must be at least 1")
    path = Path(folder)
    manifest, chosen = read_manifest(path), choose_device(World(), device)
    if subset.columns:
        count_subset_objects(path, manifest, subset)
    return Dataset(path, manifest, batch, subset, chosen)


def attack(
    network: TrainedNetwork,
    batch: StampBatch,
    *,
    method: str = "pgd",
    eps: float = 0.1,
    steps: int = 10,
    seed: int = 0,
    **options: object,
) -> Tensor:
    """Attack the images of a batch, in float32. The command `attack` does the same for a whole dataset.

    An autocast of the caller has no effect, and the mode of `network.module` is restored.

    An object of unknown redshift is attacked away from the most probable redshift of its own clean PDF.

    Args:
        network: the network to attack.
        batch: the objects, on the network's device.
        method: "fgsm", "pgd" or "apgd".
        eps: radius of the ball in sky sigmas of each object and band.
        steps: steps of "pgd" and "apgd".
        seed: key of the random starts.
        options: further options of the configuration's section `attack`: ball, step_size, random_start,
            restarts, loss, target, target_value, stop.

    Returns:
        Attacked images, (N, bands, y, x) float32, nanomaggies.

    Raises:
        BadInput: an unknown option, a value out of range, options that contradict each other, or a batch
            whose bands, shapes, types, device or values the network does not take.
    """
    bins, z, run = network.bins, batch.z_spec, f"run '{network.name}'"
    asked = {"method": method, "eps": eps, "steps": steps, **options}
    tree = {"model": {"z_min": bins.z_min, "z_max": bins.z_max}, "attack": asked}
    chosen = configuration.parse(tree, "attack").attack
    if not -(2**63) <= (seed := _whole("seed", seed)) < 2**63:
        raise BadInput(f"seed {seed}: must be a whole number of 64 bits")
    tensors: dict[str, Any] = {**vars(batch)}
    if (bands := tuple(tensors.pop("bands"))) != network.bands:
        ours, theirs = ",".join(network.bands), ",".join(bands)
        raise BadInput(f"attack: a batch of bands {theirs} but {run} takes {ours}, in that order")
    check_tensors(network, "attack", **tensors)
    outside = (z < bins.z_min) | (z >= bins.z_max)
    if outside.any():
        who = f"object {int(batch.object_id[outside][0])} has z_spec {float(z[outside][0]):.4f}"
        raise BadInput(f"attack: {who}, outside [{bins.z_min}, {bins.z_max}) of {run}")
    if z.isnan().any():
        z = attack_labels(bins, compute_pdfs(network, batch.images, batch.ebv, batch.object_id), z)
    given, passes = (batch.images, batch.ebv, z, batch.sky_sigma, batch.object_id), PASSES["fp32"]
    return perturb(network.module, *given, attack=chosen, bins=bins, seed=seed, passes=passes)


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise BadInput(f"{name} {value!r}: must be a whole number") from None


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
