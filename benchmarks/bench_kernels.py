"""Each kernel against its plain torch form, torch.compile of it, the step of torchattacks, and a memory copy.

python -m benchmarks.bench_kernels [--quick] [--minutes M] [--json PATH]

On a GPU: 4096 stamps of 5x64x64 float32, and activations of the Inception for a quarter of them (`prelu_*`,
`benchmarks/kernels/activations.py`). A CUDA graph of several calls is replayed and timed by events: the host
takes 50 to 60 us for a call, longer than some kernels, and does not count. The rivals take turns. On a CPU
the operators are their plain torch form (`start` and `load` go object by object, in cache): batches of 32, to
show what a step costs beside a network; the host's clock is read.
Before a kernel is timed, each rival computes the same problem once: where one differs by more than rounding
(`off`, the largest difference, of the largest number), it has no figures, and no ratio is printed; where ours
differs from its definition in `kernels`, the kernel has none at all.
A rate counts the bytes that a kernel must read and write, each tensor once. `fraction_of_copy` is a rate over
that of `copy_` of the images that it writes; `ratio_*` how many times longer a rival takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Benchmark, Times, middle, on_host_clock, parser, ratio, rounds, spread
from benchmarks.kernels.activations import activation_problems
from benchmarks.kernels.problem import Call, Problem
from hpcphotoz.compute.capture import capture
from hpcphotoz.kernels import redshift_loss_reference
from hpcphotoz.kernels.attack import reference
from hpcphotoz.kernels.backend import kernels_on

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STAMPS = 4096 if DEVICE.type == "cuda" else 32
MOST_CALLS, REPLAY_S = 20, 0.01  # calls in a graph: this many at most, or as many as take this long
# Largest difference from the definition, in units of the largest number: float32 sums in another order, of
# 64x64 pixels (l2, flux), of 180 bins, or of all pixels of a channel; another logarithm in
# bfloat16. All others are right to the bit.
LARGEST_OFF = {
    "l2": 2e-6,
    "flux": 4e-6,
    "redshift_loss_and_gradient": 2e-6,
    "prelu_pool_gradients": 1e-5,
    "pgd_normalised": 2.0**-8,
}
CHANNELS = 8  # of the images that a network in bfloat16 reads
QUICK_COMPILED = ("pgd", "l2")  # torch.compile takes seconds for each


@dataclass(frozen=True)
class Inputs:
    """Images, gradients and per-object values: the inputs of the kernels."""

    x0: Tensor
    adv: Tensor
    previous: Tensor  # of the step before, for momentum, in separate memory
    grad: Tensor
    eps: Tensor
    object_id: Tensor
    key: Tensor
    worse: Tensor  # (N,) losses so far
    loss: Tensor  # (N,) half of them larger
    logits: Tensor  # (N, 180)
    z: Tensor  # (N,) redshifts

    @staticmethod
    def drawn(n: int, device: torch.device) -> "Inputs":
        """Draw the inputs of n objects."""
        g = torch.Generator(device).manual_seed(0)
        x0 = torch.randn(n, 5, 64, 64, generator=g, device=device)
        eps = 0.1 + torch.rand(n, 5, generator=g, device=device)
        noise = [torch.rand(x0.shape, generator=g, device=device) - 0.5 for _ in range(2)]
        adv, previous = (x0 + eps[:, :, None, None] * u for u in noise)
        return Inputs(
            x0=x0,
            adv=adv,
            previous=previous,
            grad=torch.randn(x0.shape, generator=g, device=device),
            eps=eps,
            object_id=torch.arange(n, device=device),
            key=torch.tensor([1, 2], device=device),
            worse=torch.zeros(n, device=device),
            loss=torch.where(torch.arange(n, device=device) % 2 == 0, 0.5, -0.5),
            logits=3 * torch.randn(n, 180, generator=g, device=device),
            z=0.4 * torch.rand(n, generator=g, device=device),
        )


def main() -> None:
    """Measure and print a table."""
    options = parser(__doc__, resumable=True).parse_args()
    benchmark = Benchmark("kernels", options.json, options.quick, options.minutes)
    repeat = 5 if options.quick else 9
    timing = "replays of a CUDA graph" if DEVICE.type == "cuda" else "the host's clock"
    benchmark.add(batch=STAMPS, timing=timing)
    print(f"{STAMPS} stamps of 5x64x64 on {DEVICE}, {timing}; medians of {repeat}", flush=True)
    print(f"{'kernel':27s} {'us':>9s} {'GB/s':>7s} {'of copy':>8s}   times as long")
    activations = activation_problems(max(STAMPS // 4, 1), DEVICE)
    for name, problem in (problems(Inputs.drawn(STAMPS, DEVICE)) | activations).items():
        compiled = DEVICE.type == "cuda" and (not options.quick or name in QUICK_COMPILED)
        found = benchmark.earlier(name)
        if found is None:
            found = measure(name, problem, rivals(problem, name == "pgd", compiled), repeat, benchmark)
        if found is not None:
            benchmark.add(**{name: found})
            show(name, found)
    step, flux = (benchmark.figures.get(name, {}) for name in ("pgd", "flux"))
    benchmark.add(
        pgd_fraction_of_copy=step.get("fraction_of_copy"),
        ratio_torchattacks_step=step.get("ratio_torchattacks"),
        ratio_compiled_step=step.get("ratio_compiled"),
        ratio_flux_torch=flux.get("ratio_reference"),
    )
    benchmark.end()


def problems(i: Inputs) -> dict[str, Problem]:
    """Problems by name."""
    inf = torch.full((i.x0.shape[1],), torch.inf, device=i.x0.device)
    rest = (i.eps, 0.25 * i.eps, -inf, inf)
    adv, x0, grad = (t.contiguous(memory_format=torch.channels_last) for t in (i.adv, i.x0, i.grad))
    half, best = grad.bfloat16(), i.x0.clone()
    active = torch.arange(len(x0), device=x0.device) % 2 == 0
    moved, one = (adv.clone(memory_format=torch.preserve_format) for _ in range(2))
    # Only the bands count: the channels beside them hold zeros.
    bands, padding = x0.shape[1], (0, 0, 0, 0, 0, CHANNELS - x0.shape[1])
    of_seen = torch.nn.functional.pad(half, padding).contiguous(memory_format=torch.channels_last)
    seen, scale = torch.zeros_like(of_seen), i.eps[0].clone()

    def step(function: str, *images: Tensor) -> Problem:
        return Problem(function, (*images, *rest), images, i.x0)

    def loss(kind: str, *options: float) -> Problem:
        given = (i.logits, i.z, None, kind, 0.0, 0.4 / i.logits.shape[1], *options)
        return Problem("redshift_loss_and_gradient", given, (i.logits,), i.logits)

    return {
        "pgd": step("pgd", i.adv, i.x0, i.grad),
        "pgd_channels_last": step("pgd", adv, x0, grad),
        "pgd_bfloat16_gradient": step("pgd", adv, x0, half),
        "pgd_half_finished": Problem(
            "pgd_in_place",
            (one, x0, grad, *rest, None, active),
            (one, x0, grad),
            one,
            part=0.5,
            changed=(one,),
        ),
        "pgd_normalised": Problem(
            "pgd_normalised",
            (moved, seen, x0, of_seen, *rest, scale, "asinh"),
            (moved, x0, of_seen[:, :bands]),
            moved,
            changed=(moved, seen),
            beside=seen[:, :bands],
            exact=1,
        ),
        "momentum": step("momentum", i.adv, i.previous, i.x0, i.grad),
        "l2": step("l2", i.adv, i.x0, i.grad),
        "l2_channels_last": step("l2", adv, x0, grad),
        "flux": step("flux", i.adv, i.x0, i.grad),
        "flux_projection": Problem("flux", (i.adv, i.x0, None, *rest), (i.adv, i.x0), i.x0),
        "start": Problem("start", (i.x0, i.object_id, i.eps, -inf, inf, i.key), (i.x0,), i.x0),
        "select": Problem(
            "select", (best, i.worse, i.adv, i.loss), (i.adv,), best, part=0.5, changed=(best,)
        ),
        "loss_cross_entropy": loss("cross_entropy"),
        "loss_cross_entropy_gaussian": loss("cross_entropy", 2.0),
        "loss_shift": loss("shift"),
        "loss_crps": loss("crps"),
    }


def rivals(problem: Problem, torchattacks_too: bool, compiled: bool) -> dict[str, Call]:
    """Calls that compute the same, by name."""
    kernels, plain = kernels_on(DEVICE.type), problem.definition
    if problem.function == "pgd_in_place":
        ours: Callable[..., object] = kernels.in_place.get("linf", plain)
    else:
        ours = getattr(kernels, problem.function)
    calls: dict[str, Call] = {
        "ours": lambda: ours(*problem.given),
        "reference": lambda: plain(*problem.given),
    }
    if compiled:
        fused: Callable[..., object] = torch.compile(plain)
        calls["compiled"] = lambda: fused(*problem.given)
    calls |= problem.others
    if problem.function == "redshift_loss_and_gradient":
        calls["autograd"] = lambda: by_autograd(*problem.given)
    if problem.function == "pgd_normalised":
        calls["apart"] = lambda: one_by_one(*problem.given)
    if torchattacks_too:
        adv, x0, grad = problem.given[:3]
        calls["torchattacks"] = lambda: torchattacks(adv, x0, grad, 0.3, 0.1)
    return calls


def by_autograd(logits: Tensor, z: Tensor, weight: None, *options: Any) -> tuple[Tensor, Tensor]:
    """The loss in eager torch, and its gradient as autograd finds it: a loss head without a kernel."""
    x = logits.detach().requires_grad_()
    loss = redshift_loss_reference.redshift_loss(x, z, *options)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def one_by_one(adv: Tensor, seen: Tensor, x0: Tensor, grad: Tensor, *limits_and_scale: Any) -> None:
    """What lies between two passes without `pgd_normalised`: eager torch around the kernel of the step."""
    *limits, scale, _ = limits_and_scale
    unit, bands = scale[:, None, None], x0.shape[1]
    of_flux = grad[:, :bands].float() * torch.rsqrt(torch.square(adv / unit) + 1) / unit
    of_flux = of_flux.contiguous(memory_format=torch.channels_last)
    step: Callable[..., None] = kernels_on(DEVICE.type).in_place.get("linf", reference.pgd_in_place)
    step(adv, x0, of_flux, *limits)
    seen[:, :bands] = torch.asinh(adv / unit)


def torchattacks(adv: Tensor, images: Tensor, grad: Tensor, eps: float, alpha: float) -> Tensor:
    """The update of torchattacks' PGD, without its gradient; epsilon is a scalar and bounds are 0 and 1."""
    adv = adv.detach() + alpha * grad.sign()
    delta = torch.clamp(adv - images, min=-eps, max=eps)
    return torch.clamp(images + delta, min=0, max=1).detach()


