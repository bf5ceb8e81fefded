"""The HTML page of a report, self-contained: pictures are embedded, and nothing is requested."""

import base64
import html
from collections.abc import Mapping, Sequence

from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.metrics import OUTLIER
from hpcphotoz.evaluation.report.section import ReportSection, TextTable
from hpcphotoz.evaluation.report.summary import metrics_rows, minimal_eps_rows
from hpcphotoz.evaluation.result import EvaluationResult
from hpcphotoz.output import number_of

_SUMMARY = f"""&Delta;z = (z_phot &minus; z_spec), divided by 1 + z_spec: its mean (bias), its scatter
(sigma_MAD = 1.4826 &times; median absolute deviation) and the fraction beyond {OUTLIER} (eta); CRPS, in
redshift, scores the whole PDF. All are better when nearer to zero. Attacks change each pixel by at most
EPS sky sigma of its bandROOTMEAN; the last column is the median change of the PDF's mean, &lt;z&gt;."""
_REDSHIFTS = f"""Each galaxy's predicted redshift (mean of its PDF) against its spectroscopic one, clean
and under STRONGEST at EPS sky sigma. Solid: equality; dotted: the outlier limit, |&Delta;z/(1+z)| =
{OUTLIER}."""
_ROBUSTNESS = """Scatter, outlier fraction and absolute bias against &epsilon;, the greatest change of a pixel
in units of the sky noise of its band. A broken network's scatter can fall again at large &epsilon;, when
all redshifts are pushed the same way: read it beside the outliers and the bias."""
_MINIMAL = f"""Each galaxy is attacked repeatedly to find the minimal &epsilon; that moves its redshift by
more than {OUTLIER} (1 + z). The curve is the fraction of galaxies that are outliers without an attack or
become outliers within &epsilon;. The further right its curve rises, the more robust is a network. The
minimal &epsilon; found is an upper bound: a stronger attack may need less."""
_SHIFT = """Change of the PDF's mean between the clean and the attacked image. It needs no spectroscopic
redshift, so it can be measured on any survey's images."""
_CALIBRATION = """Where z_spec falls in its PDF's cumulative distribution: flat for calibrated PDFs,
U-shaped for too narrow ones, a slope for a bias. Piles at 0 and 1 under attack are PDFs that exclude the
true redshift."""
_TRANSFER = """sigma_MAD / outlier fraction of one network (column) on the images made against another
(row) by STRONGEST at EPS sky sigma: do attacks also fool networks that they were not made for?"""
_GALAXY = """Galaxy OBJECT, for which the attack on &lsquo;FIRST&rsquo; has about the median effect, as
&lsquo;NETWORK&rsquo; sees it. The STRONGEST perturbation, BOUND, has a
colour scale of its own: on the galaxy's scale it is invisible."""


def render_page(
    result: EvaluationResult,
    baseline: Mapping[str, float] | None,
    footer: str,
    more: Sequence[ReportSection] = (),
) -> str:
    """Render the report as one HTML page; raises BadInput where matplotlib is not installed.

    Args:
        result: from `evaluate`.
        baseline: metrics of the kNN baseline; None: no baseline.
        footer: versions of the software.
        more: further measurements.
    """
    from hpcphotoz.evaluation.report import plots  # a local import: all else works without matplotlib

    sections = [_section("Summary", _SUMMARY, _table(metrics_rows(result, baseline)), result)]

    def picture(title: str, text: str, *pngs: bytes) -> None:
        images = "".join(_image(png, title) for png in pngs)
        sections.append(_section(title, text, f'<div class="panels">{images}</div>', result))

    if result.unlabelled < len(result.z_spec):
        picture("Redshifts", _REDSHIFTS, *plots.redshift_scatter(result))
        picture("Robustness", _ROBUSTNESS, *plots.robustness_curves(result, baseline))
        if rows := minimal_eps_rows(result):
            body = _table(rows) + _image(plots.minimal_eps_curves(result), "Minimal epsilon")
            sections.append(_section("Minimal epsilon", _MINIMAL, body, result))
        picture("Calibration", _CALIBRATION, plots.pit_histograms(result))
        if result.transfer:
            sections.append(_section("Transfer", _TRANSFER, _table(_transfer(result)), result))
    picture("Change of redshift", _SHIFT, *plots.shift_curves(result))
    for one in more:
        images = "".join(_image(png, name) for name, png in one.figures.items())
        body = "".join(map(_table, one.tables)) + f'<div class="panels">{images}</div>' * bool(images)
        sections.append(
            f"<section><h2>{html.escape(one.title)}</h2><p>{html.escape(one.text)}</p>{body}</section>"
        )
    for network in result.networks:
        text = _GALAXY.replace("NETWORK", html.escape(network.name))
        picture(f"One galaxy: {network.name}", text, plots.example_galaxy(result, network.name))
    return _TEMPLATE.format(
        title=TITLE,
        data=html.escape(result.data.resolve().name),
        subset=html.escape(result.which),
        objects=number_of(len(result.z_spec), "galaxy", "galaxies"),
        unlabelled=f", {result.unlabelled} of them without z_spec (attacked, but left out of the metrics)"
        if result.unlabelled
        else "",
        bands=html.escape(", ".join(result.header.bands)),
        attacks=_attacks(result),
        sections="\n".join(sections),
        footer=html.escape(footer),
    )


