"""Rehearsals agree with training, find planted problems, and leave nothing behind."""

from pathlib import Path
from typing import Any

import pytest
from torch import distributed as dist

from hpcphotoz.__main__ import main
from hpcphotoz.data.datasets import Datasets
from hpcphotoz.errors import BadInput
from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.rehearsal import memory
from hpcphotoz.training.rehearsal.problems import notes, problems
from hpcphotoz.training.rehearsal.ranks import RehearsedRanks
from hpcphotoz.training.rehearsal.rehearse import Rehearsal, rehearse
from hpcphotoz.training.rehearsal.report import report_lines
from hpcphotoz.training.trainer import train
from tests.helpers import ranks
from tests.helpers.datasets import make_dataset
from tests.helpers.training.runs import SAME, arguments, assert_same_curve, config
from tests.helpers.user_networks import NAME

SMALL_BLOCKS: dict[str, Any] = {"block_rows": 1, "window_blocks": 24}


def rehearsed(data: Any, tmp_path: Path, size: int, rank: int = 0, **options: object) -> Rehearsal:
    return rehearse(config(**options), data, tmp_path / "run", RehearsedRanks(size, rank))


def first_step(found: list[Rehearsal]) -> tuple[float, int]:
    """Mean loss of the first step over rehearsals of all ranks, and the number of its objects."""
    assert all(each.steps for each in found)
    sums = [each.steps.outcomes[0].sums.tolist() for each in found if each.steps]
    n = sum(each[1] + each[3] for each in sums)
    return sum(each[0] + each[2] for each in sums) / n, int(n)


def everything_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_ranks_together_take_the_first_step_of_training(
    size: int, alone: Path, dataset: Path, tmp_path: Path
) -> None:
    found = [rehearsed(dataset, tmp_path, size, rank) for rank in range(size)]
    loss, n = first_step(found)
    assert n == 16 and loss == pytest.approx(ranks.curve(alone)[0][1], abs=SAME)
    ids = [number for each in found if each.steps for number in each.steps.object_ids[0]]
    assert len(set(ids)) == 16
    for each in found:
        assert each.plan and each.steps and not problems(each)
        sizes = each.plan.roles[0].division
        assert each.steps.batches[0] == (sizes.objects[each.ranks.rank], sizes.attacked[each.ranks.rank])


@pytest.mark.parametrize("size", [2, 3])
def test_learners_get_the_images_that_attackers_would_send(
    size: int, alone: Path, dataset: Path, tmp_path: Path
) -> None:
    """With staleness 0 the first step of overlap `ranks` is that of one rank."""
    learners = [rank for rank in range(size) if rank != size - 1]
    apart = {"mode": "ranks", "attackers": 1}
    found = [rehearsed(dataset, tmp_path, size, rank, **apart) for rank in learners]
    assert all(each.steps and each.steps.role.name == "learner" for each in found)
    assert first_step(found)[0] == pytest.approx(ranks.curve(alone)[0][1], abs=SAME)
    attacker = rehearsed(dataset, tmp_path, size, size - 1, **apart)
    assert attacker.steps and attacker.plan and attacker.steps.role.is_attacker
    assert len(attacker.steps.seconds) == 2 and not attacker.steps.outcomes
    assert attacker.plan.messages and sum(attacker.plan.messages.images.values()) == 8


