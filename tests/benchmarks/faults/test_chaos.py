"""The chaos test: its plan, its records, its verdict, and its short form for real."""

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.faults import chaos
from benchmarks.faults.campaign import TOLD, Campaign
from benchmarks.faults.disk import SmallDisk, damage, small_disk
from benchmarks.faults.plan import (
    FULL_DISK,
    HANG,
    KILL,
    MEETING,
    NODE,
    PAUSE,
    SAVE,
    START,
    STEP,
    Fault,
    Layout,
    draw,
)
from benchmarks.faults.recorded_rank import Record, RecordedImages, wrap
from benchmarks.faults.strike import Struck, names
from hpcphotoz.errors import BadInput
from hpcphotoz.training.run import checkpoint
from tests.helpers.paths import ROOT

GOOD: dict[str, Any] = {
    **dict.fromkeys(chaos.ZERO, 0),
    "findings": [],
    "max_weight_difference": 2e-5,
    "weight_difference_of_undisturbed_runs": 1e-5,
    "weight_difference_of_one_attack_left_out": 4e-4,
}


def test_a_plan_comes_from_its_seed_alone_and_has_what_was_promised() -> None:
    for seed in range(20):
        plan = draw(seed, 320, quick=False)
        assert plan == draw(seed, 320, quick=False) != draw(seed + 1, 320, quick=False)
        kinds = Counter(fault.kind for fault in plan)
        assert kinds[KILL] >= 50 and kinds[HANG] and kinds[PAUSE] and kinds[FULL_DISK] and kinds[NODE]
        assert sum(fault.when == SAVE for fault in plan) >= 10 and sum(fault.torn for fault in plan) == 4
        assert [fault.step for fault in plan] == sorted(fault.step for fault in plan)
        assert {fault.layout.world_size for fault in plan} == {1, 2, 3, 4}
        assert {fault.layout.mode for fault in plan} == {"off", "streams", "ranks"}
        for fault in plan:
            size = fault.layout.world_size
            assert 0 <= fault.rank_of(size) < size and 1 <= fault.step < 320
            assert size > 1 or not (fault.kind in (HANG, PAUSE) or fault.when == MEETING)
            assert (fault.layout.mode == "ranks") == (fault.layout.attackers in range(1, size))


def test_a_pause_goes_before_a_fault_that_strikes_any_start() -> None:
    for seed in range(20):
        for quick in (True, False):
            plan = draw(seed, 64, quick)
            after = [plan[k + 1] for k, fault in enumerate(plan) if fault.kind == PAUSE]
            while after and any(fault.kind == PAUSE for fault in after):  # several in a row
                after = [plan[plan.index(f) + 1] if f.kind == PAUSE else f for f in after]
            assert after and all(fault.kind == KILL and fault.when not in (START, MEETING) for fault in after)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, 1) for name in chaos.ZERO]
    + [
        ("findings", ["a traceback"]),
        ("max_weight_difference", 1.1e-4),
        ("max_weight_difference", float("nan")),
    ],
)
def test_every_fault_makes_the_verdict_bad(name: str, value: object) -> None:
    assert not chaos.problems(GOOD)
    assert len(chaos.problems({**GOOD, name: value})) == 1


def test_weights_that_differ_as_by_a_missing_attack_are_not_taken_for_rounding() -> None:
    rough = {**GOOD, "weight_difference_of_undisturbed_runs": 1e-4}
    assert not chaos.problems({**rough, "max_weight_difference": 3e-4})
    assert chaos.problems({**rough, "max_weight_difference": 5e-4})


def test_an_image_that_was_not_attacked_is_not_recorded_as_attacked(tmp_path: Path) -> None:
    clean = torch.arange(24.0).reshape(3, 2, 2, 2)
    attacked = torch.tensor([0, 2])
    batch = SimpleNamespace(
        images=clean, attacked=attacked, object_id=torch.tensor([7, 8, 9]), step=4, epoch=1
    )
    moved = clean[attacked].clone()
    moved[1, 0, 0, 1] += 1e-3
    source = SimpleNamespace(overlaps=True, finish=lambda batch: moved)
    path = tmp_path / "record.jsonl"
    images = RecordedImages(source, Record(path))
    assert images.overlaps and torch.equal(images.finish(batch), moved)
    assert json.loads(path.read_text()) == {"step": 4, "epoch": 1, "objects": [7, 8, 9], "attacked": [9]}
    moved[0] += 1
    out = RecordedImages(source, Record(path), leave_out=4).finish(batch)
    assert torch.equal(out[0], clean[0]) and torch.equal(out[1], moved[1])
    assert json.loads(path.read_text().splitlines()[1])["attacked"] == [9]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("seen from node0, rank 1 on node1 has ended", True),
        ("1 of 3 ranks did not join: look at the output of rank 1", True),
        ("run: rank (rank 0) at step 3: rank 12 on node1 has ended", False),
        ("not all ranks joined: rank 1 says which", False),
    ],
)
def test_a_message_names_a_rank_or_does_not(text: str, named: bool) -> None:
    assert names(text, 1) == named


