"""Steps whose loss or gradient is not finite are skipped alike on all ranks, and named."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcphotoz.training import loop
from hpcphotoz.training import step as training_step
from hpcphotoz.training.distributed.agreement import AgreedStep
from hpcphotoz.training.loop import Diverged, Outcome
from hpcphotoz.training.optimisation.guarded_update import GuardedUpdate
from hpcphotoz.training.optimisation.optimiser import Muon, never_updated
from hpcphotoz.training.optimisation.step_monitor import StepMonitor
from hpcphotoz.training.overlap.roles import RankRole
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.run.metrics import MetricsAccumulator
from hpcphotoz.training.run.timers import Timers
from hpcphotoz.training.trainer import train
from hpcphotoz.world import World
from tests.helpers import ranks
from tests.helpers.datasets import make_stamps, write_stamps
from tests.helpers.training.runs import SAME, arguments, config, training_lines
from tests.helpers.user_networks import NAME

RESNET, MIXER = f"{NAME}:poisoned_resnet", f"{NAME}:poisoned_mixer"
# One epoch of 75 objects in five steps, and a second one.
SHORT: dict[str, Any] = {"name": MIXER, "epochs": 2, "validation": 0.0, "ema_decay": 0.9}
EVERY_STEP: dict[str, Any] = {"checkpoint_steps": 1, "keep_checkpoints": 20}


@pytest.fixture(scope="module")
def bad_id() -> int:
    return int(make_stamps(75).object_id[40])


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Object 40 of 75 is one for which the networks here have no finite loss."""
    stamps = make_stamps(75)
    stamps.ebv[40] = 9.0
    return write_stamps(tmp_path_factory.mktemp("data") / "set", stamps, shard_rows=32)


@pytest.fixture(scope="module")
def alone(poisoned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert train(config(**SHORT, **EVERY_STEP), poisoned, out) is Outcome.FINISHED
    return out


def events(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("part") == "event"]


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights, their average, running statistics, and moments and steps of the optimiser."""
    state = checkpoint.load(run / "checkpoints" / f"step-{step:08d}.pt")
    found = {f"{part}.{key}": value for part in ("model", "ema") for key, value in state[part].items()}
    for number, values in state["optimiser"]["state"].items():
        found |= {f"{number}.{name}": value for name, value in values.items()}
    return found


def assert_skipped(run: Path, bad_id: int, rank: int | None = None) -> None:
    """One step of each epoch was skipped, and left weights, averages and moments as they were."""
    found = events(run)
    assert [event["epoch"] for event in found] == [0, 1]
    for event in found:
        assert (event["kind"], event["reason"]) == ("skipped_step", "loss")
        assert (event["object_ids"], event["objects"], len(event["ranks"])) == ([bad_id], 1, 1)
        assert rank is None or event["ranks"] == [rank]
    steps = [event["step"] for event in found]
    for line in training_lines(run):
        skipped = line["step"] in steps
        assert line["skipped_steps"] == skipped and (line["loss"] is None) == skipped
        assert (line["gradient_norm"] is None) == skipped
        assert skipped or 0 < line["gradient_norm"] == line["gradient_norm_max"]
    before, after, last = (tensors(run, step) for step in (steps[1] - 1, steps[1], 10))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(after["ema.body.head.weight"], last["ema.body.head.weight"])
    assert all(tensor.isfinite().all() for tensor in last.values())


def assert_same_losses(run: Path, reference: Path) -> None:
    ours, theirs = ranks.curve(run), ranks.curve(reference)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    for (step, a), (_, b) in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None) and (a is None or abs(a - b) <= SAME), step


def test_one_rank(alone: Path, bad_id: int) -> None:
    assert_skipped(alone, bad_id, rank=0)
    assert f"of object {bad_id} is not finite" in (alone / "logs" / "rank-0.log").read_text()


@pytest.mark.parametrize(
    "options", [{"name": RESNET, "width": 8}, {"objective": "free"}, {"algorithm": "sgd", "fraction": 0.0}]
)
def test_running_statistics_free_training_and_other_optimisers(
    options: dict[str, Any], poisoned: Path, bad_id: int, tmp_path: Path
) -> None:
    train(config(**{**SHORT, **EVERY_STEP, **options}), poisoned, tmp_path / "run")
    assert_skipped(tmp_path / "run", bad_id)


def test_a_run_that_reads_later_or_was_interrupted_is_the_same_run(
    alone: Path, poisoned: Path, bad_id: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the outcome of a step is read after the next one was launched, also by the update."""
    monkeypatch.setattr(loop, "reads_later", lambda device: True)
    monkeypatch.setattr(training_step, "GuardedUpdate", partial(GuardedUpdate, host_reads=False))
    run = tmp_path / "run"
    train(config(**SHORT, log_steps=5, checkpoint_steps=3, max_steps=7), poisoned, run)
    train(config(**SHORT, log_steps=5, checkpoint_steps=5), poisoned, run)
    assert events(run) == events(alone)
    ours, theirs = tensors(run, 10), tensors(alone, 10)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines, single = training_lines(run), training_lines(alone)
    assert [line["skipped_steps"] for line in lines] == [1, 1]
    for number, line in enumerate(lines):
        norms = [each["gradient_norm"] for each in single[5 * number : 5 * number + 5] if each["loss"]]
        assert line["gradient_norm"] == pytest.approx(sum(norms) / 4)
        assert line["gradient_norm_max"] == max(norms)


@pytest.mark.slow
def test_two_ranks(alone: Path, poisoned: Path, bad_id: int, tmp_path: Path) -> None:
    words = arguments(poisoned, tmp_path / "run", tmp_path, **SHORT, **EVERY_STEP)
    results = ranks.run(2, words)
    assert [status for status, _, _ in results] == [0, 0], results
    assert_skipped(tmp_path / "run", bad_id)
    assert_same_losses(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (2, {"mode": "ranks", "attackers": 1}),
        (3, {"mode": "ranks", "attackers": 1}),
        (3, {"mode": "streams"}),
        (3, {"name": RESNET, "width": 8}),
    ],
)
def test_attackers_streams_and_running_statistics(
    world_size: int, options: dict[str, Any], alone: Path, poisoned: Path, bad_id: int, tmp_path: Path
) -> None:
    words = arguments(poisoned, tmp_path / "run", tmp_path, **{**SHORT, **EVERY_STEP, **options})
    results = ranks.run(world_size, words)
    assert [status for status, _, _ in results] == [0] * world_size, results
    assert_skipped(tmp_path / "run", bad_id)
    if "name" not in options:  # running statistics depend on how ranks share a batch
        assert_same_losses(tmp_path / "run", alone)


