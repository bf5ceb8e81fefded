"""The summary of a run folder says what is in it."""

import json
import shutil
from pathlib import Path
from statistics import median

import pytest

from hpcphotoz.config.load import load
from hpcphotoz.errors import BadInput
from hpcphotoz.training.loop import Outcome
from hpcphotoz.training.summary.metrics_lines import MetricsLines
from hpcphotoz.training.summary.run_summary import best, changed_options, read_config, summarise
from hpcphotoz.training.summary.summary_text import summary_lines
from hpcphotoz.training.trainer import train
from tests.helpers.training.runs import config, training_lines, validations


@pytest.fixture(scope="module")
def resumed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two starts: ten steps, that is two epochs, and one more epoch."""
    out = tmp_path_factory.mktemp("summary") / "run"
    command = ["hpcphotoz", "train", "adversarial", "--data", "train", "--out", "run"]
    for steps in (10, 15):
        assert train(config(max_steps=steps), dataset, out, command=command) is Outcome.FINISHED
    return out


def test_figures_are_those_of_the_files(resumed: Path) -> None:
    facts = summarise(resumed)
    lines, rates = training_lines(resumed), [line["images_per_s"] for line in training_lines(resumed)]
    assert facts["step"] == 15 and facts["loss"]["last"] == lines[-1]["loss"]
    assert facts["throughput"]["images_per_s"] == {
        "median": median(rates),
        "first": rates[0],
        "last": rates[-1],
    }
    assert facts["validations"] == validations(resumed) and len(facts["validations"]) == 3
    least = min(validations(resumed), key=lambda line: line["sigma_mad"])
    assert facts["best"] == least and facts["criterion"] == "clean"
    assert [(start["step"], start["end"]["step"]) for start in facts["starts"]] == [(0, 10), (10, 15)]
    assert facts["starts"][1]["end"]["outcome"] == "finished" and facts["starts"][1]["world_size"] == 1
    sizes = {one["file"]: one["bytes"] for one in facts["checkpoints"]}
    assert {f"checkpoints/step-000000{n}.pt" for n in (12, 15)} <= set(sizes)
    assert sizes["checkpoints/step-00000015.pt"] == (resumed / "checkpoints/step-00000015.pt").stat().st_size
    assert facts["saves"]["n"] >= 5 and facts["saves"]["median_total_s"] > 0
    json.dumps(facts)


def test_options_are_compared_with_the_recipe_of_the_command(resumed: Path) -> None:
    facts = summarise(resumed)
    assert facts["recipe"] == "adversarial"
    assert facts["options"]["attack.eps"] == {"value": 0.3, "reference": load("adversarial").attack.eps}
    assert "adversarial.fraction" not in facts["options"]  # as in the recipe
    assert changed_options(config(), config()) == {}


def test_faults_are_counted(resumed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(resumed, tmp_path / "run"))
    before = summarise(run)["faults"]
    assert before["logged"] == {} and before["events"] == {} and before["damaged_metrics_lines"] == 0
    with (run / "metrics.jsonl").open("a") as file:
        for text in (
            '{"step": 15, "epoch": 2, "part": "event", "kind": "loss_spike", "limit": 9.5}',
            '{"step": 15, "epoch": 2, "loss": 2.5, "skipped": 3, "skipped_steps": 2}',
            "not JSON",
        ):
            file.write(text + "\n")
    with (run / "logs" / "rank-1.log").open("w") as file:
        for text in ("WARNING hpcphotoz.a: twice", "INFO hpcphotoz.a: nothing", "WARNING hpcphotoz.b: twice"):
            file.write(f"2026-11-28 12:00:00,123 {text}\n")
        file.write("2026-11-28 12:00:00,123 ERROR hpcphotoz.a: once\nTraceback\n")
    found = summarise(run)["faults"]
    assert found["events"] == {"loss_spike": 1} and found["skipped_steps"] == 2
    assert (found["skipped_objects"], found["damaged_metrics_lines"]) == (3, 1)
    assert found["logged"] == {"warning": 2, "error": 1}
    assert found["messages"] == [
        {"level": "warning", "message": "twice", "n": 2},
        {"level": "error", "message": "once", "n": 1},
    ]
    text = "\n".join(summary_lines(summarise(run), MetricsLines.read(run)))
    assert (
        "faults: 1 loss spike, 2 skipped steps, 3 skipped objects, 1 damaged metrics line, 2 other warnings"
        in text
    )
    assert "  warning: twice (2 times)" in text and "  step 15: loss spike: limit 9.5" in text


def test_the_last_messages_are_the_newest_of_all_ranks(resumed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(resumed, tmp_path / "run"))
    with (run / "logs" / "rank-0.log").open("a") as file:
        file.write("2999-01-02 12:00:00,123 WARNING hpcphotoz.a: newest\n")
    with (run / "logs" / "rank-1.log").open("w") as file:
        for k in range(20):
            file.write(f"2999-01-01 12:00:{k:02},123 WARNING hpcphotoz.a: number {k}\n")
    facts = summarise(run)
    found = [one["message"] for one in facts["faults"]["messages"]]
    assert found == [*(f"number {k}" for k in range(11, 20)), "newest"]
    assert "  (11 earlier messages not shown: see logs/rank-*.log)" in summary_lines(facts, MetricsLines())


def test_a_skipped_step_is_told_once_and_in_words(resumed: Path, tmp_path: Path) -> None:
    """Its event and the warnings of all ranks about it are one fault."""
    run = Path(shutil.copytree(resumed, tmp_path / "run"))
    figures = {"part": "event", "kind": "skipped_step", "objects": 0, "object_ids": [], "ranks": []}
    with (run / "metrics.jsonl").open("a") as file:
        for step in range(8, 16):
            event = {"step": step, "epoch": 2, **figures, "reason": "gradient"}
            if step == 15:
                event |= {"reason": "loss", "objects": 3, "object_ids": [5, 7]}
            file.write(json.dumps(event) + "\n")
    for rank in range(2):
        with (run / "logs" / f"rank-{rank}.log").open("w") as log:
            log.write("2026-11-28 12:00:00,123 WARNING hpcphotoz.a: step 14 is skipped: ")
            log.write("the gradient is not finite\n2026-11-28 12:00:01,123 WARNING hpcphotoz.a: other\n")
    lines = summary_lines(summarise(run), MetricsLines.read(run))
    assert lines[lines.index("faults: 8 skipped steps, 2 other warnings logged") + 1 :] == [
        "  (3 earlier events not shown: see metrics.jsonl)",
        *(f"  step {step} is skipped: the gradient is not finite" for step in range(11, 15)),
        "  step 15 is skipped: the loss of objects 5, 7 and 1 more is not finite",
        "  warning: other (2 times)",
    ]


def test_the_reason_of_a_failure_is_told_once(resumed: Path) -> None:
    facts, reason = summarise(resumed), "not finite, " * 9
    failed = {**facts["starts"][0], "end": {"outcome": "failed", "time": "now", "reason": reason}}
    for told, times in ((None, 1), (reason, 0)):
        text = "\n".join(summary_lines({**facts, "starts": [failed] * 2}, MetricsLines(), told))
        assert text.count(reason) == times and text.count("for the reason above") == 2 - times


def test_the_best_validation_follows_the_criterion() -> None:
    lines = MetricsLines(
        validations=[
            {"step": 5, "epoch": 0, "sigma_mad": 0.01, "sigma_mad_adversarial": 0.09},
            {"step": 10, "epoch": 1, "sigma_mad": 0.02, "sigma_mad_adversarial": 0.03},
        ]
    )
    for criterion, step in (("clean", 5), ("robust", 10)):
        found = best(lines, config(criterion=criterion))
        assert found and found["step"] == step
    assert best(MetricsLines(), config()) is None


def test_a_run_that_has_just_begun_has_a_summary(resumed: Path, tmp_path: Path) -> None:
    for name in ("config.toml", "provenance.json"):
        shutil.copy(resumed / name, tmp_path / name)
    facts = summarise(tmp_path)
    assert facts["step"] is None and facts["best"] is None and facts["checkpoints"] == []
    text = "\n".join(summary_lines(facts, MetricsLines.read(tmp_path)))
    assert "no line of metrics yet" in text and "checkpoints: none" in text and "faults: none" in text
    skipped = (
        '{"step": 1, "epoch": 0, "loss": null, "images_per_s": 9.0, "data_wait": 0.0, "skipped_steps": 1}'
    )
    event = '{"step": 1, "epoch": 0, "part": "event", "kind": "skipped_step"}'
    (tmp_path / "metrics.jsonl").write_text(f"{event}\n{skipped}\n")
    text = "\n".join(summary_lines(summarise(tmp_path), MetricsLines.read(tmp_path)))
    assert "step 1, loss -" in text and "faults: 1 skipped step\n" in text


def test_other_folders_are_refused(tmp_path: Path, dataset: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", dataset):
        with pytest.raises(BadInput, match="not a run folder"):
            read_config(folder)


def test_the_slowest_rank_is_told(resumed: Path, tmp_path: Path) -> None:
    assert summarise(resumed)["stragglers"] is None  # one rank
    for name in ("config.toml", "provenance.json"):
        shutil.copy(resumed / name, tmp_path / name)
    told = [(1, 1.5), (0, 1.0), (1, 2.0), (None, None)]
    rows = [
        {**training_lines(resumed)[0], "slowest_rank": rank, "straggler_ratio": ratio} for rank, ratio in told
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = summarise(tmp_path)
    assert facts["stragglers"]["lines_by_rank"] == {"1": 2, "0": 1}
    assert facts["stragglers"]["ratio"]["median"] == 1.5
    text = "\n".join(summary_lines(facts, MetricsLines.read(tmp_path)))
    assert "slowest rank     1 in 2 of 3 lines; own work over the median rank's: 1.50" in text
