"""hpcphotoz in RAIL: registers the stages when it is imported, as by `rail.stages.import_and_attach_all`."""

from rail.estimation.algos.hpcphotoz import (
    HpcPhotozEstimator,
    HpcPhotozInformer,
    HpcPhotozLabels,
    ImageHandle,
    NetworkHandle,
)

__all__ = ["HpcPhotozEstimator", "HpcPhotozInformer", "HpcPhotozLabels", "ImageHandle", "NetworkHandle"]