@pytest.mark.slow
@pytest.mark.parametrize("attackers", [0, 2])
def test_real_ranks_take_the_same_first_step(attackers: int, dataset: Path, tmp_path: Path) -> None:
    """Four gloo processes, one step."""
    how = {"mode": "ranks", "attackers": attackers} if attackers else {}
    words = arguments(dataset, tmp_path / "real", tmp_path, **how, max_steps=1)
    for status, _, error in ranks.run(4, words):
        assert status == 0, error
    found = [rehearsed(dataset, tmp_path, 4, rank, **how) for rank in range(4)]
    found = [each for each in found if each.steps and not each.steps.role.is_attacker]
    assert first_step(found)[0] == pytest.approx(ranks.curve(tmp_path / "real")[0][1], abs=SAME)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "streams"},
        {"mode": "ranks", "max_staleness": 2, "images_transfer": "int8", "weights_transfer": "bf16"},
        {"objective": "free"},
        {"objective": "consistency", "micro_batch": 3, "ema_decay": 0.9},
        {"deterministic": True},
        {"fraction": 0.0},
        {"name": f"{NAME}:resnet"},
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", [0, 4])
def test_every_kind_of_run(rank: int, options: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    found = rehearsed(dataset, tmp_path, 5, rank, **options)
    assert found.steps and len(found.steps.seconds) == 2 and found.plan
    assert problems(found) == [] and not dist.is_initialized()
    lines = report_lines(found)
    assert lines[0] == f"rehearsal of 5 ranks, steps as rank {rank}: no problem found"
    assert lines[-1].startswith("not rehearsed")


def test_several_datasets(dataset: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", n=40, shard_rows=16)
    data = Datasets((dataset, other), (0.7, 0.3))
    found = [rehearsed(data, tmp_path, 2, rank) for rank in range(2)]
    train(config(max_steps=1), data, tmp_path / "alone")
    assert first_step(found)[0] == pytest.approx(ranks.curve(tmp_path / "alone")[0][1], abs=SAME)
    assert found[0].plan and found[0].plan.order.problem == "" and problems(found[0]) == []


@pytest.mark.parametrize("options", [{}, {"mode": "ranks", "attackers": 300}], ids=str)
def test_a_thousand_ranks(
    options: dict[str, object], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(dataset, tmp_path / "run", tmp_path, **options)
    before = everything_in(tmp_path) | everything_in(dataset)
    assert main([*words, "--rehearse", "1024:1"]) == 1
    said = capsys.readouterr().out
    assert "rehearsal of 1,024 ranks, steps as rank 1: " in said
    assert "\n  1. global batches of 16 objects on " in said
    assert everything_in(tmp_path) | everything_in(dataset) == before
    assert not (tmp_path / "run").exists() and not dist.is_initialized()


def test_training_works_after_a_rehearsal(alone: Path, dataset: Path, tmp_path: Path) -> None:
    rehearsed(dataset, tmp_path, 3, 1)
    assert train(config(), dataset, tmp_path / "run") is Outcome.FINISHED
    assert_same_curve(tmp_path / "run", alone, 0.0)


def test_a_run_that_has_begun(dataset: Path, tmp_path: Path) -> None:
    """Steps go on from the newest checkpoint; nothing in the run folder changes."""
    train(config(max_steps=3), dataset, tmp_path / "run")
    before = everything_in(tmp_path)
    found = rehearsed(dataset, tmp_path, 1)
    assert found.start == 3 and found.steps and [each.step for each in found.steps.outcomes] == [4, 5]
    train(config(), dataset, tmp_path / "whole")
    assert first_step([found])[0] == pytest.approx(ranks.curve(tmp_path / "whole")[3][1], abs=SAME)
    done = rehearsed(dataset, tmp_path, 2, max_steps=3)
    assert done.steps is None and problems(done) == []
    (said,) = report_lines(done)
    assert "the run is finished at step 3: there is nothing to rehearse" in said
    with pytest.raises(BadInput, match="another optimiser.learning_rate"):
        rehearsed(dataset, tmp_path, 2, learning_rate=0.1)
    assert {path: text for path, text in everything_in(tmp_path).items() if path in before} == before


@pytest.mark.parametrize(
    ("size", "options", "want"),
    [
        (8, {"global_batch": 3}, "3 objects on 8 ranks: 5 of them have no objects"),
        (8, {"global_batch": 16, "fraction": 0.25}, "4 of 8 ranks have objects but no attacked one"),
        (4, {"mode": "ranks", "attackers": 4}, "overlap.attackers 4 of 4 rank(s)"),
        (8, {"mode": "ranks", "attackers": 6, "global_batch": 4}, "4 objects on 6 attackers: 2 of them"),
        (8, {"block_rows": 32}, "3 blocks of data.block_rows 32 for 8 ranks"),
        (
            2,
            {"learning_rate": 1e30, "clip_norm": 0.0},
            "step 2: the loss or gradient of rank 0 is not finite",
        ),
    ],
    ids=str,
)
def test_planted_problems(
    size: int, options: dict[str, Any], want: str, dataset: Path, tmp_path: Path
) -> None:
    found = problems(rehearsed(dataset, tmp_path, size, **options))
    assert any(want in text for text in found), found


def test_raising_the_global_batch_as_told_helps(dataset: Path, tmp_path: Path) -> None:
    few = problems(rehearsed(dataset, tmp_path, 8, global_batch=3, **SMALL_BLOCKS))
    assert few == [
        "global batches of 3 objects on 8 ranks: 5 of them have no objects in a step: raise run.global_batch "
        "to 8 or more (16 for an attacked object each), or start at most 3 ranks"
    ]
    assert problems(rehearsed(dataset, tmp_path, 8, global_batch=16, **SMALL_BLOCKS)) == []


@pytest.mark.parametrize(
    ("size", "want"), [(100, "25 of them have no objects"), (70, "have objects but no attacked one")]
)
def test_more_ranks_than_the_dataset_has_objects_for(
    size: int, want: str, dataset: Path, tmp_path: Path
) -> None:
    """No global batch is larger than the training part: raising it does not help."""
    found = problems(rehearsed(dataset, tmp_path, size, global_batch=2048, validation=0.0))
    assert want in found[0] and "add objects (the training part holds 75)" in found[0], found
    assert "raise run.global_batch" not in found[0]


def test_objects_and_global_batch_are_both_too_few(dataset: Path, tmp_path: Path) -> None:
    found = problems(rehearsed(dataset, tmp_path, 100, global_batch=16, validation=0.0))
    assert "add objects (the training part holds 75) and raise run.global_batch to 100 or more" in found[0]


def test_roles_that_wait_for_each_other_are_noted(dataset: Path, tmp_path: Path) -> None:
    said = []
    for attackers in range(1, 8):
        found = notes(rehearsed(dataset, tmp_path, 8, mode="ranks", attackers=attackers, global_batch=64))
        said.append([text for text in found if "computes" in text])
    (few,), *between, (many,) = said
    assert "an attacker computes" in few and few.endswith("take more attackers")
    assert "a learner computes" in many and many.endswith("take fewer attackers")
    assert [] in between


def test_a_rank_without_objects_gives_no_times(dataset: Path, tmp_path: Path) -> None:
    lines = "\n".join(report_lines(rehearsed(dataset, tmp_path, 64, 0, global_batch=3)))
    assert "rank 0 has no objects in these steps: choose another" in lines


def test_a_memory_that_is_too_small(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    found = problems(rehearsed(dataset, tmp_path, 2))
    assert found and "a rank wants" in found[0] and "set compute.micro_batch" in found[0]


def test_bad_input(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*arguments(dataset, tmp_path / "run", tmp_path), "--rehearse"]
    assert main([*words, "many"]) == 2 and "want a number of ranks" in capsys.readouterr().err
    for name in ("--profile", "--stage"):
        assert main([*words, "2", name]) == 2 and f"{name}: a rehearsal writes" in capsys.readouterr().err
    assert main([*words, ""]) == 2 and "want a number of ranks" in capsys.readouterr().err
    assert main([*words, "1", "--overlap.mode", "ranks"]) == 1
    said = capsys.readouterr().out
    assert "1. overlap.mode ranks on 1 rank" in said and "not rehearsed steps, objects" in said
    assert not (tmp_path / "run").exists()
    assert main(["launch", "local", "--", *words, "4"]) == 2
    assert "--rehearse: takes one process" in capsys.readouterr().err
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main([*words, "4"]) == 2
    assert "this is one of 2 ranks of torchrun" in capsys.readouterr().err


def test_the_memory_of_the_network_is_what_it_holds(dataset: Path, tmp_path: Path) -> None:
    found = rehearsed(dataset, tmp_path, 2)
    assert found.plan
    parts = found.plan.roles[0].memory.on_device
    size = sum(p.nbytes for p in found.components.module.parameters())
    assert parts["gradients"] == size and 2 * size <= parts["optimiser"] < 2.1 * size
    saved = train(config(max_steps=1), dataset, tmp_path / "real")
    assert saved is Outcome.FINISHED
    (file,) = (tmp_path / "real" / "checkpoints").iterdir()
    assert found.checkpoint_bytes == pytest.approx(file.stat().st_size, rel=0.3)