def measure(
    name: str, problem: Problem, calls: dict[str, Call], repeat: int, benchmark: Benchmark
) -> dict[str, Any] | None:
    """Microseconds of every rival, our rate, and the ratios; None without ours."""
    source = torch.randn_like(problem.written)
    target = torch.empty_like(source)
    calls, off = agreeing(name, problem, calls, benchmark)
    if "ours" not in calls:
        return None
    work: dict[str, Call] = {"copy": lambda: target.copy_(source), **calls}
    timers: dict[str, Callable[[], float]] = {}
    for rival, call in work.items():
        timer = benchmark.attempt(f"{name}, {rival}", timed, call, DEVICE)
        if timer is not None:
            timers[f"{name}, {rival}"] = timer
    times: Times = {
        key.removeprefix(f"{name}, "): values for key, values in rounds(timers, repeat, benchmark).items()
    }
    if "ours" not in times or "copy" not in times:
        return None
    moved = {"copy": 2 * source.nbytes, "ours": problem.bytes}
    speed = {rival: [1e-9 * amount / t for t in times[rival]] for rival, amount in moved.items()}
    return {
        "us": {rival: spread([1e6 * t for t in values]) for rival, values in times.items()},
        "off": off,
        "bytes": problem.bytes,
        "gb_per_s": {rival: spread(values) for rival, values in speed.items()},
        "fraction_of_copy": middle(ratio(speed, "ours", "copy")),
        **{f"ratio_{k}": middle(ratio(times, k, "ours")) for k in times if k in calls and k != "ours"},
    }


