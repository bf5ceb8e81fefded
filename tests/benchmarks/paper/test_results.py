"""Means over seeds, the matrix of transfer, and a page that says what is missing."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import stats

from benchmarks.paper.pdfs import score
from benchmarks.paper.plan import ADVERSARIAL, FULL, STANDARD
from benchmarks.paper.report import figures, page, verdicts
from benchmarks.paper.results import Mean, Results, read, write
from hpcphotoz.errors import BadInput

SEEDS = (0, 1, 2)
SIGMAS = {STANDARD: (0.012, 0.013, 0.014), ADVERSARIAL: (0.014, 0.015, 0.016)}


def condition(eps: float, sigma: float) -> dict[str, float]:
    return {"eps": eps, "sigma_mad": sigma, "eta": 10 * sigma, "bias": -sigma, "crps": sigma / 2, "n": 9}


def tree() -> dict[str, Any]:
    """Results of two networks with three seeds: under APGD the standard one is five times as bad."""
    found: dict[str, Any] = {}
    for network, sigmas in SIGMAS.items():
        for seed, sigma in zip(SEEDS, sigmas, strict=True):
            run, factor = f"{network}-seed-{seed}", 5 if network == STANDARD else 1.2
            found[f"train-{run}"] = {"run": run}
            for kind in ("pdfs", "calibrated"):
                found[f"{kind}-{run}"] = {**condition(0, sigma), "pit_ks": 0.01}
            curve = [condition(0, sigma), *(condition(e, factor * sigma) for e in FULL.eps)]
            found[f"curves-{run}"] = {"curves": {run: dict.fromkeys(("fgsm", "pgd", "apgd"), curve)}}
            apgd = {"passed": True, "difference": 0.1, "standard_error": 0.01}
            checks = {"apgd": apgd, "gradients": {"passed": True, "fraction": 1.0}}
            found[f"masking-{run}"] = {"curves": {}, "masking": {run: checks}}
    runs = [f"{network}-seed-{seed}" for network in SIGMAS for seed in SEEDS]
    matrix = {a: {b: condition(0.1, 0.01 * int(b[-1]) + 0.02) for b in runs if a != b} for a in runs}
    found["transfer"] = {"curves": {}, "transfer": matrix}
    for kind in ("pdfs", "calibrated"):
        found[f"{kind}-{STANDARD}-ensemble"] = {**condition(0, 0.0115), "pit_ks": 0.01}
    attacked = {f"{e:g}": condition(e, 0.018) for e in (0.0, *FULL.eps)}
    found["neighbours"] = {
        "clean": {**condition(0, 0.016), "pit_ks": 0.01},
        "attacked": attacked,
        "n_train": 32768,
    }
    found["limit"] = {"sigma_mad": 0.0103, "error": 0.0002, "eta": 0.002, "n": 512}
    about: dict[str, dict[str, Any]] = {
        one.name: {"group": one.group, "data": one.data, "adversaries": None} for one in FULL.trainings
    }
    about[ADVERSARIAL]["adversaries"] = asdict(FULL.centre)
    return {
        **{"benchmark": "paper", "date": "-", "commits": ["abc"], "devices": ["a core"], "command": "-"},
        **{"versions": [{"torch": "2"}], "plan": asdict(FULL), "trainings": about, "found": found},
        **{"failed": {"curves-x": "no"}, "left_out": ["train-y"], "skipped": ["the sky: no frames"]},
    }


def test_the_error_of_a_mean_is_that_of_the_seeds() -> None:
    found = Results(tree()).clean(STANDARD)
    assert found and (found.value, found.error) == pytest.approx((0.013, 0.001 / 3**0.5)) and found.n == 3
    assert found.text() == "0.0130 ± 0.0006" and Mean.of([0.5]).text(100, 1) == "50.0"
    assert Mean(0.0135, 0.000027, 3).text() == "0.01350 ± 0.00003"


def test_what_was_not_measured_is_none() -> None:
    results = Results(tree())
    assert results.clean("cnn-relu") is None and results.networks("main") == [STANDARD, ADVERSARIAL]
    assert results.attacked(STANDARD, "apgd", 0.07) is None
    assert results.attacked(STANDARD, "apgd", 0.1) is not None


def test_transfer_is_from_other_runs_and_over_the_seeds_that_predict() -> None:
    results = Results(tree())
    for source in SIGMAS:
        mean = results.transfer(source, STANDARD)
        assert mean and (mean.value, mean.error) == pytest.approx((0.03, 0.01 / 3**0.5)) and mean.n == 3


def test_the_page_is_whole_and_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "paper.json"
    write(tree(), path)
    page.write(read(path), tmp_path / "paper.md")
    said = (tmp_path / "paper.md").read_text()
    assert "{" not in said.replace("{math}", ""), "a placeholder is left"
    for words in ("All labels are simulated", "0.0130 ± 0.0006", "curves-x", "`train` of y", "no frames"):
        assert words in said
    for name in ("sigma-mad", "outliers", "bias", "transfer", "trade-off"):
        assert f"(paper/{name}.png)" in said
        assert (tmp_path / f"paper/{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "no"),
    [
        ({}, 0),
        ({"neighbours": 0.0150}, 1),  # 0.013 is 0.867 of it
        ({f"pdfs-{STANDARD}-ensemble": 0.0120}, 1),  # 7.7 % below 0.013
        ({f"calibrated-{STANDARD}-seed-1": 0.031}, 1),
    ],
)
def test_a_requirement_that_is_missed_is_told(changes: dict[str, float], no: int) -> None:
    found = tree()
    for name, value in changes.items():
        place = found["found"][name]
        place = place["clean"] if name == "neighbours" else place
        place["pit_ks" if name.startswith("calibrated") else "sigma_mad"] = value
    assert verdicts.table(Results(found)).count("**no**") == no


def test_an_apgd_that_is_weaker_than_pgd_is_told() -> None:
    found, run = tree(), f"{ADVERSARIAL}-seed-1"
    found["found"][f"masking-{run}"]["masking"][run]["apgd"]["passed"] = False
    said = verdicts.table(Results(found))
    assert f"5 of 6 runs: not {run} | **no**" in said and f"2 of 3 runs: not {run} | **no**" in said


def test_another_file_is_refused(tmp_path: Path) -> None:
    for text, said in (("[]", "not a file of benchmarks.paper"), ("{", "not JSON")):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(BadInput, match=said):
            read(tmp_path / "other.json")
    with pytest.raises(BadInput, match="not there"):
        read(tmp_path / "none.json")


def test_ticks_enclose_the_values() -> None:
    ticks = figures._ticks(0.0131, 0.083)
    assert ticks[0] == pytest.approx(0.01) and ticks[-1] == pytest.approx(0.1) and ticks == sorted(ticks)


def test_pdfs_are_scored_by_their_means_and_pits(tmp_path: Path) -> None:
    """PDFs that are flat over half of the bins: PIT and <z> are known, the distance is scipy's."""
    rng = np.random.default_rng(0)
    edges, z = np.linspace(0, 0.4, 21), rng.uniform(0, 0.2, 500)
    density = np.zeros((500, 20))
    density[:, :10] = 5
    with h5py.File(tmp_path / "pz.hdf5", "w") as file:
        file["meta/bins"], file["data/pdfs"] = edges[None], density
        file["ancil/zmean"], file["ancil/z_spec"] = np.full(500, 0.1), z
    found = score(tmp_path / "pz.hdf5")
    dz = (0.1 - z) / (1 + z)
    assert found["bias"] == pytest.approx(dz.mean()) and found["n"] == 500
    assert found["pit_ks"] == pytest.approx(stats.kstest(z / 0.2, "uniform").statistic)
