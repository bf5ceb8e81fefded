"""Measures how robust trained networks are: metrics on clean and on attacked images, against epsilon.

Attacks are white-box: each network is attacked through its own gradients. At the headline epsilon, the other
networks also predict from the images made against one network (transfer). Images are streamed, and scores
of each object lie in a temporary file: memory does not grow with the number of objects. Ranks share the
objects batch by batch, and add whole numbers for the metrics: a report does not depend on their number.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from hpcphotoz.config.section import GREATEST
from hpcphotoz.data.format.manifest import Manifest, read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.data.select.subset import ALL_OBJECTS, Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.attack_grid import QUERIES, build_attack_grid, headline_attack, headline_radius
from hpcphotoz.evaluation.batches import (
    check_batch,
    check_redshifts,
    divide_rows,
    read_batches,
    to_tensors,
)
from hpcphotoz.evaluation.inference import DatasetAttack, DatasetForward, check_precision, image_gradients
from hpcphotoz.evaluation.network import RedshiftNetwork, check_bands_and_stamp, check_names
from hpcphotoz.evaluation.result import BinnedMetrics, EvaluationResult, ExampleGalaxy
from hpcphotoz.evaluation.scores import AttackedBatch, NetworkScorer, find_minimal_eps
from hpcphotoz.evaluation.scoring.accumulator import ScoreAccumulator
from hpcphotoz.evaluation.scoring.columns import STANDARD, Binning, ObjectColumns
from hpcphotoz.evaluation.scoring.objects import Objects
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from hpcphotoz.evaluation.scoring.spill import Spill
from hpcphotoz.ranks import ALONE, Ranks


def evaluate(
    networks: Sequence[RedshiftNetwork],
    data: Path,
    *,
    eps: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.5),
    methods: Sequence[str] = ("fgsm", "pgd"),
    steps: int = 10,
    restarts: int = 1,
    queries: int = QUERIES,
    batch: int = 128,
    loss: str = "cross_entropy",
    headline_eps: float | None = None,
    minimal_eps_max: float | None = None,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    seed: int = 0,
    precision: str = "fp32",
    subset: Subset = ALL_OBJECTS,
    by: Sequence[Binning] = (),
    calibrations: Mapping[str, Calibration] | None = None,
    keep_objects: bool = False,
    ranks: Ranks = ALONE,
) -> EvaluationResult:
    """Measure every network on a dataset, clean and attacked.

    Objects of unknown z_spec are attacked away from the network's own clean prediction (`attack_labels`).
    They count in the change of <z> and are left out of the metrics.

    Args:
        networks: networks of different names, all in the dataset's bands.
        data: dataset folder.
        eps: epsilons in sky sigmas of each band: the greatest change of a pixel, or for "l2" its root mean
            square; 0, the clean condition, is dropped.
        methods: names in `attack_grid.METHODS`. Pictures and transfer show the one that
            `attack_grid.headline_attack` chooses.
        steps: of all methods but FGSM and the square attack, from a random start; PGD's each of
            2.5 eps / steps.
        restarts: random starts of the same methods; the best one is kept.
        queries: of the square attack.
        batch: batch size.
        loss: loss that the attacks maximise: a name in `losses.redshift_losses`.
        headline_eps: the epsilon of summary, pictures and transfer; measured even if not in `eps`. None: see
            `attack_grid.headline_radius`.
        minimal_eps_max: also search for the smallest epsilon that makes each galaxy an outlier, up to this
            many sky sigmas; None: no search.
        device: device of the networks.
        limit: greatest number of objects, the first of the subset; None: all.
        seed: key of the random starts.
        precision: of the attacks' gradients: "fp32", "tf32" or "bf16"; bf16 was as strong where it was
            compared. Metrics and the search for minimal epsilons always use float32 without TF32.
        subset: which objects of the dataset.
        by: columns by whose bins metrics are measured too, beside those in `columns.STANDARD`.
        calibrations: by name of the network, of the PDFs that are scored, clean and attacked; None: none.
            Attacks, and the search for minimal epsilons, are on the network's own PDFs.
        keep_objects: also return the values of each object (`ConditionResult.z_phot` and others), in memory.
        ranks: ranks that share the objects; all of them call this, with the same arguments.

    Returns:
        The result over all objects, the same on every rank.

    Raises:
        BadInput: no network, two networks of the same name, other bands or stamp size than the dataset, a
            z_spec outside a network's bins, an empty subset, an output that is not finite, an unknown method,
            a calibration of another network, or an option out of range.
    """
    manifest, calibrations = read_manifest(data), calibrations or {}
    ranks.on_first_rank(
        lambda: _check(networks, data, manifest, batch, limit, subset, precision, minimal_eps_max)
    )
    if others := calibrations.keys() - {network.name for network in networks}:
        raise ranks.refusal(f"calibration of '{min(others)}': no network of that name is evaluated")
    headline_eps = headline_radius(eps) if headline_eps is None else headline_eps
    passes = {"steps": steps, "restarts": restarts, "queries": queries}
    grid = build_attack_grid(methods, eps, headline_eps, **passes, loss=loss)
    headline_key = headline_attack(methods), headline_eps
    part = divide_rows(data, manifest, batch, subset, limit, ranks)
    objects = part.objects
    gradients = objects * sum(image_gradients(attack) for _, attack in grid)
    forwards = objects * (len(grid) + len(networks))  # clean, each attack, transfer
    binnings = {one.column: one for one in (*(Binning(name) for name in STANDARD), *by)}
    read = ObjectColumns(data, manifest.header, tuple(binnings))
    with Spill() as spill:
        scorers = [
            NetworkScorer(
                one,
                grid,
                DatasetAttack(one, precision, batch, gradients),
                DatasetForward(one, batch, forwards),
                spill,
                calibrations.get(one.name),
            )
            for one in networks
        ]
        transfer_scores = {
            source.name: {t.name: ScoreAccumulator(spill) for t in networks if t is not source}
            for source in networks
        }
        seen, example = Objects(spill, read, ranks, keep_objects), None
        batches = read_batches(data, manifest, batch, "attacking galaxies", limit, subset, share=part)
        for stamps in ranks.until_stopped(batches):
            tensor = to_tensors(stamps, device)
            headline_batches = {
                one.network.name: one.score_batch(tensor, stamps.z_spec, headline_key, seed)
                for one in scorers
            }
            if minimal_eps_max is not None:
                for one in scorers:
                    found = find_minimal_eps(one.network, tensor, minimal_eps_max, steps=steps, seed=seed)
                    one.add_minimal_eps(found, keep_objects)
            for source, targets in transfer_scores.items():
                for target in (one for one in scorers if one.network.name in targets):
                    pdf = target.scored_pdfs(tensor, headline_batches[source].attacked)
                    targets[target.network.name].add(target.network, pdf, stamps.z_spec)
            example = example or _example(networks, stamps, headline_batches)
            seen.add(stamps)
        example = ranks.on_first_rank(lambda: example)
        assert example is not None  # an empty subset was refused, and rank 0 has an object
        seen.count()
        low = min(network.bins.z_min for network in networks)
        top = max(one.greatest_redshift(seen, headline_key) for one in scorers)
        limits = low, low + 1.1 * (top - low)
        return EvaluationResult(
            data=data,
            header=manifest.header,
            objects=seen.total,
            unlabelled=seen.unlabelled,
            methods=tuple(dict.fromkeys(name for name, _ in grid)),
            eps=tuple(sorted({attack.eps for _, attack in grid})),
            headline_eps=headline_eps,
            steps=steps,
            restarts=restarts,
            queries=queries,
            loss=loss,
            seed=seed,
            precision=precision,
            networks=tuple(one.result(seen, headline_key, limits, minimal_eps_max) for one in scorers),
            transfer={
                source: {name: one.measure(seen) for name, one in targets.items()}
                for source, targets in transfer_scores.items()
                if targets
            },
            example=example,
            subset=subset,
            limit=limit,
            calibrations=dict(calibrations),
            binned=_in_bins(scorers, seen, list(binnings.values()), headline_key),
            kept_ids=seen.kept_ids(),
            kept_z_spec=seen.kept_z_spec(),
        )


def _in_bins(
    scorers: Sequence[NetworkScorer],
    seen: Objects,
    binnings: Sequence[Binning],
    headline_key: tuple[str, float],
) -> tuple[BinnedMetrics, ...]:
    """Metrics in the bins of each column; without a column that no object of known z_spec has."""
    found = []
    for binning in binnings:
        if edges := seen.edges(binning):
            by_network = {one.network.name: one.bins(seen, binning, edges, headline_key) for one in scorers}
            found.append(BinnedMetrics(binning.column, seen.meaning[binning.column], edges, by_network))
    return tuple(found)


def _example(
    networks: Sequence[RedshiftNetwork], stamps: Stamps, headline_batches: dict[str, AttackedBatch]
) -> ExampleGalaxy:
    """A typical galaxy: the headline attack moves its <z>, by the first network, by the median amount."""
    first, known = networks[0], np.isfinite(stamps.z_spec)
    change = headline_batches[first.name].pdf_attacked - headline_batches[first.name].pdf_clean
    moved = first.bins.integral(change).abs().cpu().numpy()
    among = np.flatnonzero(known) if known.any() else np.arange(len(stamps))
    i = among[np.argsort(moved[among])[len(among) // 2]]
    return ExampleGalaxy(
        object_id=int(stamps.object_id[i]),
        z_spec=float(stamps.z_spec[i]),
        image=stamps.images[i].copy(),
        sky_sigma=stamps.sky_sigma[i].copy(),
        **{
            field: {
                name: getattr(one, field)[i].cpu().numpy().copy() for name, one in headline_batches.items()
            }
            for field in ("attacked", "pdf_clean", "pdf_attacked")
        },
    )


def _check(
    networks: Sequence[RedshiftNetwork],
    data: Path,
    manifest: Manifest,
    batch: int,
    limit: int | None,
    subset: Subset,
    precision: str,
    minimal_eps_max: float | None,
) -> None:
    if not networks:
        raise BadInput("no network to evaluate: give at least one run folder")
    check_names(networks)
    check_batch(batch, limit)
    check_precision(precision)
    if minimal_eps_max is not None and not 0 < minimal_eps_max <= GREATEST:
        raise BadInput(
            f"minimal_eps_max {minimal_eps_max}: must be above 0 and at most {GREATEST:g} sky sigmas"
        )
    for network in networks:
        check_bands_and_stamp(network, manifest.header, data)
        check_redshifts(network.bins, data, manifest, f"run '{network.name}'", subset)
