"""Options of `evaluate` for further measurements, and the sections of the report that they make."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hpcphotoz.cli.network_options import batch_size
from hpcphotoz.cli.parser import Parser, count, number, path, radius
from hpcphotoz.errors import BadInput
from hpcphotoz.ranks import Ranks

if TYPE_CHECKING:
    from hpcphotoz.data.select.subset import SplitPart, Subset
    from hpcphotoz.evaluation.certificate.smoothing import Smoothing
    from hpcphotoz.evaluation.report.section import ReportSection
    from hpcphotoz.evaluation.result import EvaluationResult
    from hpcphotoz.training.run.network import TrainedNetwork


_SPLIT = {"where", "validation", "test", "split_seed", "split_by"}
SAME_DATA = True  # --conformal without a dataset


@dataclass
class FurtherMeasurements:
    """What the measurements give: the same on every rank."""

    sections: "list[ReportSection]" = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # name in the report's folder -> text
    problems: list[str] = field(default_factory=list)  # checks that failed


def add_measurements(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument(
        "--perturbation",
        action="store_true",
        help="also measure where the perturbation is: its power by band, radius and spatial frequency, and "
        "what aperture colours show of it; attacks once more at the headline epsilon",
    )
    parser.add_argument(
        "--conformal",
        type=path,
        nargs="?",
        const=SAME_DATA,
        metavar="DATASET",
        help="also calibrate 68, 90 and 95 %% intervals on galaxies that are not measured, and measure their "
        "coverage and width, clean and attacked: on the validation part of the runs' split of --data, or of "
        "DATASET; on all of DATASET if no run was trained on it",
    )
    parser.add_argument(
        "--certify",
        type=radius,
        metavar="SIGMA",
        help="also certify, by randomised smoothing with noise of SIGMA sky sigmas, the radius within which "
        "no change makes each galaxy an outlier; a network trained with data.noise SIGMA has useful radii; "
        "costs --samples forward passes a galaxy, and about twice as much for attacks within the same radii",
    )
    parser.add_argument(
        "--samples", type=count, help="noisy copies of each galaxy for --certify (default 1000)"
    )
    parser.add_argument(
        "--confidence", type=number, help="with which each certificate of --certify holds (default 0.999)"
    )
    parser.add_argument(
        "--check-masking",
        type=count,
        nargs="?",
        const=64,
        metavar="N",
        help="also check on the first N objects (default 64) that gradients are not masked, by comparing "
        "attacks at the headline epsilon; about 1,200 image gradients an object; a failed check is a line on "
        "standard error and exit status 1, after the report is written",
    )
    parser.add_argument(
        "--natural",
        type=count,
        nargs="?",
        const=2048,
        metavar="N",
        help="also perturb the first N objects (default 2048) as the sky does: noise of another exposure, a "
        "broader PSF, another background, zero points, the wing of a star; attacks them once more at the "
        "headline epsilon",
    )
    parser.add_argument(
        "--second-epoch",
        type=path,
        metavar="DATASET",
        help="with --natural: dataset of the same galaxies on another night, matched within 1 arcsec",
    )


def check_measurements(options: argparse.Namespace) -> "tuple[list[str], Smoothing | None]":
    """Check the options before anything is computed.

    Returns:
        The keys of the sections that will be made, and the smoothing of --certify; None without it.

    Raises:
        BadInput: an option out of range, or without the one that it belongs to.
    """
    from hpcphotoz.evaluation.certificate.section import KEY as CERTIFICATE
    from hpcphotoz.evaluation.certificate.smoothing import Smoothing
    from hpcphotoz.evaluation.conformal.section import KEY as CONFORMAL
    from hpcphotoz.evaluation.masking.section import KEY as MASKING
    from hpcphotoz.evaluation.natural.section import KEY as NATURAL
    from hpcphotoz.evaluation.perturbation.section import KEY as PERTURBATION
    from hpcphotoz.provenance import datasets_of

    if options.second_epoch and not options.natural:
        raise BadInput(f"--second-epoch {options.second_epoch}: is compared with --natural: give it too")
    given = {name: getattr(options, name) for name in ("samples", "confidence")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.certify is None:
        if given:
            raise BadInput(f"--{next(iter(given))} is for --certify SIGMA: give that too")
        smoothing = None
    else:
        smoothing = Smoothing(options.certify, **given, seed=options.seed)
    if options.conformal is SAME_DATA and options.part == "all":
        trained = sorted({folder for run in options.runs for folder in datasets_of(run)})
        such = f"such as --conformal {trained[0]}, of the training" if trained else "--conformal DATASET"
        raise BadInput(
            f"--conformal: would calibrate on galaxies of --data that are measured too: name other ones, "
            f"{such}; or, where --data is what the runs were trained on, measure --part test"
        )
    asked = {PERTURBATION: options.perturbation, CONFORMAL: options.conformal, CERTIFICATE: smoothing}
    asked |= {MASKING: options.check_masking, NATURAL: options.natural}
    return [key for key, value in asked.items() if value not in (None, False)], smoothing


def check_objects(options: argparse.Namespace, networks: "list[TrainedNetwork]", subset: "Subset") -> None:
    """Check the objects of the measurements, before hours of attacks: labels alone are read.

    Raises:
        BadInput: datasets that the networks do not take, calibration objects that are measured too, or too
            few objects.
    """
    from hpcphotoz.data.format.manifest import read_manifest
    from hpcphotoz.evaluation.batches import find_subset_objects
    from hpcphotoz.evaluation.conformal.measure import check_conformal
    from hpcphotoz.evaluation.masking.measure import ONE_OBJECT
    from hpcphotoz.evaluation.natural.second_epoch import check_second_epoch

    if options.second_epoch:
        check_second_epoch(networks, options.second_epoch)
    if options.conformal is not None:
        data = _calibration_data(options)
        check_conformal(
            networks, options.data, subset, options.limit, data, _calibration_subset(data, networks)
        )
    if options.check_masking:
        found = find_subset_objects(options.data, read_manifest(options.data), subset).census.rows
        if min(found, options.check_masking, options.limit or found) < 2:
            raise BadInput(ONE_OBJECT.format(options.data))


def measure_further(
    options: argparse.Namespace,
    networks: "list[TrainedNetwork]",
    result: "EvaluationResult",
    device: str,
    smoothing: "Smoothing | None",
) -> FurtherMeasurements:
    """Make the measurements that were asked for; all ranks call this."""
    from hpcphotoz.evaluation.certificate.measure import certify
    from hpcphotoz.evaluation.certificate.section import certificate_section, certificate_table
    from hpcphotoz.evaluation.conformal.measure import measure_conformal
    from hpcphotoz.evaluation.conformal.section import conformal_section
    from hpcphotoz.evaluation.masking.measure import measure_masking
    from hpcphotoz.evaluation.masking.section import masking_section
    from hpcphotoz.evaluation.natural.measure import measure_natural
    from hpcphotoz.evaluation.natural.second_epoch import measure_second_epoch
    from hpcphotoz.evaluation.natural.section import natural_section
    from hpcphotoz.evaluation.perturbation.headline import HeadlineAttack
    from hpcphotoz.evaluation.perturbation.measure import measure_perturbations
    from hpcphotoz.evaluation.perturbation.section import perturbation_section
    from hpcphotoz.evaluation.report.folder import RADII

    ranks: Ranks = options.ranks
    batch, found = batch_size(device), FurtherMeasurements()
    headline = HeadlineAttack(networks, result, device, batch, ranks)
    if options.perturbation:
        perturbations = measure_perturbations(headline)
        found.sections.append(ranks.on_first_rank(lambda: perturbation_section(result, perturbations)))
    if options.conformal is not None:
        data = _calibration_data(options)
        subset = ranks.on_first_rank(lambda: _calibration_subset(data, networks))
        intervals = measure_conformal(headline, data, subset)
        found.sections.append(ranks.on_first_rank(lambda: conformal_section(result, intervals)))
    if smoothing is not None:
        certificates = certify(networks, result, smoothing, device=device, batch=batch, ranks=ranks)
        found.sections.append(ranks.on_first_rank(lambda: certificate_section(result, certificates)))
        found.files[RADII] = certificate_table(certificates)
        found.problems += [one.problem for one in certificates if one.problem]
    if options.check_masking:
        how = {"objects": options.check_masking, "batch": batch}
        losses = measure_masking(networks, result, **how, device=device, ranks=ranks)
        masking = ranks.on_first_rank(lambda: masking_section(result, losses))
        found.sections.append(masking)
        found.problems += masking.record["failures"]
    if options.natural:
        shifts, night = measure_natural(headline, options.natural), options.second_epoch
        epoch = measure_second_epoch(headline, shifts, night) if night else None
        found.sections.append(ranks.on_first_rank(lambda: natural_section(result, shifts, epoch)))
    return found


def _calibration_data(options: argparse.Namespace) -> Path:
    return Path(options.data if options.conformal is SAME_DATA else options.conformal)


def _calibration_subset(data: Path, networks: "list[TrainedNetwork]") -> "Subset":
    """The calibration objects of a dataset: what the runs' split holds back of one that they trained on.

    Raises:
        BadInput: runs with different splits or predicates, or without a validation part.
    """
    from hpcphotoz.data.format.appended import versions_of
    from hpcphotoz.data.format.manifest import read_manifest
    from hpcphotoz.data.select.subset import Subset

    manifest = read_manifest(data)
    versions = versions_of(manifest)
    trained = [not {n.manifest_sha256, *n.datasets_sha256}.isdisjoint(versions) for n in networks]
    splits = {n.config.data.model_dump_json(include=_SPLIT if any(trained) else {"where"}) for n in networks}
    if len(splits) > 1:
        raise BadInput("--conformal: the runs have different splits or data.where: name one run at a time")
    config = networks[0].config.data
    if any(trained) and not config.validation:
        raise BadInput(
            f"--conformal: {data}: the split of the training has no validation part (data.validation is 0): "
            "give another dataset for the calibration"
        )
    part: SplitPart = "validation" if any(trained) else "all"
    return Subset.from_options(config, part, manifest.header.bands, manifest.header.extra)
