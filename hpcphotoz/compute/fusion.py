"""Fused activations on a GPU: a trial of whether a network is right and quicker with them there.

The kernels move less memory than eager torch does. What that is worth depends on the GPU, and no figure of
one is known yet: a run that has time for it tries, and keeps what is quicker.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from hpcphotoz.compute.compiler import compiler_failure
from hpcphotoz.compute.precision import autocast_dtype, seconds_of_a_pass, tf32
from hpcphotoz.compute.statistics import buffers_kept
from hpcphotoz.models.layers import fuse_activations

MIN_SPEEDUP = 1.03  # fused activations are chosen from this speed-up on: less may be noise of the trial
_ROWS = 16  # images whose gradients are compared
# Largest difference of gradients, of their norm. Two forms of one network differ by roundings, of which
# bfloat16 has the largest: see the test. A term that is left out, or has another sign, is far beyond.
_APART = 0.1


def try_fused_activations(
    module: nn.Module, device: torch.device, shape: tuple[int, ...], precision: str, *, graph: bool
) -> tuple[dict[str, float], str]:
    """Seconds of a training pass with plain and with fused activations; the network is left plain.

    Args:
        module, device: the network, on a GPU.
        shape: (n, B, H, W), the images of a pass.
        precision: of the pass.
        graph: time the replay of a CUDA graph.

    Returns:
        Seconds by "plain" and "fused"; and why the fused ones cannot be used, then without their seconds: an
        error, or gradients that differ by more than rounding. "": they can.
    """
    timed = partial(seconds_of_a_pass, compiled=False, graph=graph, precisions=(precision,))
    seconds = {"plain": timed(module, device, shape)[precision]}
    wanted = gradients(module, device, shape, precision)

    def fused() -> None:
        _compare(gradients(module, device, shape, precision), wanted)
        seconds["fused"] = timed(module, device, shape)[precision]

    fuse_activations(module)
    try:
        failed = compiler_failure(fused)
    finally:
        fuse_activations(module, on=False)
    return seconds, failed


def quicker_activations(trials: Sequence[tuple[dict[str, float], str]], n: int) -> tuple[bool, str]:
    """Choose by the trials of all ranks, over n images each; returns whether to fuse, and the reason."""
    failed = next((why for _, why in trials if why), "")
    if failed:
        return False, f"activations not fused ({failed})"
    plain, fused = (sum(seconds[name] for seconds, _ in trials) for name in ("plain", "fused"))
    quicker = plain >= MIN_SPEEDUP * fused
    plain, fused = (1e3 * took / len(trials) for took in (plain, fused))
    measured = f"measured: a pass over {n} images takes {plain:.3g} ms without, {fused:.3g} ms with"
    return quicker, f"activations {'fused' if quicker else 'not fused'} ({measured})"


def _compare(found: list[Tensor], wanted: list[Tensor]) -> None:
    for ours, plain in zip(found, wanted, strict=True):
        apart = float((ours - plain).norm() / plain.norm())
        if not apart <= _APART:
            raise ValueError(f"gradients differ by {apart:.2g} of their norm")


def gradients(
    module: nn.Module, device: torch.device, shape: tuple[int, ...], precision: str
) -> list[Tensor]:
    """Gradients by a few images, which pass through every layer, and by all biases and slopes, as vectors."""
    n = min(shape[0], _ROWS)
    images = torch.randn((n, *shape[1:]), device=device, generator=torch.Generator(device).manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    vectors = [p for p in module.parameters() if p.requires_grad and p.ndim == 1]
    low = autocast_dtype(precision)
    with tf32(precision == "tf32"), buffers_kept(module), torch.enable_grad():
        with torch.autocast(device.type, low, enabled=low is not None):
            logits = module(images, images.new_zeros(n))
        found = torch.autograd.grad(logits.float().logsumexp(1).sum(), [images, *vectors])
    return [found[0].float().flatten(), torch.cat([tensor.float() for tensor in found[1:]])]
