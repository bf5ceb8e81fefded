"""The table of many runs: its width, heads and cells, and what it says it is sorted by."""

from typing import Any

from hpcphotoz.training.summary.run_table import run_table, table_lines

FIGURES = {"bias": -0.0123, "sigma_mad": 0.0456, "eta": 0.0789}


def facts(name: str, values: dict[str, str], attacked: bool = False, **more: Any) -> dict[str, Any]:
    figures = {f"{key}_adversarial": value if attacked else None for key, value in FIGURES.items()}
    known = {"run": name, "state": "finished", "values": values, "step": 123456, "loss": 1.2345}
    known |= {"criterion": "robust" if attacked else "clean", "score": 0.05, "best_step": 1}
    return {**known, **FIGURES, **figures, "images_per_s": 12345.0, **more}


def test_a_sweep_of_attacked_runs_fits_a_terminal() -> None:
    values = {"attack.eps": "0.25", "run.seed": "0"}
    rows = [facts("eps=0.25_seed=0", values, attacked=True)]
    lines = table_lines(rows)
    assert max(map(len, lines)) <= 80
    heads = ["eps", "seed", "state", "step", "bias", "sigma", "eta", "bias*", "sigma*", "eta*"]
    assert lines[0].split() == heads
    assert "=" not in lines[1] and lines[1].split()[:4] == ["0.25", "0", "finished", "123456"]
    assert lines[2:] == [
        "best first by sigma* (run.criterion robust)",
        "figures of each run's best validation; *: under attack",
        "images/s, loss: with --json",
    ]


def test_a_name_that_tells_more_than_the_values_stays() -> None:
    lines = table_lines([facts("where=a_b-1", {"data.where": "a b"}), facts("eps=2", {"data.where": "c"})])
    assert lines[0].split()[:2] == ["run", "where"] and lines[1].split()[0] == "where=a_b-1"
    assert "loss" in lines[0] and len(lines[0]) <= 80
    assert lines[-2:] == [
        "best first by sigma (run.criterion clean)",
        "figures of each run's best validation",
    ]


def test_keys_of_one_name_or_of_a_column_keep_their_section() -> None:
    rows = [facts("a", {"attack.steps": "1", "run.steps": "2", "model.loss": "x"})]
    assert table_lines(rows)[0].split()[:4] == ["run", "attack.steps", "run.steps", "model.loss"]


def test_the_best_comes_first_and_runs_without_a_score_last() -> None:
    rows = [facts(name, {}, score=score) for name, score in (("a", None), ("b", 0.2), ("c", 0.1))]
    assert [one["run"] for one in run_table(rows)] == ["c", "b", "a"]
    bare: dict[str, Any] = dict.fromkeys((*FIGURES, *(f"{key}_adversarial" for key in FIGURES)))
    assert table_lines([facts("a", {}, **bare)])[-1] == "no validation yet"
