"""What the page must show, and whether it does."""

from benchmarks.paper.plan import ADVERSARIAL, STANDARD
from benchmarks.paper.report import tables
from benchmarks.paper.results import Results

OF_KNN = 0.85  # of the neighbours' sigma_MAD, at most, for the standard CNN on clean images
ENSEMBLE_GAIN = 0.10  # of the single network's sigma_MAD, at least
PIT_KS = 0.03  # at most, after calibration


def table(results: Results) -> str:
    """The requirements, what was measured, and "yes", "no" or a dash."""
    rows = [
        _against_neighbours(results),
        _ensemble(results),
        _calibration(results),
        _strength(results),
        _masking(results),
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


def _calibration(results: Results) -> list[str]:
    found = results.found(f"calibrated-{STANDARD}-ensemble")
    runs = [results.found(f"calibrated-{STANDARD}-seed-{seed}") for seed in results.seeds]
    each = [one["pit_ks"] for one in runs if one is not None]
    what = f"PIT KS of the standard CNN below {PIT_KS:g} after calibration: each run, and the ensemble"
    if found is None or not each:
        return _row(what, None, None)
    words = f"{', '.join(f'{one:.4f}' for one in each)}; {found['pit_ks']:.4f}, {found['n']:,} galaxies"
    return _row(what, words, max(*each, found["pit_ks"]) < PIT_KS)


def _strength(results: Results) -> list[str]:
    what = "APGD-50 on each network as strong as PGD-50 with 5 restarts, both: not below by 3 errors and 1 %"
    checks = tables.masking_checks(results)
    weaker = [run for run, each in checks.items() if not each["apgd"]["passed"]]
    return _row(what, _share(len(checks), weaker), not weaker)


def _masking(results: Results) -> list[str]:
    what = "adversarial networks pass all masking checks"
    checks = {run: each for run, each in tables.masking_checks(results).items() if "adversarial" in run}
    failed = [run for run, each in checks.items() if not all(one["passed"] for one in each.values())]
    return _row(what, _share(len(checks), failed), not failed)


def _share(runs: int, but: list[str]) -> str | None:
    """So many of the runs, with the names of the others; None: no run."""
    return f"{runs - len(but)} of {runs} runs{': not ' * bool(but)}{', '.join(but)}" if runs else None


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
