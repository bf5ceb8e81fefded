"""An unfinished prediction: rows shared out by arithmetic alone, and a call that goes on where one ended."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from torch import Tensor

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.batches import BatchTable
from hpcphotoz.predict import Calibration, partial, predict
from hpcphotoz.predict.partial import PartFile, complete_rows, rows_of_ranks
from tests.helpers.datasets import noise_stamps, write_stamps
from tests.helpers.networks import LinearNetwork, StubNetwork
from tests.predict.test_catalogue import stub


class WatchedNetwork(LinearNetwork):
    """Counts the objects that it predicts, and fails after some batches."""

    def __init__(self, batches: int = 1000) -> None:
        super().__init__()
        self.left, self.objects = batches, 0

    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        if not self.left:
            raise RuntimeError("the node went away")
        self.left -= 1
        self.objects += len(images)
        return super().forward(images, ebv)


def table(objects: Sequence[int], rows: int = 4) -> BatchTable:
    first = np.arange(len(objects)) * rows
    return BatchTable(first, first + rows, np.array(objects))


def parts(*rows: range) -> list[PartFile]:
    return [PartFile(Path(), one) for one in rows]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_share_what_is_missing(ranks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = table(rng.integers(0, 5, 40).tolist())
    starts = np.sort(rng.choice(40, 4, replace=False))
    done = [range(4 * int(a), 4 * int(b)) for a, b in zip(starts[::2], starts[1::2], strict=True)]
    found = rows_of_ranks(batches, parts(*done), ranks)
    assert len(found) == ranks
    numbers = [number for runs in found for run in runs for number in run if batches.objects[number]]
    is_done = {k for rows in done for k in range(rows.start // 4, rows.stop // 4)}
    assert numbers == [k for k in range(40) if batches.objects[k] and k not in is_done]
    share = [sum(int(batches.objects[run.start : run.stop].sum()) for run in runs) for runs in found]
    assert max(share) - min(share) <= 2 * 4
    for run in (run for runs in found for run in runs):
        assert not is_done & {k for k in run if batches.objects[k]}


def test_a_batch_without_an_object_does_not_end_a_run_and_one_that_is_done_does() -> None:
    batches = table([4, 0, 4, 4, 4])
    assert rows_of_ranks(batches, parts(), 1) == [[range(0, 5)]]
    assert rows_of_ranks(batches, parts(range(12, 16)), 1) == [[range(0, 3), range(4, 5)]]
    assert rows_of_ranks(batches, parts(range(0, 20)), 2) == [[], []]


@pytest.mark.parametrize("objects_a_file", [1, 1 << 14])
def test_the_same_call_goes_on_and_makes_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objects_a_file: int
) -> None:
    monkeypatch.setattr(partial, "_PART_OBJECTS", objects_a_file)
    data, out = write_stamps(tmp_path / "d", noise_stamps(100), shard_rows=40), tmp_path / "pz.hdf5"
    options = {"batch": 16, "tta": False}
    predict([stub()], data, tmp_path / "whole.hdf5", **options)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="went away"):
        predict([stub(module=WatchedNetwork(3))], data, out, **options)  # type: ignore[arg-type]
    assert not out.exists()
    kept = complete_rows(tmp_path / "pz.hdf5.partial")
    assert sum(len(part.rows) for part in kept) == 16 + 16 + 8, "complete batches are kept"
    with pytest.raises(RuntimeError, match="went away"):  # once more, in the second shard
        predict([stub(module=WatchedNetwork(1))], data, out, **options)  # type: ignore[arg-type]
    rest = WatchedNetwork()
    predict([stub(module=rest)], data, out, **options)  # type: ignore[arg-type]
    assert rest.objects == 100 - 40 - 16, "no object is predicted twice"
    assert out.read_bytes() == (tmp_path / "whole.hdf5").read_bytes()
    assert not (tmp_path / "pz.hdf5.partial").exists()


def test_an_unfinished_prediction_of_something_else_is_refused(tmp_path: Path) -> None:
    data, out = write_stamps(tmp_path / "d", noise_stamps(40)), tmp_path / "pz.hdf5"
    with pytest.raises(RuntimeError, match="went away"):
        predict([stub(module=WatchedNetwork(1))], data, out, batch=8)
    others: list[tuple[StubNetwork, dict[str, object], str]] = [
        (stub(), {"tta": True}, "--tta: give"),
        (stub(), {"calibration": Calibration(temperature=2.0)}, "calibration: give"),
        (stub(), {"form": "interp"}, "--pdf: give"),
        (stub(module=LinearNetwork(1)), {}, "runs: give"),
        (stub(), {"batch": 16}, "dataset, subset or batch size: give"),
    ]
    for network, options, message in others:
        with pytest.raises(
            BadInput, match=f"pz.hdf5.partial: holds an unfinished prediction that differs in {message}"
        ):
            predict([network], data, out, **{"batch": 8, **options})  # type: ignore[arg-type]
    predict([stub()], data, out, batch=8)
    with h5py.File(out) as file:
        assert len(file["data/pdfs"]) == 40
