"""Lets networks use fused activations on a CPU, through the operators that they use on a GPU."""

from dataclasses import replace
from typing import Any

import pytest

from hpcphotoz.kernels.backend import kernels_on
from hpcphotoz.models import layers


def fused_on_cpu(patch: pytest.MonkeyPatch, prelu_pool: Any = None) -> None:
    """Makes `fused` count on a CPU.

    Args:
        patch: pytest's fixture.
        prelu_pool: stands in for the operator of this name.
    """
    from hpcphotoz.kernels.network.prelu_pool import prelu_pool as operator

    kernels = replace(kernels_on("cpu"), prelu_pool=prelu_pool or operator)
    patch.setattr(layers, "kernels_on", lambda device: kernels)
    patch.setattr(layers.Conv, "fuses", lambda self, x: self.fused)
