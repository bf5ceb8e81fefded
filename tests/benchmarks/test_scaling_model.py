"""The scaling model: properties that hold for any machine, and fits that recover known parameters."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scaling.scaling_model import (
    Assumptions,
    Attack,
    Point,
    Quantity,
    allreduce_s,
    compute_s,
    exposed_s,
    fit_ring,
    fit_step,
    gradients_s,
    ring_s,
    step_s,
    strong,
    weak,
)
from benchmarks.scaling.scaling_predict import ATTACKS, core, gpu_image, on_cluster, on_gpus, table
from hpcphotoz.compute.cost import attack_cost_law
from hpcphotoz.errors import BadInput

# Seconds an image and an update, parameters, seconds a hop and a byte: a fast GPU to a slow core.
CORES = st.builds(
    core,
    st.floats(1e-6, 1),
    st.floats(0, 1),
    st.integers(10**3, 10**8),
    st.floats(1e-7, 1e-3),
    st.floats(1e-12, 1e-7),
)
MACHINES = st.one_of(
    CORES,
    CORES.map(lambda a: on_gpus(a, 1e9, 50, None)),
    CORES.map(lambda a: on_cluster(on_gpus(a, 1e9, 50, None))),
)
RANKS = st.integers(2, 1024)


@given(CORES, st.integers(1, 20), st.floats(0.05, 1), st.floats(1, 4096))
def test_an_attack_multiplies_compute_by_the_law_and_leaves_the_all_reduce(
    a: Assumptions, steps: int, fraction: float, batch: float
) -> None:
    attack, clean = Attack(steps, fraction), Attack(0, 0.0)
    ratio = compute_s(a, batch, attack) / compute_s(a, batch, clean)
    assert ratio == pytest.approx(attack_cost_law(steps, fraction), rel=1e-9)  # sums of a few floats
    for p in (1, 8, 512):
        more = step_s(a, p, batch, attack) - step_s(a, p, batch, clean)
        one = step_s(a, 1, batch, attack) - step_s(a, 1, batch, clean)
        # Equal with and without ranks; differences of steps lose digits to the all-reduce in both.
        assert more == pytest.approx(one, rel=1e-6, abs=1e-9 * step_s(a, p, batch, attack))


@given(MACHINES, RANKS, st.floats(1, 4096))
def test_adversarial_training_scales_no_worse_than_clean_with_equal_batches(
    a: Assumptions, ranks: int, batch: float
) -> None:
    clean, three, ten = (weak(a, ranks, batch, ATTACKS[name]) for name in ("clean", "PGD-3", "PGD-10"))
    assert 0 < clean <= three * (1 + 1e-9) and three <= ten * (1 + 1e-9)  # rounding
    assert ten <= 1 + 1e-9


@given(MACHINES, RANKS, st.sampled_from(list(ATTACKS.values())))
def test_one_rank_is_the_measure_and_communication_only_costs(
    a: Assumptions, ranks: int, attack: Attack
) -> None:
    assert weak(a, 1, 256, attack) == strong(a, 1, 256, attack) == 1
    assert gradients_s(a, 1) == 0 < gradients_s(a, ranks)
    slower = replace(a, beta=Quantity(a.beta.value * 3, "s/byte", "test"))
    assert step_s(slower, ranks, 64, attack) >= step_s(a, ranks, 64, attack)
    assert strong(a, ranks, 256, attack) <= 1 + 1e-9


@given(CORES, RANKS, st.floats(8, 2**27))
def test_levels_and_trees_never_cost_more_than_one_slow_ring(a: Assumptions, ranks: int, size: float) -> None:
    ring = allreduce_s(a, ranks, size)
    assert ring == pytest.approx(ring_s(ranks, size, a.alpha.value, a.beta.value))
    trees = replace(a, trees=Quantity(1, "0 or 1", "test"))
    assert allreduce_s(trees, ranks, size) <= ring
    if ranks >= 16:
        assert allreduce_s(replace(trees, node=Quantity(8, "", "")), ranks, size) < ring


def test_a_tree_is_chosen_for_small_messages_among_many_ranks() -> None:
    trees = replace(core(1, 0, 1, 1e-5, 1e-9), trees=Quantity(1, "0 or 1", "test"))
    assert allreduce_s(trees, 1024, 8) == pytest.approx(2 * 10 * 1e-5, rel=1e-2)  # 8 bytes take 2e-8 s
    assert allreduce_s(trees, 2, 2**27) == pytest.approx(ring_s(2, 2**27, 1e-5, 1e-9))


@given(st.floats(1e-7, 1e-3), st.floats(1e-12, 1e-7))
def test_the_ring_fit_recovers_the_parameters(alpha: float, beta: float) -> None:
    sizes = [2 ** (12 + 3 * k) for k in range(6)]
    points = [Point(p, n, ring_s(p, n, alpha, beta)) for p in (2, 4) for n in sizes]
    found = fit_ring(points)
    # Least squares in double precision; where a byte costs nothing beside a hop, times hardly tell beta.
    for point in points:
        assert ring_s(point.ranks, point.size, *found) == pytest.approx(point.seconds, rel=1e-6)


def test_the_ring_fit_weighs_small_messages_as_large_ones_and_stays_physical() -> None:
    # 10 % on the largest message alone: a fit of absolute residuals would move alpha (1e-5 s) a thousandfold.
    points = [
        Point(2, n, ring_s(2, n, 1e-5, 1e-9) * (1.1 if n == 2**27 else 1))
        for n in (2**12, 2**15, 2**24, 2**27)
    ]
    assert fit_ring(points)[0] == pytest.approx(1e-5, rel=0.1)
    alpha, beta = fit_ring([Point(2, 2**12, 1e-4), Point(2, 2**27, 1e-5)])  # quicker the larger
    assert alpha >= 0 and beta >= 0
    with pytest.raises(ValueError, match="two sizes"):
        fit_ring([Point(2, 4096, 1e-4), Point(4, 4096, 2e-4)])


def test_the_step_fit_finds_both_parts_and_survives_noise() -> None:
    assert fit_step((32, 0.1 + 32 * 0.02), (64, 0.1 + 64 * 0.02)) == pytest.approx((0.02, 0.1))
    assert fit_step((32, 1.0), (64, 0.9)) == pytest.approx((0.9 / 64, 0))
    assert fit_step((32, 0.5), (64, 1.2)) == pytest.approx((1.2 / 64, 0))


def test_the_table_holds_every_case_once_with_sources_of_numbers() -> None:
    a = on_cluster(on_gpus(core(1e-2, 1e-2, 10**6, 1e-5, 1e-9), 1e9, 50, None))
    rows = table(a)
    assert len({(r["scaling"], r["attack"], r["ranks"]) for r in rows}) == len(rows) == 2 * 3 * 9
    quantities = [q for q in vars(a).values() if isinstance(q, Quantity)]
    assert len(quantities) == len(vars(a))
    assert all(q.unit and q.source.split(":")[0] in ("assumed", "measured", "counted") for q in quantities)
    given_rate = on_gpus(a, 1e9, 50, Quantity(1e-4, "s/image", "measured: a GPU"))
    assert given_rate.image.value == 1e-4 and given_rate.image.source.startswith("measured")


def test_a_ring_and_rings_of_rings_by_hand() -> None:
    assert ring_s(1, 100, 1, 1) == 0
    assert ring_s(4, 100, 1, 0.1) == pytest.approx(2 * 3 * 1 + 2 * 3 / 4 * 100 * 0.1)
    a = on_cluster(on_gpus(core(1, 0, 10**6, 1, 1), 1e9, 50, None))
    inside = ring_s(8, 2**20, a.alpha_inside.value, a.beta_inside.value)
    between = ring_s(2, 2**17, a.alpha.value, a.beta.value)  # an eighth: each GPU has its own port
    assert allreduce_s(a, 8, 2**20) == pytest.approx(inside)
    assert allreduce_s(a, 16, 2**20) == pytest.approx(inside + between)


def test_a_backward_pass_hides_all_but_one_bucket() -> None:
    a = replace(core(1e-3, 0, 10**8, 1e-5, 1e-9), overlap=Quantity(1, "", "test"))
    whole, buckets = gradients_s(a, 4), math.ceil(4e8 / (25 * 2**20))
    assert exposed_s(a, 4, 10**6) == pytest.approx(whole / buckets)
    # 300 images of 1e-3 s hide 0.2 s of 0.6 s, far from the bound of a bucket.
    assert exposed_s(a, 4, 300) == pytest.approx(whole - 0.2)
    assert exposed_s(replace(a, overlap=Quantity(0, "", "test")), 4, 10**6) == pytest.approx(whole)


def test_many_ranks_wait_for_the_slowest() -> None:
    a = core(1, 0, 1, 0, 0)  # nothing to wait for but the slowest
    late = replace(a, jitter=Quantity(0.01, "", "test"))
    assert step_s(late, 1, 1, ATTACKS["clean"]) == step_s(a, 1, 1, ATTACKS["clean"])
    ratio = step_s(late, 1024, 1, ATTACKS["clean"]) / step_s(a, 1024, 1, ATTACKS["clean"])
    assert ratio == pytest.approx(1 + 0.01 * math.sqrt(2 * math.log(1024)))


def test_where_launch_time_dominates_an_attack_on_half_the_batch_costs_as_much_as_on_all() -> None:
    a = replace(core(1e-6, 0, 1, 0, 0), floor=Quantity(1, "", "test"))
    assert compute_s(a, 16, Attack(3, 0.5)) == compute_s(a, 16, Attack(3, 1.0)) == 3 + 2 * 3


def test_a_measured_gpu_replaces_the_assumed_rate(tmp_path: Path) -> None:
    path, three = tmp_path / "gpu.json", ATTACKS["PGD-3"]
    path.write_text(json.dumps({"device": "X", "figures": {"samples_per_s": {"cnn": {"median": 500}}}}))
    assert gpu_image(path, "cnn", three).value == pytest.approx(1 / 500)
    peer = {"cnn": {"ranks": 2, "images_per_s": {"ours": {"median": 500}}}}
    path.write_text(json.dumps({"device": "X", "figures": {"peer": peer}}))
    found = gpu_image(path, "cnn", three)
    assert found.value == pytest.approx(1 / 250 / 2)  # 250 a GPU of training, which costs 2 clean steps
    assert found.source.startswith("measured")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "not JSON",
        '{"figures": {}}',
        '{"figures": {"samples_per_s": {"cnn": 0}}}',
        '{"figures": {"samples_per_s": {"inception": 1}}}',
        '{"device": "2 cores of X", "figures": {"samples_per_s": {"cnn": 10}}}',
    ],
)
def test_a_file_without_a_gpu_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(BadInput, match="want figures") as found:
        gpu_image(path, "cnn", ATTACKS["PGD-3"])
    assert "\n" not in str(found.value)