def test_too_many_in_a_row_end_the_run(poisoned: Path, bad_id: int, tmp_path: Path) -> None:
    """All steps hold the object: the third ends the run, and nothing is saved of it."""
    every = {**SHORT, "epochs": 8, "global_batch": 75, "max_skipped_steps": 2, "checkpoint_steps": 1}
    says = rf"the loss of object {bad_id} is not finite at step 3, and 2 steps before it were skipped"
    with pytest.raises(Diverged, match=says):
        train(config(**every), poisoned, tmp_path / "run")
    assert [event["step"] for event in events(tmp_path / "run")] == [1, 2, 3]
    state = checkpoint.load(checkpoint.latest(tmp_path / "run") or Path())
    assert state["step"] == 2 and not state["optimiser"]["state"]


def test_a_run_whose_last_step_was_skipped_says_so_at_its_end(
    alone: Path, poisoned: Path, bad_id: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = events(alone)[1]["step"]
    assert train(config(**SHORT, max_steps=last), poisoned, tmp_path / "run") is Outcome.FINISHED
    says = f"at step {last}; warning: its last step was skipped: the loss of object {bad_id} is not finite"
    assert says in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("attackers", [0, 1])
def test_too_many_in_a_row_end_all_ranks(attackers: int, poisoned: Path, bad_id: int, tmp_path: Path) -> None:
    how = {"mode": "ranks", "attackers": 1} if attackers else {}
    every = {**SHORT, **how, "epochs": 8, "global_batch": 75, "max_skipped_steps": 1}
    results = ranks.run(2, arguments(poisoned, tmp_path / "run", tmp_path, **every))
    assert [status for status, _, _ in results] == [1, 1], results
    assert f"the loss of object {bad_id} is not finite at step 2" in results[0][2]
    assert not any("Traceback" in error for _, _, error in results)


def agreed(step: int, loss: float, norm: float = 1.0, ids: list[int] | None = None) -> AgreedStep:
    sums = torch.tensor([loss * 4, 4, loss * 4, 4, 1], dtype=torch.float64)
    return AgreedStep(step, 0, 9, sums, norm, lambda: ids or [])


def monitor(
    max_skipped: int,
    last_step: int = 1000,
    optimiser: torch.optim.Optimizer | None = None,
    begins_anew: bool = True,
) -> tuple[StepMonitor, MetricsAccumulator, list[dict[str, Any]]]:
    limits = max_skipped, last_step, optimiser or torch.optim.SGD([torch.zeros(1)], lr=1), begins_anew
    metrics, written, world = MetricsAccumulator(Timers(torch.device("cpu"))), [], World()

    def write(step: int, epoch: int, **figures: Any) -> None:
        written.append({"step": step, "epoch": epoch, **figures})

    return StepMonitor(*limits, world, RankRole(world), metrics, write), metrics, written


def test_only_steps_in_a_row_count() -> None:
    made, metrics, written = monitor(max_skipped=2)
    losses = [1.0, math.nan, math.inf, 1.0, math.nan, math.nan]
    assert all(made.take_down(agreed(step, loss)) for step, loss in enumerate(losses))
    assert not made.take_down(agreed(6, 1.0, norm=math.nan)), "a gradient counts as a loss does"
    assert [line["reason"] for line in written] == ["loss"] * 4 + ["gradient"]
    assert metrics.sums.tolist() == [8.0, 8, 8.0, 8, 7, 2.0, 2, 1.0, 5]
    made, _, _ = monitor(max_skipped=0)
    assert made.take_down(agreed(1, 1.0)) and not made.take_down(agreed(2, math.nan))


def test_an_event_names_ten_objects_and_counts_all() -> None:
    made, _, written = monitor(max_skipped=5)
    made.take_down(agreed(3, math.nan, ids=list(range(100, 125))))
    (line,) = written
    assert line["object_ids"] == list(range(100, 110)) and line["objects"] == 25 and line["ranks"] == [0]
    assert made.problem == (
        "the loss of objects 100, 101, 102, 103, 104, 105, 106, 107, 108, 109 and 15 more "
        "is not finite at step 3"
    )


def test_a_spike_of_the_loss_is_an_event(caplog: pytest.LogCaptureFixture) -> None:
    made, metrics, written = monitor(max_skipped=5)
    for step in range(30):
        made.take_down(agreed(step, 1.0))
    made.take_down(agreed(30, 7.0))
    (line,) = written
    assert (line["kind"], line["step"]) == ("loss_spike", 30)
    assert (line["step_loss"], line["median_loss"], line["limit"]) == (7.0, 1.0, 2.0)
    assert "step 30: the loss is 7: the median of the steps before is 1" in caplog.text
    assert metrics.sums[0] == 4 * 37, "it is a step as any other"


@pytest.mark.parametrize("begins_anew", [True, False])
@pytest.mark.parametrize("kind", [partial(torch.optim.SGD, momentum=0.9), torch.optim.AdamW, Muon])
def test_the_last_step_ends_a_run_that_has_taken_none(kind: Callable[..., Any], begins_anew: bool) -> None:
    """Told by the optimiser's state, which a resume has loaded; on a GPU it is zeros if none was taken."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    given = ([weight], 0.1, 0.9, 0.0, False) if kind is Muon else ([weight], 0.1)
    optimiser = kind(*given)
    for step in (1, 2, 3):
        made, _, _ = monitor(5, last_step=3, optimiser=optimiser, begins_anew=begins_anew)
        assert made.take_down(agreed(step, math.nan)) == (step < 3)
        assert made.none_taken == (step == 3)
    weight.grad = torch.ones(2, 2)
    optimiser.step()
    made, _, _ = monitor(5, last_step=3, optimiser=optimiser, begins_anew=begins_anew)
    assert made.take_down(agreed(3, math.nan)) and not made.none_taken
    for state in optimiser.state.values():
        for value in state.values():
            value.zero_()
    assert never_updated(optimiser)


def test_without_a_state_of_the_optimiser_only_a_whole_run_is_known_to_have_taken_none() -> None:
    for begins_anew in (True, False):
        made, _, _ = monitor(5, last_step=2, begins_anew=begins_anew)
        assert made.take_down(agreed(1, math.nan)) and made.take_down(agreed(2, math.nan)) != begins_anew
    made, _, _ = monitor(5, last_step=2)
    assert made.take_down(agreed(1, 1.0)) and made.take_down(agreed(2, math.nan))


def test_a_run_without_a_single_step_has_not_finished_however_often_it_is_begun(tmp_path: Path) -> None:
    stamps = make_stamps(75)
    stamps.ebv[::2] = 9.0  # some of every batch
    data, run = write_stamps(tmp_path / "set", stamps, shard_rows=32), tmp_path / "run"
    says = (
        "run: no step was taken, the weights are those of the start: the loss of objects .* at step 10, and "
        r"\d steps before it were skipped for the same reason: try compute.precision fp32 or a lower "
        "optimiser.learning_rate in another --out"
    )
    for _ in range(2):  # the second goes on after step 6
        with pytest.raises(Diverged, match=says):
            train(config(**SHORT, checkpoint_steps=6), data, run)
    newest = checkpoint.latest(run)
    assert newest is not None and checkpoint.step_of(newest) == 6
