"""The masking checks as a section of the report."""

from collections.abc import Sequence

from hpcphotoz.evaluation.masking.attacks import LARGE, RESTARTS
from hpcphotoz.evaluation.masking.checks import ERRORS, SMALL, failures, run_checks
from hpcphotoz.evaluation.masking.measure import MaskingLosses
from hpcphotoz.evaluation.report.section import ReportSection
from hpcphotoz.evaluation.result import EvaluationResult
from hpcphotoz.output import number_of

KEY = "masking"
_TEXT = f"""A network can look robust only because attacks on it fail: its gradients vanish, or lead nowhere.
These are the checks of Athalye et al. 2018 (arXiv:1802.00420) and Carlini et al. 2019 (arXiv:1902.06705) on
OBJECTS, at epsilon EPS sky sigma and with the LOSS loss. Differences are means over the same galaxies with
their standard error, of the first attack's loss less the second's; a check fails only beyond
{ERRORS:g} errors and {100 * SMALL:g} % of the rise of the loss under PGD-50 with {RESTARTS} restarts. Up to
{LARGE[-1]:g} sky sigmas, which is no bound, a galaxy fails when it is an outlier, or when the bin of its
redshift has less probability than in a uniform PDF. RESULT"""


def masking_section(result: EvaluationResult, losses: Sequence[MaskingLosses]) -> ReportSection:
    """The table of all checks of all networks.

    The record holds `passed`, `failures` (a line each), `objects`, `eps_sky_sigma`, `loss`, and `networks`:
    by run and check, `passed`, what was measured and expected, and the numbers.

    Args:
        result: of the evaluation.
        losses: of `measure_masking`.
    """
    checks = {one.network: run_checks(one) for one in losses}
    objects, failed = len(losses[0].clean), failures(checks)
    runs = [name for name, each in checks.items() if not all(check.passed for check in each)]
    many = f"{number_of(len(failed), 'check')} of {' and '.join(runs)}"
    said = f"FAILED: {many}, whose robustness is not to be trusted." if failed else "All checks passed."
    words = {"OBJECTS": number_of(objects, "galaxy", "galaxies"), "LOSS": result.loss.replace("_", "-")}
    text = " ".join(_TEXT.split())
    for word, value in {**words, "EPS": f"{result.headline_eps:g}", "RESULT": said}.items():
        text = text.replace(word, value)
    head = ["run", "check", "result", "measured", "expected"]
    rows = [
        [network, check.title, "PASS" if check.passed else "FAIL", check.measured, check.expected]
        for network, each in checks.items()
        for check in each
    ]
    record = {
        "passed": not failed,
        "failures": failed,
        "objects": objects,
        "eps_sky_sigma": result.headline_eps,
        "loss": result.loss,
        "networks": {
            network: {check.name: check.record() for check in each} for network, each in checks.items()
        },
    }
    return ReportSection(KEY, "Masked gradients", text, [[head, *rows]], record=record)
