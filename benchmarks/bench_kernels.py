"""Each kernel against its plain torch form, torch.compile of it, the step of torchattacks, and a memory copy.

python -m benchmarks.bench_kernels [--quick] [--json PATH]

On a GPU: batches of 1024 stamps of 5x64x64 float32, the rivals in turn, each time the mean of 20 calls; a
kernel's rate counts what it must read and write. On a CPU the operators are their plain torch form (`start`
and `load` go object by object, in cache): batches of 32, to show what a step costs beside a network.
`fraction_of_copy` is a rate over that of `copy_` of the same images; `ratio_*` how many times longer a rival
takes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import arguments, in_turn, record, spread
from hpcphotoz.attacks.fused import kernels_on
from hpcphotoz.kernels import reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CALLS = 20 if DEVICE.type == "cuda" else 1
Call = Callable[[], object]


def main() -> None:
    """Measure and print a table."""
    options = arguments(__doc__)
    n = 32 if DEVICE.type == "cpu" or options.quick else 1024
    repeat = 5 if options.quick else 9
    figures: dict[str, Any] = {"batch": n, "calls": CALLS}
    print(f"{n} stamps of 5x64x64 on {DEVICE}; medians of {repeat}", flush=True)
    print(f"{'kernel':22s} {'us':>9s} {'GB/s':>7s} {'of copy':>8s}   times as long")
    for name, (passes, rivals) in problems(n).items():
        figures[name] = measure(passes, rivals, n, repeat)
        show(name, figures[name])
    step = figures["pgd"]
    figures["pgd_fraction_of_copy"] = step["fraction_of_copy"]
    figures["ratio_torchattacks_step"] = step["ratio_torchattacks"]
    figures["ratio_compiled_step"] = step.get("ratio_compiled")
    figures["ratio_flux_torch"] = figures["flux"]["ratio_reference"]
    record("kernels", figures, options.json)


def problems(n: int) -> dict[str, tuple[float, dict[str, Call]]]:
    """By kernel: image-sized float32 passes over memory that it cannot do without, and the rivals."""
    k, r = kernels_on(DEVICE.type), reference
    g = torch.Generator(DEVICE).manual_seed(0)
    x0 = torch.randn(n, 5, 64, 64, generator=g, device=DEVICE)
    grad = torch.randn(x0.shape, generator=g, device=DEVICE)
    eps, inf = 0.1 + torch.rand(n, 5, generator=g, device=DEVICE), torch.full((5,), torch.inf, device=DEVICE)
    adv = x0 + eps[:, :, None, None] * (torch.rand(x0.shape, generator=g, device=DEVICE) - 0.5)
    ids, key = torch.arange(n, device=DEVICE), torch.tensor([1, 2], device=DEVICE)
    worse, loss = torch.zeros(n, device=DEVICE), torch.rand(n, generator=g, device=DEVICE) - 0.5
    rest = (eps, 0.25 * eps, -inf, inf)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (adv, x0, grad)]
    half = last[2].bfloat16()
    best = x0.clone()

    def three(name: str, *given: Any) -> dict[str, Call]:
        ours, plain = getattr(k, name), getattr(r, name)
        rivals: dict[str, Call] = {"ours": lambda: ours(*given), "reference": lambda: plain(*given)}
        if DEVICE.type == "cuda":
            fused: Callable[..., object] = torch.compile(plain)
            rivals["compiled"] = lambda: fused(*given)
        return rivals

    theirs = {"torchattacks": lambda: torchattacks(adv, x0, grad, 0.3, 0.1)}
    return {
        "pgd": (4, {**three("pgd", adv, x0, grad, *rest), **theirs}),
        "pgd_channels_last": (4, three("pgd", *last, *rest)),
        "pgd_bfloat16_gradient": (3.5, three("pgd", last[0], last[1], half, *rest)),
        "momentum": (5, three("momentum", adv, x0, x0, grad, *rest)),
        "l2": (4, three("l2", adv, x0, grad, *rest)),
        "flux": (4, three("flux", adv, x0, grad, *rest)),
        "flux_projection": (3, three("flux", adv, x0, None, *rest)),
        "start": (2, three("start", x0, ids, eps, -inf, inf, key)),
        "select": (
            1,
            three("select", best, worse, adv, loss),
        ),  # half of the objects: read once, written once
    }


def torchattacks(adv: Tensor, images: Tensor, grad: Tensor, eps: float, alpha: float) -> Tensor:
    """The step of torchattacks' PGD, between two gradients, with its scalar epsilon and bounds of 0 and 1."""
    adv = adv.detach() + alpha * grad.sign()
    delta = torch.clamp(adv - images, min=-eps, max=eps)
    return torch.clamp(images + delta, min=0, max=1).detach()


def measure(passes: float, rivals: dict[str, Call], n: int, repeat: int) -> dict[str, Any]:
    """Microseconds of every rival, our rate, and the ratios."""
    source = torch.randn(n, 5, 64, 64, device=DEVICE)
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"copy": lambda: target.copy_(source), **rivals}
    times = in_turn({name: several(call) for name, call in calls.items()}, repeat)
    rate = {name: 1e-9 * w * 4 * source.numel() * CALLS for name, w in (("copy", 2), ("ours", passes))}
    speed = {name: [amount / t for t in times[name]] for name, amount in rate.items()}
    found: dict[str, Any] = {
        "us": {name: spread([1e6 * t / CALLS for t in values]) for name, values in times.items()}
    }
    found["gb_per_s"] = {name: spread(values) for name, values in speed.items()}
    found["fraction_of_copy"] = middle(speed["ours"], speed["copy"])
    for name in rivals:
        if name != "ours":
            found[f"ratio_{name}"] = middle(times[name], times["ours"])
    return found


def several(call: Call) -> Call:
    """So many calls that the host's own time does not count."""

    def work() -> None:
        for _ in range(CALLS):
            call()

    return work


def middle(above: list[float], below: list[float]) -> float:
    """Median over rounds of a ratio."""
    return spread([a / b for a, b in zip(above, below, strict=True)])["median"]


def show(name: str, found: dict[str, Any]) -> None:
    """A line of the table."""
    ratios = {key.removeprefix("ratio_"): value for key, value in found.items() if key.startswith("ratio_")}
    beside = ", ".join(f"{rival} {value:.2f}" for rival, value in ratios.items())
    us, rate = found["us"]["ours"]["median"], found["gb_per_s"]["ours"]["median"]
    print(f"{name:22s} {us:9.1f} {rate:7.1f} {found['fraction_of_copy']:8.2f}   {beside}", flush=True)


if __name__ == "__main__":
    main()
