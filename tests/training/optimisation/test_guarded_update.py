"""An update that is not finite leaves everything as it was; one that is finite is that of the optimiser."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz.compute.statistics import BufferCopy
from hpcphotoz.training.adversaries import StepAttack
from hpcphotoz.training.compute import compute_options
from hpcphotoz.training.objectives import TrainingObjective
from hpcphotoz.training.optimisation.average import WeightAverage
from hpcphotoz.training.optimisation.guarded_update import GuardedUpdate, loss_scale
from hpcphotoz.training.overlap.streams import NoOverlap, SerialOverlap
from hpcphotoz.training.rank_batch import RankBatch, make_rank_batch
from hpcphotoz.training.step import Step
from hpcphotoz.training.step_free import FreeStep
from hpcphotoz.training.step_graph import GraphedStep
from tests.helpers.networks import BatchNormNetwork, ConvNetwork
from tests.helpers.training.steps import BINS, CPU, Recorded, batch, configured, record_of

ROW = 4  # of the object whose images are NaN

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "Adam, not fused": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, weight_decay=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, fused=True),
}


def rank_batch(step: int, bad: bool = False) -> RankBatch:
    made = make_rank_batch(batch(), configured(), epoch=0, step=step)
    images = made.images.roll(step, 0).contiguous(memory_format=torch.channels_last)
    made = replace(made, images=images)
    if bad:
        made.images[ROW, 0, 0, 0] = torch.nan
    return made


def stepped(
    module: nn.Module, optimiser: torch.optim.Optimizer, kind: str = "replace", **options: Any
) -> Step | FreeStep:
    config = configured(kind, **options)
    how = compute_options(config.compute, CPU)
    if kind == "free":
        return FreeStep(module, optimiser, config, BINS, how)
    overlap = SerialOverlap if kind == "append" else NoOverlap  # two passes, so that rows are put together
    adversaries = overlap(StepAttack(module, config, BINS, how))
    return Step(module, optimiser, adversaries, TrainingObjective(config, BINS), how)


def state(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of network and optimiser."""
    found = dict(module.state_dict())
    for number, values in optimiser.state_dict()["state"].items():
        found |= {f"{number}.{name}": value for name, value in values.items() if value is not None}
    return copy.deepcopy(found)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    differing = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert not differing


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("host_reads", [True, False])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_step_that_is_not_finite_leaves_no_trace(name: str, host_reads: bool, first: int) -> None:
    """Also as the first step, and in running statistics. Without the host: how a GPU does it."""
    if not host_reads and "not fused" in name:
        return  # there a GPU's host reads the norm
    networks, finals = (BatchNormNetwork(), BatchNormNetwork()), []
    networks[1].load_state_dict(networks[0].state_dict())
    for module, poisoned in zip(networks, (True, False), strict=True):
        module.drop.p = 0.0  # its random numbers would be others
        optimiser = OPTIMISERS[name](module.parameters())
        step = stepped(module, optimiser)
        assert isinstance(step, Step)
        step.guard = GuardedUpdate(module, optimiser, 0.0, host_reads)
        for number in range(4):
            before = state(module, optimiser)
            if poisoned and number == first:
                for _ in range(2):
                    norms = step(rank_batch(number, bad=True)).norms
                    assert not norms.isfinite().any()
                after = state(module, optimiser)
                # The first update makes the optimiser's state: zeros, if it is left out on a GPU.
                assert_same(before, {key: after[key] for key in before})
                assert not any(tensor.any() for key, tensor in after.items() if key not in before)
            assert step(rank_batch(number)).norms.isfinite().all()
            assert not torch.equal(module.head.weight, before["head.weight"])
        finals.append(state(module, optimiser))
    assert_same(*finals)


@pytest.mark.parametrize("kind", ["replace", "append", "consistency", "free"])
@pytest.mark.parametrize("bad_row", [0, ROW])
def test_the_rows_whose_loss_is_not_finite_are_named(kind: str, bad_row: int) -> None:
    module = ConvNetwork()
    step = stepped(module, torch.optim.SGD(module.parameters(), lr=0.1), kind, fraction=0.4)
    before = copy.deepcopy(module.state_dict())
    good, bad = rank_batch(0), rank_batch(0)
    bad.images[bad_row] = torch.nan
    assert set(step(bad).losses.bad_rows.tolist()) == {-1, bad_row}
    assert_same(dict(before), dict(module.state_dict()))
    assert set(step(good).losses.bad_rows.tolist()) == {-1}
    assert not torch.equal(module.head.weight, before["head.weight"])


def test_a_gradient_that_is_not_finite_is_left_out_though_the_loss_is_finite() -> None:
    module = ConvNetwork()
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1)
    step, before = stepped(module, optimiser), copy.deepcopy(module.state_dict())
    hook = module.head.bias.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[no-untyped-call]
    outcome = step(rank_batch(0))
    assert outcome.losses.sums.isfinite().all() and not outcome.norms.isfinite().any()
    assert set(outcome.losses.bad_rows.tolist()) == {-1}
    assert_same(dict(before), dict(module.state_dict()))
    hook.remove()
    step(rank_batch(0))
    assert not torch.equal(module.head.weight, before["head.weight"])


