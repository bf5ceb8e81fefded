"""A network from its configuration."""

from collections.abc import Mapping

from torch import Tensor, nn

from hpcphotoz.config import Model
from hpcphotoz.config.model import OWN_NETWORKS
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.cnn import CompactCNN, SmallCNN
from hpcphotoz.models.factory import make_network
from hpcphotoz.models.inception import Inception
from hpcphotoz.models.layers import Normalise
from hpcphotoz.models.view import View


def bins_of(model: Model) -> RedshiftBins:
    """The redshift bins of a configuration."""
    return RedshiftBins(model.bins, model.z_min, model.z_max)


def build(model: Model, *, stamp: int, scale: tuple[float, ...]) -> nn.Module:
    """Make the network, freshly initialised from torch's random state.

    Args:
        model: which network, and its options.
        stamp: pixels a side of the images.
        scale: per band, nMgy: the softening of the asinh normalisation; its length is the number of bands.

    Raises:
        BadInput: a network of the user or of timm that cannot be made; see `factory.make_network`. A stamp
            that has no such view.
    """
    if model.name not in OWN_NETWORKS:
        return make_network(model, stamp=stamp, scale=scale)
    view = View.of(model, stamp)
    normalise = Normalise(model.normalisation, scale, view if view.side < stamp else None)
    shared = normalise, len(scale), view.side, model.bins
    if model.name == "compact":
        return CompactCNN(*shared, width=model.width)
    if model.name == "cnn":
        return SmallCNN(*shared, relu_logits=model.relu_logits)
    return Inception(*shared, relu_logits=model.relu_logits, counts_padding=model.pool_counts_padding)


def check_shapes(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Compare shapes with those of a network, which may be on torch's device `meta`.

    Raises:
        BadInput: a size mismatch, or a tensor is missing; the message begins with `source`.
    """
    for name, ours in network.state_dict().items():
        if name not in weights:
            raise BadInput(f"{source}: the weights do not belong to the configuration: {name} is missing")
        if weights[name].shape != ours.shape:
            sizes = f"size mismatch for {name}: {tuple(weights[name].shape)}, not {tuple(ours.shape)}"
            raise BadInput(f"{source}: the weights do not belong to the configuration: {sizes}")


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load parameters and buffers into a network.

    Raises:
        BadInput: their names or shapes are not those of the network; the message begins with `source`.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:  # torch lists all names, over many lines
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{source}: the weights do not belong to the configuration: {reason}") from None
