"""Deterministic mode: the same command gives the same bits, twice and across a kill and a resume.

What it forbids: sums in an order that depends on timing (atomic additions, cuDNN's quickest algorithm, the
layout of buckets of gradients), and choices that were measured (precision, number of attackers, compiler).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpcphotoz.data.order import derive_key
from hpcphotoz.errors import BadInput, first_line

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it once, when a process first multiplies matrices
_REPEATABLE = (":4096:8", ":16:8")
_DROPOUT = 12  # purpose of these random numbers, different from that of all others


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Let torch use deterministic algorithms alone; restored at the end. Enter it before CUDA begins.

    Args:
        on: `compute.deterministic`; False: nothing is changed.

    Raises:
        BadInput: cuBLAS has another workspace, or CUDA began without one; or an operation of the network has
            no deterministic form.
    """
    if not on:
        yield
        return
    _reserve_workspace()
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except RuntimeError as error:
        text = first_line(error)
        if "does not have a deterministic implementation" not in text:
            raise
        name = text.partition(" does not have")[0]
        raise BadInput(
            f"compute.deterministic: the network or the attack uses {name}, which has no deterministic form "
            "in this torch: replace it, or leave the option out"
        ) from None
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
        torch.backends.cudnn.deterministic = cudnn


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one step, so that dropout depends on no step before.

    Args:
        seed: `run.seed`.
        step: optimiser steps before this one.
        rank: of this learner among all.
    """
    torch.manual_seed(derive_key(seed, step, rank, _DROPOUT) >> 1)


def _reserve_workspace() -> None:
    found = os.environ.get(WORKSPACE)
    if found in _REPEATABLE:
        return
    want = f"set {WORKSPACE}={_REPEATABLE[0]} before Python starts"
    if found is not None:
        raise BadInput(
            f"compute.deterministic with {WORKSPACE}={found}: cuBLAS would not repeat sums: {want}"
        )
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise BadInput(f"compute.deterministic: CUDA has begun in this process without {WORKSPACE}: {want}")
    os.environ[WORKSPACE] = _REPEATABLE[0]
