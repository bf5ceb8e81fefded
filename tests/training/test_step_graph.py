"""A captured step gives the gradients of the plain one, batch after batch."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from hpcphotoz.training.adversaries import StepAttack
from hpcphotoz.training.components import TrainingComponents
from hpcphotoz.training.compute import compute_options
from hpcphotoz.training.objectives import Losses, TrainingObjective
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.overlap.streams import NoOverlap
from hpcphotoz.training.rank_batch import RankBatch, make_rank_batch
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.step import Step
from hpcphotoz.training.step_graph import GraphedStep
from hpcphotoz.world import World
from tests.helpers.networks import ConvNetwork
from tests.helpers.training.steps import BINS, CPU, batch, configured, record_of, stepper


def test_a_captured_step_uses_the_current_batch_epoch_and_weights() -> None:
    """The stand-in for a CUDA graph runs on the tensors of the capture, and writes the same gradients."""
    config = configured(eps_warmup_steps=1)
    plain, captured = ConvNetwork(), ConvNetwork()
    usual, _ = stepper(config, plain, rate=0.5)
    optimiser = torch.optim.SGD(captured.parameters(), lr=0.5)
    how = compute_options(config.compute, CPU)
    off, goal = NoOverlap(StepAttack(captured, config, BINS, how)), TrainingObjective(config, BINS)
    inner = Step(captured, optimiser, off, goal, how)
    graphed = GraphedStep(
        inner, captured, optimiser, config.adversarial.warmup_end, record=record_of(captured)
    )
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

        def gradients(self, rank_batch: RankBatch) -> Losses:
            calls.append(self._name)
            if self._fails:
                raise RuntimeError("inductor: no compiler\nand a long tail")
            return super().gradients(rank_batch)

    def record(call: Callable[[], Losses], device: torch.device) -> tuple[Callable[[], object], Losses]:
        calls.append("capture")
        out = call()
        return lambda: [old.copy_(new) for old, new in zip(out, call(), strict=True)], out

    for fails in (False, True):
        module, plain = ConvNetwork(), ConvNetwork()
        usual, _ = stepper(config, plain)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.0)
        graphed = GraphedStep(
            Named("plain", module), module, optimiser, config.adversarial.warmup_end,
            compiled=Named("compiled", module, fails), record=record,
        )  # fmt: skip
        for step, n in enumerate([11, 11, 5]):
            rank_batch = make_rank_batch(batch(n), config, epoch=step, step=step)
            torch.testing.assert_close(graphed(rank_batch).losses, usual(rank_batch).losses)
        taken = "plain" if fails else "compiled"
        assert calls == ["compiled", "capture", taken, taken, taken, "plain"]
        calls.clear()
        said = (
            "torch.compile failed here (RuntimeError: inductor: no compiler): the step runs as a CUDA graph"
        )
        assert fails == (said in caplog.text)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_graph_of_the_step_holds_the_compiled_network_and_the_rest_runs_without() -> None:
    """`graphs = step` together with `compiled` is the fastest form on a GPU."""
    asked = configured(graphs="step", compiled="on")
    how = compute_options(asked.compute, torch.device("cuda", 0))
    assert how.graphs == "step" and how.compiled
    module = ConvNetwork()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.0)
    components = TrainingComponents(module, optimiser, asked, BINS, (), how, CPU, Timers(CPU))
    step = components.build_step(components.adversaries(), RankRole(World()))
    assert isinstance(step, GraphedStep) and step.compiled is not None
    assert getattr(step.compiled.model, "_orig_mod", None) is module and step.step.model is module
    assert step.compiled.compute.passes.compiled and not step.step.compute.passes.compiled
