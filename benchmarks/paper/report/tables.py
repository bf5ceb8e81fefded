"""Tables of the page, as Markdown, from the results."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.paper.plan import ADVERSARIAL, RELU, SKY, STANDARD, Adversaries
from benchmarks.paper.results import Mean, Results

NONE = "not measured yet"
_SHOWN = ("sigma_mad", "eta", "bias", "crps", "pit_ks")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a sentence if there is no row."""
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) if rows else f"This is {NONE}."


def text(mean: Mean | None, factor: float = 1, places: int = 4, sign: str = "") -> str:
    """A mean with its error, or a dash."""
    return "-" if mean is None else mean.text(factor, places, sign)


def clean(results: Results) -> str:
    """Metrics of each network on all test galaxies, single and as an ensemble, beside the neighbours'."""
    rows, knn = [], results.found("neighbours")

    def of_knn(sigma: float) -> str:
        return f"{sigma / knn['clean']['sigma_mad']:.2f}" if knn else "-"

    if knn:
        rows.append(
            ["kNN on colours", *_metrics({key: Mean.of([knn["clean"][key]]) for key in _SHOWN}), "1", "-"]
        )
    for name in results.networks("main"):
        each = {key: results.clean(name, key) for key in _SHOWN}
        if (mean := each["sigma_mad"]) is None:
            continue
        calibrated = text(results.over_seeds(name, "calibrated", _pit_ks), 1, 3)
        rows.append([name, *_metrics(each), of_knn(mean.value), calibrated])
        found, fitted = (results.found(f"{kind}-{name}-ensemble") for kind in ("pdfs", "calibrated"))
        if found and len(results.seeds) > 1:
            label = f"{name}: {len(results.seeds)} runs, eight symmetries"
            single = {key: Mean.of([found[key]]) for key in _SHOWN}
            calibrated = f"{fitted['pit_ks']:.3f}" if fitted else "-"
            rows.append([label, *_metrics(single), of_knn(found["sigma_mad"]), calibrated])
    if limit := results.found("limit"):
        sigma = Mean(limit["sigma_mad"], limit["error"], limit["n"])
        eta = f"{100 * limit['eta']:.2f}"
        rows.append(["what the pixels allow", sigma.text(), eta, "-", "-", "-", of_knn(sigma.value), "-"])
    head = ["estimator", "sigma_MAD", "eta (%)", "bias", "CRPS", "PIT KS", "sigma_MAD / kNN's"]
    return table([*head, "PIT KS calibrated"], rows)


def _pit_ks(found: dict[str, Any], run: str) -> float:
    return float(found["pit_ks"])


def attacked(results: Results, suffix: str = "") -> str:
    """sigma_MAD and eta under APGD at every epsilon, network by network."""
    eps, group = [0.0, *results.plan["eps"]], "sky" if suffix else "main"
    rows = []
    for name in results.networks(group):
        pairs = [(results.attacked(name, "apgd", e), results.attacked(name, "apgd", e, "eta")) for e in eps]
        if pairs[0][0] is not None:
            rows.append([name, *(f"{text(s)}; {text(o, 100, 1)}" for s, o in pairs)])
    knn = None if suffix else results.found("neighbours")
    if knn:
        found = [knn["attacked"][f"{e:g}"] for e in eps]
        cells = [f"{one['sigma_mad']:.4f}; {100 * one['eta']:.1f}" for one in found]
        rows.append(["kNN on colours, images made against the standard CNN", *cells])
    return table(["network", *("clean" if e == 0 else f"{e:g}" for e in eps)], rows)


def methods(results: Results) -> str:
    """sigma_MAD under each attack at the headline epsilon."""
    eps = results.plan["headline"]
    rows = []
    for name in results.networks("main"):
        each = [results.attacked(name, method, eps) for method in ("fgsm", "pgd", "apgd")]
        if each[0] is not None:
            rows.append([name, *map(text, each)])
    return table(["network", "FGSM", f"PGD-{results.plan['steps']}", f"APGD-{results.plan['steps']}"], rows)


def transfer(results: Results) -> str:
    """sigma_MAD of each network on images made against each."""
    names = results.networks("main") if results.found("transfer") else []
    rows = [[source, *(text(results.transfer(source, target)) for target in names)] for source in names]
    return table(["made against", *names], rows)


