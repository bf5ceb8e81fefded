"""The section of a report on certified radii, and their table of every galaxy."""

import csv
import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.certificate.measure import Certificate
from hpcphotoz.evaluation.report.section import ReportSection
from hpcphotoz.evaluation.result import EvaluationResult

KEY = "certificate"
_PANEL = (4.6, 4.3)  # inches
_POINTS = 200  # of a curve
_WIDTHS = "interval widths"
_AXIS = "radius R: L2 norm of the change (sky sigmas)"
_CAPTION = (
    "Scatter and outliers of the smoothed redshift; median certified radius in sky sigmas; galaxies "
    "certified to be no outliers within R / left by the attack within R"
)
_TEXT = """Randomised smoothing: the smoothed redshift of a galaxy is the median of <z> over {samples} copies
of its image with Gaussian noise of {sigma:g} sky sigma in every pixel. A certificate is a proof, not an
attack: with confidence {confidence:g}, no change of the image within the certified radius R makes the
smoothed redshift an outlier (|Δz/(1+z)| > {outlier}). R is the L2 norm of the change over all pixels and
bands{seen}, in sky sigmas. It holds for every change of at most {balls} sky sigma a pixel (the ball linf).
The attack is PGD within R on the PDF averaged over noisy copies: what it leaves of the galaxies is an upper
bound of what is robust, the certified fraction a lower one. With so many copies, no radius above
{largest:.2g} can be certified (by vote a little more): beyond it the certified fraction is 0 and the interval
is the whole range of the bins, which says nothing about the network. "By vote" certifies that most
copies are no outliers (Cohen et al. 2019, arXiv:1902.02918), the other curve that their median is none
(Chiang et al. 2020, arXiv:2007.03700). {check}"""


def certificate_section(result: EvaluationResult, found: Sequence[Certificate]) -> ReportSection:
    """Make the section; raises BadInput where matplotlib is not installed.

    Args:
        result: of the evaluation.
        found: of its networks, from `certify`.
    """
    one = found[0]
    problems = [certificate.problem for certificate in found if certificate.problem]
    failed = " ".join(f"CHECK FAILED: {problem}." for problem in problems)
    text = _TEXT.format(
        samples=one.smoothing.samples,
        sigma=one.smoothing.sigma,
        confidence=one.smoothing.confidence,
        outlier=metrics.OUTLIER,
        seen=" that the network sees" if any(each.seen < each.dimensions for each in found) else "",
        balls=_balls(found),
        largest=one.smoothing.largest_radius,
        check=failed or "No attack contradicts a certificate beyond chance.",
    )
    return ReportSection(
        key=KEY,
        title="Certified radius",
        text=text.replace("\n", " "),
        tables=[_table(found)],
        captions=[_CAPTION],
        figures=_figures(result, found),
        alts=_alts(found),
        record=certificate_record(found),
    )


def _balls(found: Sequence[Certificate]) -> str:
    """Epsilon of the ball linf within R: one text where all networks see as many pixels."""
    if len({one.seen for one in found}) == 1:
        return f"R / {found[0].seen ** 0.5:.1f}"
    names: dict[int, list[str]] = {}
    for one in found:
        names.setdefault(one.seen, []).append(one.network)
    return " or ".join(f"R / {seen**0.5:.1f} ({', '.join(names[seen])})" for seen in names)


def certificate_record(found: Sequence[Certificate]) -> dict[str, Any]:
    """What `metrics.json` holds; radii in sky sigmas, fractions of the objects of known z_spec."""
    one = found[0].smoothing
    return {
        "sigma_sky_sigma": one.sigma,
        "samples": one.samples,
        "confidence": one.confidence,
        "seed": one.seed,
        "dimensions": found[0].dimensions,
        "largest_radius_sky_sigma": one.largest_radius,
        "networks": {certificate.network: _record(certificate) for certificate in found},
    }


