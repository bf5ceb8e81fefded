"""The step with normalisation: the kernel equals the reference, the operator refuses bad input."""

import re
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hpcphotoz.kernels.attack import pgd_normalised_reference as reference
from hpcphotoz.kernels.attack.reference import pgd
from hpcphotoz.kernels.checks import StepArguments
from tests.helpers.kernels.interpreter import (
    compiled,
    interpret,
    interpreted,
    on_cuda,
    passed_under_the_interpreter,
    thinned,
)
from tests.helpers.kernels.pgd_problems import FLAGS, SHAPES, problem, with_normalised
from tests.helpers.kernels.ptx import ptx
from tests.helpers.kernels.step_problems import Problem, Shape, assert_identical

triton = pytest.importorskip("triton", reason="triton is not installed: the kernel cannot run")
from hpcphotoz.kernels.attack import pgd_normalised as kernel
from hpcphotoz.kernels.attack.pgd import pgd_

pytestmark = pytest.mark.usefixtures("poison")
interpret(kernel)


def launched(seen: Tensor, scale: Tensor, kind: str, block: int = kernel.BLOCK, **p: Any) -> None:
    kernel.launch(StepArguments(**p), seen, scale, kind, block)


def filled(p: Problem) -> Problem:
    """The arguments as they are after a pass: opcheck compares all of `seen`."""
    return p | {"seen": torch.zeros_like(p["seen"])}


@interpreted
@pytest.mark.parametrize(
    ("shape", "channels", "kind", "dtype"),
    thinned(
        list(product(SHAPES, [0, 8], kernel.NORMALISATIONS, [torch.float32, torch.bfloat16, torch.float16])),
        lambda k: k % 7 == 0,
    ),
)
def test_kernel_bit_for_bit(shape: Shape, channels: int, kind: str, dtype: torch.dtype) -> None:
    """Images to the bit; what a network reads to the rounding of a logarithm and of its own type."""
    for flags, block in ((FLAGS[0], kernel.BLOCK), (FLAGS[6], 512)):
        p = problem(shape, dtype, torch.channels_last, flags)
        p = with_normalised(p, dtype, max(channels, shape[1]), kind)
        for grad in (None, p["grad"]):
            found, wanted = (
                p | {"grad": grad, "adv": p["adv"].clone(), "seen": p["seen"].clone()} for _ in range(2)
            )
            launched(**found, block=block)
            reference.pgd_normalised(**wanted)
            assert_identical(found["adv"], wanted["adv"])
            if not kind:
                assert found["seen"].isnan().all() and wanted["seen"].isnan().all()
                continue
            # The interpreter cuts off the bits that bfloat16 does not have; numpy's logarithm is another one.
            rounding = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10 if dtype == torch.float16 else 1e-6
            torch.testing.assert_close(found["seen"], wanted["seen"], rtol=rounding, atol=5e-7)
            assert found["seen"].stride() == wanted["seen"].stride()
            assert not found["seen"][:, shape[1] :].any()


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_kernel_under_the_interpreter(slow: bool) -> None:
    assert passed_under_the_interpreter(__file__, "bit_for_bit", slow=slow) >= (100 if slow else 20)


