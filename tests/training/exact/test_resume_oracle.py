"""A resumed process has, before its first update, exactly what the same run had when it went on.

A run keeps all its checkpoints and records what every update begins with. Copies of its folder are then
resumed from one of the checkpoints.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.training.runs import PER_EPOCH, SAME, arguments, config
from tests.helpers.training.spy import Spy, differences, recorded, whole_batches

STEPS = 2 * PER_EPOCH + 3
AT = 9  # step of the checkpoint: in the second epoch, between two lines of metrics
USUAL: dict[str, Any] = {"checkpoint_steps": 3, "keep_checkpoints": 20, "log_steps": 4, "max_steps": STEPS}


def watched(options: dict[str, Any], data: Path, out: Path) -> Spy:
    """Train in this process."""
    spy = Spy()
    with spy.watching():
        train(config(**{**USUAL, **options}), data, out)
    return spy


def ranks_watched(size: int, options: dict[str, Any], data: Path, out: Path, folder: Path) -> list[Spy]:
    """Train on several ranks, each a process."""
    words = arguments(data, out, folder, **{**USUAL, **options})
    given = [str(folder / "spy"), *words]
    for status, _, error in ranks.run(size, given, module="tests.helpers.training.spy"):
        assert status == 0, error
    return recorded(folder / "spy", size)


def as_of(run: Path, copy: Path, step: int = AT, only: str = checkpoint.NEWEST) -> Path:
    """A copy of a run folder as a kill after `step` could leave it; checkpoints in one folder alone."""
    shutil.copytree(run, copy)
    for path in checkpoint.paths(copy):
        if path.parent.name != only or checkpoint.step_of(path) > step:
            path.unlink()
    assert checkpoint.step_of(checkpoint.paths(copy)[0]) == step
    return copy


def assert_begins_as(resumed: list[Spy], whole: list[Spy], step: int = AT) -> None:
    """Everything before the first update, and batches and random starts of all later ones, to the bit."""
    learners, theirs = ([spy for spy in both if spy.before] for both in (resumed, whole))
    assert min(learners[0].before) == step, "the first update"
    for spy in learners:
        mine, other = dict(spy.before[step]), dict(theirs[0].before[step])
        if spy is not learners[0]:  # rank 0 writes the metrics
            del mine["sums"], other["sums"]
        assert not differences(mine, other)
    batches, unbroken = whole_batches(learners), whole_batches(theirs)
    assert list(batches) == [number for number in unbroken if number >= step]
    for number, batch in batches.items():
        assert not differences(batch, unbroken[number]), f"global batch of step {number}"
    starts, others = ({k: v for spy in both for k, v in spy.starts.items()} for both in (resumed, whole))
    assert starts.keys() <= others.keys()
    attacked = {int(number) for batch in batches.values() for number in batch["attacked"]}
    assert attacked <= {number for _, _, number in starts}, "every attacked object has a random start"
    for key, start in starts.items():
        assert torch.equal(start, others[key]), f"random start of {key}"


def assert_goes_on_as(resumed: Spy, whole: Spy) -> None:
    """The loss of every later step, and the norm of its gradients, to the bit."""
    for step, sums in resumed.sums.items():
        assert torch.equal(sums, whole.sums[step]), f"loss of step {step}"
        assert torch.equal(resumed.norms[step], whole.norms[step]), f"gradients of step {step}"


@pytest.fixture(scope="module")
def unbroken(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Spy]:
    """A run on one rank without interruption."""
    out = tmp_path_factory.mktemp("oracle") / "run"
    return out, watched({}, dataset, out)


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.9},
        {"algorithm": "sgd", "weight_decay": 1e-3},
        {"algorithm": "muon", "binning": 2},
        {"schedule": "one_cycle", "warmup_steps": 0},
        {"schedule": "halfway", "algorithm": "adam"},
        {"objective": "free"},
        {"objective": "consistency", "eps_warmup_steps": 11, "k_warmup_steps": 11},
        {"objective": "append", "restarts": 2, "mode": "streams"},
        {"name": "tests.helpers.user_networks:resnet"},
        {"freeze": ["conv1"], "deterministic": True},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_a_resumed_run_begins_and_goes_on_with_the_same_bits(
    options: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    whole = watched(options, dataset, tmp_path / "run")
    resumed = watched(options, dataset, as_of(tmp_path / "run", tmp_path / "copy"))
    assert_begins_as([resumed], [whole])
    assert_goes_on_as(resumed, whole)


@pytest.mark.parametrize("step", [3, 6, 2 * PER_EPOCH + 2])
def test_from_every_checkpoint(step: int, unbroken: tuple[Path, Spy], dataset: Path, tmp_path: Path) -> None:
    run, whole = unbroken
    resumed = watched({}, dataset, as_of(run, tmp_path / "copy", step))
    assert_begins_as([resumed], [whole], step)
    assert_goes_on_as(resumed, whole)


@pytest.mark.parametrize("changed", [{"mode": "streams"}, {"micro_batch": 3}, {"fused_adam": "off"}], ids=str)
def test_with_other_options_of_speed_it_begins_with_the_same_bits(
    changed: dict[str, Any], unbroken: tuple[Path, Spy], dataset: Path, tmp_path: Path
) -> None:
    run, whole = unbroken
    resumed = watched(changed, dataset, as_of(run, tmp_path / "copy"))
    if "fused_adam" in changed:  # an option of the process, which the optimiser keeps among its state
        for entry in resumed.before[AT]["optimiser"]["param_groups"]:
            entry["fused"] = True
    assert_begins_as([resumed], [whole])
    for step, sums in resumed.sums.items():
        assert torch.allclose(sums, whole.sums[step], rtol=0, atol=16 * SAME), f"loss of step {step}"


@pytest.mark.parametrize("only", [checkpoint.BEST, checkpoint.KEPT])
def test_from_the_best_or_a_kept_checkpoint_alone(only: str, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole = watched({"keep_hours": 1e-9}, dataset, run)
    found = [checkpoint.step_of(path) for path in checkpoint.in_folder(run / only)]
    step = found[0] if only == checkpoint.BEST else AT
    assert 0 < step < STEPS and step in found
    resumed = watched({"keep_hours": 1e-9}, dataset, as_of(run, tmp_path / "copy", step, only))
    assert_begins_as([resumed], [whole], step)
    assert_goes_on_as(resumed, whole)


def test_from_a_checkpoint_of_format_1(unbroken: tuple[Path, Spy], dataset: Path, tmp_path: Path) -> None:
    run, whole = unbroken
    copy = as_of(run, tmp_path / "copy")
    path = checkpoint.paths(copy)[0]
    state = {**checkpoint.load(path), "format": 1}
    for newer in ("checksum", "schedule_epochs"):
        del state[newer]
    torch.save(state, path)
    resumed = watched({}, dataset, copy)
    assert_begins_as([resumed], [whole])
    assert_goes_on_as(resumed, whole)


def test_on_two_ranks_after_one(unbroken: tuple[Path, Spy], dataset: Path, tmp_path: Path) -> None:
    run, whole = unbroken
    copy = as_of(run, tmp_path / "copy")
    resumed = ranks_watched(2, {}, dataset, copy, tmp_path)
    assert_begins_as(resumed, [whole])
    for step in resumed[0].sums:
        sums = resumed[0].sums[step] + resumed[1].sums[step]
        assert torch.allclose(sums, whole.sums[step], rtol=0, atol=16 * SAME), f"loss of step {step}"


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (3, 2), (2, 3)])
@pytest.mark.parametrize(
    "options", [{"ema_decay": 0.9, "algorithm": "sgd"}, {"schedule": "one_cycle", "warmup_steps": 0}], ids=str
)
def test_on_another_number_of_ranks(
    before: int, after: int, options: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    whole = ranks_watched(before, options, dataset, run, tmp_path)
    copy = as_of(run, tmp_path / "copy")
    (tmp_path / "after").mkdir()
    assert_begins_as(ranks_watched(after, options, dataset, copy, tmp_path / "after"), whole)


@pytest.mark.slow
def test_with_attackers_and_without_them_again(
    unbroken: tuple[Path, Spy], dataset: Path, tmp_path: Path
) -> None:
    run, whole = unbroken
    split = {"mode": "ranks", "attackers": 1}
    copy = as_of(run, tmp_path / "copy")
    attacked = ranks_watched(2, split, dataset, copy, tmp_path)
    assert [bool(spy.before) for spy in attacked] == [True, False], "a learner and an attacker"
    assert_begins_as(attacked, [whole])
    back = watched({}, dataset, as_of(copy, tmp_path / "back", 12))
    assert_begins_as([back], attacked, 12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"objective": "free"}, {"mode": "ranks", "attackers": 1, "binning": 2, "algorithm": "muon"}],
    ids=str,
)
def test_three_ranks_of_deterministic_mode_go_on_with_the_same_bits(
    options: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    """Without it the first step after a resume rounds otherwise: its buckets have another order."""
    run, options = tmp_path / "run", {"deterministic": True, **options}
    whole = ranks_watched(3, options, dataset, run, tmp_path)
    copy = as_of(run, tmp_path / "copy")
    (tmp_path / "after").mkdir()
    resumed = ranks_watched(3, options, dataset, copy, tmp_path / "after")
    assert_begins_as(resumed, whole)
    for ours, theirs in zip(resumed, whole, strict=True):
        assert_goes_on_as(ours, theirs)
        for step, before in ours.before.items():
            mine, other = dict(before), dict(theirs.before[step])
            assert not differences(mine["model"], other["model"]), f"weights of step {step}"
    last, other = (checkpoint.load(checkpoint.paths(out)[0]) for out in (copy, run))
    assert last["checksum"] == other["checksum"]


def test_the_comparison_sees_what_differs() -> None:
    one = {"a": torch.zeros(2), "b": [1.0, {"c": None}]}
    assert differences(one, {"a": torch.tensor([0.0, 1e-45]), "b": [1.0, {"c": None}]}) == ["/a"]
    assert differences(one, {"a": torch.zeros(2).double(), "b": [2.0, {"c": 0}]}) == ["/a", "/b/0", "/b/1/c"]
    assert differences(one, {"a": torch.zeros(2)}) == [": the keys"]
