"""The examples of the pages on notebooks and on a training loop of one's own run as printed."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.datasets import load, make_dataset, make_stamps, write_stamps
from tests.helpers.pages import blocks


@pytest.fixture
def galaxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder with the dataset `galaxies` of 64 pixels."""
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    yield make_dataset(tmp_path / "galaxies", n=70, shard_rows=32, size=64)
    pyplot.close("all")


def test_the_notebook_runs(galaxies: Path) -> None:
    torch.manual_seed(1)
    names: dict[str, Any] = {}
    cells = blocks("docs/how-to/notebook.md")
    assert len(cells) == 6
    for cell in cells:
        # A dataset of 70 objects: the last options need no more than a few seconds.
        exec(cell.replace("epochs=10", "epochs=2, validation=0.1, device='cpu'"), names)
    pdf, test = names["pdf"], names["test"]
    assert len(names["galaxies"]) == (load(galaxies).z_spec < 0.3).sum() and 5 < len(test) < 30
    assert (names["low"] < names["half"]).all() and (names["half"] < names["high"]).all()
    assert 0 < len(names["clean"]) < len(names["galaxies"]) and (names["clean"].ebv < 0.06).all()
    assert names["nearby"].shape == (len(test),)
    assert not np.allclose(names["moved"].pdf, pdf.pdf) and len(names["mine"]) == len(test)
    change = (names["attacked"] - test.images).abs() / test.sky_sigma[:, :, None, None]
    assert 0.099 < change.max() < 0.1001
    assert len(names["ax"].get_legend().get_texts()) == 3


def test_the_loop_sees_every_object_once_an_epoch_over_an_interruption(
    galaxies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamps = make_stamps(80, size=64)
    stamps.z_spec[::20] = np.nan  # objects of unknown redshift stay out of the loss
    shutil.rmtree(galaxies)
    write_stamps(galaxies, stamps, shard_rows=32)
    (code,) = blocks("docs/how-to/own-loop.md")
    assert len([line for line in code.splitlines() if line]) < 25
    save, seen = torch.save, []

    def run(last: int) -> dict[str, Any]:
        """Run the loop from the start of the process; it is killed after the update number `last`."""
        names: dict[str, Any] = {}
        torch.manual_seed(3)

        def interrupted(state: object, file: Path) -> None:
            save(state, file)
            seen.append(names["batch"].object_id)
            if len(seen) == last:
                raise KeyboardInterrupt

        monkeypatch.setattr(torch, "save", interrupted)
        exec(code, names)
        return names

    for last in (2, 4):  # of 3 batches an epoch
        with pytest.raises(KeyboardInterrupt):
            run(last)
    resumed = run(-1)
    stream = resumed["stream"]
    assert stream.batches == 3 and len(seen) == 9
    wanted = sorted(seen_id for batch in stream.epoch(0) for seen_id in batch.object_id.tolist())
    for epoch in range(3):
        assert sorted(torch.cat(seen[3 * epoch : 3 * epoch + 3]).tolist()) == wanted
    assert 64 < len(wanted) < 77 and not {*wanted} & {*stamps.object_id[::20].tolist()}
    (galaxies.parent / "own.pt").unlink()
    whole = run(-1)
    for name, weight in whole["model"].state_dict().items():
        assert weight.isfinite().all() and torch.equal(weight, resumed["model"].state_dict()[name])
