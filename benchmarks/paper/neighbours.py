"""Nearest neighbours on colours, clean and on images that were attacked through a network.

python -m benchmarks.paper.neighbours RUN --train DATASET --test DATASET --eps 0.1 --json PATH

The neighbours are the training part of the run's split. The attacked images are measured by the same aperture
photometry as the clean ones, so that the perturbation reaches the colours.
"""

import argparse
import json
import tempfile
from pathlib import Path

from hpcphotoz.atomic import write_text
from hpcphotoz.config import Attack
from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.select.subset import Subset
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.adversarial_dataset import write_adversarial_dataset
from hpcphotoz.evaluation.baseline.knn import KnnOptions, estimate, tune
from hpcphotoz.evaluation.baseline.photometry import RADII, Photometry, measure_photometry
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.training.run.network import load_network

NEIGHBOURS = 20


def main() -> None:
    """Measure, and write a file."""
    words = argparse.ArgumentParser(prog="python -m benchmarks.paper.neighbours", description=__doc__)
    words.add_argument("run", type=Path, help="run folder of the network that is attacked")
    words.add_argument("--train", type=Path, required=True, help="dataset that the network was trained on")
    words.add_argument("--test", type=Path, required=True, help="dataset to measure on")
    words.add_argument("--eps", type=float, nargs="+", required=True, help="sky sigmas")
    words.add_argument("--method", default="apgd", help="of the attack (default apgd)")
    words.add_argument("--steps", type=int, default=10, help="of the attack (default 10)")
    words.add_argument("--objects", type=int, required=True, help="number of test galaxies that are attacked")
    words.add_argument("--json", type=Path, required=True, help="file to write")
    write_text(words.parse_args().json, json.dumps(measure(words.parse_args()), indent=1) + "\n")


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Metrics of the neighbours: `clean` on all test galaxies, and `attacked`, by epsilon, on some.

    `attacked` has the clean ones at epsilon 0.
    """
    network = load_network(options.run, trust_code=True)
    bins, header = network.bins, read_manifest(options.train).header
    part = Subset.from_options(network.config.data, "train", header.bands, header.extra)
    train = measure_photometry(options.train, bins, part)
    chosen = tune(train, bins, NEIGHBOURS)

    def scored(data: Path, limit: int | None = None) -> dict[str, float]:
        return _metrics(train, measure_photometry(data, bins, limit=limit), chosen, bins)

    attacked = {"0": scored(options.test, options.objects)}
    for eps in options.eps:
        attack = Attack(method=options.method, eps=eps, steps=options.steps)
        with tempfile.TemporaryDirectory(dir=options.json.parent, prefix="attacked-") as folder:
            out = Path(folder, "galaxies")
            write_adversarial_dataset(network, options.test, out, attack, limit=options.objects)
            attacked[f"{eps:g}"] = scored(out)
    how = {"aperture_arcsec": RADII[chosen.radius], "k": NEIGHBOURS, "n_train": len(train.z_spec)}
    return {"clean": scored(options.test), "attacked": attacked, **how}


def _metrics(train: Photometry, test: Photometry, chosen: KnnOptions, bins: RedshiftBins) -> dict[str, float]:
    z_phot, pdf = estimate(train, test, chosen, bins, NEIGHBOURS)
    return metrics.summary(z_phot, test.z_spec, **metrics.pdf_scores(pdf, bins.edges(), test.z_spec))


if __name__ == "__main__":
    main()
