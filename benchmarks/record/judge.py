"""Judges the networks of an entry by `hpcphotoz evaluate`, in other processes, after the clock has stopped.

APGD with restarts on all galaxies decides. The confirmations look for masked gradients: APGD on the DLR
margin and on that of probabilities, images made against the other seeds (transfer), and the square attack,
which needs no gradient; the last on fewer galaxies, beside APGD on the same ones.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.record.task import EPS, FULL, NO_TARGET, Task
from benchmarks.training.train_runs import launch

TIMEOUT_S = 4 * 3600
SLACK = 1.05  # by which another attack may exceed APGD: 1,024 galaxies give sigma_MAD to 4 %
_METRICS = ("sigma_mad", "eta", "bias", "crps", "n")
Figures = dict[str, Any]


def judge(
    task: Task, networks: Mapping[str, Path], data: Path, folder: Path, confirm: bool
) -> dict[str, Figures]:
    """Metrics of each network.

    Args:
        task: sizes of the attacks, and where they run.
        networks: name -> run folder or safetensors file, all of one entry.
        data: the galaxies that judge.
        folder: for the reports.
        confirm: run the confirmations too, which take about three times as long.

    Returns:
        For each network `clean` and `robust`, each with sigma_mad, eta, bias, crps and n; and with `confirm`
        the sigma_mad under each confirmation: `margin`, `probability_margin`, `transfer` (the greatest over
        the other networks; not there if there is none), `square` and `apgd_same_objects`.
    """
    apgd = ["--attacks", "apgd", "--steps", task.steps]

    def evaluated(report: str, *words: object) -> Figures:
        return evaluate(list(networks.values()), data, folder / report, *words, device=task.device)

    tree = evaluated("apgd", *apgd, "--restarts", task.restarts)
    found: dict[str, Figures] = {}
    for name in networks:
        found[name] = {
            "clean": {key: tree[name]["clean"][key] for key in _METRICS},
            "robust": {key: tree[name]["apgd"][key] for key in _METRICS},
        }
    if not confirm:
        return found
    others: dict[str, Figures] = {name: {} for name in networks}
    for loss in ("margin", "probability_margin"):
        report = evaluated(loss, *apgd, "--loss", loss)
        for name in networks:
            others[name][loss] = report[name]["apgd"]["sigma_mad"]
    for made_against, predicting in tree["transfer"].items():
        for name, metrics in predicting.items():
            assert name != made_against
            others[name]["transfer"] = max(others[name].get("transfer", 0.0), metrics["sigma_mad"])
    square = ["--attacks", "square", "apgd", "--steps", task.steps]
    square += ["--queries", task.queries, "--limit", task.square_objects]
    report = evaluated("square", *square)
    for name in networks:
        others[name]["square"] = report[name]["square"]["sigma_mad"]
        others[name]["apgd_same_objects"] = report[name]["apgd"]["sigma_mad"]
        found[name]["confirmations"] = others[name]
    return found


def shortcomings(figures: Figures, task: Task = FULL) -> list[str]:
    """Why a network does not pass; empty if it does."""
    if task.clean is None or task.robust is None:
        return [f"no verdict: {NO_TARGET}"]
    clean, robust = figures["clean"]["sigma_mad"], figures["robust"]["sigma_mad"]
    said = []
    if not clean <= task.clean:
        said.append(f"clean sigma_MAD {clean:.4f} > {task.clean}")
    if not robust <= task.robust:
        said.append(f"robust sigma_MAD {robust:.4f} > {task.robust}")
    others = dict(figures.get("confirmations", {}))
    same = others.pop("apgd_same_objects", robust)
    for name, sigma in others.items():
        most = SLACK * (same if name == "square" else robust)
        if not sigma <= most:
            said.append(f"{name}: sigma_MAD {sigma:.4f} > {most:.4f}: its gradients mislead APGD")
    return said


def evaluate(networks: list[Path], data: Path, out: Path, *words: object, device: str = "cpu") -> Figures:
    """`metrics.json` of `hpcphotoz evaluate`, of float32 gradients.

    Raises:
        RuntimeError: it failed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = ["-m", "hpcphotoz", "evaluate", *networks, "--data", data, "--out", out]
    command += ["--device", device, "--precision", "fp32", "--eps", str(EPS), *map(str, words)]
    launch(f"evaluate: {out.name}", Path(sys.executable), 0, command, timeout_s=TIMEOUT_S)
    tree: Figures = json.loads((out / "metrics.json").read_text())
    return tree
