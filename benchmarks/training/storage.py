"""What int16 storage changes: networks trained and judged on the same galaxies as float32 and as int16.

python -m benchmarks.training.storage TRAIN JUDGE [--also DATASET ...] [--recipe NAME] [--seeds 0 1 2]
                                      [--steps 20] [--quick] [--json PATH]

TRAIN and JUDGE are datasets of float32; both are also written as int16. A network of each seed and storage is
judged on galaxies of its own storage, clean and under APGD at 0.1 sky sigma. Differences, int16 less float32,
are means over the seeds, with their bootstrap error over the galaxies (resampled alike for all networks) and
their error from the scatter of the seeds. Then each float32 network judges the int16 galaxies too: what the
storage alone changes. On --also datasets, such as stamps of survey frames without redshifts, that is all.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Benchmark, parser
from benchmarks.training.train_runs import launch
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.format.writer import DatasetWriter
from hpcphotoz.data.read.rows import read_rows
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.robustness import evaluate
from hpcphotoz.training.run.network import TrainedNetwork, load_network

EPS, METHOD, RESAMPLED = 0.1, "apgd", 1000  # sky sigmas, the attack, bootstrap samples
BRIGHT = 512  # sky sigmas, up to which int16 has steps of 1/32 sky sigma
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Judged:
    """Predictions of one network: <z> of N galaxies, clean and attacked, and the mean CRPS of each."""

    z_spec: Array  # (N,), NaN: unknown
    clean: Array  # (N,)
    robust: Array  # (N,)
    crps: dict[str, float]  # condition -> mean; empty where no redshift is known

    def sigma_mad(self, condition: str, rows: Array | None = None) -> float:
        """sigma_MAD of "clean" or "robust", of all galaxies or of those at `rows`."""
        dz = metrics.residuals(getattr(self, condition), self.z_spec)
        return metrics.sigma_mad(dz if rows is None else dz[rows])


def main() -> None:
    """Write the int16 copies, train, judge, print and record."""
    options = _options()
    benchmark = Benchmark("storage", options.json)
    with tempfile.TemporaryDirectory(prefix="hpcphotoz-storage-") as name:
        try:
            compare(benchmark, options, Path(name))
        except (BadInput, RuntimeError) as error:
            sys.exit(f"benchmarks.training.storage: {error}")
    benchmark.end()


def compare(benchmark: Benchmark, options: argparse.Namespace, folder: Path) -> None:
    """Train and judge with every seed; add the figures to the record."""
    sets: dict[str, tuple[Path, Path]] = {}  # name -> float32, int16
    for source in [options.train, options.judge, *options.also]:
        copy = folder / f"set-{len(sets)}"
        pixels = store(source, copy, "int16")
        sets[str(source)] = source, copy
        benchmark.add(**{f"pixels of {source.name}": pixels})
        print(f"{source.name}: {pixels}", flush=True)
    own: dict[str, list[Judged]] = {"float32": [], "int16": []}
    stored: dict[str, list[dict[str, float]]] = {name: [] for name in sets if name != str(options.train)}
    for seed in options.seeds:
        for k, storage in enumerate(own):
            data, out = sets[str(options.train)][k], folder / f"{storage}-{seed}"
            network = trained(options.recipe, data, out, ["--run.seed", str(seed), *options.train_options])
            own[storage].append(judged(network, sets[str(options.judge)][k], options.steps))
            shown = {one: own[storage][-1].sigma_mad(one) for one in ("clean", "robust")}
            print(f"seed {seed}, {storage}: sigma_MAD {shown}", flush=True)
            for name, found in stored.items() if storage == "float32" else ():
                judges = name == str(options.judge)
                first = own[storage][-1] if judges else judged(network, sets[name][0], 0)
                second = judged(network, sets[name][1], options.steps if judges else 0)
                found.append(change(first, second))
                print(f"  {Path(name).name} stored as int16: {found[-1]}", flush=True)
        differences = {one: difference(own["float32"], own["int16"], one) for one in ("clean", "robust")}
        benchmark.add(
            recipe=options.recipe,
            seeds=options.seeds[: len(own["int16"])],
            eps_sky_sigma=EPS,
            steps=options.steps,
            int16_less_float32=differences,
            same_network={Path(name).name: values for name, values in stored.items()},
        )
    for condition, figures in differences.items():
        print(f"{condition}: {figures}")


def store(source: Path, out: Path, storage: str) -> dict[str, float]:
    """Write a dataset anew with another storage of its images; return what that does to its pixels.

    Returns:
        Greatest change of a pixel of up to 512 sky sigmas and of any pixel, in sky sigmas, and the fraction
        of images (object and band) with a pixel above 1,023.
    """
    manifest = read_manifest(source)
    header, rows = replace(manifest.header, storage=storage), max(one.rows for one in manifest.shards)
    with DatasetWriter(out, header, rows, {"made_by": "benchmarks.training.storage"}) as writer:
        for stamps in read_rows(source, manifest):
            writer.append(stamps)
    faint = bright = curved = 0.0
    for old, new in zip(read_rows(source, manifest), read_rows(out, read_manifest(out)), strict=True):
        sigma = old.sky_sigma[:, :, None, None]
        moved, size = np.abs(new.images - old.images) / sigma, np.abs(old.images) / sigma
        faint = max(faint, float(moved[size <= BRIGHT].max(initial=0)))
        bright = max(bright, float(moved.max()))
        curved += float((size.max(axis=(2, 3)) > 2 * BRIGHT).sum())
    images = manifest.rows * len(header.bands)
    return {"change_faint": faint, "change": bright, "images_with_bright_pixels": curved / images}


def trained(recipe: str, data: Path, out: Path, words: Sequence[str]) -> TrainedNetwork:
    """Train by the command, in a process of its own, and load the network."""
    command: list[str | Path] = ["-m", "hpcphotoz", "train", recipe, "--data", data.resolve(), "--out", out]
    launch(out.name, Path(sys.executable), 0, [*command, "--device", "cpu", *words], timeout_s=7200)
    return load_network(out)


def judged(network: TrainedNetwork, data: Path, steps: int) -> Judged:
    """Predictions on a dataset, as `hpcphotoz evaluate` makes them; without steps, under FGSM."""
    methods = {"methods": [METHOD], "steps": steps} if steps else {"methods": ["fgsm"]}
    result = evaluate([network], data, eps=[EPS], keep_objects=True, **methods)
    clean, robust = result.networks[0].conditions
    crps = {name: one.metrics["crps"] for name, one in (("clean", clean), ("robust", robust)) if one.metrics}
    return Judged(result.z_spec, clean.z_phot, robust.z_phot, crps)


def change(float32: Judged, int16: Judged) -> dict[str, float]:
    """What storage changes in the predictions of one network: |change of <z>|, and metrics, where known."""
    found: dict[str, float] = {}
    for condition in ("clean", "robust"):
        moved = np.abs(getattr(int16, condition) - getattr(float32, condition)).astype(np.float64)
        found |= {f"z_max_{condition}": float(moved.max()), f"z_median_{condition}": float(np.median(moved))}
        if float32.crps:
            found[f"sigma_mad_{condition}"] = int16.sigma_mad(condition) - float32.sigma_mad(condition)
            found[f"crps_{condition}"] = int16.crps[condition] - float32.crps[condition]
    return found


def difference(float32: Sequence[Judged], int16: Sequence[Judged], condition: str) -> dict[str, Any]:
    """sigma_MAD of int16 less that of float32, seed by seed, with what tells whether it is one.

    Args:
        float32, int16: of the same seeds and galaxies.
        condition: "clean" or "robust".

    Returns:
        `mean` over the seeds; `error`, its bootstrap error over the galaxies; `scatter`, the standard
        deviation of float32's metric over the seeds; `seeds_error`, the standard error of the mean from the
        scatter of both storages (both None of one seed); the mean difference of the CRPS; the values of
        each seed.
    """
    pairs = list(zip(float32, int16, strict=True))
    values = {
        "float32": [one.sigma_mad(condition) for one, _ in pairs],
        "int16": [one.sigma_mad(condition) for _, one in pairs],
    }
    rng, n = np.random.default_rng(0), len(float32[0].z_spec)
    means = []
    for _ in range(RESAMPLED):
        rows = rng.integers(0, n, n)
        parts = [b.sigma_mad(condition, rows) - a.sigma_mad(condition, rows) for a, b in pairs]
        means.append(np.mean(parts))
    mean = float(np.mean(np.subtract(values["int16"], values["float32"])))
    several, crps = len(pairs) > 1, [b.crps[condition] - a.crps[condition] for a, b in pairs]
    variance = {name: np.var(one, ddof=1) if several else np.nan for name, one in values.items()}
    return {
        "mean": mean,
        "error": float(np.std(means)),
        "scatter": float(np.sqrt(variance["float32"])) if several else None,
        "seeds_error": float(np.sqrt(sum(variance.values()) / len(pairs))) if several else None,
        "crps_mean": float(np.mean(crps)),
        "sigma_mad": values,
    }


def _options() -> argparse.Namespace:
    words = parser(__doc__)
    words.add_argument("train", type=Path, help="dataset of float32 to train on")
    words.add_argument("judge", type=Path, help="dataset of float32 that judges")
    words.add_argument("--also", type=Path, nargs="+", default=[], help="further datasets of float32")
    words.add_argument("--recipe", default="adversarial-fast", help="default adversarial-fast")
    words.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    words.add_argument("--steps", type=int, default=20, help="of APGD (default 20)")
    found = words.parse_args()
    found.train_options = ["--run.max_steps", "2"] if found.quick else []
    if found.quick:
        found.seeds, found.steps = found.seeds[:1], 1
    return found


if __name__ == "__main__":
    main()
