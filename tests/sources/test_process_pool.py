"""Tasks on spawned processes: every result once, in order if wanted, and a bounded number waiting."""

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.sources.process_pool import in_order, run_on_processes


def square(k: int) -> int:
    if k < 0:
        raise BadInput(f"{k}: negative")
    return k * k


def test_results_are_put_in_order() -> None:
    assert list(in_order(iter([(2, "c"), (0, "a"), (1, "b"), (3, "d")]))) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_task_is_done_once_also_when_results_must_wait(processes: int) -> None:
    tasks = list(range(40))  # ten times as many as may wait for the reader
    assert list(in_order(run_on_processes(square, tasks, processes))) == [square(k) for k in tasks]


def test_a_reader_that_stops_early_or_an_error_leaves_no_process_behind() -> None:
    results = run_on_processes(square, list(range(40)), 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="-1: negative"):
        list(run_on_processes(square, [1, -1, *range(40)], 2))
