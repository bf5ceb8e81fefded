"""Train, load and attack a network from Python."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpcphotoz.api.arguments import whole_number
from hpcphotoz.api.stamp_batch import StampBatch
from hpcphotoz.attacks import perturb
from hpcphotoz.config import Config
from hpcphotoz.config import load as configuration
from hpcphotoz.config.model import renamed_network
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import attack_labels
from hpcphotoz.evaluation.inference import PASSES
from hpcphotoz.evaluation.network import RedshiftNetwork, check_tensors, compute_pdfs, named
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.factory import taking_ebv
from hpcphotoz.training import trainer
from hpcphotoz.training.distributed.rank_device import choose_device
from hpcphotoz.training.run.network import TrainedNetwork, load_network
from hpcphotoz.world import World


def train(
    config: Config | Path | str,
    data: Path | str | Mapping[str, float],
    out: Path | str,
    *,
    device: str = "auto",
    profile: bool = False,
    start_from: Path | str | None = None,
    **options: object,
) -> Path:
    """Train a network, or continue its training: the same call resumes from the newest checkpoint in `out`.

    Under torchrun, srun or mpirun every rank makes this call. Ctrl-C, SIGTERM and the option `wall_minutes`
    end the training early, with a checkpoint. Where the network is compiled, TORCHINDUCTOR_CACHE_DIR and
    TRITON_CACHE_DIR stay set, to a folder of the user's cache, unless they were set before.

    Args:
        config: name of a recipe ("standard", "adversarial", ...), path of a TOML file, or a `Config`.
        data: dataset folder, or of several datasets the weight of each folder, {"a": 0.7, "b": 0.3}.
        out: run folder; made where it does not exist.
        device: "cuda", "cpu", or "auto": a GPU where there is one.
        profile: write where the time of a step goes to `out`/profile.
        start_from: run folder, checkpoint or *.safetensors with whose weights a new run begins.
        options: options of the configuration by name, such as epochs=10 or eps=0.2; they replace those of
            `config`.

    Returns:
        The run folder.

    Raises:
        BadInput: an unknown option, a value out of range, an unusable dataset, no such device, or a folder
            that holds another run.
        Diverged: the loss or gradient of more than `run.max_skipped_steps` steps in a row was not finite.
    """
    settings = config if isinstance(config, Config) else configuration.load(str(config))
    if options:
        tree = settings.model_dump()
        if "name" in options:
            tree["model"] = renamed_network(tree["model"], options["name"])
        for section, values in configuration.nested(configuration.named(options, "train")).items():
            tree[section] |= values
        settings = configuration.parse(tree, "train")
    begin = None if start_from is None else Path(start_from)
    trainer.train(settings, Datasets.of(data), Path(out), profile, device, start_from=begin)
    return Path(out)


def load(run: Path | str, device: str = "auto", *, trust_code: bool = False) -> TrainedNetwork:
    """Load the network of a run's newest checkpoint, or of a safetensors file, in evaluation mode.

    `network.predict(images, ebv)` gives the PDFs; `network.module` is the torch module, `network.bins` its
    redshift bins, `network.config` the configuration of the run.

    Args:
        run: run folder, one checkpoint file in it, or a file *.safetensors that `save_network` wrote.
        device: "cuda", "cpu", or "auto": a GPU where there is one.
        trust_code: import and call the package.module:factory that the run or file names; it may do anything.

    Raises:
        BadInput: no such run, no checkpoint in it that loads, no such device, or a network
            package.module:factory without `trust_code`.
    """
    return load_network(run, choose_device(World(), device), trust_code=trust_code)


def attack(
    network: TrainedNetwork | nn.Module,
    batch: StampBatch,
    *,
    bins: RedshiftBins | None = None,
    method: str = "pgd",
    eps: float = 0.1,
    steps: int = 10,
    seed: int = 0,
    **options: object,
) -> Tensor:
    """Attack the images of a batch, in float32. The command `attack` does the same for a whole dataset.

    An autocast of the caller has no effect, and the mode of the module is restored.

    An object of unknown redshift is attacked away from the most probable redshift of its own clean PDF.

    Args:
        network: the network to attack, or a torch module of your own: called as module(images, ebv), or as
            module(images) where its `forward` has neither a second required argument nor one called `ebv`. It
            returns logits, (N, bins.n).
        batch: the objects, on the network's device.
        bins: redshift bins of the logits of a module; a `TrainedNetwork` has its own.
        method: "fgsm", "pgd", "apgd" or "square".
        eps: radius of the ball in sky sigmas of each object and band.
        steps: steps of "pgd" and "apgd", queries of "square".
        seed: key of the random starts.
        options: further options of the configuration's section `attack`: ball, step_size, random_start,
            restarts, loss, target, target_value, stop.

    Returns:
        Attacked images, (N, bands, y, x) float32, nanomaggies.

    Raises:
        BadInput: an unknown option, a value out of range, options that contradict each other, a batch whose
            bands, shapes, types, device or values the network does not take, or a module without `bins`.
    """
    if not isinstance(batch, StampBatch):
        what = type(batch).__name__
        raise BadInput(f"attack: batch: a {what}: want a StampBatch, such as hpcphotoz.open(DATASET)[:8]")
    attacked = _with_bins(network, batch, bins)
    bins, z, who = attacked.bins, batch.z_spec, named(attacked)
    asked = {"method": method, "eps": eps, "steps": steps, **options}
    tree = {"model": {"z_min": bins.z_min, "z_max": bins.z_max}, "attack": asked}
    chosen = configuration.parse(tree, "attack").attack
    if not -(2**63) <= (seed := whole_number("seed", seed)) < 2**63:
        raise BadInput(f"seed {seed}: must be a whole number of 64 bits")
    tensors: dict[str, Any] = {
        name: one for name, one in vars(batch).items() if name not in ("bands", "extra")
    }
    if (bands := tuple(batch.bands)) != attacked.bands:
        ours, theirs = ",".join(attacked.bands), ",".join(bands)
        raise BadInput(f"attack: a batch of bands {theirs} but {who} takes {ours}, in that order")
    check_tensors(attacked, "attack", **tensors)
    outside = (z < bins.z_min) | (z >= bins.z_max)
    if outside.any():
        first = f"object {int(batch.object_id[outside][0])} has z_spec {float(z[outside][0]):.4f}"
        raise BadInput(f"attack: {first}, outside [{bins.z_min}, {bins.z_max}) of {who}")
    if isinstance(attacked, _UserNetwork):  # its logits have to suit the bins: the loss would not notice
        compute_pdfs(attacked, batch.images[:1], batch.ebv[:1], batch.object_id[:1])
    if z.isnan().any():
        z = attack_labels(bins, compute_pdfs(attacked, batch.images, batch.ebv, batch.object_id), z)
    given, passes = (batch.images, batch.ebv, z, batch.sky_sigma, batch.object_id), PASSES["fp32"]
    return perturb(attacked.module, *given, attack=chosen, bins=bins, seed=seed, passes=passes)


@dataclass(frozen=True)
class _UserNetwork:
    """A torch module with the members of `RedshiftNetwork`, for batches of certain bands and size."""

    name: str
    title: str  # in messages
    module: nn.Module  # called as module(images, ebv)
    bins: RedshiftBins
    bands: tuple[str, ...]
    stamp: int
    step: int = 0


def _with_bins(
    network: TrainedNetwork | nn.Module, batch: StampBatch, bins: RedshiftBins | None
) -> RedshiftNetwork:
    if not isinstance(network, nn.Module):
        if not isinstance(network, TrainedNetwork):
            what = type(network).__name__
            raise BadInput(f"attack: network: a {what}: want hpcphotoz.load(RUN), or a torch module")
        if bins is not None and bins != network.bins:
            raise BadInput(f"attack: bins: run '{network.name}' has its own: leave them out")
        return network
    module: nn.Module = network.module if isinstance(network, DistributedDataParallel) else network
    name = type(module).__name__
    if not isinstance(bins, RedshiftBins):
        raise BadInput(
            f"attack: bins: want those of the module {name}: say what its logits mean, such as "
            "bins=RedshiftBins(180, 0.0, 0.4)"
        )
    module = taking_ebv(module, f"attack: module {name}")
    stamp = int(batch.images.shape[-1]) if batch.images.ndim else 0  # `check_tensors` checks the shape
    return _UserNetwork(name, f"module {name}", module, bins, tuple(batch.bands), stamp)
