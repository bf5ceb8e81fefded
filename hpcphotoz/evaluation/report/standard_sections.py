"""The sections that every report has: metrics, robustness, calibration, transfer, and one galaxy."""

from collections.abc import Mapping, Sequence
from typing import Any

from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.metrics import OUTLIER
from hpcphotoz.evaluation.report.metric_tables import calibration_tables, convention_tables, metric_cell
from hpcphotoz.evaluation.report.plots.galaxy import example_galaxy
from hpcphotoz.evaluation.report.plots.redshifts import (
    Plot,
    minimal_eps_curves,
    pit_histograms,
    redshift_scatter,
    shift_curves,
)
from hpcphotoz.evaluation.report.plots.robustness import attacks_on_each_network, networks_under_each_attack
from hpcphotoz.evaluation.report.section import ReportSection, TextTable
from hpcphotoz.evaluation.report.summary import metrics_rows, minimal_eps_rows
from hpcphotoz.evaluation.result import ConditionResult, EvaluationResult
from hpcphotoz.evaluation.scoring.measure import Measured

_CONVENTIONS = """Metrics in both conventions with bootstrap errors (one standard deviation). RAIL's bias is
the median of Δz/(1+z), its scatter the interquartile range / 1.349, its outliers are beyond the greater of
0.06 and three of these sigmas. CDE loss and Brier score are of the whole PDF, and better when smaller;
compare Brier scores only between networks with the same bins."""
_REDSHIFTS = f"""Each galaxy's predicted redshift (mean of its PDF) against its spectroscopic one, clean and
under ATTACK. Solid: equality; dotted: the outlier limit, |Δz/(1+z)| = {OUTLIER}."""
_ROBUSTNESS = f"""Scatter, outlier fraction (beyond {OUTLIER}) and absolute bias of Δz/(1+z) against ε, the
greatest change of a pixel in units of the sky noise of its band; one picture an attack, all with the same
axes. Bars are bootstrap errors. A broken network's scatter can fall again at large ε, when all redshifts are
pushed the same way: read it beside the outliers and the bias."""
_ATTACKS = """The same curves by network: which attack is the strongest?"""
_EXPECTED = (  # attacks, what to expect of them
    ({"pgd", "fgsm"}, "PGD should be at least as strong as FGSM."),
    ({"apgd", "pgd"}, "APGD should be at least as strong as PGD."),
    ({"square", "pgd"}, "Square sees no gradient: where it is stronger than PGD, gradients mislead."),
)
_MINIMAL = f"""Each galaxy is attacked repeatedly to find the minimal ε that moves its redshift by more than
{OUTLIER} (1 + z). The curve is the fraction of galaxies that are outliers without an attack or become
outliers within ε. The further right its curve rises, the more robust is a network. The minimal ε found is an
upper bound: a stronger attack may need less."""
_SHIFT = """Change of the PDF's mean between the clean and the attacked image; filled markers show the median
galaxy, open ones the 90th percentile. It needs no spectroscopic redshift, so it can be measured on any
survey's images."""
_CALIBRATION = """The PIT is where z_spec falls in its PDF's cumulative distribution: flat for calibrated
PDFs, U-shaped for too narrow ones, a slope for a bias. Piles at 0 and 1 under attack are PDFs that exclude
the true redshift. KS (Kolmogorov-Smirnov), CvM (Cramér-von Mises) and AD (Anderson-Darling) measure the
distance of the PIT from a flat distribution. The beginning of the report says which PDFs
are calibrated by the command calibrate."""
_TRANSFER = """sigma_MAD / outlier fraction of one network (column) on the images made against another (row)
by ATTACK, with bootstrap errors: do attacks also fool networks that they were not made for?"""


_CAPTIONS = {
    "conventions": ("Our conventions, of Δz/(1+z)", "RAIL's conventions", "Scores of the whole PDF"),
    "minimal-epsilon": ("ε in sky sigmas within which a percentage of the galaxies are outliers",),
    "calibration": (
        "Distance of the PIT from a flat distribution",
        "Percentage of the galaxies in their central / highest-density credible interval of each level",
    ),
    "transfer-matrix": ("Network of the row: whose gradients made the images; of the column: that predicts",),
}