def certificate_table(found: Sequence[Certificate]) -> str:
    """Text of `certified_radii.csv`, a row a run and galaxy; a radius is empty where z_spec is unknown."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    radii = found[0].radii
    bounds = [f"z_{end}_{radius:g}" for radius in radii for end in ("low", "high")]
    writer.writerow(["run", "object_id", "z_spec", "z_smooth", "radius", "radius_vote", *bounds])
    for one in found:
        ends = [row for pair in zip(one.low, one.high, strict=True) for row in pair]
        columns = one.z_spec, one.z_smooth, one.radius, one.radius_vote, *ends
        for object_id, *row in zip(one.object_id, *columns, strict=True):
            writer.writerow([one.network, object_id, *("" if np.isnan(x) else f"{x:.6g}" for x in row)])
    return target.getvalue()


def _record(one: Certificate) -> dict[str, Any]:
    known = one.known
    smooth = metrics.summary(one.z_smooth[known], one.z_spec[known]) if known.any() else {}
    numbers = {
        "certified": [one.certified(radius) for radius in one.radii],
        "certified_vote": [one.certified(radius, vote=True) for radius in one.radii],
        "attacked": [one.attacked(k) for k in range(len(one.radii))],
    }
    return {
        "smoothed": smooth,
        "dimensions_seen": one.seen,
        "radii_sky_sigma": list(one.radii),
        "linf_eps_sky_sigma": [one.linf(radius) for radius in one.radii],
        **(numbers if known.any() else {}),
        "median_radius_sky_sigma": float(np.median(one.radius[known])) if known.any() else None,
        "interval_half_width_median": [float(np.median(width)) for width in (one.high - one.low) / 2],
        "check": {
            "contradictions": one.contradictions,
            "allowed": one.allowed,
            "passed": one.problem is None,
        },
    }


def _table(found: Sequence[Certificate]) -> list[list[str]]:
    radii = found[0].radii
    heads = ["run", "sigma_MAD", "eta (%)", "median R"]
    rows = [heads + [f"R = {radius:g} (%)" for radius in radii]]
    for one in found:
        record = _record(one)
        if not record["smoothed"]:
            rows.append([one.network, *["no z_spec"] * (len(rows[0]) - 1)])
            continue
        smooth = record["smoothed"]
        cells = [f"{smooth['sigma_mad']:.4f}", f"{100 * smooth['eta']:.1f}"]
        cells.append(f"{record['median_radius_sky_sigma']:.3g}")
        pairs = zip(record["certified"], record["attacked"], strict=True)
        rows.append([one.network, *cells, *(f"{100 * a:.1f} / {100 * b:.1f}" for a, b in pairs)])
    return rows


def _name(one: Certificate) -> str:
    return f"fractions {one.network}"


def _alts(found: Sequence[Certificate]) -> dict[str, str]:
    """The axes of each picture, and the numbers at the radii that were attacked."""
    radii = [f"{radius:g}" for radius in found[0].radii]
    alts = {}
    for one in found:
        if one.known.any():
            fractions = (
                f"{100 * one.certified(radius):.0f}, {100 * one.certified(radius, vote=True):.0f} and "
                f"{100 * one.attacked(k):.0f} % at {radii[k]}"
                for k, radius in enumerate(one.radii)
            )
            alts[_name(one)] = (
                f"Percentage of the galaxies that are no outliers by {one.network} against the radius in sky "
                f"sigmas: certified, certified by vote, and left by the attack are {'; '.join(fractions)}."
            )
    medians = ((one.network, np.median((one.high - one.low) / 2, axis=1)) for one in found)
    widths = (f"{name} {', '.join(f'{width:.4f}' for width in each)}" for name, each in medians)
    alts[_WIDTHS] = (
        "Half of the certified interval of the smoothed redshift against the radius in sky sigmas, median "
        f"galaxy and 16th to 84th percentile. The medians at {', '.join(radii)} are {'; '.join(widths)}."
    )
    return alts


def _figures(result: EvaluationResult, found: Sequence[Certificate]) -> dict[str, bytes]:
    from hpcphotoz.evaluation.report import figure  # a local import: all else works without matplotlib

    end = max(max(one.radii[-1], one.smoothing.largest_radius) for one in found)
    at = np.linspace(0, end, _POINTS)

    def curves(page: Any, one: Certificate) -> None:
        ax = page.subplots()
        look = figure.line_look(result, one.network)
        shade, marker = look["color"], look["marker"]
        solid: dict[str, Any] = {"color": shade, "lw": 1.8}
        ax.plot(at, _percent(one, at, vote=False), label="certified", **solid)
        ax.plot(
            at, _percent(one, at, vote=True), label="certified by vote", **{**solid, "lw": 1.2, "ls": "--"}
        )
        left = [100 * one.attacked(k) for k in range(len(one.radii))]
        ax.plot(
            one.radii, left, label="left by the attack", color=shade, ls=":", marker=marker, ms=7, mfc="white"
        )[0].set_clip_on(False)  # the last marker is on the edge
        root = one.seen**0.5
        top = ax.secondary_xaxis("top", functions=(lambda r: r / root, lambda eps: eps * root))
        top.set_xlabel("$\\epsilon$ of the linf ball inside (sky sigmas per pixel)")
        ax.set(xlim=(0, end), xlabel=_AXIS, ylim=(0, 102), title=figure.text_of(one.network))
        ax.set_ylabel(f"galaxies with |$\\Delta z/(1+z)$| $\\leq$ {metrics.OUTLIER} (%)")
        figure.legend_below(page, ax)

    def widths(page: Any) -> None:
        ax = page.subplots()
        for one in found:
            low, middle, high = np.percentile((one.high - one.low) / 2, (16, 50, 84), axis=1)
            look = figure.line_look(result, one.network)
            ax.plot(one.radii, middle, label=figure.text_of(one.network), **look)
            for edge in (low, high):
                ax.plot(one.radii, edge, color=look["color"], ls=look["ls"], lw=0.7)
            ax.fill_between(one.radii, low, high, color=look["color"], alpha=0.12, lw=0)
        ax.set(
            xlim=(0, None), ylim=(0, None), xlabel=_AXIS, ylabel="half of the certified interval (redshift)"
        )
        figure.legend_below(page, ax)

    known = [one for one in found if one.known.any()]
    pictures = {_name(one): figure.figure_png(partial(curves, one=one), *_PANEL) for one in known}
    return {**pictures, _WIDTHS: figure.figure_png(widths, *_PANEL)}


def _percent(one: Certificate, at: npt.NDArray[np.float64], *, vote: bool) -> list[float]:
    return [100 * one.certified(radius, vote=vote) for radius in at]
