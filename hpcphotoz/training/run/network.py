"""A trained network, loaded from a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcphotoz.config import Config
from hpcphotoz.config.load import parse
from hpcphotoz.config.renamed import to_current
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.network import check_tensors, compute_pdfs
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import bins_of, build
from hpcphotoz.training.run import checkpoint


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network in evaluation mode, with what is needed to use it."""

    name: str  # name of the run folder
    module: nn.Module
    bins: RedshiftBins
    bands: tuple[str, ...]
    stamp: int  # pixels a side
    config: Config
    step: int  # optimiser steps taken
    manifest_sha256: str  # of the dataset it was trained on

    def pdf(self, images: Tensor, ebv: Tensor) -> Tensor:
        """The PDF of each object, (N, bins) float32: a probability per redshift bin.

        Args:
            images: (N, bands, y, x) float32, nanomaggies, on the module's device; bands as in `bands`.
            ebv: (N,) float32, mag.

        Raises:
            BadInput: another shape, type or device, or a pixel, E(B-V) or output that is not finite; the
                message gives the object's place in the batch.
        """
        check_tensors(self, "pdf", images=images, ebv=ebv)
        return compute_pdfs(self, images, ebv, torch.arange(len(images), device=images.device))


def load_network(run: Path | str, device: torch.device | str = "cpu") -> TrainedNetwork:
    """Load the network of the newest checkpoint of a run.

    Args:
        run: a run folder, or one of its checkpoint files.
        device: where to put the network.

    Raises:
        BadInput: no such run, or no checkpoint that loads.
    """
    run = Path(run)
    path = run if run.is_file() else checkpoint.latest(run)
    if path is None:
        torn = " that loads" if checkpoint.paths(run) else ""
        give = "give a run folder that `hpcphotoz train --out` has filled"
        raise BadInput(f"{run}: no checkpoint{torn}: {give}")
    state = checkpoint.load(path, device)
    config = parse(_current_config(state, str(path)), str(path))
    with torch.random.fork_rng(devices=[]):
        module = build(config.model, stamp=state["stamp"], scale=tuple(state["scale"]))
    module.load_state_dict(state["model"])
    module.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    name = run.resolve().name if run.is_dir() else run.resolve().parent.parent.name
    facts = tuple(state["bands"]), state["stamp"], config, state["step"], state["manifest_sha256"]
    return TrainedNetwork(name, module, bins_of(config.model), *facts)


def _current_config(state: checkpoint.State, source: str) -> dict[str, Any]:
    """The configuration in a checkpoint, with the current names of sections and keys."""
    tree = to_current(state["config"], source)
    # Before checkpoints had the key `order`, `seed` drew the split too, and `read_ahead` counted batches.
    if "order" not in state:
        tree["data"].pop("windows_ahead", None)
        tree["data"].setdefault("split_seed", tree["run"]["seed"])
    return tree
