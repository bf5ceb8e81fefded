"""The plot of bench_scaling: efficiency measured and modelled on this machine, and predicted for GPUs."""

import textwrap
from typing import Any

from benchmarks.scaling.scaling_predict import STRONG_BATCH, WEAK_BATCH
from hpcphotoz.evaluation.report.figure import COLOURS, figure_png

LINES = {"weak": ("-", "o"), "strong": ("--", "s")}


def draw(figures: dict[str, Any]) -> bytes:
    """Draw a row of two panels per network with the assumptions below, as PNG."""
    networks = list(figures["model"])

    def on(figure: Any) -> None:
        axes = figure.subplots(len(networks), 2, squeeze=False)
        for (left, right), network in zip(axes, networks, strict=True):
            _measured(left, network, figures)
            _predicted(right, figures["model"][network])
            steps, precision = figures["attack"]["steps"], figures["precision"]
            left.set(title=f"{network}: measured on {figures['cores']} cores, PGD-{steps}, {precision}")
            right.set(title=f"{network}: predicted for GPUs (a model, not measured)", ylim=(0, 1.05))
        figure.supxlabel(
            "\n".join(_assumed(network, figures) for network in networks), fontsize=7, ha="center"
        )

    return figure_png(on, 11, 0.9 + 3.9 * len(networks))


def _measured(ax: Any, network: str, figures: dict[str, Any]) -> None:
    cores, here = figures["cores"], figures["model"][network]["here"]
    for (kind, (style, marker)), shift, colour in zip(LINES.items(), (0.985, 1.015), COLOURS, strict=False):
        rows = [row for row in figures[kind] if row["network"] == network]
        ax.plot(here[kind].keys(), here[kind].values(), style, color=colour, lw=1.3, label=f"{kind}: model")
        for row in rows:
            found = row["efficiency"]
            bars = [[found["median"] - found["p20"]], [found["p80"] - found["median"]]]
            fill = "white" if row["oversubscribed"] else colour
            label = f"{kind}: median, 20 to 80 %" if row["ranks"] == 1 else None
            x = row["ranks"] * shift
            ax.errorbar(x, found["median"], bars, fmt=marker, color=colour, mfc=fill, capsize=3, label=label)
    ax.plot([], [], "ok", mfc="white", label=f"open: more ranks than the {cores} cores")
    ax.set_xscale("log", base=2)
    ax.set_xticks([1, 2, 4], ["1", "2", "4"])
    ax.set(xlabel="ranks", ylabel="efficiency against one rank", ylim=(0, 1.15))
    ax.legend(fontsize=8, loc="lower left")


def _predicted(ax: Any, model: dict[str, Any]) -> None:
    for family, width in (("cluster", 1.8), ("gloo", 0.8)):
        rows = [row for row in model[family]["predictions"] if row["ranks"] > 1]
        attacks = list(dict.fromkeys(row["attack"] for row in rows))
        for attack, colour in zip(attacks, COLOURS[2:], strict=False):
            for kind, (style, _) in LINES.items():
                line = [r for r in rows if (r["attack"], r["scaling"]) == (attack, kind)]
                x, y = [r["ranks"] for r in line], [r["efficiency"] for r in line]
                label = attack if (family, kind) == ("cluster", "weak") else None
                ax.plot(x, y, style, color=colour, lw=width, label=label)
    for label, style, width in (
        (f"weak, {WEAK_BATCH} a GPU", "-", 1.8),
        (f"strong, {STRONG_BATCH:,} in all", "--", 1.8),
        ("thin: joined by\nthe gloo measured here", "-", 0.8),
    ):
        ax.plot([], [], style, color="#666666", lw=width, label=label)
    ax.set_xscale("log", base=2)
    ax.set_xticks([8, 32, 128, 512, 1024], ["8", "32", "128", "512", "1024"])
    ax.set(xlabel="GPUs", ylabel="efficiency against one GPU")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _assumed(network: str, figures: dict[str, Any]) -> str:
    found = figures["model"][network]["cluster"]["assumptions"].items()
    parts = [f"{name} {q['value']:.3g} {q['unit']} ({q['source']})" for name, q in found]
    ring = figures["allreduce"]
    parts.append(
        f"thin lines: alpha {ring['alpha']:.3g} s/hop, beta {ring['beta']:.3g} s/byte (measured: gloo)"
    )
    return "\n".join(textwrap.wrap(f"{network}: " + "; ".join(parts), 210))
