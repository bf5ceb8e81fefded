"""Decoding on load: the Triton kernel and the CPU form equal the reference bit for bit."""

import re
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hpcphotoz.kernels import reference
from tests.helpers.kernels.interpreter import (
    compiled,
    interpret,
    interpreted,
    on_cuda,
    passed_under_the_interpreter,
    thinned,
)
from tests.helpers.kernels.ptx import ptx

triton = pytest.importorskip("triton", reason="triton is not installed: the kernel cannot run")
from hpcphotoz.kernels import load as kernel

CASES = [
    # n, bands, height, width against tiles of 16 x 16: smaller, exactly one, one pixel more, several, one
    # pixel; bands that are a power of two and not; no images
    (3, 5, 3, 3),
    (1, 1, 16, 16),
    (1, 3, 17, 17),
    (3, 5, 33, 33),
    (8, 4, 2, 2),
    (2, 1, 5, 5),
    (2, 5, 1, 1),
    (0, 5, 8, 8),
]
OBLONG = [(2, 5, 3, 20), (1, 1, 17, 4), (2, 3, 16, 32)]
TURNED = [*((s, t) for s in CASES for t in (False, True)), *((s, False) for s in OBLONG)]
SCALED = [False, True]
interpret(kernel)
pytestmark = pytest.mark.usefixtures("poison")
Problem = tuple[Tensor, Tensor | None, Tensor | None]


def problem(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.int16,
    scaled: bool = True,
    turned: bool = True,
    seed: int = 0,
) -> Problem:
    """Pixels over the whole range of their dtype, extremes included; symmetries from 7 downwards."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(-32768, 32768, shape, generator=g).to(torch.int16)
    flat = images.view(-1)
    flat[:2] = torch.tensor([-32768, 32767])[: flat.numel()]
    if dtype != torch.int16:
        images = (images / 7).to(dtype)
        images.view(-1)[3::11] = torch.nan
        images.view(-1)[4::13] = -torch.inf
    scale = 0.001 + torch.rand(shape[:2], generator=g) if scaled else None
    if scale is not None and dtype == torch.int16:
        scale.view(-1)[1::2] *= -1  # curved
    code = (7 - torch.arange(shape[0])) % 8 if turned else None
    return images, scale, code


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two results have equal bits and layout; NaN equals NaN."""
    both = a.nan_to_num(123.0), b.nan_to_num(123.0)
    return (
        a.dtype == b.dtype == torch.float32
        and a.shape == b.shape
        and (a.stride() == b.stride() or a.numel() == 0)
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(both[0].contiguous().view(torch.int32), both[1].contiguous().view(torch.int32))
    )


@interpreted
@pytest.mark.parametrize(
    ("shape", "turned", "dtype", "scaled"),
    thinned(
        [(*case, *kind) for case in TURNED for kind in product(kernel.STORED, SCALED)],
        lambda k: k % 6 == k // 6 % 6,
    ),
)
def test_kernel_equals_reference_bit_for_bit(
    shape: tuple[int, int, int, int], dtype: torch.dtype, scaled: bool, turned: bool
) -> None:
    images, scale, code = problem(shape, dtype, scaled, turned)
    for shift in range(0, 8 if turned else 1, max(len(images), 1)):  # all eight symmetries
        now = None if code is None else (code + shift) % 8
        assert same(kernel.launch(images, scale, now), reference.load(images, scale, now))


@compiled
@pytest.mark.timeout(600)  # seconds on an idle machine, minutes on a busy one
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_kernel_under_the_interpreter(slow: bool) -> None:
    assert passed_under_the_interpreter(__file__, "bit_for_bit", slow=slow) >= 19


@pytest.mark.parametrize("dtype", kernel.STORED)
@pytest.mark.parametrize("scaled", SCALED)
@pytest.mark.parametrize(("shape", "turned"), TURNED)
def test_operator_on_the_cpu_equals_reference(
    shape: tuple[int, int, int, int], dtype: torch.dtype, scaled: bool, turned: bool
) -> None:
    images, scale, code = problem(shape, dtype, scaled, turned)
    for shift in range(0, 8 if turned else 1, max(len(images), 1)):
        now = None if code is None else (code + shift) % 8
        assert same(kernel.load(images, scale, now), reference.load(images, scale, now))


