"""One step: objectives are what they say, in any number of passes; schedules; free adversarial training."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hpcphotoz.attacks import Ball, RandomStart, cross_entropy, pgd
from hpcphotoz.attacks.ball import replace_rows
from hpcphotoz.config import Config
from hpcphotoz.config.load import configure
from hpcphotoz.data.stream.batch import Batch
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.adversaries import StepAttack, attack_at, start_seed
from hpcphotoz.training.compute import compute_options
from hpcphotoz.training.objectives import TrainingObjective
from hpcphotoz.training.overlap.streams import AdversarySource, NoOverlap, SerialOverlap
from hpcphotoz.training.rank_batch import RankBatch, make_rank_batch
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.step import Step
from hpcphotoz.training.step_free import FreeStep
from hpcphotoz.training.step_graph import GraphedStep
from tests.helpers.toys import Curved

N, SIZE = 11, 13  # this rank's slice of a global batch
BINS = RedshiftBins(20, 0.0, 0.4)
CPU = torch.device("cpu")


def configured(objective: str = "replace", fraction: float = 0.4, **options: Any) -> Config:
    usual = {"bins": 20, "precision": "fp32", "augment": False, "eps": 0.2, "steps": 3}
    return configure("test", **{**usual, "objective": objective, "fraction": fraction, **options})


def batch(n: int = N) -> Batch:
    g = torch.Generator().manual_seed(5)
    return Batch(
        images=torch.randn(n, 3, 8, 8, generator=g),
        z_spec=0.4 * torch.rand(n, generator=g),
        ebv=torch.zeros(n),
        object_id=torch.arange(100, 100 + n),
        sky_sigma=0.5 + torch.rand(n, 3, generator=g),
        position=torch.arange(1, n + 1),
        size=SIZE,
        index=0,
    )


def stepper(
    config: Config, module: nn.Module, source: type[NoOverlap] = NoOverlap, rate: float = 0.0
) -> tuple[Step, StepAttack]:
    compute = compute_options(config.compute, CPU)
    generate = StepAttack(module, config, BINS, compute)
    adversaries: AdversarySource = source(generate)
    optimiser = torch.optim.SGD(module.parameters(), lr=rate)
    return Step(module, optimiser, adversaries, TrainingObjective(config, BINS), compute), generate


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    # Sums over 15 objects in another order: a few roundings of the largest term.
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))


def by_hand(kind: str, module: nn.Module, rank_batch: RankBatch, adv: Tensor, weight: float) -> Tensor:
    """The objective as the papers write it, on all objects at once."""
    label, x = BINS.index(rank_batch.z_spec), rank_batch.images
    mixed = x.index_copy(0, rank_batch.attacked, adv)
    if kind == "replace":
        return functional.cross_entropy(module(mixed, rank_batch.ebv), label, reduction="sum") / SIZE
    clean = functional.cross_entropy(module(x, rank_batch.ebv), label, reduction="sum")
    logits = module(adv, rank_batch.ebv[rank_batch.attacked])
    if kind == "append":  # positions 2, 4, 7, 9, 12 of 0 to 12
        return (clean + functional.cross_entropy(logits, label[rank_batch.attacked], reduction="sum")) / (
            SIZE + 5
        )
    p = torch.softmax(module(x[rank_batch.attacked], rank_batch.ebv[rank_batch.attacked]), 1)
    return (clean + weight * (p * (p.log() - torch.log_softmax(logits, 1))).sum()) / SIZE


@pytest.mark.parametrize("kind", ["replace", "append", "consistency"])
@pytest.mark.parametrize("source", [NoOverlap, SerialOverlap])
@pytest.mark.parametrize("micro_batch", [3, 100])
def test_gradients_are_those_of_the_formula(kind: str, source: type[NoOverlap], micro_batch: int) -> None:
    config, module = configured(kind, micro_batch=micro_batch, consistency_weight=2.5), Curved()
    take, generate = stepper(config, module, source)
    rank_batch = make_rank_batch(batch(), config, epoch=1, step=0)
    assert rank_batch.attacked.tolist() == [1, 3, 6, 8], "positions 2, 4, 7, 9"
    sums = take(rank_batch)
    ours = gradients(module)
    module.zero_grad()
    adv = generate(rank_batch)
    by_hand(kind, module, rank_batch, adv, 2.5).backward()  # type: ignore[no-untyped-call]
    same(ours, gradients(module))
    label = BINS.index(rank_batch.z_spec)
    seen = functional.cross_entropy(
        module(adv, rank_batch.ebv[rank_batch.attacked]), label[rank_batch.attacked], reduction="sum"
    )
    assert sums[1:].tolist() == pytest.approx(
        [7 if kind == "replace" else 11, float(seen.detach()), 4], rel=1e-5
    )


def test_fractions_of_none_and_all() -> None:
    for fraction, counts in ((0.0, [11, 0]), (1.0, [0, 11])):
        for source in (NoOverlap, SerialOverlap):
            take, _ = stepper(configured(fraction=fraction), Curved(), source)
            sums = take(make_rank_batch(batch(), configured(fraction=fraction), 0, 0))
            assert [sums[1], sums[3]] == counts and sums.isfinite().all()


@pytest.mark.parametrize("kind", ["replace", "append", "consistency"])
@pytest.mark.parametrize("source", [NoOverlap, SerialOverlap])
def test_a_rank_with_no_object_has_gradients_of_zero(kind: str, source: type[NoOverlap]) -> None:
    """Its collectives must take place: the others wait for them."""
    module = Curved()
    take, _ = stepper(configured(kind), module, source)
    assert take(make_rank_batch(batch(0), configured(kind), 0, 0)).tolist() == [0, 0, 0, 0]
    assert len(gradients(module)) == len(list(module.parameters()))
    assert all(not g.any() for g in gradients(module))


def test_an_attack_leaves_nothing_behind_between_clean_and_adversarial_passes() -> None:
    """Gradients of the clean pass wait while the attack freezes the parameters and computes gradients."""
    module = Curved()
    take, _ = stepper(configured(), module, SerialOverlap)
    take(make_rank_batch(batch(), configured(), 0, 0))
    twice = gradients(module)
    take(make_rank_batch(batch(), configured(), 0, 0))
    assert all(torch.equal(a, b) for a, b in zip(twice, gradients(module), strict=True))
    assert all(p.requires_grad for p in module.parameters()) and module.training


def test_streams_without_a_gpu_say_how_they_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hpcphotoz"):
        SerialOverlap(lambda rank_batch: rank_batch.images)
    assert "no CUDA device: clean passes and attack run one after the other" in caplog.text


def test_eps_and_steps_grow_over_their_warm_ups() -> None:
    config = configured(eps_warmup_steps=4, k_warmup_steps=6)
    given = [attack_at(step, config.attack, config.adversarial) for step in range(8)]
    assert [round(a.eps, 6) for a in given] == [0.04, 0.08, 0.12, 0.16, 0.2, 0.2, 0.2, 0.2]
    assert [a.steps for a in given] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert attack_at(0, config.attack, configured().adversarial) is config.attack


def test_a_warm_up_reaches_the_images() -> None:
    config, module = configured(eps_warmup_steps=9), Curved()
    _, generate = stepper(config, module)
    moved = []
    for step in (0, 4, 20):
        rank_batch = make_rank_batch(batch(), config, 0, step)
        change = (generate(rank_batch) - rank_batch.images[rank_batch.attacked]) / rank_batch.sky_sigma[
            rank_batch.attacked
        ][:, :, None, None]
        moved.append(float(change.abs().max()))
    # Images of order 1 with changes of 0.02: one rounding is 1e-7 / 0.02 of it.
    assert moved == pytest.approx([0.02, 0.1, 0.2], rel=2e-5)


def test_free_training_takes_k_updates_and_moves_images_by_the_gradients_of_training() -> None:
    config, module, reference = configured("free"), Curved(), Curved()
    compute = compute_options(config.compute, CPU)
    free = FreeStep(module, torch.optim.SGD(module.parameters(), lr=0.1), config, BINS, compute)
    rank_batch = make_rank_batch(batch(), config, 2, 0)
    loss_sums = free(rank_batch)
    optimiser, rows, label = (
        torch.optim.SGD(reference.parameters(), lr=0.1),
        rank_batch.attacked,
        BINS.index(rank_batch.z_spec),
    )
    eps = 0.2 * rank_batch.sky_sigma[rows][:, :, None, None]
    # No step of pgd but its start: a step of size 0.
    start = RandomStart(rank_batch.object_id[rows], start_seed(config), 2)
    radius = 0.2 * rank_batch.sky_sigma[rows]
    adv = pgd(
        reference, rank_batch.images[rows], rank_batch.ebv[rows], rank_batch.z_spec[rows], Ball(radius),
        loss=cross_entropy(BINS), steps=1, step_size=0 * radius, start=start,
    )  # fmt: skip
    for _ in range(3):
        adv = adv.detach().requires_grad_()
        logits = reference(rank_batch.images.index_copy(0, rows, adv), rank_batch.ebv)
        each = functional.cross_entropy(logits, label, reduction="none")
        optimiser.zero_grad()
        (each.sum() / SIZE).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        assert adv.grad is not None
        moved = adv.detach() + 2.5 / 3 * eps * adv.grad.sign()
        adv = rank_batch.images[rows] + (moved - rank_batch.images[rows]).clamp(-eps, eps)
    for a, b in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert loss_sums[3] == 4 and loss_sums[1] == 7
    assert float(loss_sums[2]) == pytest.approx(float(each[rows].sum().detach()), rel=1e-4)


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what copies from the host on a GPU, and is refused in a capture: `tensor[index] = number`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "index_put" in str(func):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", ["replace", "append", "consistency", "free"])
def test_no_step_writes_a_number_of_the_host_by_index(objective: str) -> None:
    config, module = configured(objective), Curved()
    taken: Callable[[RankBatch], Tensor] = stepper(config, module)[0]
    if objective == "free":
        optimiser = torch.optim.SGD(module.parameters(), lr=0.0)
        taken = FreeStep(module, optimiser, config, BINS, compute_options(config.compute, CPU))
    with Copies() as copies:
        taken(make_rank_batch(batch(), config, 0, 0))
    assert not copies.found


def test_attacked_images_are_put_in_the_layout_of_the_batch() -> None:
    images = torch.zeros(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for adv in (torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)):
        found = replace_rows(images, torch.tensor([1, 3]), adv)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert found.mean((1, 2, 3)).tolist() == [0, 1, 0, 1] and not images.any()
    objective, rank_batch = (
        TrainingObjective(configured(), BINS),
        make_rank_batch(batch(), configured(), 0, 0),
    )
    rank_batch = replace(rank_batch, images=rank_batch.images.contiguous(memory_format=torch.channels_last))
    (part,) = objective.together(rank_batch, rank_batch.images[rank_batch.attacked])
    assert part.images.is_contiguous(memory_format=torch.channels_last)
    assert part.attacked.nonzero()[:, 0].tolist() == rank_batch.attacked.tolist()


def test_a_captured_step_reads_every_batch_epoch_and_weight_anew() -> None:
    """A stand-in for a CUDA graph: it runs on the tensors of the capture, and writes the same gradients."""
    config = configured(eps_warmup_steps=1)
    plain, captured = Curved(), Curved()

    def record(call: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], object], Tensor]:
        out = call()
        kept = [p.grad for p in captured.parameters()]

        def replay() -> None:
            out.copy_(call())
            for gradient, parameter in zip(kept, captured.parameters(), strict=True):
                assert gradient is not None and parameter.grad is not None
                gradient.copy_(parameter.grad)

        return replay, out

    usual, _ = stepper(config, plain, rate=0.5)
    optimiser = torch.optim.SGD(captured.parameters(), lr=0.5)
    how = compute_options(config.compute, CPU)
    off, goal = NoOverlap(StepAttack(captured, config, BINS, how)), TrainingObjective(config, BINS)
    inner = Step(captured, optimiser, off, goal, how)
    graphed = GraphedStep(inner, captured, optimiser, config.adversarial.warmup_end, record=record)
    # Warm-up; capture of a partial batch, of a whole one; replay; another shape; replay.
    for step, n in enumerate([11, 7, 11, 11, 5, 11]):
        one = batch(n)
        one = replace(one, images=one.images.roll(step, 0), z_spec=one.z_spec.roll(step))
        rank_batch = make_rank_batch(one, config, epoch=step, step=step)
        torch.testing.assert_close(graphed(rank_batch), usual(rank_batch))
        for a, b in zip(captured.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a, b), step


def test_the_compiled_step_is_captured_and_if_the_compiler_fails_the_plain_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A batch that fits no graph takes the plain step, which needs no compiling for another shape."""
    config, calls = configured(), list[str]()

    class Named(Step):
        def __init__(self, name: str, module: nn.Module, fails: bool = False) -> None:
            how = compute_options(config.compute, CPU)
            optimiser = torch.optim.SGD(module.parameters(), lr=0.0)
            generate = StepAttack(module, config, BINS, how)
            super().__init__(module, optimiser, NoOverlap(generate), TrainingObjective(config, BINS), how)
            self._name, self._fails = name, fails

        def gradients(self, rank_batch: RankBatch) -> Tensor:
            calls.append(self._name)
            if self._fails:
                raise RuntimeError("inductor: no compiler\nand a long tail")
            return super().gradients(rank_batch)

    def record(call: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], object], Tensor]:
        calls.append("capture")
        out = call()
        return lambda: out.copy_(call()), out

    for fails in (False, True):
        module, plain = Curved(), Curved()
        usual, _ = stepper(config, plain)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.0)
        graphed = GraphedStep(
            Named("plain", module), module, optimiser, config.adversarial.warmup_end,
            compiled=Named("compiled", module, fails), record=record,
        )  # fmt: skip
        for step, n in enumerate([11, 11, 5]):
            rank_batch = make_rank_batch(batch(n), config, epoch=step, step=step)
            torch.testing.assert_close(graphed(rank_batch), usual(rank_batch))
        taken = "plain" if fails else "compiled"
        assert calls == ["compiled", "capture", taken, taken, taken, "plain"]
        calls.clear()
        said = (
            "torch.compile failed here (RuntimeError: inductor: no compiler): the step runs as a CUDA graph"
        )
        assert fails == (said in caplog.text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "append"}, "wants an adversarial.fraction above 0"),
        ({"mode": "ranks"}, "attackers would have nothing to do"),
        (
            {"objective": "free", "mode": "streams", "fraction": 0.5},
            "want overlap.mode off",
        ),
        ({"objective": "free", "fraction": 0.5, "method": "fgsm"}, "want pgd"),
        (
            {"mode": "ranks", "graphs": "step", "fraction": 0.5},
            "captures would wait for ranks",
        ),
        (
            {"max_staleness": 1},
            "has an effect only with mode ranks",
        ),
        (
            {"objective": "free", "fraction": 0.5, "loss": "margin"},
            "has no attack.loss of its own",
        ),
        ({"attackers": "some"}, "want auto, or the number of ranks that attack"),
    ],
)
def test_options_that_do_not_belong_together(options: dict[str, Any], said: str) -> None:
    from hpcphotoz.errors import BadInput

    with pytest.raises(BadInput, match=said):
        configure("test", **options)


def test_phases_count_each_second_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timers = Timers(CPU)
    with timers("unseen"):
        pass
    timers.active = True
    with timers("outer"), timers("inner"):
        pass
    assert timers.seconds() == {"outer": 7.0, "inner": 3.0}
