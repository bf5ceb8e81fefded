"""The recorded reason of a failed run is in words, without its own folder or classes of this package."""

from pathlib import Path

import pytest
import torch

from hpcphotoz.errors import BadInput
from hpcphotoz.provenance import read_starts, record_start
from hpcphotoz.training.distributed.departure import recording_failure
from hpcphotoz.training.optimisation.step_monitor import diverged
from hpcphotoz.world import World


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BadInput("RUN: the images are gone"), "the images are gone"),
        (BadInput("data/a.hdf5: damaged\nand more"), "data/a.hdf5: damaged"),
        (SystemExit(2), "another rank failed"),
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError(), "out of memory"),
        (
            RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {2**41} bytes."),
            "out of memory: torch asked for 2,199 GB at once: take a smaller network or batch, or fewer bins",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"),
            "out of the GPU's memory: torch asked for 2.00 GiB more: take a smaller compute.micro_batch, "
            "batch or network",
        ),
        (OSError(5, "Input/output error", "data/a.hdf5"), "data/a.hdf5: Input/output error"),
        (KeyError("x"), "unexpected KeyError: 'x'"),
    ],
)
def test_the_reason_is_in_words(error: BaseException, reason: str, tmp_path: Path) -> None:
    if isinstance(error, BadInput):
        error = BadInput(str(error).replace("RUN", str(tmp_path)))
    record_start(tmp_path, World(), {})
    with pytest.raises(type(error)), recording_failure(tmp_path, World()):
        raise error
    assert read_starts(tmp_path)[-1]["end"]["reason"] == reason


def test_a_diverged_run_says_why(tmp_path: Path) -> None:
    record_start(tmp_path, World(), {})
    error = diverged(tmp_path, 9, "the loss is not finite at step 9")
    with pytest.raises(type(error)), recording_failure(tmp_path, World()):
        raise error
    assert read_starts(tmp_path)[-1]["end"]["reason"].startswith("the loss is not finite at step 9: lower")
