"""What all ranks do after a step, also when its outcome is read one step later, as on a GPU."""

import math
import signal
from pathlib import Path

import pytest
import torch

from hpcphotoz.training import components, loop
from hpcphotoz.training.distributed.agreement import Agreement, Verdict
from hpcphotoz.training.loop import Diverged, Outcome
from hpcphotoz.training.objectives import Losses
from hpcphotoz.training.optimisation.schedules import learning_rate
from hpcphotoz.training.optimisation.step_monitor import StepMonitor
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.rank_batch import RankBatch, make_rank_batch
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.metrics import MetricsAccumulator
from hpcphotoz.training.run.network import load_network
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.step import StepOutcome
from hpcphotoz.training.trainer import train
from hpcphotoz.world import World
from tests.helpers import ranks
from tests.helpers.training.runs import (
    assert_same_curve,
    config,
)
from tests.helpers.training.steps import SIZE, batch, configured


def outcome(loss: float, norm: float = 1.0) -> StepOutcome:
    sums = torch.tensor([loss, 2, 5, 4], dtype=torch.float64)
    rows = torch.tensor([-1, 2, 2, -1, 0]) if math.isnan(loss) else torch.full((5,), -1)
    return StepOutcome(Losses(sums, rows), torch.tensor([norm / 2, norm]))


GOOD, BAD = outcome(3.0), outcome(math.nan, math.nan)


def rank_batch(step: int) -> RankBatch:
    return make_rank_batch(batch(), configured(), 0, step)


def agreement(lags: bool, max_skipped: int = 0) -> tuple[Agreement, MetricsAccumulator]:
    metrics, world = MetricsAccumulator(Timers(torch.device("cpu"))), World(0, 1, 0, 1, "none")
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1)
    limits = max_skipped, 1000, optimiser, True
    monitor = StepMonitor(*limits, world, RankRole(world), metrics, lambda *_, **__: None)
    return Agreement(world, None, monitor.take_down, lags), metrics


def test_an_outcome_is_read_while_the_next_step_runs_or_when_it_is_wanted() -> None:
    made, metrics = agreement(lags=True)
    for step, now in enumerate([False, False, True, False]):
        assert made.after(GOOD, rank_batch(step), False, False, None, now) is Verdict.GO_ON
        assert made.step == [0, 1, 3, 3][step]
        assert metrics.sums[0] == 3 * made.step and metrics.sums[3] == 4 * made.step
    made, _ = agreement(lags=False)
    assert made.after(GOOD, rank_batch(0), False, False, None, now=False) is Verdict.GO_ON and made.step == 1


def test_a_stop_holds_after_the_step_in_which_it_is_read() -> None:
    """The outcome of that step is read too, and saved."""
    made, metrics = agreement(lags=True)
    assert made.after(GOOD, rank_batch(0), True, False, None, now=False) is Verdict.GO_ON
    assert made.after(GOOD, rank_batch(1), True, False, None, now=False) is Verdict.STOP
    assert made.step == 2 and metrics.sums[1] == 4
    made, _ = agreement(lags=True)
    made.after(GOOD, rank_batch(0), True, False, None, now=False)
    assert made.after(BAD, rank_batch(1), True, False, None, now=False) is Verdict.DIVERGED, (
        "and is not saved"
    )


@pytest.mark.parametrize(("bad", "problem"), [(BAD, False), (outcome(3.0, math.inf), False), (GOOD, True)])
def test_the_end_of_a_run_is_reported_with_its_step(bad: StepOutcome, problem: bool) -> None:
    for lags in (False, True):
        made, metrics = agreement(lags)
        made.after(GOOD, rank_batch(0), False, False, None, now=False)
        verdict = made.after(bad, rank_batch(1), False, problem, None, now=False)
        if lags:
            assert verdict is Verdict.GO_ON
            verdict = made.after(GOOD, rank_batch(2), False, False, None, now=False)
        assert verdict is (Verdict.PROBLEM if problem else Verdict.DIVERGED)
        assert made.step == 2 and metrics.sums[0] == 3, "its loss is not added to the sums"


def test_attackers_can_stop_a_run() -> None:
    made, _ = agreement(lags=False)
    asked, cannot = (torch.tensor(flags, dtype=torch.float64) for flags in ([1.0, 0.0], [0.0, 1.0]))
    assert made.after(GOOD, rank_batch(0), False, False, asked, now=True) is Verdict.STOP
    assert made.after(GOOD, rank_batch(1), False, False, cannot, now=True) is Verdict.PROBLEM
    assert SIZE == rank_batch(0).size


def test_a_run_that_reads_later_is_the_same_run(
    alone: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics, checkpoints and continuation are equal; steps 3 and 7 lie between metrics and checkpoints."""
    monkeypatch.setattr(loop, "reads_later", lambda device: True)
    train(config(log_steps=4, max_steps=7), dataset, tmp_path / "run")
    assert checkpoint.load(checkpoint.latest(tmp_path / "run") or Path())["step"] == 7
    train(config(log_steps=1), dataset, tmp_path / "run")
    ours, theirs = (load_network(run).module.state_dict() for run in (tmp_path / "run", alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    train(config(log_steps=1), dataset, tmp_path / "whole")
    assert_same_curve(tmp_path / "whole", alone, 0.0)


def test_a_signal_stops_a_run_that_reads_later_with_a_checkpoint_of_its_last_step(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "reads_later", lambda device: True)
    steps: list[int] = []

    def signalled(step: int, *options: object) -> float:
        steps.append(step)
        if step == 4:
            signal.raise_signal(signal.SIGUSR2)
        return learning_rate(step, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(components, "learning_rate", signalled)
    options = {"log_steps": 100, "checkpoint_steps": 100, "epochs": 40}
    assert train(config(**options), dataset, tmp_path / "run") is Outcome.STOPPED
    state = checkpoint.load(checkpoint.latest(tmp_path / "run") or Path())
    assert state["step"] == steps[-1] + 1 and state["step"] in (5, 6)
    assert float(state["sums"][1] + state["sums"][3]) > 0 and ranks.curve(tmp_path / "run") == []


def test_nothing_is_saved_of_a_run_whose_loss_is_not_finite(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "reads_later", lambda device: True)
    wild = config(learning_rate=1e30, warmup_steps=0, checkpoint_steps=1, max_skipped_steps=0)
    with pytest.raises(Diverged, match=r"of objects .* and 6 more is not finite at step 2: "):
        train(wild, dataset, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("step-*.pt"):
        assert checkpoint.load(path)["step"] < 2