@on_cuda
@pytest.mark.parametrize("dtype", kernel.STORED)
@pytest.mark.parametrize("scaled", SCALED)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [*CASES, (64, 5, 64, 64)])
def test_operator_on_cuda_equals_reference(
    shape: tuple[int, int, int, int], dtype: torch.dtype, scaled: bool, turned: bool
) -> None:
    cpu = problem(shape, dtype, scaled, turned)
    cuda = [None if t is None else t.cuda() for t in cpu]
    assert cuda[0] is not None
    assert same(kernel.load(cuda[0], cuda[1], cuda[2]).cpu(), reference.load(*cpu))


def test_the_eight_symmetries_are_the_group_of_the_square() -> None:
    image = torch.randn(1, 2, 5, 5)
    codes = torch.arange(8)

    def turn(x: Tensor, code: int) -> Tensor:
        turned: Tensor = kernel.load(x.contiguous(), None, torch.tensor([code]))
        return turned

    eight = kernel.load(image.expand(8, -1, -1, -1).contiguous(), None, codes)
    assert len({tuple(t.flatten().tolist()) for t in eight}) == 8
    assert torch.equal(eight[0], image[0])
    # Codes 0-3 and 4, 7 undo themselves; 5 and 6, the quarter turns, undo each other.
    undo = [0, 1, 2, 3, 4, 6, 5, 7]
    table = [[-1] * 8 for _ in range(8)]
    for k in range(8):
        assert torch.equal(turn(turn(image, k), undo[k]), image)
        for m in range(8):
            (table[k][m],) = (j for j in range(8) if torch.equal(eight[j], turn(turn(image, k), m)[0]))
    assert all(sorted(row) == list(range(8)) for row in table)
    assert table != [list(column) for column in zip(*table, strict=True)]  # not commutative


def test_a_turn_moves_pixels_where_it_says() -> None:
    image = torch.arange(9, dtype=torch.int16).reshape(1, 1, 3, 3)
    one = torch.ones(1, 1)
    flip_x, flip_y, swap = (kernel.load(image, one, torch.tensor([code])) for code in (1, 2, 4))
    assert flip_x[0, 0].tolist() == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]
    assert flip_y[0, 0].tolist() == [[6, 7, 8], [3, 4, 5], [0, 1, 2]]
    assert swap[0, 0].tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    quarter = kernel.load(image, one, torch.tensor([5]))  # flips x before it swaps
    assert quarter[0, 0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]


@pytest.mark.parametrize("shape", CASES)
def test_the_scale_is_per_object_and_band_and_linear(shape: tuple[int, int, int, int]) -> None:
    images, scale, code = problem(shape)
    assert scale is not None and code is not None
    found = kernel.load(images, scale, code)
    for factor in (2.0, 0.25):  # exact, as they are powers of two
        assert torch.equal(kernel.load(images, factor * scale, code), factor * found)
    assert torch.equal(kernel.load(images, torch.ones_like(scale), code), kernel.load(images, None, code))
    for n in range(shape[0]):
        for band in range(shape[1]):
            alone = kernel.load(
                images[n : n + 1, band : band + 1].contiguous(),
                scale[n : n + 1, band : band + 1].contiguous(),
                code[n : n + 1],
            )
            assert torch.equal(alone[0, 0], found[n, band])


def test_extremes_of_int16_and_nan_pass() -> None:
    images = torch.tensor([-32768, 32767, 0, -1], dtype=torch.int16).reshape(1, 1, 2, 2)
    assert kernel.load(images, None, None).flatten().tolist() == [-32768, 32767, 0, -1]
    half = kernel.load(images, torch.full((1, 1), 0.5), torch.tensor([3]))
    assert half.flatten().tolist() == [-0.5, 0, 16383.5, -16384]
    for dtype in (torch.float16, torch.float32):
        odd = torch.tensor([torch.nan, -torch.inf, torch.inf, 1], dtype=dtype).reshape(1, 1, 2, 2)
        found = kernel.load(odd, torch.full((1, 1), 2.0), torch.tensor([4])).flatten().tolist()
        assert found[0] != found[0] and found[1:] == [torch.inf, -torch.inf, 2]


