"""The activations of the benchmark of kernels: their bytes are counted, and eager torch computes the same."""

import pytest
import torch

from benchmarks.bench_kernels import difference, results
from benchmarks.kernels.activations import activation_problems
from benchmarks.kernels.problem import Problem
from hpcphotoz.kernels.backend import kernels_on

CPU = torch.device("cpu")
PROBLEMS = activation_problems(2, CPU)
MIB = 2**20
# 2^20 numbers of 2 objects before and after: 64 channels of 64 x 64, a quarter; 64 or 48 channels of 32 x 32.
SIZES = {"halve": (0.5, 0.125), "none": (0.125, 0.125), "smooth": (0.09375, 0.09375)}


@pytest.mark.parametrize("name", PROBLEMS)
def test_passes_over_memory_are_counted_from_the_tensors(name: str) -> None:
    _, pooling, dtype, *backward = name.split("_")
    before, after = SIZES[pooling]
    numbers = before + after + before * bool(backward)
    assert PROBLEMS[name].bytes == numbers * MIB * (2 if dtype == "bf16" else 4)


@pytest.mark.parametrize("name", PROBLEMS)
def test_eager_torch_computes_the_same_as_the_definition(name: str) -> None:
    problem = PROBLEMS[name]
    wanted, found = (results(t, problem) for t in (definition(problem), problem.others["eager"]()))
    assert len(wanted) == len(found) == (3 if name.endswith("backward") else 1)
    for ours, theirs in zip(found, wanted, strict=True):
        assert difference(ours, theirs) <= problem.rounding
        assert difference(-ours, theirs) > 1


def test_the_kernel_for_a_device_is_found_by_the_name_of_its_definition() -> None:
    for problem in PROBLEMS.values():
        assert getattr(kernels_on("cpu"), problem.function) is problem.definition


def definition(problem: Problem) -> object:
    return problem.definition(*problem.given)
