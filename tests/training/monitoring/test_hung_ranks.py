"""Real ranks: one that hangs ends the job and is named; a slow one shows in the metrics; beats stay."""

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from hpcphotoz.heartbeat import read_heartbeat
from tests.helpers import ranks
from tests.helpers.datasets import make_stamps, write_stamps
from tests.helpers.training.runs import arguments, training_lines

HOST = socket.gethostname()
LONG: dict[str, object] = {"epochs": 4000, "timeout_s": 10.0, "start_timeout_s": 30.0, "validation": 0.0}
# Rank 1 takes 0.2 s longer for each pass, of which a step has four; steps of the others took 0.1 to 0.3 s on
# a busy machine.
SLOW = """import os, time
from tests.helpers import user_networks


class Slow(user_networks.ResNet):
    def forward(self, images, ebv):
        time.sleep(0.2 * (os.environ.get("RANK") == "1"))
        return super().forward(images, ebv)


def make(bands, stamp, bins, scale):
    return Slow(bands, bins, scale, width=4)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "hangs"), [(2, 0), (3, 1)])
def test_a_rank_that_hangs_is_named_by_all_others(
    world_size: int, hangs: int, dataset: Path, tmp_path: Path
) -> None:
    """With rank 0 the store hangs too: what it did last is in the file."""
    out = tmp_path / "run"
    running = ranks.start(world_size, arguments(dataset, out, tmp_path, **LONG, checkpoint_steps=10**6))
    ranks.wait_until(lambda: len(ranks.curve(out)) >= 12, running)
    running[hangs].send_signal(signal.SIGSTOP)
    others = [running[rank] for rank in range(world_size) if rank != hangs]
    try:
        said = [other.communicate(timeout=90)[1] for other in others]
    finally:
        for each in running:
            each.kill()
        running[hangs].communicate(timeout=60)
    for other, error in zip(others, said, strict=True):
        assert other.returncode == 1 and "Traceback" not in error, error
        assert "did not answer for run.timeout_s = 10 s" in error or "Connection closed by peer" in error
        assert f"rank {hangs} on {HOST} (process {running[hangs].pid}) is silent since " in error


@pytest.mark.slow
def test_the_heartbeat_is_there_while_a_run_goes_on_and_after_it_was_killed(
    dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    running = ranks.start(2, arguments(dataset, out, tmp_path, **LONG))

    def steps() -> list[int]:
        found = read_heartbeat(out)
        return [beat.step for beat in found.beats] if found else []

    try:
        ranks.wait_until(lambda: len(steps()) == 2 and min(steps()) > 2, running)
        found = read_heartbeat(out)
        assert found and found.is_fresh(found.time)
        assert [(beat.host, beat.pid) for beat in found.beats] == [(HOST, each.pid) for each in running]
    finally:
        for each in running:
            each.kill()
            each.communicate(timeout=60)
    last = read_heartbeat(out)
    assert last and len(last.beats) == 2 and last.time >= found.time
    assert not last.is_fresh(last.time + 2 * last.stale_s)


@pytest.mark.slow
def test_a_slow_rank_shows_in_the_metrics(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "slow_rank.py").write_text(SLOW)
    own = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    words = arguments(dataset, tmp_path / "run", tmp_path, **{**LONG, "epochs": 8}, name="slow_rank:make")
    for status, _, error in ranks.finish(ranks.start(3, words, [own] * 3)):
        assert status == 0, error
    lines = training_lines(tmp_path / "run")
    told = [line for line in lines if line["slowest_rank"] is not None]
    assert len(told) > len(lines) / 2, "beats come every half second"
    later = told[len(told) // 2 :]
    assert sum(line["slowest_rank"] == 1 for line in later) > 0.8 * len(later)
    assert max(line["straggler_ratio"] for line in later) > 1.5


@pytest.mark.slow
def test_another_dataset_under_the_same_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/self/cwd leads each process to the folder in which it was started."""
    port, found = str(ranks.free_port()), []
    for rank in range(2):
        own = tmp_path / f"host-{rank}"
        stamps = make_stamps(75)
        write_stamps(own / "data", replace(stamps, z_spec=stamps.z_spec * (1 + 0.01 * rank)), shard_rows=32)
        monkeypatch.chdir(own)
        env = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": port}
        words = arguments(Path("/proc/self/cwd/data"), tmp_path / "run", own, **LONG)
        found += ranks.start(1, words, [env])
    (first, _, error), (second, _, silence) = ranks.finish(found)
    assert (first, second, silence) == (2, 2, "") and error.count("\n") == 1
    assert "data: manifest.json is not the same on all ranks: rank 1 on " in error
    assert f"rank 1 on {HOST} has " in error and f", rank 0 on {HOST} has " in error
    assert error.endswith(": copy the dataset again\n")
