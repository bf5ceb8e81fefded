"""The section of a report that says where the perturbation is."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.baseline.photometry import RADII, shown_aperture
from hpcphotoz.evaluation.perturbation.colours import colour_names
from hpcphotoz.evaluation.perturbation.measure import Perturbation
from hpcphotoz.evaluation.perturbation.power import PowerMaps
from hpcphotoz.evaluation.report.section import ReportSection
from hpcphotoz.evaluation.result import EvaluationResult

KEY = "perturbation"
_PANEL = (4.6, 4.3)  # inches
_BAND, _RADIUS, _FREQUENCY, _COLOURS = "by band", "by radius", "by frequency", "colours"
_HATCHES = ("", "//", "..", "xx", "\\\\", "++")  # of the bars of the networks, as their colours
_POWER_CAPTION = "Root mean square of the change in each band, sky sigmas"
_COLOUR_CAPTION = (
    "Median |change| / error of each colour within a radius of {:g} arcsec; galaxies of which any colour, in "
    "any aperture, changes by more than 1 or 3 errors"
)
_TEXT = """The change of the images by {attack} at {eps:g} sky sigma, in sky sigmas of each band. Power is the
mean square over pixels; independent sky noise has the power 1 in every band, at every radius and at every
frequency; the dotted line is that of independent random changes of epsilon, up or down. PGD and APGD begin at
a random point of the ball: pixels that the network does not see, such as those outside its crop, keep that
point, of power epsilon^2 / 3 in linf. Colours are measured in fixed apertures before and after the attack: a
change below 1 is smaller than the error that sky noise alone gives the colour, and photometry of one galaxy
does not see it. The mean change over many galaxies has a smaller error, which metrics.json holds."""


def perturbation_section(result: EvaluationResult, found: Sequence[Perturbation]) -> ReportSection:
    """Make the section; raises BadInput where matplotlib is not installed.

    Args:
        result: of the evaluation.
        found: of its networks, from `measure_perturbations`.
    """
    attack = METHODS[result.headline_method].label
    header = result.header
    maps = PowerMaps(header.stamp, header.pixel_scale)
    colours = len(header.bands) > 1  # of a single band there are none
    caption = _COLOUR_CAPTION.format(RADII[shown_aperture(header)])
    figures, alts = _figures(result, found, maps), _alts(result, found, maps)
    return ReportSection(
        key=KEY,
        title="Where the perturbation is",
        text=_TEXT.format(attack=attack, eps=result.headline_eps).replace("\n", " "),
        tables=[_power_table(found, header), *([_colour_table(found, header)] if colours else [])],
        captions=[_POWER_CAPTION, *([caption] if colours else [])],
        figures=figures,
        alts={name: alts[name] for name in figures},
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
    head = ["run", *header.bands, "all bands"]
    rows = [[one.network, *_roots(one.by_band), *_roots(one.by_band.mean(keepdims=True))] for one in found]
    return [head, *rows]


def _roots(power: npt.NDArray[np.float64]) -> list[str]:
    return [f"{value:.4f}" for value in np.sqrt(power)]


def _colour_table(found: Sequence[Perturbation], header: Header) -> list[list[str]]:
    names = colour_names(header.bands)[:-1]
    head, rows = ["run", *names, "any > 1 (%)", "any > 3 (%)"], []
    for one in found:
        middle = _middle(one, header)
        seen = [f"{100 * one.seen(sigmas):.1f}" for sigmas in (1, 3)]
        rows.append([one.network, *(f"{value:.2f}" for value in middle), *seen])
    return [head, *rows]


def _alts(result: EvaluationResult, found: Sequence[Perturbation], maps: PowerMaps) -> dict[str, str]:
    """The axes of each picture, and what it shows of each network."""
    bands, colours = result.header.bands, colour_names(result.header.bands)[:-1]
    attack = f"under {METHODS[result.headline_method].label} at {result.headline_eps:g} sky sigma"

    def each(values: Callable[[Perturbation], Any], names: Sequence[str], form: str) -> str:
        texts = []
        for one in found:
            told = (f"{value:{form}} ({name})" for value, name in zip(values(one), names, strict=True))
            texts.append(f"{one.network} {', '.join(told)}")
        return "; ".join(texts)

    def ends(edges: npt.NDArray[Any], unit: str) -> list[str]:
        return [f"{low:.3g} to {high:.3g} {unit}" for low, high in (edges[:2], edges[-2:])]

    radii, waves = ends(maps.radius_edges, "arcsec"), ends(maps.frequency_edges, "cycles per arcsec")
    middles = each(lambda one: _middle(one, result.header), colours, ".2f")
    aperture = RADII[shown_aperture(result.header)]
    power = "Power of the change in sky sigmas squared, on a logarithmic axis, against the"
    return {
        _BAND: f"Bars: root mean square of the change in each band, in sky sigmas, {attack}, with a line at "
        f"epsilon: {each(lambda one: np.sqrt(one.by_band), bands, '.3f')}.",
        _RADIUS: f"{power} distance from the centre in arcsec, {attack}: "
        f"{each(lambda one: one.by_radius[[0, -1]], radii, '.2g')}.",
        _FREQUENCY: f"{power} spatial frequency, {attack}: "
        f"{each(lambda one: one.by_frequency[[0, -1]], waves, '.2g')}.",
        _COLOURS: f"Change of each colour within a radius of {aperture:g} arcsec over its photometric "
        f"error, 16th, 50th and 84th percentile, {attack}, with a band from -1 to 1. The medians of its "
        f"absolute value are {middles}.",
    }


def _middle(one: Perturbation, header: Header) -> npt.NDArray[Any]:
    """Median of |change| / error of each colour in the aperture of the figure."""
    return np.asarray(np.median(one.significance[:, shown_aperture(header), :-1], axis=0))


def _figures(result: EvaluationResult, found: Sequence[Perturbation], maps: PowerMaps) -> dict[str, bytes]:
    from hpcphotoz.evaluation.report import figure  # a local import: all else works without matplotlib

    header = result.header
    colours = [figure.colour(result, one.network) for one in found]

    def bands(page: Any) -> None:
        ax = page.subplots()
        width = 0.8 / len(found)
        for k, one in enumerate(found):
            at = np.arange(len(header.bands)) + (k - (len(found) - 1) / 2) * width
            look = {"fc": colours[k], "ec": "white", "lw": 0.5, "hatch": _HATCHES[k % len(_HATCHES)]}
            ax.bar(at, np.sqrt(one.by_band), width, label=figure.text_of(one.network), **look)
        ax.axhline(result.headline_eps, color="black", lw=1, ls=":", label="$\\epsilon$")
        ax.set_xticks(range(len(header.bands)), header.bands)
        ax.set(xlabel="band", ylabel="rms of the change (sky sigmas)")
        figure.legend_below(page, ax)

    def rings(page: Any, edges: npt.NDArray[Any], name: str, label: str) -> None:
        ax = page.subplots()
        for one in found:
            look = figure.line_look(result, one.network)
            shade, line = look["color"], look["ls"]
            kind = {"color": shade, "ls": line, "lw": 1.8, "label": figure.text_of(one.network)}
            ax.stairs(getattr(one, name), edges, baseline=None, **kind)
        ax.axhline(result.headline_eps**2, color="black", lw=1, ls=":", label="$\\epsilon^2$, white")
        ax.set_yscale("log")
        ax.set(xlabel=label, ylabel="power (sky sigmas$^2$)", xlim=(0, edges[-1]))
        figure.legend_below(page, ax)

    def photometry(page: Any) -> None:
        ax = page.subplots()
        names, aperture = colour_names(header.bands)[:-1], shown_aperture(header)
        for k, one in enumerate(found):
            ratio = one.change[:, aperture, :-1] / one.error[:, aperture, :-1]
            low, middle, high = np.percentile(ratio, (16, 50, 84), axis=0)
            at = np.arange(len(names)) + 0.15 * (k - (len(found) - 1) / 2)
            span = [middle - low, high - middle]
            marker = figure.line_look(result, one.network)["marker"]
            kind = {"color": colours[k], "label": figure.text_of(one.network)}
            ax.errorbar(at, middle, span, fmt=marker, capsize=3, **kind)
        ax.axhspan(-1, 1, color="#9DB9D3", alpha=0.4, lw=0, label="within the photometric error")
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xticks(range(len(names)), [name.replace(" - ", "\n- ") for name in names])
        title = f"within {RADII[aperture]:g} arcsec; median, 16 to 84 % of galaxies"
        ax.set(title=title, xlabel="colour", ylabel="change of the colour / its error")
        figure.legend_below(page, ax)

    def by_radius(page: Any) -> None:
        rings(page, maps.radius_edges, "by_radius", "distance from the centre (arcsec)")

    def by_frequency(page: Any) -> None:
        rings(page, maps.frequency_edges, "by_frequency", "spatial frequency (cycles per arcsec)")

    return {
        _BAND: figure.figure_png(bands, *_PANEL),
        _RADIUS: figure.figure_png(by_radius, *_PANEL),
        _FREQUENCY: figure.figure_png(by_frequency, *_PANEL),
        **({_COLOURS: figure.figure_png(photometry, *_PANEL)} if len(header.bands) > 1 else {}),
    }
