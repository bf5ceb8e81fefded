"""Redshift PDFs: point estimates, quantiles, CDF, tables and pictures."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.redshift_pdf import RedshiftPdf
from hpcphotoz.models.bins import RedshiftBins

BINS = RedshiftBins(4, 0.0, 0.4)
HAND = RedshiftPdf(np.array([[0.25, 0.5, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0], [0.6, 0.0, 0.0, 0.4]]), BINS)


@pytest.fixture
def pyplot() -> Iterator[Any]:
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    yield pyplot
    pyplot.close("all")


def random_pdfs(n: int, bins: int = 30, seed: int = 0) -> RedshiftPdf:
    """PDFs of which a third of the bins are empty."""
    rng = np.random.default_rng(seed)
    p = rng.exponential(size=(n, bins)) ** 3 * (rng.random((n, bins)) > 0.33)
    p[:, bins // 2] += 1e-3
    return RedshiftPdf((p / p.sum(1, keepdims=True)).astype(np.float32), RedshiftBins(bins, 0.1, 1.6))


def test_estimates_by_hand() -> None:
    np.testing.assert_allclose(HAND.mode, [0.15, 0.35, 0.05])
    np.testing.assert_allclose(HAND.mean, [0.15, 0.35, 0.6 * 0.05 + 0.4 * 0.35])
    np.testing.assert_allclose(HAND.median, [0.15, 0.35, 0.1 * 0.5 / 0.6])
    np.testing.assert_allclose(HAND.quantiles(0.25), [0.1, 0.325, 0.1 * 0.25 / 0.6])
    np.testing.assert_allclose(
        HAND.quantiles([0.0, 0.6, 1.0]), [[0, 0.17, 0.3], [0, 0.36, 0.4], [0, 0.1, 0.4]], atol=1e-12
    )
    np.testing.assert_allclose(HAND.cdf(0.05), [0.125, 0, 0.3])
    wanted: Any = [[0, 0.25, 0.5, 1, 1], [0, 0, 0, 0, 1], [0, 0.6, 0.6, 0.6, 1]]
    np.testing.assert_allclose(HAND.cdf([-1, 0.1, 0.15, 0.3, np.inf]), wanted, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.floats(0, 1))
def test_the_cdf_at_a_quantile_is_its_probability(seed: int, q: float) -> None:
    pdf = random_pdfs(5, seed=seed)
    z = pdf.quantiles(q)
    assert ((z >= 0.1) & (z <= 1.6 + 1e-12)).all()
    at = np.array([pdf[k].cdf(z[k])[0] for k in range(5)])
    np.testing.assert_allclose(at, q, atol=1e-9)


def test_the_cdf_is_the_pit_of_the_metrics() -> None:
    pdf = random_pdfs(50)
    z = np.random.default_rng(1).uniform(0, 1.7, 50)
    found = np.diagonal(pdf.cdf(z))
    np.testing.assert_allclose(found, metrics.pit(pdf.pdf, pdf.bins.edges(), z), atol=1e-12)
    torch.testing.assert_close(
        torch.from_numpy(pdf.mean).float(), pdf.bins.integral(torch.from_numpy(pdf.pdf)), atol=1e-6, rtol=0
    )


def test_some_of_the_objects() -> None:
    pdf = random_pdfs(9)
    for rows in (2, -1, slice(3, 7), np.array([8, 0]), pdf.mode > 0.8):
        chosen = pdf[rows]
        np.testing.assert_array_equal(chosen.median, np.atleast_1d(pdf.median[rows]))
    assert len(pdf[2]) == 1 and len(pdf[:0]) == 0 and pdf[:0].quantiles([0.1, 0.9]).shape == (0, 2)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hpcphotoz.evaluation.report.pictures.notebook", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.patches", None)
    with pytest.raises(BadInput, match="plots need matplotlib: pip install 'hpcphotoz.report.'"):
        HAND.plot()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.ones(4) / 4, r"pdf of shape \(4,\): want \(N, 4\)"),
        (np.ones((2, 3)) / 3, r"pdf of shape \(2, 3\): want \(N, 4\)"),
        (np.array([[0.25] * 4, [10.0] * 4]), "row 1: want probabilities per bin that sum to 1"),
        (np.array([[1.5, -0.5, 0, 0]]), "row 0: want probabilities"),
        (np.array([[np.nan, 1, 0, 0]]), "row 0: want probabilities"),
    ],
)
def test_what_is_no_pdf_is_refused(rows: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        RedshiftPdf(rows, BINS)


def test_arguments_that_mean_nothing_are_refused(pyplot: Any) -> None:
    for q in (-0.1, 1.1, [0.5, np.nan]):
        with pytest.raises(BadInput, match="must be between 0 and 1"):
            HAND.quantiles(q)
    with pytest.raises(BadInput, match="must not be NaN"):
        HAND.cdf(np.nan)
    with pytest.raises(BadInput, match=r"z of shape \(1, 2\): want a number or \(M,\)"):
        HAND.cdf([[0.1, 0.2]])
    with pytest.raises(BadInput, match=r"z_spec of shape \(2,\) for PDFs of 3 objects"):
        HAND.plot(np.zeros(2))
    with pytest.raises(BadInput, match="no object to draw"):
        HAND[:0].plot()


def test_no_quantiles_are_no_columns() -> None:
    assert HAND.quantiles([]).shape == (3, 0) and HAND[:0].quantiles([]).shape == (0, 0)


def test_it_is_no_array_and_says_which_member_is() -> None:
    for use in (np.asarray, np.sum, lambda pdf: np.array(pdf, np.float32)):
        with pytest.raises(TypeError, match="a RedshiftPdf is no array: take its `pdf`"):
            use(HAND)


def test_they_show_themselves() -> None:
    assert repr(HAND) == "<RedshiftPdf: 3 objects, probability per bin, 4 bins on [0, 0.4)>"
    page = random_pdfs(8)._repr_html_()
    assert page.count("<tr>") == 6 and "and 3 more" in page
    assert f"{random_pdfs(8).median[4]:.4f}" in page


def areas(ax: Any) -> list[float]:
    """Area below each curve of an axes."""
    found = [patch.get_data() for patch in ax.patches if hasattr(patch, "get_data")]
    return [float((data.values * np.diff(data.edges)).sum()) for data in found]


def test_few_pdfs_are_drawn_as_curves_and_many_as_their_mean(pyplot: Any) -> None:
    pdf = random_pdfs(7)
    ax = pdf[:3].plot(torch.tensor([0.2, torch.nan, 0.4]), label="clean")
    np.testing.assert_allclose(areas(ax), [1, 1, 1], rtol=1e-6)
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([0.2, 0.4])
    assert pdf[3].plot(label="attacked", ax=ax) is ax
    colours = [patch.get_edgecolor() for patch in ax.patches]
    assert len(areas(ax)) == 4 and len(set(colours)) == 4, "a colour for each"
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert {"clean 0", "clean 1", "clean 2", "attacked"} < set(names)
    many = pdf.plot(np.linspace(0.2, 1.5, 7))
    data = next(patch.get_data() for patch in many.patches if hasattr(patch, "get_data"))
    np.testing.assert_allclose(data.values, pdf.pdf.mean(axis=0) / pdf.bins.width, rtol=1e-5)
    assert len(pyplot.get_fignums()) == 2
