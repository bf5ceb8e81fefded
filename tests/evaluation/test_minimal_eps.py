"""Minimal epsilon: the analytic value of a linear network, and its quantiles and tables in a report."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.evaluation import robustness
from hpcphotoz.evaluation.batches import to_tensors
from hpcphotoz.evaluation.report.summary import print_table, report_summary
from hpcphotoz.evaluation.report.write import write_report
from hpcphotoz.evaluation.result import EvaluationResult, MinimalEps
from tests.helpers.datasets import noise_stamps, write_stamps
from tests.helpers.networks import TWO_BINS, LogisticNetwork, StubNetwork

evaluate = partial(robustness.evaluate, keep_objects=True)

OUTLIERS = slice(5, 10)  # wrong before any attack; the first five have no redshift


def content() -> Stamps:
    """Galaxies with errors so large that an attack continues in the direction of the error."""
    some, rng = noise_stamps(50), np.random.default_rng(3)
    with torch.no_grad():
        logits = StubNetwork().module(torch.from_numpy(some.images), torch.zeros(50))
        mean = TWO_BINS.mean(logits).numpy()
    wrong = rng.uniform(0.03, 0.045, 50)  # an outlier is wrong by 0.06; a random start moves <z> by 0.02
    wrong[OUTLIERS] = 0.08
    z = mean + wrong * np.where(rng.random(50) < 0.5, -1, 1)
    z[:5] = np.nan
    return replace(some, z_spec=z.astype(np.float32))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> EvaluationResult:
    """The evaluation of a LogisticNetwork and of one that is harder to move."""
    data = write_stamps(tmp_path_factory.mktemp("minimal_eps") / "d", content())
    networks = [StubNetwork(), StubNetwork("steady", LogisticNetwork(scale=0.001))]
    return evaluate(networks, data, eps=(0.3,), steps=4, minimal_eps_max=2.0, batch=16)


def found(result: EvaluationResult, k: int = 0) -> MinimalEps:
    minimal = result.networks[k].minimal_eps
    assert minimal is not None
    return minimal


def test_minimal_eps_of_a_linear_network_is_the_analytic_one(result: EvaluationResult) -> None:
    some, minimal = content(), found(result).eps
    assert np.isnan(minimal[:5]).all() and (minimal[OUTLIERS] == 0).all() and (minimal[10:] > 0).all()
    w = next(StubNetwork().module.parameters()).detach().double().numpy()
    gain = (some.sky_sigma * np.abs(w).sum(axis=(1, 2))).sum(axis=1)[10:]
    z, mean = (a[10:].astype(np.float64) for a in (some.z_spec, result.networks[0].clean.z_phot))
    # <z> = 0.1 + 0.2 sigmoid(logit), and the logit changes by epsilon times the gain.
    now, wanted = ((a - 0.1) / 0.2 for a in (mean, z + np.sign(mean - z) * 0.05 * (1 + z)))
    true = np.abs(np.log(wanted / (1 - wanted)) - np.log(now / (1 - now))) / gain
    assert 0.02 < true.min() < true.max() < 1
    # Eight bisections of a factor of 1024: 2.7 %, always from above.
    ratio = minimal[10:] / true
    assert (ratio > 0.999).all() and (ratio < 1.028).all()


@pytest.mark.parametrize(("factor", "wins"), [(1.05, True), (0.95, False)])
def test_an_attack_with_more_succeeds_and_one_with_less_fails(
    result: EvaluationResult, tmp_path: Path, factor: float, wins: bool
) -> None:
    some, minimal = content()[10:], found(result).eps[10:]
    sigma = (factor * minimal[:, None] * some.sky_sigma).astype(np.float32)
    data = write_stamps(tmp_path / "d", replace(some, sky_sigma=sigma))
    one = evaluate([StubNetwork()], data, eps=(), headline_eps=1.0, methods=("fgsm", "apgd"), loss="shift")
    for method in one.methods:
        error = np.abs(one.networks[0].at(method, 1.0).z_phot - some.z_spec) / (1 + some.z_spec)
        assert ((error > 0.05) == wins).all(), method


def test_fewer_galaxies_of_the_steadier_network_are_reached(result: EvaluationResult) -> None:
    fast, slow = found(result, 0), found(result, 1)
    assert slow.quantile(0.84) == math.inf and slow.as_summary()["p84_sky_sigma"] is None
    assert (slow.as_summary()["not_reached"] or 0) > (fast.as_summary()["not_reached"] or 0)
    for one, network in ((fast, result.networks[0]), (slow, result.networks[1])):
        assert one.as_summary()["n"] == 45 and one.as_summary()["max_sky_sigma"] == 2.0
        assert one.as_summary()["already_outliers"] == network.clean.metrics["eta"]
        # What PGD made an outlier at 0.3 needs no more than that.
        share = one.fraction_within(0.3)
        assert share >= network.at("pgd", 0.3).metrics["eta"]


def test_the_batch_size_changes_no_figure(result: EvaluationResult) -> None:
    from hpcphotoz.evaluation.scores import find_minimal_eps

    some = content()[3:20]
    alone = find_minimal_eps(StubNetwork(), to_tensors(some, "cpu"), 2.0, steps=4, seed=0)
    np.testing.assert_allclose(alone, found(result).eps[3:20], rtol=0.03)
    nothing = find_minimal_eps(StubNetwork(), to_tensors(some[:2], "cpu"), 2.0, steps=4, seed=0)
    assert np.isnan(nothing).all()


def test_quantiles_are_galaxies_and_may_be_infinite() -> None:
    inf, nan = np.inf, np.nan
    minimal = MinimalEps.of(
        np.array([0.3, nan, 0.0, inf, 0.1, inf, 0.2, inf, 0.4, 0.0, inf], np.float32), 0.5
    )
    assert [minimal.quantile(q) for q in (0.1, 0.2, 0.3, 0.6, 0.61, 1.0)] == [
        0,
        0,
        np.float32(0.1),
        np.float32(0.4),
        inf,
        inf,
    ]
    assert minimal.as_summary() == {
        "p16_sky_sigma": 0.0,
        "p50_sky_sigma": pytest.approx(0.3),
        "p84_sky_sigma": None,
        "already_outliers": 0.2,
        "not_reached": 0.4,
        "max_sky_sigma": 0.5,
        "n": 10,
    }
    json.dumps(minimal.as_summary(), allow_nan=False)
    unknown = MinimalEps.of(np.full(3, nan, np.float32), 1.0)
    assert math.isnan(unknown.quantile(0.5))
    assert unknown.as_summary()["p50_sky_sigma"] is None and unknown.as_summary()["n"] == 0


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_summary_table_and_page_show_it(
    result: EvaluationResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = write_report(result, tmp_path)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written == tree
    assert written["steady"]["minimal_eps"]["p84_sky_sigma"] is None
    assert written["attack"]["minimal_eps"]["steps"] == 4
    page = (tmp_path / "report.html").read_text()
    assert (
        page.count("<h2>Minimal epsilon</h2>") == 1 and 'alt="Percentage of outliers against epsilon' in page
    )
    print_table(result)
    output = capsys.readouterr().out
    assert "minimal epsilon (sky sigmas)" in output and "&gt; 2" in page and "> 2" in output


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
@pytest.mark.parametrize("eps", [0.0, 1.0, np.inf])
def test_a_plot_of_equal_values_is_drawn(result: EvaluationResult, tmp_path: Path, eps: float) -> None:
    same = MinimalEps.of(np.full(50, eps, np.float32), 2.0)
    networks = tuple(replace(network, minimal_eps=same) for network in result.networks)
    tree = write_report(replace(result, networks=networks), tmp_path)
    assert tree["standard"]["minimal_eps"]["not_reached"] == (eps == np.inf)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:matplotlib")
def test_without_any_redshift_no_quantile_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_stamps(tmp_path / "d", noise_stamps(20, unknown=20))
    none = evaluate([StubNetwork()], data, eps=(), methods=("fgsm",), minimal_eps_max=1.0)
    assert report_summary(none)["standard"]["minimal_eps"]["n"] == 0
    write_report(none, tmp_path / "report")
    print_table(none)
    assert "no z_spec" in capsys.readouterr().out
    assert (
        "minimal_eps"
        not in report_summary(evaluate([StubNetwork()], data, eps=(), methods=("fgsm",)))["standard"]
    )


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = StubNetwork()
    network.module.train()
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    evaluate(
        [network],
        write_stamps(tmp_path / "d", noise_stamps(20)),
        eps=(),
        methods=("fgsm",),
        minimal_eps_max=1.0,
        steps=2,
    )
    assert all(torch.equal(value, before[name]) for name, value in network.module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.module.parameters())
