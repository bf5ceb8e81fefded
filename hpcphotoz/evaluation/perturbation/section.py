"""The section of a report that says where the perturbation is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.baseline.photometry import RADII
from hpcphotoz.evaluation.perturbation.colours import colour_names
from hpcphotoz.evaluation.perturbation.measure import Perturbation
from hpcphotoz.evaluation.perturbation.power import PowerMaps
from hpcphotoz.evaluation.report.section import ReportSection
from hpcphotoz.evaluation.result import EvaluationResult

KEY = "perturbation"
_APERTURE = 2  # of `RADII`: 2.5 arcsec, for the figure of the colours
_PANEL = (4.6, 4.3)  # inches
_TEXT = """The change of the images by {attack} at {eps:g} sky sigma, in sky sigmas of each band. Power is
the mean square over pixels; independent sky noise has the power 1 in every band, at every radius and at
every frequency. PGD and APGD begin at a random point of the ball: pixels that the network does not see, such
as those outside its crop, keep that point, of power epsilon^2 / 3 in linf. Colours are measured in fixed
apertures before and after the attack: a change below 1 is smaller than the error that sky noise alone gives
the colour, and photometry of one galaxy does not see it. The mean change over many galaxies has a smaller
error, which metrics.json holds."""


def perturbation_section(result: EvaluationResult, found: Sequence[Perturbation]) -> ReportSection:
    """Make the section; raises BadInput where matplotlib is not installed.

    Args:
        result: of the evaluation.
        found: of its networks, from `measure_perturbations`.
    """
    attack = METHODS[result.headline_method].label
    maps = PowerMaps(result.header.stamp, result.header.pixel_scale)
    return ReportSection(
        key=KEY,
        title="Where the perturbation is",
        text=_TEXT.format(attack=attack, eps=result.headline_eps).replace("\n", " "),
        tables=[_power_table(found, result.header), _colour_table(found, result.header)],
        figures=_figures(result, found, maps),
        record=perturbation_record(result, found),
    )


def perturbation_record(result: EvaluationResult, found: Sequence[Perturbation]) -> dict[str, Any]:
    """What `metrics.json` holds; powers are in sky sigmas squared, colours in magnitudes."""
    header = result.header
    maps = PowerMaps(header.stamp, header.pixel_scale)
    names = colour_names(header.bands)
    networks = {}
    for one in found:
        mean, error_of_mean = _mean_change(one)
        networks[one.network] = {
            "power_by_band": dict(zip(header.bands, one.by_band.tolist(), strict=True)),
            "power_by_radius": one.by_radius.tolist(),
            "power_by_frequency": one.by_frequency.tolist(),
            "colours": {
                f"{aperture:g}": {
                    name: {
                        "median_change_mag": float(np.median(np.abs(one.change[:, k, i]))),
                        "median_change_over_error": float(np.median(one.significance[:, k, i])),
                        "mean_change_mag": float(mean[k, i]),
                        "error_of_mean_mag": float(error_of_mean[k, i]),
                    }
                    for i, name in enumerate(names)
                }
                for k, aperture in enumerate(RADII)
            },
            "seen_1_sigma": one.seen(1),
            "seen_3_sigma": one.seen(3),
        }
    return {
        "attack": result.headline_method,
        "eps_sky_sigma": result.headline_eps,
        "radius_edges_arcsec": maps.radius_edges.tolist(),
        "frequency_edges_per_arcsec": maps.frequency_edges.tolist(),
        "networks": networks,
    }


def _mean_change(one: Perturbation) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Mean change of each colour, (radius, B), and the photometric error of such a mean."""
    error = np.sqrt((one.error.astype(np.float64) ** 2).sum(axis=0)) / len(one.error)
    return one.change.mean(axis=0, dtype=np.float64), error


def _power_table(found: Sequence[Perturbation], header: Header) -> list[list[str]]:
    head = ["root mean square, sky sigmas", *header.bands, "all bands"]
    rows = [[one.network, *_roots(one.by_band), *_roots(one.by_band.mean(keepdims=True))] for one in found]
    return [head, *rows]


