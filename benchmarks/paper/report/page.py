"""The page with its figures: page.md filled with the results."""

import re
from collections import Counter
from pathlib import Path

from benchmarks.paper.report import figures, tables, verdicts
from benchmarks.paper.results import Results
from hpcphotoz.atomic import write_text

_TEMPLATE = Path(__file__).with_name("page.md")
_FIGURES = {
    "sigma-mad": "sigma_MAD against epsilon, by network and attack",
    "outliers": "Fraction of outliers against epsilon, by network and attack",
    "bias": "Absolute bias against epsilon, by network and attack",
    "transfer": "sigma_MAD of each network on images made against each",
    "trade-off": "Clean and attacked sigma_MAD against fraction, epsilon and steps of the training",
    "sigma-mad-sky": "In real sky: sigma_MAD against epsilon, by network and attack",
}


def write(results: Results, path: Path) -> None:
    """Write the page, and its figures into a folder of the same name beside it."""
    pictures = path.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = figures.all_figures(results)
    for old in pictures.glob("*.png"):
        old.unlink()
    for name, png in drawn.items():
        if name in _FIGURES:
            (pictures / f"{name}.png").write_bytes(png)
    write_text(path, text(results, {name: f"{pictures.name}/{name}.png" for name in drawn}))


def text(results: Results, files: dict[str, str]) -> str:
    """The page.

    Args:
        results: of the program.
        files: figures that have been drawn, by name; a path relative to the page.
    """
    parts = {
        "state": _state(results),
        "verdicts": verdicts.table(results),
        "settings": tables.settings(results),
        "clean": tables.clean(results),
        "attacked": tables.attacked(results),
        "methods": tables.methods(results),
        "transfer": tables.transfer(results),
        "trade_off": tables.trade_off(results),
        "relu": tables.relu(results),
        "masking": tables.masking(results),
        "sky": tables.sky_sets(results),
        "missing": _missing(results),
        "made": _made(results),
        "headline": f"{results.plan['headline']:g}",
    }
    parts |= {f"figure_{name}": _figure(name, title, files) for name, title in _FIGURES.items()}
    filled = _TEMPLATE.read_text()
    for name, value in parts.items():
        filled = filled.replace(f"{{{name}}}", str(value))
    filled = filled.replace("{transfer_objects:,}", f"{results.plan['transfer_objects']:,}")
    return re.sub(r"\n{3,}", "\n\n", filled)  # of figures that are not there


def _figure(name: str, title: str, files: dict[str, str]) -> str:
    return f"![{title}]({files[name]})" if name in files else ""


def _state(results: Results) -> str:
    """A warning where the page is of the quick form, or not all has been measured."""
    seeds = len(results.seeds)
    if seeds < 3:
        return (
            f"**This page is of {seeds} seed{'s' * (seeds > 1)}: it shows that the program works, no more.**"
        )
    done, left = len(results.tree["found"]), len(results.tree["left_out"])
    return f"**{done} of {done + left} steps have been done so far**; the end of the page lists the rest." * (
        left > 0
    )


def _missing(results: Results) -> str:
    left_out, failed = results.tree["left_out"], results.tree["failed"]
    lines = [f"- skipped: {one}" for one in results.tree["skipped"]]
    lines += [f"- failed: `{name}`: {why}" for name, why in failed.items()]
    groups: dict[str, list[str]] = {}
    for name in left_out:
        kind, _, rest = name.partition("-")
        groups.setdefault(kind, []).append(rest.partition("-seed-")[0] or name)
    for kind, names in groups.items():
        each = [f"{name}{f' ({n} seeds)' if n > 1 else ''}" for name, n in Counter(names).items()]
        lines.append(f"- no time yet for `{kind}` of {', '.join(each)}")
    return "\n".join(lines) or "All of the plan has been measured."


def _made(results: Results) -> str:
    tree = results.tree
    commits = ", ".join(f"{one[:7]}{', changed' * one.endswith('-dirty')}" for one in tree["commits"])
    torch = ", ".join(sorted({str(one["torch"]) for one in tree["versions"]}))
    return (
        f"Made by `{tree['command']}` on {tree['date']}, on {' and '.join(tree['devices'])}, torch {torch}, "
        f"at the commits {commits}."
    )
