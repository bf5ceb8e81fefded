"""Every variant of every kernel, compiled for three GPUs on a machine that has none: registers and spills."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.helpers.kernels.ptx import Resources, built, resources

triton = pytest.importorskip("triton", reason="triton is not installed: the kernels cannot run")
from triton.backends.compiler import GPUTarget

from hpcphotoz.kernels import checks, device_functions, load, redshift_loss
from hpcphotoz.kernels.attack import flux, l2, pgd, pgd_normalised, select, start
from hpcphotoz.kernels.network import backward, forward
from hpcphotoz.kernels.network.reference import POOLINGS
from tests.helpers.kernels.prelu_problems import DTYPES
from tests.helpers.kernels.prelu_problems import problem as prelu_problem
from tests.helpers.kernels.redshift_problems import KINDS as LOSSES

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Dtype of the gradient; whether there are a mask and flags.
KINDS: list[tuple[torch.dtype | None, bool, bool]] = [
    (torch.float32, False, False),
    (torch.bfloat16, True, True),
    (None, False, True),
]
SLOW = pytest.mark.slow
Variants = Iterator[
    tuple[str, ModuleType, Callable[[], object]]
]  # name, module of the kernel, function that launches it


def problem(
    side: int, layout: torch.memory_format, kind: tuple[torch.dtype | None, bool, bool]
) -> checks.StepArguments:
    dtype, masked, flagged = kind
    x0 = torch.zeros(2, 5, side, side).contiguous(memory_format=layout)
    eps = torch.zeros(2, 5)
    return checks.StepArguments(
        adv=x0.clone(memory_format=torch.preserve_format),
        x0=x0,
        grad=None if dtype is None else x0.to(dtype),
        **dict.fromkeys(("eps", "step", "lo", "hi"), eps),
        mask=x0 > 0 if masked else None,
        active=torch.ones(2, dtype=torch.bool) if flagged else None,
    )


def steps(layout: torch.memory_format) -> Variants:
    for side, kind in product((64, 32, 33), KINDS):
        p = problem(side, layout, kind)
        yield f"pgd {side} {kind}", pgd, partial(pgd.launch, p)
        if kind[2]:
            yield f"pgd in place {side} {kind}", pgd, partial(pgd.launch, p, in_place=True)
        if kind[0] is not None:
            yield f"momentum {side} {kind}", pgd, partial(pgd.launch, p, p.adv)


def normalised(layout: torch.memory_format) -> Variants:
    if layout != torch.contiguous_format:  # these images have one layout
        return
    last = torch.channels_last
    for side, dtype, channels, kind, masked, stepped in product(
        (64, 33), checks.GRADIENTS, (8, 5), pgd_normalised.NORMALISATIONS, (False, True), (True, False)
    ):
        if (not stepped and not kind) or (channels == 5 or not stepped) and (masked or side != 64):
            continue
        seen = torch.zeros(2, channels, side, side, dtype=dtype).contiguous(memory_format=last)
        p = problem(side, last, (None, masked, False))._replace(grad=seen if stepped else None)
        name = f"normalised {side} {dtype} {channels} {kind} {masked} {stepped}"
        yield name, pgd_normalised, partial(pgd_normalised.launch, p, seen, torch.ones(5), kind)


def projections(layout: torch.memory_format) -> Variants:
    for side, kind in product((64, 33, 128, 130), KINDS):
        p = problem(side, layout, kind)
        yield f"l2 {side} {kind}", l2, partial(l2.launch, p)
        yield f"flux {side} {kind}", flux, partial(flux.launch, p)
        if kind[2]:
            yield f"l2 in place {side} {kind}", l2, partial(l2.launch, p, in_place=True)
            yield f"flux {side} in place {kind}", flux, partial(flux.launch, p, in_place=True)


def others(layout: torch.memory_format) -> Variants:
    for masked in (False, True):
        p = problem(64, layout, (None, masked, False))
        key, ids = torch.tensor([1, 2]), torch.arange(2)
        yield (
            f"start {masked}",
            start,
            partial(start.launch, p.x0, ids, p.eps, p.lo, p.hi, key, p.mask),
        )
    for dtype in select.IMAGES:
        x = p.x0.to(dtype)
        yield f"select {dtype}", select, partial(select.launch, x, torch.zeros(2), x, torch.ones(2))
    if layout == torch.contiguous_format:
        for dtype, scaled, turned in product(load.STORED, (False, True), (False, True)):
            x = torch.zeros(2, 5, 64, 64, dtype=dtype)
            scale, code = (
                torch.ones(2, 5) if scaled else None,
                torch.zeros(2, dtype=torch.int64) if turned else None,
            )
            yield f"load {dtype} {scaled} {turned}", load, partial(load.launch, x, scale, code)


def losses(layout: torch.memory_format) -> Variants:
    if layout != torch.contiguous_format:  # there are no images
        return
    for (kind, label_width), bins, dtype, gradient in product(
        LOSSES, (180, 1024, 64), checks.GRADIENTS, (False, True)
    ):
        if bins != 180 and (dtype != torch.float32 or not gradient):
            continue
        weight = torch.ones(8) if dtype != torch.float16 else None
        given = torch.zeros(8, bins, dtype=dtype), torch.zeros(8), weight, kind, 0.0, 0.4 / bins
        yield (
            f"loss {kind} {label_width} {bins} {dtype} {gradient}",
            redshift_loss,
            partial(redshift_loss.launch, *given, label_width, gradient),
        )


def activations(layout: torch.memory_format) -> Variants:
    for pooling, dtype, shape in product(POOLINGS, DTYPES, ((2, 64, 32, 32), (2, 92, 9, 9))):
        p = prelu_problem(shape, pooling, dtype, layout)
        what = f"{pooling} {dtype} {shape}"
        yield f"prelu_pool {what}", forward, partial(forward.launch, *p.forward)
        for all_ in (False, True):
            yield f"prelu_pool backward {what} {all_}", backward, partial(backward.launch, *p, all_)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("variants", [steps, normalised, projections, others, losses, activations])
@pytest.mark.parametrize("layout", ["contiguous", pytest.param("channels_last", marks=SLOW)])
@pytest.mark.parametrize(
    "target", ["sm_90", pytest.param("sm_80", marks=SLOW), pytest.param("gfx942", marks=SLOW)]
)
def test_registers_and_spills(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, layout: str, variants: Any
) -> None:
    if target == "gfx942":
        monkeypatch.setattr(device_functions, "_WARP", 64)
    wrong = []
    for name, module, launch in variants(LAYOUTS[layout]):
        found = resources(built(monkeypatch, module, launch, TARGETS[target]), tmp_path)
        if not _allowed(name, found, target):
            wrong.append(f"{name}: {found}")
    assert not wrong, "\n".join(wrong)


def _allowed(name: str, found: Resources, target: str) -> bool:
    """Limits slightly above the registers and spills measured with triton 3.6 and 3.9.

    Only flux with planes of 16384 pixels spills, and one word of flux on sm_80 with triton 3.9.
    """
    amd = target == "gfx942"
    if name.startswith("flux 128"):  # 16384 pixels in the registers of 1024 threads
        return found.registers <= (128 if amd else 64) and found.spilt <= (448 if amd else 256)
    if name.startswith("flux 130"):  # read again in each round
        return found.registers <= (384 if amd else 255) and found.spilt == 0
    if name.startswith("flux"):
        return found.registers <= (256 if amd else 160) and found.spilt <= (4 if target == "sm_80" else 0)
    if name.startswith("l2"):
        return found.registers <= (256 if amd else 128) and found.spilt <= (64 if amd else 8)
    return found.registers <= 128 and found.spilt <= 4
