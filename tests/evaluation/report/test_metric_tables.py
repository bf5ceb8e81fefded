"""Tables of metrics: a row a condition, values with their errors, nothing without a redshift."""

from hpcphotoz.evaluation.report.metric_tables import calibration_tables, convention_tables
from tests.helpers.evaluation_results import make_baseline, make_result


def test_every_condition_shown_has_a_row_with_its_metrics_and_errors() -> None:
    result = make_result()
    for rows in (*convention_tables(result), *calibration_tables(result)):
        assert [row[:2] for row in rows[1:]] == [
            [name, method] for name in ("standard", "adversarial") for method in ("clean", "fgsm", "pgd")
        ]
        assert {len(row) for row in rows} == {len(rows[0])}
    attacked = result.networks[1].at("pgd", 0.1).metrics
    tables = (*convention_tables(result), *calibration_tables(result))
    last = {head: cell for rows in tables for head, cell in zip(rows[0], rows[-1], strict=True)}
    assert last["RAIL bias"] == f"{attacked['rail_bias']:.4f} ± 0.0010"
    assert last["eta (%)"] == f"{100 * attacked['eta']:.1f} ± 0.1"
    assert last["KS"] == f"{attacked['pit_ks']:.4f} ± 0.0010"
    central, densest = 100 * attacked["coverage_68"], 100 * attacked["hpd_coverage_68"]
    assert last["68 %"] == f"{central:.1f} / {densest:.1f}"


def test_the_neighbours_have_a_row_with_their_errors() -> None:
    baseline = make_baseline()
    result = make_result()
    for rows in (*convention_tables(result, baseline), *calibration_tables(result, baseline)):
        assert len(rows) == 1 + 2 * 3 + 1 and rows[-1][:2] == ["kNN colours", "clean"]
    last = convention_tables(result, baseline)[0][-1]
    assert last[3] == f"{baseline['sigma_mad']:.4f} ± {baseline['errors']['sigma_mad']:.4f}"


def test_without_a_redshift_only_the_heads_are_left() -> None:
    result = make_result(known=False)
    assert {len(rows) for rows in (*convention_tables(result), *calibration_tables(result))} == {1}
