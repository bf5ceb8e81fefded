from torch import nn


def reform(module: nn.Module, *, merged: bool, padded: bool) -> nn.Module:
    return module
