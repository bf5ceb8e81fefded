"""Which precision a GPU computes a network quickest in: a few passes in each, in the form of the run."""

import torch
from torch import Tensor, nn

from hpcphotoz.compute.capture import capture
from hpcphotoz.compute.compiler import compiled as through_compiler
from hpcphotoz.compute.precision import autocast_dtype, tf32, time_call


def seconds_of_a_pass(
    module: nn.Module, device: torch.device, shape: tuple[int, ...], *, compiled: bool, graph: bool
) -> dict[str, float]:
    """Seconds of a forward and backward pass in tf32 and in bf16; the module is left as it was.

    No flag tells which is quicker: eagerly on an H200 the Inception trains faster in tf32 (3,720 images/s)
    than in bf16 (3,120), whose casts are kernels of their own.

    Args:
        module: the network, on the device.
        device: a GPU.
        shape: (n, B, H, W), the images of a pass.
        compiled: through torch.compile.
        graph: replayed as a CUDA graph.
    """
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    weights = [p for p in module.parameters() if p.requires_grad]
    forward = through_compiler(module, device) if compiled else module
    ebv = images.new_zeros(len(images))

    def passes(precision: str) -> Tensor:
        low = autocast_dtype(precision)
        with torch.enable_grad(), torch.autocast(device.type, low, enabled=low is not None):
            logits = forward(images, ebv)
        # Not `backward`, which would leave gradients.
        return torch.autograd.grad(logits.float().logsumexp(1).sum(), weights)[0]

    found = {}
    for name in ("tf32", "bf16"):
        with tf32(name == "tf32"):
            if graph:
                replay, _ = capture(lambda name=name: passes(name), device)  # type: ignore[misc]
                found[name] = time_call(replay, device)
            else:
                found[name] = time_call(lambda name=name: passes(name), device)  # type: ignore[misc]
    return found