def test_a_function_that_the_program_no_longer_has_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no_such_function"):
        wrap(checkpoint, "no_such_function", lambda function: function)


def test_a_damaged_checkpoint_does_not_load(tmp_path: Path) -> None:
    chance = random.Random(0)
    for step in range(1, 9):
        state = {"step": step, "model": {"weight": torch.randn(500)}}
        path = checkpoint.save(tmp_path, state, keep=20)
        damage(path, chance)
        with pytest.raises(BadInput):
            checkpoint.load(path)


def campaign(folder: Path) -> Campaign:
    made = Campaign(folder, folder, lambda _: [], 10.0, None, random.Random(0), say=lambda _: None)
    made._job = SimpleNamespace(said=lambda _: "another rank died: rank 1 has ended")  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("kind", "goes_on", "statuses", "finding"),
    [
        (PAUSE, True, [None, None], ""),
        (PAUSE, False, [1, 1], "did not go on, exit statuses [1, 1]"),
        (KILL, False, [1, -signal.SIGKILL], ""),
        (KILL, False, [0, -signal.SIGKILL], "exit statuses [0, -9]"),
        (HANG, False, [3, 1], "exit statuses [3, 1]"),
    ],
)
def test_a_start_that_takes_a_fault_otherwise_is_found(
    tmp_path: Path, kind: str, goes_on: bool, statuses: list[int | None], finding: str
) -> None:
    made, fault = campaign(tmp_path), Fault(kind, STEP, 3, 0.5, 0.5, Layout(2, "off"))
    made._note(Struck(fault, 0, 1, statuses=statuses, goes_on=goes_on))
    assert len(made.findings) == bool(finding) and all(finding in text for text in made.findings)


def test_a_checkpoint_that_a_kill_has_torn_is_found_although_the_one_before_loads(tmp_path: Path) -> None:
    made, fault = campaign(tmp_path), Fault(KILL, SAVE, 3, 0.5, 0.5, Layout(2, "off"), torn=True)
    paths = [
        checkpoint.save(tmp_path, {"step": step, "model": {"weight": torch.ones(500)}}, keep=9)
        for step in (1, 2, 3)
    ]
    made._after(fault)  # damages the newest itself
    made._after(fault)
    assert not made.findings and made.counts["torn"] == 1
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    made._after(fault)
    assert [text.partition(" does not load")[0] for text in made.findings] == [paths[1].name]


def test_a_small_disk_is_filled_and_emptied(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        if not isinstance(disk, SmallDisk):
            pytest.skip(disk)
        other = disk.folder / "other"
        other.write_bytes(bytes(10**6))
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (disk.folder / "more").write_bytes(bytes(10**5))
        other.unlink()
        (disk.folder / "more").unlink()
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (disk.folder / "more").write_bytes(bytes(10**5))
        disk.empty()
        other.write_bytes(bytes(10**6))
    assert not list((tmp_path / "disk").iterdir())


def test_the_audit_knows_how_a_damaged_checkpoint_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, {"step": step}, 2)
    (tmp_path / "checkpoints/step-00000002.pt").write_bytes(b"torn")
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoints/step-00000001.pt"
    assert "step-00000002.pt" in caplog.text and TOLD in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(960)  # three to six minutes, by what else runs
def test_a_run_endures_a_handful_of_faults(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "benchmarks.faults.chaos",
        "--quick",
        "--json",
        str(tmp_path / "chaos.json"),
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "chaos.json").read_text())["figures"]
    assert figures["kills"] >= 4 and figures["stops"] >= 2 and figures["kills_in_a_save"] >= 1
    assert figures["objects_lost"] == figures["objects_repeated"] == figures["hung"] == 0
