"""A trained network: loaded from a run, or saved to and loaded from one safetensors file."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcphotoz.config import Config
from hpcphotoz.config.load import parse
from hpcphotoz.config.model import OWN_NETWORKS
from hpcphotoz.config.renamed import to_current
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.network import ImageBatch, Numbers, check_tensors, compute_pdfs, predict_pdfs
from hpcphotoz.evaluation.redshift_pdf import RedshiftPdf
from hpcphotoz.evaluation.report.html_table import html_table
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import bins_of, build, check_shapes, load_weights
from hpcphotoz.models.factory import change_of_source, check_trusted, source_of
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.saving.checkpoint_file import OtherFormat, network_weights
from hpcphotoz.training.saving.weights_file import NetworkFacts, read_weights, write_weights

_log = logging.getLogger(__name__)
WEIGHTS_SUFFIX = ".safetensors"


@dataclass(frozen=True, repr=False)
class TrainedNetwork:
    """A trained network in evaluation mode, with what is needed to use it."""

    name: str  # name of the run folder, or of the safetensors file's network
    module: nn.Module
    bins: RedshiftBins
    bands: tuple[str, ...]
    stamp: int  # pixels a side
    pixel_scale: float  # of the training set, arcsec
    config: Config
    step: int  # optimiser steps taken
    manifest_sha256: str  # of the dataset it was trained on, or of several with their shares
    scale: tuple[float, ...]  # per band, nMgy: softening of the asinh normalisation
    datasets_sha256: tuple[str, ...] = ()  # of each dataset it was trained on; (): older than this record
    source_sha256: str | None = None  # of the source file of a user's network with which it was trained

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

    def predict(
        self,
        images: Numbers | ImageBatch | Iterable[ImageBatch],
        ebv: Numbers | Sequence[float] | float | None = None,
    ) -> RedshiftPdf:
        """The PDFs of any number of objects, with their means, modes and quantiles, in memory of the host.

        Args:
            images: (N, bands, y, x) nanomaggies, bands as in `bands`: a tensor on the module's device, or a
                numpy array, of any real numbers; or a batch or a dataset of `hpcphotoz.open`, without `ebv`.
            ebv: (N,) mag, likewise, or one number for all objects.

        Raises:
            BadInput: as `pdf`, values that are no real numbers, a batch of other bands, or an E(B-V) that is
                missing, or given beside a batch.
        """
        return predict_pdfs(self, images, ebv)

    def __repr__(self) -> str:
        return f"<TrainedNetwork '{self.name}': {self._summary()}>"

    def _repr_html_(self) -> str:
        adversarial, attack = self.config.adversarial, self.config.attack
        attacks = f"{attack.method}, eps {attack.eps:g} sky sigma, on {adversarial.fraction:.0%} of a batch"
        rows = {
            "optimiser steps": f"{self.step:,}",
            "parameters": f"{sum(p.numel() for p in self.module.parameters()):,}",
            "attacked in training": attacks if adversarial.fraction else "no",
            "dataset's manifest, SHA-256": self.manifest_sha256[:16],
        }
        return html_table(f"{self.name}: {self._summary()}", [], [list(pair) for pair in rows.items()])

    def _summary(self) -> str:
        takes = f"bands {' '.join(self.bands)}, stamps of {self.stamp} x {self.stamp} pixels"
        device = next(self.module.parameters()).device
        return f"{self.config.model.name}, {takes}, {self.bins.text()}, {device}"


def load_network(
    run: Path | str, device: torch.device | str = "cpu", *, trust_code: bool = False
) -> TrainedNetwork:
    """Load a safetensors file of `save_network`, or the network of the newest checkpoint of a run.

    Args:
        run: a run folder, one of its checkpoint files, or a file *.safetensors.
        device: where to put the network.
        trust_code: import and call the package.module:factory that the run or file names.

    Raises:
        BadInput: no such run, no checkpoint that loads, a file that holds no network of this library, or a
            network package.module:factory without `trust_code`.
    """
    return _build(read_state(Path(run), device), device, trust_code)


@dataclass(frozen=True)
class NetworkState:
    """A network as a checkpoint or a safetensors file holds it, before it is built."""

    state: checkpoint.State  # `_Facts`, and `model`: the weights, or their average where there is one
    config: dict[str, Any]  # section -> key -> value, with today's names
    path: Path
    name: str


def read_state(run: Path, device: torch.device | str = "cpu") -> NetworkState:
    """Read a network without building it, and so without calling its factory; arguments as `load_network`.

    Raises:
        BadInput: as `load_network`.
    """
    if run.suffix == WEIGHTS_SUFFIX:
        facts, tensors = read_weights(run)
        config = to_current(facts.config, str(run))
        return NetworkState({**vars(facts), "model": tensors}, config, run, facts.name)
    path = run if run.is_file() else checkpoint.latest(run)
    if path is None:
        torn = " that loads" if checkpoint.paths(run) else ""
        give = "give a run folder that `hpcphotoz train --out` has filled"
        inside = sorted(run.glob(f"*/{checkpoint.NEWEST}")) if run.is_dir() else []
        give += f", such as {inside[0].parent} in it" if inside else ""
        raise BadInput(f"{run}: no checkpoint{torn}: {give}")
    name = run.resolve().name if run.is_dir() else run.resolve().parent.parent.name
    try:
        state = checkpoint.load(path)
    except BadInput as error:
        if path.suffix != ".pt" or isinstance(error, OtherFormat):
            raise
        raise BadInput(f"{error}: name an earlier one") from None
    state = {**state, "model": network_weights(state)}
    return NetworkState(state, checkpoint.current_config(state, str(path)), path, name)


def save_network(network: TrainedNetwork, path: Path) -> None:
    """Write a network as one safetensors file, from which `load_network` makes the same.

    Args:
        network: its weights are written in the type and shape that they have.
        path: file to write, named *.safetensors; an existing one is replaced, whole or not at all.

    Raises:
        BadInput: another suffix, safetensors is not installed, or the file cannot be written.
    """
    if path.suffix != WEIGHTS_SUFFIX:
        raise BadInput(
            f"{path}: a network is written as {WEIGHTS_SUFFIX}: name it {path.stem}{WEIGHTS_SUFFIX}"
        )
    given = {name: getattr(network, name) for name in NetworkFacts.model_fields if hasattr(network, name)}
    try:
        write_weights(path, given, network.config, network.module.state_dict())
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from None


def _build(found: NetworkState, device: torch.device | str, trust_code: bool) -> TrainedNetwork:
    state, path = found.state, found.path
    config = parse(found.config, str(path))
    check_trusted(config.model, trust_code, str(path))
    scale = tuple(state["scale"])
    with torch.random.fork_rng(devices=[]):
        if config.model.name in OWN_NETWORKS:  # before memory is taken for what a header claims
            with torch.device("meta"):
                claimed = build(config.model, stamp=state["stamp"], scale=scale)
            check_shapes(claimed, state["model"], str(path))
        module = build(config.model, stamp=state["stamp"], scale=scale)
    trained_with = state.get("source_sha256")
    if changed := change_of_source(source_of(config.model), trained_with):
        _log.warning("%s: model.name %s: %s", path, config.model.name, changed)
    load_weights(module, state["model"], str(path))
    module.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return TrainedNetwork(
        name=found.name,
        module=module,
        bins=bins_of(config.model),
        bands=tuple(state["bands"]),
        stamp=state["stamp"],
        pixel_scale=state["pixel_scale"],
        config=config,
        step=state["step"],
        manifest_sha256=state["manifest_sha256"],
        scale=scale,
        datasets_sha256=tuple(state.get("datasets_sha256", ())),
        source_sha256=trained_with,
    )
