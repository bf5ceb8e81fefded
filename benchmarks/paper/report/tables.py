"""Tables of the page, as Markdown, from the results."""

from collections.abc import Sequence

from benchmarks.paper.plan import ADVERSARIAL, RELU, SKY, STANDARD, Adversaries
from benchmarks.paper.results import Mean, Results

NONE = "not measured yet"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a sentence if there is no row."""
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) if rows else f"This is {NONE}."


def text(mean: Mean | None, factor: float = 1, places: int = 4, sign: str = "") -> str:
    """A mean with its error, or a dash."""
    return "-" if mean is None else mean.text(factor, places, sign)


def clean(results: Results) -> str:
    """Metrics of each network on all test galaxies, single and as an ensemble, beside the neighbours'."""
    head = ["estimator", "sigma_MAD", "of kNN's", "eta (%)", "bias", "CRPS", "PIT KS"]
    rows, knn = [], results.found("neighbours")
    if knn:
        m = knn["clean"]
        rows.append(["kNN on colours", *_metrics(m), f"{m['crps']:.5f}", "-"])
        rows[-1].insert(2, "1")
    for name in results.networks("main"):
        each = {key: results.clean(name, key) for key in ("sigma_mad", "eta", "bias", "crps", "pit_ks")}
        mean = each["sigma_mad"]
        if mean is None:
            continue
        of_knn = f"{mean.value / knn['clean']['sigma_mad']:.2f}" if knn else "-"
        row = [name, text(mean), of_knn, text(each["eta"], 100, 2), text(each["bias"], 1, 5, "+")]
        rows.append([*row, text(each["crps"], 1, 5), text(each["pit_ks"], 1, 3)])
        together = results.found(f"pdfs-{name}-ensemble")
        if together and len(results.seeds) > 1:
            row = [f"{name}: {len(results.seeds)} runs, eight symmetries", *_metrics(together)]
            row.insert(2, f"{together['sigma_mad'] / knn['clean']['sigma_mad']:.2f}" if knn else "-")
            rows.append([*row, f"{together['crps']:.5f}", f"{together['pit_ks']:.3f}"])
    return table(head, rows)


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


def strength(results: Results) -> str:
    """APGD against PGD with the same steps and restarts, run by run: CRPS and sigma_MAD."""
    eps, rows = results.plan["headline"], []
    for name in results.networks("main"):
        for seed in results.seeds:
            run = f"{name}-seed-{seed}"
            found = results.found(f"strong-{run}")
            if found is None:
                continue
            each = {
                method: next(one for one in found["curves"][run][method] if one["eps"] == eps)
                for method in ("pgd", "apgd")
            }
            cells = [f"{each[method][key]:.4f}" for key in ("crps", "sigma_mad") for method in each]
            rows.append([run, *cells])
    head = ["run", "CRPS under PGD", "under APGD", "sigma_MAD under PGD", "under APGD"]
    return table(head, rows)


def settings(results: Results) -> str:
    """Sizes and settings."""
    plan = results.plan
    sets, epochs, held = plan["sets"], plan["epochs"], plan["validation"]
    train, sky, sky_test = sets["train"], sets["sky-train"], sets["sky-test"]
    in_training = f"{round(train['objects'] * (1 - held)):,} of seed {train['seed']}"
    numbers = f"{plan['curve_objects']:,} and {plan['transfer_objects']:,} test galaxies"
    strong = f"{plan['strong_steps']} steps with {plan['restarts']} restarts"
    seen = f"the central {plan['crop']} x {plan['crop']} pixels, binned {plan['binning']} x {plan['binning']}"
    rate = f"Muon, peak rate {plan['rate']:g}, cosine, batches of {plan['batch']}"
    pairs = {
        "training galaxies": in_training,
        "validation galaxies": f"{round(train['objects'] * held):,} of the same set",
        "test galaxies": f"{sets['test']['objects']:,} of seed {sets['test']['seed']}",
        "in real sky": f"{sky['objects']:,}, and {sky_test['objects']:,} for the test",
        "seeds of the trainings": ", ".join(map(str, plan["seeds"])),
        "what networks see": seen,
        "Inception": f"channels divided by {plan['divisor']}",
        "epochs": f"CNN {epochs['cnn']}, Inception {epochs['inception']}, CNN in real sky {epochs['sky']}",
        "optimiser": f"{rate}, Gaussian labels of 4 bins",
        "adversarial training": _point(Adversaries(**plan["centre"])),
        "attacks of curves, and transfer": f"{plan['steps']} steps, cross-entropy, float32; {numbers}",
        "strong attacks": f"{strong}; {plan['strong_objects']:,} test galaxies",
    }
    return table(["what", "value"], [list(pair) for pair in pairs.items()])


def sky_sets(results: Results) -> str:
    """The same in real sky, or why there is nothing."""
    return attacked(results, SKY)


def _point(point: Adversaries) -> str:
    how = "FGSM" if point.steps == 1 else f"PGD-{point.steps}"
    return f"{how} on a fraction {point.fraction:g} of each batch, eps {point.eps:g} sky sigma"


def _metrics(m: dict[str, float]) -> list[str]:
    return [f"{m['sigma_mad']:.4f}", f"{100 * m['eta']:.2f}", f"{m['bias']:+.5f}"]
