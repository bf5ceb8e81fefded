"""The heartbeat file: written whole, read without torch, and what it tells of silent ranks."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpcphotoz.heartbeat import (
    ENDED,
    PASSES,
    READING,
    WAITING,
    Beat,
    Heartbeat,
    read_heartbeat,
    write_heartbeat,
)

BEAT = Beat(0, "node0", 77, "rank", 17, PASSES, since=990.0, time=1000.0, work_s=0.25)


def heartbeat(*beats: Beat) -> Heartbeat:
    return Heartbeat(1000.0, 5.0, beats)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def test_what_is_written_is_read_and_nothing_is_left_over(run: Path) -> None:
    assert read_heartbeat(run) is None
    written = heartbeat(BEAT, replace(BEAT, rank=1, work_s=None))
    for _ in range(2):
        write_heartbeat(run, written)
        assert read_heartbeat(run) == written
    assert [path.name for path in (run / "logs").iterdir()] == ["heartbeat.json"]


def test_the_reader_needs_no_torch() -> None:
    code = "import sys, hpcphotoz.heartbeat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1}'])
def test_a_file_that_cannot_be_read_is_none(run: Path, text: str) -> None:
    (run / "logs" / "heartbeat.json").write_text(text)
    assert read_heartbeat(run) is None


def test_keys_of_a_later_version_are_left_out(run: Path) -> None:
    write_heartbeat(run, heartbeat(BEAT))
    path = run / "logs" / "heartbeat.json"
    content = json.loads(path.read_text())
    content["ranks"][0]["temperature"] = 300
    path.write_text(json.dumps(content))
    assert read_heartbeat(run) == heartbeat(BEAT)


def test_a_run_is_alive_until_its_beats_stop_or_it_ends() -> None:
    found = heartbeat(BEAT)
    assert found.is_fresh(1000.0) and found.is_fresh(1000.0 + found.stale_s)
    assert not found.is_fresh(1000.1 + found.stale_s)
    assert not heartbeat(replace(BEAT, phase=ENDED)).is_fresh(1000.0)


def test_a_silent_rank_is_found_and_one_that_has_ended_is_not() -> None:
    silent, ended = replace(BEAT, rank=1, time=960.0), replace(BEAT, rank=2, time=960.0, phase=ENDED)
    assert heartbeat(BEAT, silent, ended).silent() == [silent]
    assert not heartbeat(BEAT, replace(silent, time=971.0)).silent()


@pytest.mark.parametrize("late", [{"step": 16}, {"since": 980.0}])
def test_the_rank_behind_is_that_of_a_lesser_step_or_longer_in_its_phase(late: dict[str, float]) -> None:
    last = replace(BEAT, rank=2, phase=READING, **late)  # type: ignore[arg-type]
    waits = replace(BEAT, rank=1, phase=WAITING, since=900.0)
    assert heartbeat(BEAT, waits, last).behind(0) == last
    assert heartbeat(BEAT, waits, last).behind(2) is None
