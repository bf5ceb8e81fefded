"""Properties that the steps in the L2 and the flux-conserving ball share.

The file runs twice: on the operators, and in another process on the kernels, under Triton's interpreter.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hpcphotoz.kernels.attack import reference
from tests.helpers.kernels.interpreter import (
    INTERPRETED,
    compiled,
    interpret,
    interpreted,
    on_cuda,
    passed_under_the_interpreter,
)
from tests.helpers.kernels.memory_checks import left_alone
from tests.helpers.kernels.ptx import ptx
from tests.helpers.kernels.step_problems import (
    CASES,
    FEW,
    FORMATS,
    SHAPES,
    Shape,
    Step,
    close,
    free,
    launched,
    problem,
)

triton = pytest.importorskip("triton", reason="triton is not installed: the kernels cannot run")
from hpcphotoz.kernels.attack import flux as flux_kernel
from hpcphotoz.kernels.attack import l2 as l2_kernel

pytestmark = pytest.mark.usefixtures("poison")

interpret(l2_kernel)
interpret(flux_kernel)
l2: Step = launched(l2_kernel.launch) if INTERPRETED else l2_kernel.l2
flux: Step = launched(flux_kernel.launch) if INTERPRETED else flux_kernel.flux


def in_place(step: Step) -> Step:
    """The same step in the memory of `adv`, which is returned."""
    kernel = l2_kernel if step is l2 else flux_kernel

    def call(**p: Any) -> Tensor:
        if INTERPRETED:
            return launched(kernel.launch, in_place=True)(**p)
        (l2_kernel.l2_ if step is l2 else flux_kernel.flux_)(**p)
        adv: Tensor = p["adv"]
        return adv

    return call


OPERATORS = [(l2_kernel.l2, reference.l2), (flux_kernel.flux, reference.flux)]
UNITS = 16.0  # units in the last place, for flux; half for l2: test_flux and test_l2 derive them


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
def test_kernels_under_the_interpreter() -> None:
    assert passed_under_the_interpreter(__file__, "", slow=False) >= 10


@interpreted
@pytest.mark.parametrize("step", [l2, flux])
def test_no_objects(step: Step) -> None:
    for layout in FORMATS:
        p = problem((0, 5, 8, 8), CASES[1], layout)
        assert step(**p).shape == (0, 5, 8, 8)


@on_cuda
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    "shape", [*SHAPES, (0, 5, 8, 8), (16, 5, 64, 64), (1, 2, 128, 128), (1, 2, 130, 150)]
)
def test_operators_on_cuda_equal_reference(shape: Shape, layout: torch.memory_format, case: Any) -> None:
    p = problem(shape, case, layout)
    moved = problem(shape, case, layout, device="cuda")
    # Planes are larger here: rounding of their sums grows at most with the root of the number of pixels.
    more = max(1.0, (shape[2] * shape[3] / 132) ** 0.5)
    close(l2_kernel.l2(**moved).cpu(), reference.l2(**p), p, more * UNITS / 2)
    close(flux_kernel.flux(**moved).cpu(), reference.flux(**p), p, more * UNITS)
    for step, own in ((l2_kernel.l2, l2_kernel.l2_), (flux_kernel.flux, flux_kernel.flux_)):
        wanted, again = step(**moved), moved | {"adv": moved["adv"].clone()}
        own(**again)
        assert torch.equal(again["adv"], wanted)


@on_cuda
@pytest.mark.parametrize("step", [l2_kernel.l2, flux_kernel.flux])
def test_a_graph_reads_the_parameters_at_each_replay(step: Step) -> None:
    p = problem((4, 5, 16, 16), CASES[1], device="cuda")
    step(**p)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(**p)
    for _ in range(2):
        p["eps"] *= 0.5
        p["active"].logical_not_()
        graph.replay()
        assert torch.equal(found, step(**p))


@pytest.mark.parametrize("step", [l2, flux])
def test_a_nan_gradient_counts_as_zero_and_an_infinite_one_gives_no_nan(step: Step) -> None:
    for case in [case for case in FEW if case[0] is not None]:
        p = problem((2, 3, 7, 11), case)
        zero = p | {"grad": torch.where(p["grad"].isnan(), 0, p["grad"])}
        out = step(**p)
        assert out.isfinite().all() and torch.equal(out, step(**zero))


@pytest.mark.parametrize("step", [l2, flux])
def test_inactive_objects_and_masked_pixels_stay_and_do_not_count(step: Step) -> None:
    p = problem((2, 3, 7, 11), (torch.float32, True, True, True))
    out = step(**p)
    assert torch.equal(out[~free(p)], p["adv"][~free(p)])
    assert (out != p["adv"])[free(p)].any()
    other = {name: p[name].clone() for name in ("adv", "grad")}
    other["adv"][~free(p)] += 0.5
    other["grad"][~free(p)] = 1e20
    assert torch.equal(step(**p | other)[free(p)], out[free(p)])


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("step", [l2, flux])
def test_in_place_gives_the_same_and_leaves_inactive_objects_alone(
    step: Step, layout: torch.memory_format
) -> None:
    """Neither read nor written, whatever they hold: a NaN of a kind that no kernel makes."""
    for active in (None, [False, False, False], [True, False, True]):
        p = problem((3, 3, 7, 11), (torch.bfloat16, True, True, False), layout)
        p["active"] = None if active is None else torch.tensor(active)
        idle = [n for n, on in enumerate(active or ()) if not on]
        for name in ("adv", "x0"):
            p[name].view(torch.int32)[idle] = 0x7FABCDEF
        p["grad"][idle] = torch.nan
        wanted = step(**p)
        images = (p[name][n] for name in ("adv", "x0", "grad", "mask") for n in idle)
        with left_alone(*images):
            found = in_place(step)(**p)
        assert found is p["adv"] and torch.equal(found.view(torch.int32), wanted.view(torch.int32))


@interpreted
@pytest.mark.parametrize("step", [l2, flux])
def test_out_of_place_inactive_objects_are_copied_and_the_check_sees_it(step: Step) -> None:
    p = problem((2, 3, 7, 11), (torch.float32, False, False, True))
    idle = int((~p["active"]).nonzero()[0, 0])
    with left_alone(p["adv"][idle]), pytest.raises(Exception, match="leave alone"):
        step(**p)


@pytest.mark.parametrize("step", [l2, flux])
def test_an_object_does_not_see_the_others(step: Step) -> None:
    p = problem((2, 3, 7, 11), (torch.float32, True, True, True))
    whole = step(**p)
    for n in range(2):
        one = {name: t if t.shape == (3,) else t[n : n + 1] for name, t in p.items()}
        # The reference's sums may be taken in another order for another batch.
        close(step(**one), whole[n : n + 1], one, UNITS)


@pytest.mark.parametrize(("operator", "definition"), OPERATORS)
def test_operators_equal_reference_on_the_cpu(operator: Step, definition: Step) -> None:
    for layout in FORMATS:
        for case in CASES:
            p = problem((2, 3, 7, 11), case, layout)
            found, wanted = operator(**p), definition(**p)
            assert torch.equal(found, wanted) and found.stride() == wanted.stride() == p["x0"].stride()


@compiled
@pytest.mark.parametrize(("case", "layout"), [(CASES[1], FORMATS[0]), (CASES[4], FORMATS[1])])
@pytest.mark.parametrize("operator", [l2_kernel.l2, flux_kernel.flux, l2_kernel.l2_, flux_kernel.flux_])
def test_operators_pass_opcheck(operator: Any, case: Any, layout: torch.memory_format) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares uninitialised memory too
    torch.library.opcheck(operator, (), problem((2, 5, 4, 4), case, layout))


@compiled
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("launch", [l2_kernel.launch, flux_kernel.launch])
def test_the_launch_can_be_traced(launch: Step, case: Any) -> None:
    # As torch.compile sees it on a GPU: the kernel and the choice of device inside a graph.
    p = problem((2, 5, 4, 4), case, torch.channels_last)
    given = {name: value for name, value in p.items() if value is not None}

    def run(*tensors: Tensor) -> Tensor:
        return launched(launch)(**dict.fromkeys(p) | dict(zip(given, tensors, strict=True)))

    def run_in_place(*tensors: Tensor) -> Tensor:
        named = dict.fromkeys(p) | dict(zip(given, tensors, strict=True))
        return launched(launch, in_place=True)(**named)

    for call in (run, run_in_place):
        graph = make_fx(call, tracing_mode="fake")(*given.values())
        assert "triton_kernel_wrapper" in graph.code


@compiled
@pytest.mark.parametrize(("case", "layout"), [(CASES[0], FORMATS[0]), (CASES[1], FORMATS[1])])
@pytest.mark.parametrize(
    ("launch", "size", "threads"),
    [
        (l2_kernel.launch, 64, 512),
        (flux_kernel.launch, 64, 256),
        (flux_kernel.launch, 128, 1024),
        (flux_kernel.launch, 160, 256),
    ],
)
def test_what_an_h100_would_run(
    monkeypatch: pytest.MonkeyPatch,
    launch: Step,
    size: int,
    threads: int,
    case: Any,
    layout: torch.memory_format,
) -> None:
    p = problem((1, 2, size, size), case, layout)
    module = l2_kernel if launch is l2_kernel.launch else flux_kernel
    code = ptx(monkeypatch, module, lambda: launched(launch)(**p))
    assert f".reqntid {threads}" in code
    assert ".ftz" not in code and "div.full" not in code  # denormal gradients count, and divisions are exact


@compiled
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(("operator", "definition"), OPERATORS)
def test_operators_compile(operator: Step, definition: Step, backend: str) -> None:
    p = problem((2, 3, 7, 11), CASES[3], torch.channels_last)
    whole = torch.compile(lambda **p: operator(**p), fullgraph=True, backend=backend)
    close(whole(**p), definition(**p), p, UNITS)  # Inductor's sums have their own order


@compiled
@pytest.mark.parametrize("operator", [l2_kernel.l2, flux_kernel.flux])
def test_operators_refuse_what_they_would_get_wrong(operator: Step) -> None:
    p = problem((2, 5, 4, 4), (torch.float32, False, True, True))
    strided = torch.randn(2, 5, 4, 8)[..., ::2]
    wrong: dict[str, list[Tensor]] = {
        "x0": [p["x0"].double(), p["x0"][0]],
        "adv": [p["adv"].double(), p["adv"][:1], p["adv"].contiguous(memory_format=torch.channels_last)],
        "grad": [p["grad"].double(), p["grad"][:1], strided, p["grad"].to("meta")],
        "eps": [p["eps"][..., :4], p["eps"].double(), p["eps"].expand(2, 5)],
        "step": [p["step"][:1]],
        "lo": [p["lo"][..., :4]],
        "hi": [p["hi"].half()],
        "mask": [p["x0"], p["mask"][:1], p["mask"].contiguous(memory_format=torch.channels_last)],
        "active": [p["active"].int(), p["active"][:1], p["active"].to("meta")],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} "):
                operator(**(p | {name: value}))
