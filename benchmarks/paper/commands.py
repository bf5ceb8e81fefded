"""The commands of hpcphotoz that the program drives, each a process with one thread."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.plan import Galaxies, Training
from benchmarks.training.train_runs import launch
from hpcphotoz.config.load import to_toml

TIMEOUT_S = 6 * 3600
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
_ON_CPU = ("--device", "cpu")
_OUR_NETWORK = "--trust-code"  # the narrow Inception is made by a factory of benchmarks.paper


def simulate(galaxies: Galaxies, frames: Path | None, out: Path) -> None:
    """Simulate a set, or go on with one that was interrupted; `frames`: folder of the real sky."""
    words: list[str | Path] = ["simulate", out, "--n", str(galaxies.objects), "--seed", str(galaxies.seed)]
    if galaxies.in_real_sky:
        assert frames is not None
        words += ["--onto", frames]
    _run(out.name, words)


def train(training: Training, seed: int, data: Path, folder: Path) -> dict[str, Any]:
    """Train a network, or go on with a run that was interrupted.

    Args:
        training: the network and its settings.
        seed: of the run.
        data: training galaxies.
        folder: of the runs.

    Returns:
        Name of the run, and the validation figures of its last epoch.
    """
    run = folder / training.run(seed)
    recipe, options = folder / f"{run.name}.toml", folder / f"{run.name}.json"
    text = json.dumps({"data": data.name, **training.settings(seed)})
    if not options.exists() or options.read_text() != text:
        shutil.rmtree(run, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    options.write_text(text)
    recipe.write_text(to_toml(training.config(seed)))
    _run(run.name, ["train", recipe, "--data", data, "--out", run, *_ON_CPU])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line.get("part") == "validation"][-1]
    return {"run": run.name, "validation": {key: last[key] for key in ("n", "sigma_mad", "eta", "bias")}}


def evaluate(runs: Sequence[Path], data: Path, out: Path, *words: object) -> dict[str, Any]:
    """`metrics.json` of `hpcphotoz evaluate` with float32 gradients, of PDFs that are not calibrated.

    A masking check that fails ends the command with status 1, after the report: it is a result here.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    command: list[str | Path] = ["evaluate", *runs, "--data", data, "--out", out, *_ON_CPU, _OUR_NETWORK]
    failed: RuntimeError | None = None
    try:
        _run(f"evaluate {out.name}", [*command, "--no-calibration", "--precision", "fp32", *map(str, words)])
    except RuntimeError as error:
        failed = error
    file = out / "metrics.json"
    tree: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if failed and not tree.get("masking", {}).get("failures"):
        raise failed
    return tree


def predict(
    runs: Sequence[Path], data: Path, out: Path, *, tta: bool, calibrate_on: Path | None = None
) -> None:
    """Write the PDFs of `hpcphotoz predict`.

    Args:
        runs: of several the mean.
        data: test galaxies.
        out: file to write.
        tta: average over the eight symmetries.
        calibrate_on: the runs' training set, whose validation part calibrates the PDFs; None: they are not.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    shared: list[str | Path] = [*runs, *_ON_CPU, _OUR_NETWORK, *(["--tta"] if tta else [])]
    if calibrate_on is not None:
        _run(f"calibrate {out.name}", ["calibrate", *shared, "--data", calibrate_on])
    raw = [] if calibrate_on is not None else ["--no-calibration"]
    _run(f"predict {out.name}", ["predict", *shared, "--data", data, "--out", out, *raw])


def knn_under_attack(run: Path, train: Path, test: Path, out: Path, *words: object) -> dict[str, Any]:
    """What `benchmarks.paper.neighbours` finds."""
    return _module("neighbours", [run, "--train", train, "--test", test, *map(str, words)], out)


def limit(galaxies: Galaxies, objects: int, out: Path) -> dict[str, Any]:
    """What `benchmarks.paper.limit` finds for the first objects of a simulated set."""
    return _module("limit", ["--objects", str(objects), "--seed", str(galaxies.seed)], out)


def _module(name: str, words: Sequence[str | Path], out: Path) -> dict[str, Any]:
    out.parent.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = ["-m", f"benchmarks.paper.{name}", *words, "--json", out]
    launch(name, Path(sys.executable), 0, command, _ONE_THREAD, timeout_s=TIMEOUT_S)
    tree: dict[str, Any] = json.loads(out.read_text())
    return tree


def _run(name: str, words: Sequence[str | Path]) -> None:
    command: list[str | Path] = ["-m", "hpcphotoz", *words]
    launch(name, Path(sys.executable), 0, command, _ONE_THREAD, timeout_s=TIMEOUT_S)