@pytest.mark.parametrize("kind", ["asinh", "sqrt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_is_the_step_by_the_gradient_of_the_flux(kind: str, dtype: torch.dtype) -> None:
    """The signs of both gradients are the same, and the network reads what it would make of the images."""
    p = problem((3, 5, 9, 7), dtype, torch.channels_last, (True, True, False))
    p = with_normalised(p, dtype, 8, kind)
    scale, x = p["scale"], p["adv"].double().requires_grad_()
    unit = scale[:, None, None]
    smooth = torch.asinh(x / unit) if kind == "asinh" else x.sign() * ((x.abs() + 1).sqrt() - 1)
    (of_flux,) = torch.autograd.grad(smooth, x, torch.nan_to_num(p["grad"][:, :5].double(), nan=0.0))
    step = {name: p[name] for name in ("adv", "x0", "eps", "step", "lo", "hi", "mask")}
    wanted = pgd(**step, grad=of_flux.float().contiguous(memory_format=torch.channels_last))
    kernel.pgd_normalised(**p)
    assert_identical(p["adv"], wanted)
    z = p["adv"].double()
    read = torch.asinh(z / unit) if kind == "asinh" else z.sign() * ((z.abs() + 1).sqrt() - 1)
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(p["seen"][:, :5].double(), read, rtol=rounding, atol=5e-7)
    assert not p["seen"][:, 5:].any()


def test_the_operator_passes_opcheck() -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares two runs
    for flags in (FLAGS[0], FLAGS[7]):
        p = problem((2, 5, 4, 4), torch.bfloat16, torch.channels_last, flags)
        torch.library.opcheck(kernel.pgd_normalised, (), filled(with_normalised(p, torch.bfloat16, 8)))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_operators_in_place_compile_as_one_graph(backend: str) -> None:
    given = problem((2, 5, 4, 4), torch.bfloat16, torch.channels_last, FLAGS[7])
    given = filled(with_normalised(given, torch.bfloat16, 8)) | {"active": given["active"]}

    def both(q: Problem) -> tuple[Tensor, ...]:
        step = {name: q[name] for name in ("x0", "eps", "step", "lo", "hi", "mask")}
        pgd_(q["adv"], **step, grad=None, active=q["active"])
        kernel.pgd_normalised(q["adv"], q["seen"], **step, grad=q["grad"], scale=q["scale"], kind="asinh")
        return q["adv"] + 1, q["seen"] + 1

    one, two = (given | {name: given[name].clone() for name in ("adv", "seen")} for _ in range(2))
    torch.compile(both, fullgraph=True, backend=backend)(one)
    both(two)
    for name in ("adv", "seen"):
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=0)
    assert not torch.equal(two["adv"], given["adv"])


@compiled
@pytest.mark.parametrize("tracing_mode", ["fake", "symbolic"])
def test_the_launch_can_be_traced(tracing_mode: Any) -> None:
    p = with_normalised(problem((2, 5, 4, 4), torch.bfloat16, torch.channels_last), torch.bfloat16, 8)
    names = ("adv", "x0", "grad", "eps", "step", "lo", "hi", "seen", "scale")

    def launch(*tensors: Tensor) -> Tensor:
        *step, seen, scale = tensors
        kernel.launch(StepArguments(*step), seen, scale, "asinh")
        return seen

    graph = make_fx(launch, tracing_mode=tracing_mode)(*(p[name] for name in names))
    assert "triton_kernel_wrapper" in graph.code


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "log"}, "kind 'log': want one of '', 'asinh', 'sqrt'"),
        ({"seen": torch.zeros(2, 4, 4, 4)}, r"seen \(2, 4, 4, 4\): want \(2, C, 4, 4\), C at least 5"),
        ({"seen": torch.zeros(2, 8, 4, 3)}, "seen"),
        ({"seen": torch.zeros(2, 8, 4, 4).bfloat16()}, "seen has strides .* want channels_last"),
        ({"seen": torch.zeros(2, 8, 4, 4).double()}, "seen"),
        ({"seen": torch.zeros(2, 8, 4, 4, device="meta").to(memory_format=torch.channels_last)}, "grad|seen"),
        ({"grad": torch.zeros(2, 5, 4, 4).bfloat16()}, "grad"),
        ({"grad": torch.zeros(2, 8, 4, 4)}, "grad"),
        ({"scale": torch.ones(2, 5)}, "scale"),
        ({"scale": torch.ones(5).double()}, "scale"),
        ({"adv": torch.zeros(2, 5, 4, 4)}, "adv"),
        ({"x0": torch.zeros(2, 5, 4, 4), "adv": torch.zeros(2, 5, 4, 4), "mask": None}, "x0 has strides"),
    ],
)
def test_the_operator_refuses_what_it_would_get_wrong(given: Problem, said: str) -> None:
    p = problem((2, 5, 4, 4), torch.bfloat16, torch.channels_last, (False, True, False))
    with pytest.raises(ValueError, match=said):
        kernel.pgd_normalised(**{**with_normalised(p, torch.bfloat16, 8), **given})


def test_the_network_s_input_is_written_16_bytes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an H100: a store for the eight channels of a pixel, nothing spilt."""
    p = problem((1, 5, 64, 64), torch.bfloat16, torch.channels_last)
    p = with_normalised(p, torch.bfloat16, 8)
    seen, scale, kind = (p.pop(name) for name in ("seen", "scale", "kind"))
    text = ptx(monkeypatch, kernel, lambda: kernel.launch(StepArguments(**p), seen, scale, kind))
    assert len(re.findall(r"st\.global\.v4", text)) >= 2  # 256 pixels, 128 threads
    assert ".local" not in text


@on_cuda
@pytest.mark.parametrize("kind", ["asinh", "sqrt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (64, 5, 64, 64)])
def test_the_operator_on_cuda_equals_the_reference(shape: Shape, dtype: torch.dtype, kind: str) -> None:
    for flags in (FLAGS[0], FLAGS[6]):
        p = problem(shape, dtype, torch.channels_last, flags, device="cuda")
        one, two = (with_normalised(p | {"adv": p["adv"].clone()}, dtype, 8, kind) for _ in range(2))
        kernel.pgd_normalised(**one)
        reference.pgd_normalised(**two)
        assert_identical(one["adv"], two["adv"])
        rounding = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
        torch.testing.assert_close(one["seen"], two["seen"], rtol=rounding, atol=5e-7)