def agreeing(
    name: str, problem: Problem, calls: dict[str, Call], benchmark: Benchmark
) -> tuple[dict[str, Call], dict[str, float]]:
    """The calls whose result is that of the definition, and how far each is off; the others are failures.

    The step of torchattacks is compared with ours for its scalar epsilon and its bounds.
    """
    kept, off = dict[str, Call](), dict[str, float]()
    largest = LARGEST_OFF.get(problem.function, 0.0)
    for rival, call in calls.items():
        wanted = benchmark.attempt(f"{name}, definition", wanted_by, rival, problem)
        found = benchmark.attempt(f"{name}, {rival}", results, call, problem)
        if found is None or wanted is None:
            continue
        each = [difference(a, b) for a, b in zip(found, wanted, strict=True)]
        off[rival] = max(each)
        # The compiler may contract a product and a sum to one rounding.
        least = 0.0 if rival == "ours" else problem.rounding
        limits = [0.0] * problem.exact + [largest] * (len(each) - problem.exact)
        if all(d <= max(limit, least) for d, limit in zip(each, limits, strict=True)):
            kept[rival] = call
        else:
            benchmark.failed(
                f"{name}, {rival}",
                ValueError(f"wrong: off by {off[rival]:.1e} of the largest number; no ratio is given"),
            )
    return kept, off