@pytest.mark.parametrize("dtype", kernel.STORED)
@pytest.mark.parametrize("bands", [1, 5])
def test_the_result_is_new_and_channels_last(dtype: torch.dtype, bands: int) -> None:
    images = problem((2, bands, 4, 4), dtype)[0]
    for code in (None, torch.zeros(2, dtype=torch.int64)):
        found = kernel.load(images, None, code)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert found.stride() == (16 * bands, 1, 4 * bands, bands)
        assert found.untyped_storage().data_ptr() != images.untyped_storage().data_ptr()


@pytest.mark.parametrize("scaled", SCALED)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", kernel.STORED)
def test_operators_pass_opcheck(scaled: bool, turned: bool, dtype: torch.dtype) -> None:
    inputs = problem((2, 5, 4, 4), dtype, scaled, turned)
    torch.library.opcheck(kernel.load, tuple(t if t is None else t.nan_to_num() for t in inputs))
    torch.library.opcheck(kernel.on_cpu, tuple(t if t is None else t.nan_to_num() for t in inputs))


@compiled
@pytest.mark.parametrize("dtype", kernel.STORED)
def test_what_an_h100_would_run(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    inputs = problem((2, 5, 64, 64), dtype)
    code = ptx(monkeypatch, kernel, lambda: kernel.launch(*inputs))
    assert not re.search(r"div\.\S*f32", code), "quotients differ from the reference's"
    assert "fma" not in code, "a product that is not rounded differs from the reference's"
    assert len(re.findall(r"cvt\.rn\.f32\.s(?:16|32)", code)) >= (8 if dtype == torch.int16 else 0)


@compiled
@pytest.mark.parametrize("scaled", SCALED)
@pytest.mark.parametrize("turned", [False, True])
def test_the_launch_can_be_traced(scaled: bool, turned: bool) -> None:
    # As torch.compile sees it on a GPU: the kernel and the choice of device inside a graph.
    def launch(images: Tensor, scale: Tensor | None, code: Tensor | None) -> Tensor:
        return kernel.launch(images, scale, code)

    inputs = problem((2, 5, 4, 4), torch.int16, scaled, turned)
    graph = make_fx(launch, tracing_mode="fake")(*inputs)
    assert "triton_kernel_wrapper" in graph.code


def test_operator_refuses_what_it_would_get_wrong() -> None:
    images, scale, code = problem((2, 5, 4, 4))
    assert scale is not None and code is not None
    with pytest.raises(ValueError, match=r"want contiguous \(N, B, H, W\) of torch.float32"):
        kernel.load(images[0], None, None)
    with pytest.raises(ValueError, match="torch.int32: want"):
        kernel.load(images.int(), scale, code)
    with pytest.raises(ValueError, match="want contiguous"):
        kernel.load(images.contiguous(memory_format=torch.channels_last), scale, code)
    with pytest.raises(ValueError, match="4 x 2: only squares"):
        kernel.load(images[..., :2].contiguous(), scale, code)
    with pytest.raises(ValueError, match=r"scale \(5, 2\) .*want contiguous \(2, 5\)"):
        kernel.load(images, scale.T, code)
    with pytest.raises(ValueError, match="scale .*torch.float64: want"):
        kernel.load(images, scale.double(), code)
    with pytest.raises(ValueError, match="code .*torch.int32: want"):
        kernel.load(images, scale, code.int())
    with pytest.raises(ValueError, match=r"code \(1,\)"):
        kernel.load(images, scale, code[:1])
    with pytest.raises(ValueError, match="code is on meta and the images are on cpu"):
        kernel.load(images, scale, code.to("meta"))