def _attacks(result: EvaluationResult) -> str:
    """Sentences that describe the attacks."""
    words = {"STEPS": f"{result.steps} step", "QUERIES": f"{result.queries} random square"}
    counted = {"STEPS": result.steps, "QUERIES": result.queries}
    each = "; ".join(METHODS[name].description for name in result.methods)
    for word, text in words.items():
        each = each.replace(word, text + "s" * (counted[word] > 1))
    loss = result.loss.replace("_", "-")
    many = f" Of {result.restarts} random starts the best is kept." if result.restarts > 1 else ""
    how = " (Square without them)" if "square" in result.methods else ""
    what = f"Each raises the {loss} loss of a network through its own gradients{how}."
    return html.escape(f"{each}. {what}{many}")


def _transfer(result: EvaluationResult) -> list[list[str]]:
    names = [network.name for network in result.networks]
    rows = [["images made against", *(f"predicted by {name}" for name in names)]]
    for network in result.networks:
        own = network.at(result.headline_method, result.headline_eps).metrics
        by_network = {**result.transfer[network.name], network.name: own}
        cells = [
            f"{by_network[name]['sigma_mad']:.4f} / {100 * by_network[name]['eta']:.1f} %" for name in names
        ]
        rows.append([network.name, *cells])
    return rows


def _section(title: str, text: str, body: str, result: EvaluationResult) -> str:
    """A section of the page; the capitalised words of its text are replaced by their values."""
    l2 = result.headline_method == "l2"
    bound = "of root mean square EPS sky sigma" if l2 else "at most EPS sky sigma a pixel"
    words = {
        "BOUND": bound,
        "ROOTMEAN": " (PGD-L2: in the root mean square)" if "l2" in result.methods else "",
        "STRONGEST": METHODS[result.headline_method].label,
        "EPS": f"{result.headline_eps:g}",
        "OBJECT": str(result.example.object_id),
        "FIRST": html.escape(result.networks[0].name),
    }
    for word, value in words.items():
        text = text.replace(word, value)
    return f"<section><h2>{html.escape(title)}</h2><p>{text}</p>{body}</section>"


def _image(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def _table(rows: TextTable) -> str:
    head, *body = ([html.escape(cell) for cell in row] for row in rows)
    title = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body)
    return f'<div class="wide"><table><thead><tr>{title}</tr></thead><tbody>{lines}</tbody></table></div>'


TITLE = "Photometric redshifts under attack: "
_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}{data}</title>
<style>
:root {{ color-scheme: light; }}
body {{ margin: 0; background: #f5f6f8; color: #1c2430; font: 16px/1.55 system-ui, sans-serif; }}
main {{ max-width: 960px; margin: 0 auto; padding: 2.2rem 1.2rem 3rem; }}
h1 {{ font-size: 1.7rem; margin: 0 0 .3rem; }}
h2 {{ font-size: 1.15rem; margin: 0 0 .4rem; }}
section {{ background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; margin: 1.1rem 0;
  padding: 1.2rem 1.4rem; }}
p {{ margin: 0 0 .9rem; }}
header p, footer {{ color: #566273; }}
img {{ display: block; max-width: 100%; height: auto; margin: 0 auto; }}
.panels {{ display: flex; flex-wrap: wrap; justify-content: center; gap: .8rem; }}
.panels img {{ margin: 0; min-width: 0; }}
@media (min-width: 900px) {{ .panels img:not(:only-child) {{ max-width: calc(50% - .4rem); }} }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #e8ebef; white-space: nowrap; }}
th {{ color: #566273; font-weight: 600; }}
th:first-child, td:first-child {{ text-align: left; }}
footer {{ font-size: .85rem; }}
@media (max-width: 640px) {{
  main {{ padding: 1.2rem .5rem 2rem; }}
  section {{ padding: .9rem .7rem; }}
  table {{ font-size: .6rem; }}
  th, td {{ padding: .3rem .12rem; }}
}}
</style></head><body><main>
<header><h1>Photometric redshifts under attack</h1>
<p>{objects} of {data}{subset} in {bands}{unlabelled}. {attacks}</p></header>
{sections}
<footer>{footer}</footer>
</main></body></html>
"""
