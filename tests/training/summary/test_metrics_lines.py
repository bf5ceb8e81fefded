"""The lines of metrics.jsonl, sorted; of a file that is being written, or was damaged."""

from pathlib import Path

from hpcphotoz.training.summary.metrics_lines import MetricsLines, of_run

TEXT = """{"step": 2, "epoch": 0, "loss": 3.0, "images_per_s": 10.0, "data_wait": null}
{"step": 3, "epoch": 0, "part": "checkpoint", "bytes": 5}
{"step": 4, "epoch": 0, "part": "event", "kind": "loss_spike"}
\0\0\0\0
{"step": 4, "epoch": 0, "loss": NaN, "images_per_s": 30.0}
{"epoch": 0, "loss": 2.0}
{"step": 4, "part": "validation", "sigma_mad": 0.01}
{"step": 4, "epoch": 0, "part": "of a later version"}
{"step": 4, "epoch": 0, "part": "validation", "sigma_mad": 0.02}
{"step": 6, "epoch": 0, "loss": 2.0, "images_per_s": 20.0}
{"step": 8, "epo"""


def test_lines_are_sorted_and_damaged_ones_counted(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(TEXT)
    found = MetricsLines.read(tmp_path)
    assert [len(one) for one in (found.training, found.validations, found.saves, found.events)] == [
        3,
        1,
        1,
        1,
    ]
    assert found.damaged == 4  # the last line is being written
    assert found.curve("loss") == [(2, 3.0), (6, 2.0)] and found.curve("data_wait") == []
    assert found.validation_curve("sigma_mad") == [(4, 0.02)]
    assert of_run(found.curve("images_per_s")) == {"median": 20.0, "first": 10.0, "last": 20.0}


def test_a_run_without_metrics_has_no_lines(tmp_path: Path) -> None:
    assert MetricsLines.read(tmp_path) == MetricsLines()
    assert of_run([]) is None
