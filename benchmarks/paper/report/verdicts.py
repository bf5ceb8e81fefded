"""What the page must show, and whether it does."""

from benchmarks.paper.plan import ADVERSARIAL, STANDARD
from benchmarks.paper.report import tables
from benchmarks.paper.results import Results

OF_KNN = 0.85  # of the neighbours' sigma_MAD, at most, for the standard CNN on clean images
ENSEMBLE_GAIN = 0.10  # of the single network's sigma_MAD, at least
PIT_KS = 0.03  # at most, after calibration
SLACK = 0.01  # by which PGD may be above APGD in CRPS: of the rise under PGD


def table(results: Results) -> str:
    """The requirements, what was measured, and "yes", "no" or a dash."""
    rows = [
        _against_neighbours(results),
        _ensemble(results),
        _strength(results),
        _cost(results),
        _gain(results),
    ]
    return tables.table(["what", "measured", "as wanted"], rows)


def _row(what: str, measured: str | None, good: bool | None) -> list[str]:
    verdict = "-" if good is None else "yes" if good else "**no**"
    return [what, measured or tables.NONE, verdict if measured else "-"]


def _against_neighbours(results: Results) -> list[str]:
    what = f"standard CNN, clean sigma_MAD at most {OF_KNN:g} x kNN's of the same training galaxies"
    ours, knn = results.clean(STANDARD), results.found("neighbours")
    if ours is None or knn is None:
        return _row(what, None, None)
    theirs = knn["clean"]["sigma_mad"]
    measured = f"{ours.text()} / {theirs:.4f} = {ours.value / theirs:.3f}, {knn['n_train']:,} galaxies"
    return _row(what, measured, ours.value <= OF_KNN * theirs)


def _ensemble(results: Results) -> list[str]:
    what = f"an ensemble with eight symmetries at least {100 * ENSEMBLE_GAIN:g} % below the single CNN"
    single, together = results.clean(STANDARD), results.found(f"pdfs-{STANDARD}-ensemble")
    if single is None or together is None or single.n < 2:
        return _row(what, None, None)
    gain = 1 - together["sigma_mad"] / single.value
    measured = f"{together['sigma_mad']:.4f} of {single.n} runs: {100 * gain:.1f} % below {single.text()}"
    return _row(what, measured, gain >= ENSEMBLE_GAIN)


def _strength(results: Results) -> list[str]:
    plan = results.plan
    how = f"PGD-{plan['strong_steps']} with {plan['restarts']} restarts"
    weaker, runs = [], 0
    for name in results.networks("main"):
        for seed in results.seeds:
            run = f"{name}-seed-{seed}"
            found = results.found(f"strong-{run}")
            if found is None:
                continue
            curves, runs = found["curves"][run], runs + 1
            clean, pgd, apgd = curves["pgd"][0]["crps"], curves["pgd"][-1]["crps"], curves["apgd"][-1]["crps"]
            if apgd < pgd - SLACK * (pgd - clean):
                weaker.append(run)
    what = f"APGD on each network as strong as {how}: CRPS not below by more than 1 % of the rise"
    measured = f"{runs - len(weaker)} of {runs} runs{': not ' * bool(weaker)}{', '.join(weaker)}"
    return _row(what, measured if runs else None, not weaker)


def _cost(results: Results) -> list[str]:
    what = "clean cost of adversarial training (CNN), sigma_MAD"
    one, other = results.clean(STANDARD), results.clean(ADVERSARIAL)
    if one is None or other is None:
        return _row(what, None, None)
    cost = 100 * (other.value / one.value - 1)
    return _row(what, f"{other.text()} against {one.text()}: {cost:+.1f} %", None)


def _gain(results: Results) -> list[str]:
    eps = results.plan["headline"]
    what = f"robust gain (CNN): sigma_MAD and eta under APGD at {eps:g} sky sigma"
    pairs = [results.attacked(name, "apgd", eps) for name in (STANDARD, ADVERSARIAL)]
    shares = [results.attacked(name, "apgd", eps, "eta") for name in (STANDARD, ADVERSARIAL)]
    if None in pairs or None in shares:
        return _row(what, None, None)
    words = [
        f"{tables.text(sigma)}, {tables.text(eta, 100, 1)} %"
        for sigma, eta in zip(pairs, shares, strict=True)
    ]
    return _row(what, f"{words[1]}, against {words[0]} of the standard one", None)
