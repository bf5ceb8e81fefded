"""Runs kernels under Triton's interpreter on CPU tensors, each test module in its own process."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.helpers.kernels.memory_checks import checked
from tests.helpers.paths import ROOT

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="runs under the interpreter, in a process of its own"
)
on_cuda = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="no CUDA device")
compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter's kernel is no kernel")


def interpret(module: ModuleType) -> None:
    """In the interpreter's process, watch the memory of a module's launches, and let torch 2.11 run them.

    torch 2.11 refuses interpreted kernels.
    """
    if INTERPRETED:
        module.wrap_triton = checked  # type: ignore[attr-defined]


def passed_under_the_interpreter(file: str, expression: str, *, slow: bool) -> int:
    """Run a test module again with its kernels interpreted; fails where a test does.

    The variable must be set before the kernels are defined, hence the process.

    Args:
        file: the test module.
        expression: of pytest's -k: which tests.
        slow: those marked slow, or those that are not.

    Returns:
        How many tests passed.
    """
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", expression]
        + ["-m", "slow" if slow else "not slow", file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    passed = re.search(r"(\d+) passed", found.stdout)
    assert found.returncode == 0 and passed, found.stdout + found.stderr
    return int(passed[1])


def thinned(cases: list[Any], kept: Callable[[int], bool]) -> list[Any]:
    """The same cases; under the interpreter, which takes up to a second for one, the others are slow tests.

    Args:
        cases: parameters of a test, tuples where there are several.
        kept: which, by their number in `cases`: every branch of the kernel has one.
    """
    if not INTERPRETED:
        return cases
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=[] if kept(k) else pytest.mark.slow
        )
        for k, case in enumerate(cases)
    ]