def _roots(power: npt.NDArray[np.float64]) -> list[str]:
    return [f"{value:.4f}" for value in np.sqrt(power)]


def _colour_table(found: Sequence[Perturbation], header: Header) -> list[list[str]]:
    names = colour_names(header.bands)[:-1]
    aperture = f"{RADII[_APERTURE]:g} arcsec"
    head = [f"colours within {aperture}"]
    head += [f"|change of {name}| / error" for name in names]
    head += ["some colour beyond 1 sigma, any aperture", "beyond 3 sigma"]
    rows = []
    for one in found:
        middle = np.median(one.significance[:, _APERTURE, : len(names)], axis=0)
        seen = [f"{100 * one.seen(sigmas):.1f} %" for sigmas in (1, 3)]
        rows.append([one.network, *(f"{value:.2f}" for value in middle), *seen])
    return [head, *rows]


def _figures(result: EvaluationResult, found: Sequence[Perturbation], maps: PowerMaps) -> dict[str, bytes]:
    from hpcphotoz.evaluation.report import figure  # a local import: all else works without matplotlib

    header = result.header
    colours = [figure.colour(result, one.network) for one in found]

    def bands(page: Any) -> None:
        ax = page.subplots()
        width = 0.8 / len(found)
        for k, one in enumerate(found):
            at = np.arange(len(header.bands)) + (k - (len(found) - 1) / 2) * width
            ax.bar(at, np.sqrt(one.by_band), width, color=colours[k], label=one.network)
        ax.axhline(result.headline_eps, color="black", lw=1, ls=":", label="$\\epsilon$")
        ax.set_xticks(range(len(header.bands)), header.bands)
        ax.set(xlabel="band", ylabel="root mean square of the change (sky sigmas)")
        figure.legend_below(page, ax)

    def rings(page: Any, edges: npt.NDArray[Any], name: str, label: str) -> None:
        ax = page.subplots()
        for one in found:
            look = figure.line_look(result, one.network)
            shade, line = look["color"], look["ls"]
            ax.stairs(getattr(one, name), edges, color=shade, ls=line, lw=1.8, label=one.network)
        ax.axhline(result.headline_eps**2, color="black", lw=1, ls=":", label="$\\epsilon^2$, white")
        ax.set_yscale("log")
        ax.set(xlabel=label, ylabel="power (sky sigmas$^2$)", xlim=(0, edges[-1]))
        figure.legend_below(page, ax)

    def photometry(page: Any) -> None:
        ax = page.subplots()
        names = colour_names(header.bands)[:-1]
        for k, one in enumerate(found):
            ratio = one.change[:, _APERTURE, : len(names)] / one.error[:, _APERTURE, : len(names)]
            low, middle, high = np.percentile(ratio, (16, 50, 84), axis=0)
            at = np.arange(len(names)) + 0.15 * (k - (len(found) - 1) / 2)
            span = [middle - low, high - middle]
            marker = figure.line_look(result, one.network)["marker"]
            ax.errorbar(at, middle, span, fmt=marker, capsize=3, color=colours[k], label=one.network)
        ax.axhspan(-1, 1, color="#9DB9D3", alpha=0.4, lw=0, label="within the photometric error")
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xticks(range(len(names)), names)
        title = f"aperture of {RADII[_APERTURE]:g} arcsec; 16, 50, 84 % of the galaxies"
        ax.set(title=title, xlabel="colour", ylabel="change of the colour / its error")
        figure.legend_below(page, ax)

    def by_radius(page: Any) -> None:
        rings(page, maps.radius_edges, "by_radius", "distance from the centre (arcsec)")

    def by_frequency(page: Any) -> None:
        rings(page, maps.frequency_edges, "by_frequency", "spatial frequency (cycles per arcsec)")

    return {
        "Root mean square of the perturbation in each band": figure.figure_png(bands, *_PANEL),
        "Power of the perturbation by distance from the centre": figure.figure_png(by_radius, *_PANEL),
        "Power of the perturbation by spatial frequency": figure.figure_png(by_frequency, *_PANEL),
        "Change of aperture colours over their error": figure.figure_png(photometry, *_PANEL),
    }