def standard_sections(result: EvaluationResult, baseline: Mapping[str, Any] | None) -> list[ReportSection]:
    """The sections before those of further measurements; without a known z_spec, only two of them."""
    sections = [ReportSection("summary", "Summary", _summary(result), [metrics_rows(result, baseline)])]
    attack = f"{METHODS[result.headline_method].label} at {result.headline_eps:g} sky sigma"
    if result.unlabelled < result.objects:
        tables = convention_tables(result, baseline)
        sections.append(_drawn("conventions", "All metrics", _CONVENTIONS, (), tables))
        text = _REDSHIFTS.replace("ATTACK", attack)
        sections.append(_drawn("redshifts", "Redshifts", text, redshift_scatter(result)))
        curves = networks_under_each_attack(result, baseline)
        sections.append(_drawn("robustness", "Robustness", _ROBUSTNESS, curves))
        if len(result.methods) > 1:
            expected = [said for names, said in _EXPECTED if names <= set(result.methods)]
            text, curves = " ".join([_ATTACKS, *expected]), attacks_on_each_network(result)
            sections.append(_drawn("attacks", "Attacks compared", text, curves))
        if rows := minimal_eps_rows(result):
            plots = [minimal_eps_curves(result)]
            sections.append(_drawn("minimal-epsilon", "Minimal epsilon", _MINIMAL, plots, [rows]))
        tables, plots = calibration_tables(result, baseline), pit_histograms(result)
        sections.append(_drawn("calibration", "Calibration", _CALIBRATION, plots, tables))
        if result.transfer:
            text = _TRANSFER.replace("ATTACK", attack)
            sections.append(_drawn("transfer-matrix", "Transfer", text, (), [_transfer(result)]))
    sections.append(_drawn("change", "Change of redshift", _SHIFT, shift_curves(result)))
    return sections


def galaxy_sections(result: EvaluationResult) -> list[ReportSection]:
    """One galaxy as each network sees it: the last sections."""
    bound = "of root mean square" if result.headline_method == "l2" else "at most"
    pixel = "" if result.headline_method == "l2" else " a pixel"
    sections = []
    for network in result.networks:
        text = (
            f"Galaxy {result.example.object_id}, for which the attack on ‘{result.networks[0].name}’ has "
            f"about the median effect, as ‘{network.name}’ sees it. The "
            f"{METHODS[result.headline_method].label} perturbation, {bound} {result.headline_eps:g} sky "
            f"sigma{pixel}, has a colour scale of its own: on the galaxy's scale it is invisible."
        )
        plots = example_galaxy(result, network.name)
        sections.append(_drawn(f"galaxy {network.name}", f"One galaxy: {network.name}", text, plots))
    return sections


def describe_attacks(result: EvaluationResult) -> str:
    """Sentences that describe the attacks."""
    words = {"STEPS": f"{result.steps} step", "QUERIES": f"{result.queries} random square"}
    counted = {"STEPS": result.steps, "QUERIES": result.queries}
    each = "; ".join(METHODS[name].description for name in result.methods)
    for word, text in words.items():
        each = each.replace(word, text + "s" * (counted[word] > 1))
    loss = result.loss.replace("_", "-")
    many = f" Of {result.restarts} random starts the best is kept." if result.restarts > 1 else ""
    how = " (Square without them)" if "square" in result.methods else ""
    return f"{each}. Each raises the {loss} loss of a network through its own gradients{how}.{many}"


def describe_calibrations(result: EvaluationResult) -> str:
    """Sentences that say which PDFs are calibrated."""
    done = [f"{name}: {one.text()}" for name, one in result.calibrations.items()]
    if not done:
        return "PDFs are the networks' own: none is calibrated."
    rest = [network.name for network in result.networks if network.name not in result.calibrations]
    left = f", those of {' and '.join(rest)} are not" if rest else ""
    return (
        f"The PDFs that are scored, also those of attacked images, are calibrated ({'; '.join(done)}){left}. "
        "Attacks, minimal epsilons, masking checks and certificates are of the networks' own PDFs."
    )


def _summary(result: EvaluationResult) -> str:
    mean = " (PGD-L2: in the root mean square)" if "l2" in result.methods else ""
    return (
        "Of Δz/(1+z) = (z_phot − z_spec) / (1 + z_spec): the mean (bias), the scatter (sigma_MAD = 1.4826 × "
        f"median absolute deviation) and the fraction beyond {OUTLIER} (eta). z_phot is the mean of the PDF, "
        "<z>; CRPS, the continuous ranked probability score in redshift, is of the whole PDF. All are better "
        f"when nearer to zero. Attacks change each pixel by at most {result.headline_eps:g} sky sigma of its "
        f"band{mean}; eps is in sky sigmas, and the last column is the median change of <z>."
    )


def _transfer(result: EvaluationResult) -> list[list[str]]:
    names = [network.name for network in result.networks]
    rows = [["images against", *(f"by {name}" for name in names)]]
    for network in result.networks:
        own = network.at(result.headline_method, result.headline_eps)
        by_network: Mapping[str, ConditionResult | Measured]
        by_network = {**result.transfer[network.name], network.name: own}
        cells = [
            f"{metric_cell(by_network[name], 'sigma_mad')} / {metric_cell(by_network[name], 'eta', 100, 1)} %"
            for name in names
        ]
        rows.append([network.name, *cells])
    return rows


def _drawn(
    key: str, title: str, text: str, plots: Sequence[Plot], tables: Sequence[TextTable] = ()
) -> ReportSection:
    figures, alts = {plot.name: plot.png for plot in plots}, {plot.name: plot.alt for plot in plots}
    captions = _CAPTIONS.get(key, ())
    return ReportSection(key, title, " ".join(text.split()), tables, figures, alts=alts, captions=captions)
