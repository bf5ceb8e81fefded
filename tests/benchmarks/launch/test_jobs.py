"""The jobs of the benchmark of launches: their options, and the steps that they have taken."""

from pathlib import Path

from benchmarks.launch import jobs
from hpcphotoz.config.load import load


def test_the_last_step_is_that_of_a_whole_line(tmp_path: Path) -> None:
    assert jobs.last_step(tmp_path) == 0
    lines = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.9}\n{"step": 2, "n": 5}\n{"step": 3, "lo'
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert jobs.last_step(tmp_path) == 2


def test_a_run_has_metrics_every_step_and_the_wanted_checkpoints(tmp_path: Path) -> None:
    jobs.write_config(tmp_path / "c.toml", 50)
    run = load(str(tmp_path / "c.toml")).run
    assert (run.log_steps, run.checkpoint_steps) == (1, 50)


def test_runs_without_the_launcher_meet_at_ports_below_those_that_the_system_assigns() -> None:
    ports = {int(jobs.meeting()["MASTER_PORT"]) for _ in range(100)}
    assert len(ports) > 90 and 1024 <= min(ports) and max(ports) < 32768
