"""The section of a report that compares an adversary with the sky."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.natural.measure import ATTACK, CLEAN, NaturalShifts
from hpcphotoz.evaluation.natural.perturbations import NATURAL, TYPICAL_FWHM
from hpcphotoz.evaluation.natural.second_epoch import ARCSEC, EPOCH, SecondEpoch
from hpcphotoz.evaluation.report.section import ReportSection
from hpcphotoz.evaluation.result import EvaluationResult

KEY = "natural"
_NAME = "change of redshift"
_WIDTH = 4.6  # inches
_CAPTION = "Change of the pixels (rms, max) in sky sigmas; change of <z> (median, 90 %) in redshift"
_Rows = Mapping[str, Mapping[str, Any]]  # by network and perturbation, `MovedRedshifts.record`
_TEXT = f"""How far {{attack}} at {{eps:g}} sky sigma moves the mean of the PDF, <z>, of the same galaxies,
beside what another exposure or another reduction does. Rms and max are of the change of the pixels that the
network sees, in sky sigmas of their band (medians over galaxies). The last column is the attack's median
change of <z> over that of the row, with its bootstrap error: by how much further the adversary moves
redshifts than the sky does. Noise is added to that of the image; the PSF is taken from the dataset's column
psf_fwhm, or as {TYPICAL_FWHM:g} arcsec. The figure shows medians (points) and 90th percentiles (ends of the
lines)."""
_EPOCH_TEXT = """ For {matched} of the galaxies, {epoch} has an image of another night within {arcsec:g}
arcsec: the last row compares their <z> of both nights, and the attack on the same galaxies."""


def natural_section(
    result: EvaluationResult, shifts: NaturalShifts, epoch: SecondEpoch | None = None
) -> ReportSection:
    """Make the section; raises BadInput where matplotlib is not installed.

    Args:
        result: of the evaluation.
        shifts: of its networks, from `measure_natural`.
        epoch: the same galaxies on another night, from `measure_second_epoch`; None: there is none.
    """
    text = _TEXT.format(attack=METHODS[result.headline_method].label, eps=result.headline_eps)
    if epoch is not None:
        facts = {"matched": epoch.matched, "epoch": epoch.data.resolve().name, "arcsec": ARCSEC}
        text += _EPOCH_TEXT.format(**facts)
    record = natural_record(result, shifts, epoch)
    rows, labels = record["networks"], _labels(result, epoch)
    return ReportSection(
        key=KEY,
        title="An adversary and the sky",
        text=" ".join(text.split()),
        tables=[_table(result, shifts, rows, labels)],
        captions=[_CAPTION],
        figures={_NAME: _figure(result, rows, labels)},
        alts={_NAME: _alt(rows, labels)},
        record=record,
    )


def natural_record(
    result: EvaluationResult, shifts: NaturalShifts, epoch: SecondEpoch | None = None
) -> dict[str, Any]:
    """What `metrics.json` holds: by run and perturbation, see `MovedRedshifts.record`."""
    networks: dict[str, Any] = {}
    for network, one in shifts.networks.items():
        networks[network] = {name: one.record(name) for name in one.moved}
        if epoch is not None:
            networks[network][EPOCH] = epoch.networks[network].record(EPOCH)
    attack = {"method": result.headline_method, "eps_sky_sigma": result.headline_eps}
    found: dict[str, Any] = {"attack": attack, "networks": networks}
    if epoch is not None:
        found["second_epoch"] = {
            "data": epoch.data.resolve().name,
            "matched": epoch.matched,
            "within_arcsec": ARCSEC,
        }
    return found


def _labels(result: EvaluationResult, epoch: SecondEpoch | None) -> dict[str, str]:
    """Names of the rows with what the page calls them, the attack first."""
    attack = f"{METHODS[result.headline_method].label}, {result.headline_eps:g} sky sigma"
    labels = {ATTACK: attack, **{one.name: one.label for one in NATURAL}}
    return labels if epoch is None else {**labels, EPOCH: "another night"}


def _table(
    result: EvaluationResult, shifts: NaturalShifts, record: _Rows, labels: Mapping[str, str]
) -> list[list[str]]:
    known = result.unlabelled < result.objects
    head = ["perturbation", "run", "rms", "max", "median", "90 %"]
    rows = [[*head, *(["sigma_MAD", "eta (%)"] if known else []), "attack / this"]]
    for network, one in shifts.networks.items():
        if known:
            clean = one.metrics(CLEAN)
            rows.append(["none", network, "0", "0", "0", "0", *_metrics(clean), ""])
    for name, label in labels.items():
        for network in shifts.networks:
            row = record[network][name]
            amplitude = [_number(row.get(key), ".3g") for key in ("rms_sky_sigma", "max_sky_sigma")]
            change = [_number(row[key], ".5f") for key in ("shift_median", "shift_p90")]
            ratio = _ratio(row["attack_over_this"], row["errors"]["attack_over_this"])
            rows.append([label, network, *amplitude, *change, *(_metrics(row) if known else []), ratio])
    return rows


def _metrics(row: Mapping[str, float]) -> list[str]:
    if "sigma_mad" not in row:
        return ["", ""]
    return [f"{row['sigma_mad']:.4f}", f"{100 * row['eta']:.1f}"]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _ratio(value: float | None, error: float | None) -> str:
    """A ratio with its error, such as "12.3 ± 0.4"; the error has two digits.

    Without one where it is of rounding alone, as of a single galaxy.
    """
    if value is None or not error or error < 1e-9 * value:
        return _number(value, ".3g")
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _alt(record: _Rows, labels: Mapping[str, str]) -> str:
    """The axes, and the median change of each row and network."""
    texts = []
    for name, label in labels.items():
        medians = (f"{rows[name]['shift_median']:.5f} ({network})" for network, rows in record.items())
        texts.append(f"{label} {', '.join(medians)}")
    return (
        "Median and 90th percentile of the change of <z>, in redshift on a logarithmic axis, a row for the "
        f"attack and each natural perturbation. The medians are: {'; '.join(texts)}."
    )


def _figure(result: EvaluationResult, record: _Rows, labels: Mapping[str, str]) -> bytes:
    from hpcphotoz.evaluation.report.figure import figure_png, legend_below, line_look, text_of

    offsets = 0.16 * (np.arange(len(record)) - (len(record) - 1) / 2)

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        for offset, network in zip(offsets, record, strict=True):
            look = line_look(result, network)
            shade = look["color"]
            median, p90 = (
                np.array([record[network][name][key] for name in labels])
                for key in ("shift_median", "shift_p90")
            )
            at = np.arange(len(labels)) + offset
            ax.hlines(at, median, p90, color=shade, lw=1.5)
            ax.plot(median, at, look["marker"], color=shade, ms=6, label=text_of(network))
            ax.plot(p90, at, "|", color=shade, ms=9)
        ax.set_xscale("log")
        # Labels above their rows: beside the axis they would take half of the width.
        ax.set(yticks=[], ylim=(len(labels) - 0.5 + abs(offsets[0]), -0.75))
        for row, label in enumerate(labels.values()):
            place = {"xy": (0, row - abs(offsets[0]) - 0.2), "xycoords": ("axes fraction", "data")}
            ax.annotate(label, xytext=(3, 0), textcoords="offset points", va="bottom", **place)
        ax.set_xlabel("|change of <z>| (redshift): median to 90th percentile")
        legend_below(figure, ax)

    return figure_png(draw, _WIDTH, 1.2 + (0.4 + 0.13 * len(offsets)) * len(labels))