def wanted_by(rival: str, problem: Problem) -> list[Tensor]:
    """What a rival has to return, from the definition."""
    given = problem.given
    if rival == "torchattacks":
        scalars = (torch.full((5,), value, device=given[0].device) for value in (0.3, 0.1, 0.0, 1.0))
        return results(lambda: reference.pgd(*given[:3], *scalars), problem)
    return results(lambda: problem.definition(*given), problem)


def results(call: Call, problem: Problem) -> list[Tensor]:
    """Copies of the tensors that a call returns and of those that it changes, which are as before again."""
    before = [tensor.clone() for tensor in problem.changed]
    found: Any = call()
    returned = [] if found is None else [found] if isinstance(found, Tensor) else list(found)
    copies = [tensor.clone() for tensor in (*returned, *problem.changed)]
    for tensor, was in zip(problem.changed, before, strict=True):
        tensor.copy_(was)
    return copies


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, in units of the largest number; infinite for NaN."""
    found = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if len(a) else 0.0
    return found if found == found else float("inf")


def timed(call: Call, device: torch.device) -> Callable[[], float]:
    """A function that times a call: on a GPU in a replayed CUDA graph of several, on a CPU one by one.

    Args:
        call: is made a few times at first; on a GPU it can be captured.
        device: the device on which it computes.
    """
    if device.type != "cuda":
        return on_host_clock(call)
    on_host_clock(call)()  # compiles
    calls = max(1, min(MOST_CALLS, int(REPLAY_S / on_host_clock(call)())))

    def several() -> None:
        for _ in range(calls):
            call()

    replay, _ = capture(several, device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def measure() -> float:
        begin.record()
        replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / calls

    return measure


def show(name: str, found: dict[str, Any]) -> None:
    """A line of the table."""
    ratios = {key.removeprefix("ratio_"): value for key, value in found.items() if key.startswith("ratio_")}
    beside = ", ".join(f"{rival} {value:.2f}" for rival, value in ratios.items())
    us, rate = found["us"]["ours"]["median"], found["gb_per_s"]["ours"]["median"]
    print(f"{name:27s} {us:9.1f} {rate:7.1f} {found['fraction_of_copy']:8.2f}   {beside}", flush=True)


if __name__ == "__main__":
    main()
