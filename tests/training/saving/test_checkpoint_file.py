"""A checkpoint file gives back what was saved, or is refused: no damage goes unnoticed."""

import errno
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcphotoz.errors import BadInput
from hpcphotoz.training.run import checkpoint
from hpcphotoz.training.saving.checkpoint_file import FORMAT, OtherFormat, complete, load, write_file
from hpcphotoz.training.saving.content_checksum import content_checksum


def state(step: int = 3) -> checkpoint.State:
    random_ = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, 5, 5, generator=random_).to(memory_format=torch.channels_last)
    return {
        "model": {"conv.weight": weight, "n": torch.tensor(7), "half": torch.ones(3, dtype=torch.bfloat16)},
        "optimiser": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 0.1, "names": ["a"]}],
        },
        "step": step,
        "config": {"run": {"seed": 1, "name": None}},
    }


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return ours.dtype == theirs.dtype and ours.stride() == theirs.stride() and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    return bool(ours == theirs)


def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """torch.load alone reads a flipped bit of a tensor as another weight."""
    path, damaged = tmp_path / "step-00000003.pt", tmp_path / "damaged.pt"
    write_file(path, complete(state()))
    whole, content = load(path), path.read_bytes()
    where = random.Random(0)
    refused = 0
    for place in {where.randrange(len(content)) for _ in range(400)}:
        changed = bytearray(content)
        changed[place] ^= 1 << where.randrange(8)
        damaged.write_bytes(changed)
        try:
            assert same(load(damaged), whole), f"byte {place}"
        except BadInput:
            refused += 1
    assert refused > 100


def test_a_flipped_bit_of_a_weight_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-00000003.pt"
    write_file(path, complete(state()))
    weight = state()["model"]["conv.weight"].permute(0, 2, 3, 1).numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weight) + 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match="step-00000003.pt: damaged: its content does not have its checksum"):
        load(path)


def test_the_checksum_tells_types_shapes_places_and_memory_orders_apart() -> None:
    found: list[dict[str, Any]] = [
        {"a": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(3, 2).t()},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": [0, 0]},
        {"a": [[0], 0]},
        {"a": 0, "b": 0},
        {"a": "0"},
        {"a": 0},
        {"b": 0},
    ]
    assert len({content_checksum(each) for each in found}) == len(found)


def test_a_checkpoint_of_the_first_format_loads(tmp_path: Path) -> None:
    path = tmp_path / "step-00000003.pt"
    torch.save({"format": 1, **state()}, path)
    assert same({key: value for key, value in load(path).items() if key != "format"}, state())


def test_another_format_is_refused_by_name_and_not_skipped(tmp_path: Path) -> None:
    """A version that reads it goes on from it: the checkpoint before would lose the steps between."""
    checkpoint.save(tmp_path, state(3), 2)
    newer = {**complete(state(4)), "format": FORMAT + 1, "hpcphotoz": "9.9"}
    torch.save(newer, tmp_path / "checkpoints/step-00000004.pt")
    for find in (checkpoint.latest, checkpoint.resumed):
        with pytest.raises(
            OtherFormat, match=f"of checkpoint format {FORMAT + 1}, written by hpcphotoz 9.9; "
        ):
            find(tmp_path)


def test_a_file_that_the_disk_does_not_give_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(BadInput, match="step-00000003.pt: cannot be read: Input/output error$"):
        load(tmp_path / "step-00000003.pt")


def test_a_damaged_format_number_is_no_later_format(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, state(3), 2)
    torch.save({**complete(state(4)), "format": FORMAT + 4}, tmp_path / "checkpoints/step-00000004.pt")
    found = checkpoint.latest(tmp_path)
    assert found is not None and found.name == "step-00000003.pt"


@pytest.mark.parametrize("content", [{"format": "two"}, {"step": 3}, [1, 2]], ids=str)
def test_a_file_that_is_no_checkpoint_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "step-00000003.pt")
    with pytest.raises(BadInput, match="not a checkpoint: it does not say its format"):
        load(tmp_path / "step-00000003.pt")
