"""A network from its configuration."""

from torch import nn

from hpcphotoz.config import Model
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.cnn import CompactCNN, SmallCNN
from hpcphotoz.models.inception import Inception
from hpcphotoz.models.layers import Normalise


def bins_of(model: Model) -> RedshiftBins:
    """The redshift bins of a configuration."""
    return RedshiftBins(model.bins, model.z_min, model.z_max)


def build(model: Model, *, stamp: int, scale: tuple[float, ...]) -> nn.Module:
    """Make the network, freshly initialised from torch's random state.

    Args:
        model: which network, and its options.
        stamp: pixels a side of the images.
        scale: per band, nMgy: the softening of the asinh normalisation; its length is the number of bands.
    """
    shared = Normalise(model.normalisation, scale), len(scale), stamp, model.bins
    if model.name == "compact":
        return CompactCNN(*shared, width=model.width)
    if model.name == "cnn":
        return SmallCNN(*shared, relu_logits=model.relu_logits)
    return Inception(*shared, relu_logits=model.relu_logits, counts_padding=model.pool_counts_padding)