def trade_off(results: Results) -> str:
    """The points of the trade-off surface, the standard network first."""
    eps, rows = results.plan["headline"], []
    clean_of = results.clean(STANDARD)
    for name in (STANDARD, ADVERSARIAL, *results.networks("surface")):
        one, robust = results.clean(name), results.attacked(name, "apgd", eps)
        if one is None or robust is None:
            continue
        how = results.tree["trainings"][name]["adversaries"]
        cells = ["0", "-", "-"] if how is None else [f"{how[key]:g}" for key in ("fraction", "eps", "steps")]
        cost = f"{100 * (one.value / clean_of.value - 1):+.1f}" if clean_of else "-"
        eta = results.attacked(name, "apgd", eps, "eta")
        rows.append([*cells, text(one), cost, text(robust), text(eta, 100, 1)])
    head = ["fraction", "eps (sky sigmas)", "K", "clean sigma_MAD", "cost (%)"]
    return table([*head, f"APGD at {eps:g}: sigma_MAD", "eta (%)"], rows)


def relu(results: Results) -> str:
    """The standard CNN with and without the ReLU on its logits, white-box and transferred."""
    eps, rows = results.plan["headline"], []
    for name, ending in ((STANDARD, "no"), (RELU, "yes")):
        white = [results.attacked(name, method, eps) for method in ("fgsm", "pgd", "apgd")]
        if white[0] is None:
            continue
        others = [results.transfer(source, name) for source in (STANDARD, RELU)]
        rows.append([ending, text(results.clean(name)), *map(text, white), *map(text, others)])
    head = ["ReLU", "clean", "FGSM", "PGD", "APGD"]
    return table([*head, "made against runs without ReLU", "made against runs with ReLU"], rows)


def masking(results: Results) -> str:
    """The masking checks of every run: APGD beside PGD, galaxies with a gradient, and which checks fail."""
    rows = []
    for run, checks in masking_checks(results).items():
        apgd, failed = checks["apgd"], [name for name, one in checks.items() if not one["passed"]]
        gain = f"{apgd['difference']:+.3g} ± {apgd['standard_error']:.1g}"
        with_gradient = f"{100 * checks['gradients']['fraction']:.1f}"
        said = ", ".join(failed) or "none"
        rows.append([run, gain, with_gradient, f"{len(checks) - len(failed)} of {len(checks)}", said])
    head = ["run", "loss of APGD less that of PGD", "galaxies with a gradient (%)", "checks passed", "failed"]
    return table(head, rows)


def masking_checks(results: Results) -> dict[str, dict[str, Any]]:
    """The masking checks by name, for each run for which they have been made."""
    runs = [f"{name}-seed-{seed}" for name in results.networks("main") for seed in results.seeds]
    each = {run: results.found(f"masking-{run}") for run in runs}
    return {run: found["masking"][run] for run, found in each.items() if found is not None}


def settings(results: Results) -> str:
    """Sizes and settings."""
    plan = results.plan
    sets, epochs, held = plan["sets"], plan["epochs"], plan["validation"]
    train, sky, sky_test = sets["train"], sets["sky-train"], sets["sky-test"]
    in_training = f"about {round(train['objects'] * (1 - held)):,} of seed {train['seed']}"
    numbers = f"{plan['curve_objects']:,} and {plan['transfer_objects']:,} test galaxies"
    seen = f"the central {plan['crop']} x {plan['crop']} pixels, binned {plan['binning']} x {plan['binning']}"
    rate = f"Muon, peak rate {plan['rate']:g}, cosine, batches of {plan['batch']}"
    pairs = {
        "training galaxies": in_training,
        "validation galaxies": f"about {round(train['objects'] * held):,} of the same set",
        "test galaxies": f"{sets['test']['objects']:,} of seed {sets['test']['seed']}",
        "in real sky": f"{sky['objects']:,}, and {sky_test['objects']:,} for the test",
        "seeds of the trainings": ", ".join(map(str, plan["seeds"])),
        "what networks see": seen,
        "Inception": f"channels divided by {plan['divisor']}",
        "epochs": f"CNN {epochs['cnn']}, Inception {epochs['inception']}, CNN in real sky {epochs['sky']}",
        "optimiser": f"{rate}, Gaussian labels of 4 bins",
        "adversarial training": _point(Adversaries(**plan["centre"])),
        "attacks of curves, and transfer": f"{plan['steps']} steps, cross-entropy, float32; {numbers}",
        "masking checks": f"`evaluate --check-masking {plan['masking_objects']}`: as many test galaxies",
    }
    return table(["what", "value"], [list(pair) for pair in pairs.items()])


def sky_sets(results: Results) -> str:
    """The same in real sky, or why there is nothing."""
    return attacked(results, SKY)


def _point(point: Adversaries) -> str:
    how = "FGSM" if point.steps == 1 else f"PGD-{point.steps}"
    return f"{how} on a fraction {point.fraction:g} of each batch, eps {point.eps:g} sky sigma"


def _metrics(m: Mapping[str, Mean | None]) -> list[str]:
    cells = [text(m["sigma_mad"]), text(m["eta"], 100, 2), text(m["bias"], 1, 5, "+"), text(m["crps"], 1, 5)]
    return [*cells, text(m["pit_ks"], 1, 3)]