# Operators that read a number on the host, which waits for a GPU there.
READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal")


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@pytest.mark.parametrize("host_reads", [True, False])
def test_on_a_gpu_the_host_reads_nothing_of_an_update(name: str, host_reads: bool) -> None:
    """The same operators run here on the CPU; clipping and the average are in it."""
    module = BatchNormNetwork()
    optimiser = OPTIMISERS[name](module.parameters())
    step, average = stepped(module, optimiser), WeightAverage(module, 0.5)
    assert isinstance(step, Step)
    step.guard = GuardedUpdate(module, optimiser, 0.1, host_reads)
    step(rank_batch(0))
    for bad in (False, True):
        step.guard.begin()
        step.gradients(rank_batch(1, bad))
        with Recorded(*READS) as reads:
            norm = step.guard.update()
            average.update(1, norm.isfinite())
        assert bool(reads.found) == host_reads


def test_an_update_of_free_training_is_left_out_alone() -> None:
    """The second of three is: the others are taken."""
    module, calls = ConvNetwork(), iter(range(100))
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    step, seen = stepped(module, optimiser, "free"), []

    def poison(gradient: Tensor) -> Tensor:
        seen.append(module.head.bias.detach().clone())
        return gradient * torch.nan if next(calls) == 1 else gradient

    module.head.bias.register_hook(poison)  # type: ignore[no-untyped-call]
    assert step(rank_batch(0)).norms.isfinite().tolist() == [True, False, True]
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], module.head.bias)


def test_a_captured_step_that_is_not_finite_leaves_no_trace() -> None:
    """The stand-in for a CUDA graph keeps its gradients in one place, as a graph does."""
    networks, finals = (ConvNetwork(), ConvNetwork()), []
    for module, poisoned in zip(networks, (True, False), strict=True):
        optimiser = torch.optim.AdamW(module.parameters(), lr=1e-2, fused=True)
        inner = stepped(module, optimiser, clip_norm=0.5)
        assert isinstance(inner, Step)
        graphed = GraphedStep(inner, module, optimiser, 0, record=record_of(module))
        for number in range(3):
            if poisoned and number:
                outcome = graphed(rank_batch(number, bad=True))
                assert set(outcome.losses.bad_rows.tolist()) == {-1, ROW}
                assert not outcome.norms.isfinite().any()
            assert graphed(rank_batch(number)).norms.isfinite().all()
        finals.append(state(module, optimiser))
    assert_same(*finals)


@pytest.mark.parametrize("kind", ["replace", "free"])
@pytest.mark.parametrize("clip_norm", [0.0, 1e-3, 1e3])
def test_gradients_are_clipped_as_torch_clips_them(kind: str, clip_norm: float) -> None:
    networks, norms = (ConvNetwork(), ConvNetwork()), []
    for module, ours in zip(networks, (True, False), strict=True):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        take = stepped(module, optimiser, kind, clip_norm=clip_norm if ours else 0.0)
        update, found = optimiser.step, list[Tensor]()

        def clipped(update: Any = update, module: nn.Module = module, found: list[Tensor] = found) -> None:
            limit = clip_norm or math.inf
            found.append(torch.nn.utils.clip_grad_norm_(module.parameters(), limit))
            update()

        if not ours:
            optimiser.step = clipped  # type: ignore[method-assign, assignment]
        outcomes = [take(rank_batch(step)).norms for step in range(2)]
        norms.append(torch.cat(outcomes) if ours else torch.stack(found))
    assert torch.equal(*norms) and len(norms[0]) == (6 if kind == "free" else 2)
    assert_same(dict(networks[0].state_dict()), dict(networks[1].state_dict()))


def test_the_factor_of_the_loss_is_the_same_number_or_nan() -> None:
    loss, sums = torch.tensor(2.0, requires_grad=True), torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert float(loss_scale(loss, sums, 0.1)) == float(torch.tensor(0.1))
    for broken in (math.nan, math.inf):
        assert math.isnan(loss_scale(torch.tensor(broken), sums, 0.1))
        assert math.isnan(loss_scale(loss, torch.tensor([3.0, broken], dtype=torch.float64), 0.1))


def test_buffers_are_put_back_where_a_flag_says_so() -> None:
    module = BatchNormNetwork()
    copied = BufferCopy(module)
    for where, back in ((None, True), (torch.tensor(True), True), (torch.tensor(False), False)):
        copied.save()
        before = copy.deepcopy(module.state_dict())
        module(torch.full((4, 3, 8, 8), torch.nan), torch.zeros(4))
        copied.restore(where)
        assert int(module.norm.num_batches_tracked or 0) == (0 if back else 1)
        if back:
            assert_same(dict(before), dict(module.state_dict()))


def test_the_average_takes_in_the_weights_where_a_flag_says_so() -> None:
    module = BatchNormNetwork()
    plain, flagged = WeightAverage(module, 0.5), WeightAverage(module, 0.5)
    with torch.no_grad():
        module.head.weight += 1
    before = copy.deepcopy(flagged.state_dict())
    flagged.update(3, where=torch.tensor(False))
    assert_same(before, flagged.state_dict())
    plain.update(3)
    flagged.update(3, where=torch.tensor(True))
    for name, tensor in plain.state_dict().items():  # one rounding of numbers of order one
        torch.testing.assert_close(flagged.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)
    assert not torch.equal(before["head.weight"], plain.state_dict()["head.weight"])
