"""The audit of the chaos test: it finds an object that is lost, repeated or not attacked."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.audit import Audit, Batch, Start, audit, expected, lineage
from benchmarks.faults.records import RankRecord, StartRecord, StepLine
from hpcphotoz.data.order import attacked_mask
from hpcphotoz.data.stream.stream import Stream
from tests.helpers.training.runs import config

TRAINING = frozenset(range(1, 7))
# Two epochs of six objects in batches of four and two; half of each is attacked.
BATCHES = [
    Batch(0, frozenset({1, 2, 3, 4}), frozenset({1, 3})),
    Batch(0, frozenset({5, 6}), frozenset({5})),
    Batch(1, frozenset({6, 4, 2, 1}), frozenset({2, 6})),
    Batch(1, frozenset({3, 5}), frozenset({3})),
]


def lines(*steps: int) -> list[StepLine]:
    """What two ranks record of some steps, each of half of the batch."""
    found = []
    for step in steps:
        epoch, objects, attacked = BATCHES[step]
        for half in (sorted(objects)[::2], sorted(objects)[1::2]):
            found.append(StepLine(step, epoch, tuple(half), tuple(sorted(attacked & set(half)))))
    return found


def wrong(found: Audit) -> dict[str, int]:
    """The faults that an audit has found."""
    names = "objects_lost objects_repeated attacks_missing attacks_repeated batches_changed".split()
    return {name: value for name in names if (value := getattr(found, name))}


def changed(step: int, rank: int, **values: Any) -> list[StepLine]:
    """The lines of all steps, of which one is another."""
    return [
        replace(line, **values) if k == 2 * step + rank else line for k, line in enumerate(lines(0, 1, 2, 3))
    ]


def test_a_run_without_faults_is_clean() -> None:
    found = audit([Start(0, lines(0, 1, 2, 3))], TRAINING, BATCHES)
    assert found.clean and not wrong(found)
    assert (found.objects_seen, found.attacks_seen, found.steps, found.steps_repeated) == (12, 6, 4, 0)


def test_steps_that_were_lost_with_a_start_and_repeated_count_once() -> None:
    # Killed in step 2, resumed at 1; ended before a step; killed in 3, fell back to 0; resumed at 2.
    starts = [Start(0, lines(0, 1, 2)), Start(1, lines(1, 2, 3)), Start(None, []), Start(0, lines(0, 1, 2))]
    found = audit([*starts, Start(2, lines(2, 3))], TRAINING, BATCHES)
    assert found.clean and found.steps_repeated == 7


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        (changed(1, 0, objects=()), {"objects_lost": 1, "batches_changed": 1}),
        (changed(3, 1, objects=(5, 5)), {"objects_repeated": 1, "batches_changed": 1}),
        (changed(1, 1, objects=(6, 99)), {"objects_repeated": 1, "batches_changed": 1}),
        (changed(0, 0, attacked=(1,)), {"attacks_missing": 1, "batches_changed": 1}),
        (changed(0, 0, attacked=(1, 1, 3)), {"attacks_repeated": 1, "batches_changed": 1}),
        (changed(0, 1, attacked=(2,)), {"attacks_repeated": 1, "batches_changed": 1}),
        (
            [*lines(0, 1, 2, 3), *lines(1)[:1]],
            {"objects_repeated": 1, "attacks_repeated": 1, "batches_changed": 1},
        ),
        ([*lines(0, 1, 2, 3), StepLine(4, 1, (), ())], {"batches_changed": 1}),
    ],
    ids=[
        "lost",
        "twice",
        "foreign",
        "not attacked",
        "attacked twice",
        "another",
        "step twice",
        "beyond the end",
    ],
)
def test_a_fault_is_found(given: list[StepLine], problems: dict[str, int]) -> None:
    found = audit([Start(0, given)], TRAINING, BATCHES)
    assert wrong(found) == problems and not found.clean


def test_an_object_in_the_batch_of_another_step_is_found() -> None:
    given = changed(0, 0, objects=(1, 5))
    given = [
        replace(line, objects=(3,)) if line.objects == (5,) and line.step == 1 else line for line in given
    ]
    assert wrong(audit([Start(0, given)], TRAINING, BATCHES)) == {"batches_changed": 2}


def test_a_step_that_no_start_repeats_after_a_kill_is_lost() -> None:
    """The second start resumes at a step that the first has not saved: the steps between count nowhere."""
    found = audit([Start(0, lines(0)), Start(2, lines(2, 3))], TRAINING, BATCHES)
    assert wrong(found) == {"objects_lost": 2, "attacks_missing": 1, "batches_changed": 1}


def test_one_rank_that_did_not_take_part_is_lost() -> None:
    found = audit([Start(0, lines(0, 1, 2, 3)[1:])], TRAINING, BATCHES)
    assert wrong(found) == {"objects_lost": 2, "attacks_missing": 2, "batches_changed": 1}


def recorded(marks: list[dict[str, Any]], steps: list[StepLine]) -> StartRecord:
    """A start of one rank."""
    return StartRecord([RankRecord(Path("none"), steps, marks)])


def copied(step: int, begun: int | None) -> dict[str, Any]:
    return {"mark": "copied", "step": step, "begun": begun}


def loaded(step: int) -> dict[str, Any]:
    return {"mark": "loaded", "step": step}


def test_a_start_resumes_where_its_checkpoint_was_copied_whatever_it_says() -> None:
    # Saved after steps 0 and 1 and killed in step 3; resumed from two updates, but goes on with step 3.
    first = recorded([loaded(0), copied(2, 1)], lines(0, 1, 2))
    right, skips = (recorded([loaded(2)], lines(*steps)) for steps in ((2, 3), (3,)))
    assert audit(lineage([first, right]), TRAINING, BATCHES).clean
    found = audit(lineage([first, skips]), TRAINING, BATCHES)
    assert wrong(found) == {"objects_lost": 4, "attacks_missing": 2, "batches_changed": 1}
    # A checkpoint that is named after more steps than are in it: one update is lost with each resume.
    early = recorded([loaded(0), copied(3, 1)], lines(0, 1, 2))
    found = audit(lineage([early, recorded([loaded(3)], lines(3))]), TRAINING, BATCHES)
    assert found.objects_lost == 4
    # One that is named after fewer makes a step twice.
    late = recorded([loaded(0), copied(2, 2)], lines(0, 1, 2))
    found = audit(lineage([late, recorded([loaded(2)], lines(2, 3))]), TRAINING, BATCHES)
    assert wrong(found)["objects_repeated"] == 4


def test_a_checkpoint_of_a_start_without_steps_holds_what_it_loaded() -> None:
    first = recorded([loaded(0), copied(2, 1)], lines(0, 1, 2))
    validates = recorded([loaded(2), copied(2, None)], [])  # an interrupted validation, saved as the best
    starts = lineage([first, validates, recorded([], []), recorded([loaded(2)], lines(2, 3))])
    assert [start.resumed for start in starts] == [0, 2, None, 2]
    assert audit(starts, TRAINING, BATCHES).clean


def test_what_is_expected_is_what_the_stream_gives(dataset: Path) -> None:
    options = config()
    training, batches = expected(dataset, options)
    stream = Stream(dataset, options.data, global_batch=options.run.global_batch, seed=options.run.seed)
    number = iter(batches)
    for epoch in range(options.run.epochs):
        seen = list[int]()
        for batch in stream.epoch(epoch):
            wanted, ids = next(number), batch.object_id
            attacked = attacked_mask(batch.position.numpy(), options.adversarial.fraction)
            assert tuple(wanted) == (epoch, set(ids.tolist()), set(ids[attacked].tolist()))
            seen += ids.tolist()
        assert sorted(seen) == sorted(training)
    assert next(number, None) is None


def test_a_record_is_read_while_it_is_written(tmp_path: Path) -> None:
    record = StartRecord.in_folder(tmp_path, 3, 2)
    record.update()
    assert record.resumed is None and record.step == -1
    path = tmp_path / "start-003-rank-1.jsonl"
    whole = [{"mark": "begun"}, {"mark": "resumed", "step": 5}]
    step = json.dumps({"step": 5, "epoch": 1, "objects": [8, 9], "attacked": [9]})
    path.write_text("".join(json.dumps(each) + "\n" for each in whole) + step[:20])
    record.update()
    assert record.resumed == 5 and record.step == -1
    with path.open("a") as file:
        file.write(step[20:] + "\n" + json.dumps({"mark": "saving"}) + "\n")
    record.update()
    assert record.lines == [StepLine(5, 1, (8, 9), (9,))] and record.ranks[1].saving
    (tmp_path / "start-003-rank-0.jsonl").write_text(json.dumps({"mark": "resumed", "step": 4}) + "\n")
    record.update()
    with pytest.raises(ValueError, match="different steps"):
        _ = record.resumed
