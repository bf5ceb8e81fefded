"""Prediction writes a file that qp reads: streamed, averaged over runs, and complete or absent."""

import json
import tempfile
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcphotoz.data.format.manifest import read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.predict import average_pdfs, point_estimates, predict
from tests.helpers.datasets import NOISE_BANDS, NOISE_SIDE, write_stamps
from tests.helpers.networks import BINS, LinearNetwork, StubNetwork


class FailingNetwork(LinearNetwork):
    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        if images.shape[0] < 16:
            raise RuntimeError("the node went away")
        return super().forward(images, ebv)


def stub(name: str = "standard", module: nn.Module | None = None, **members: Any) -> StubNetwork:
    """A stub of 20 bins, whose PDFs depend on the orientation of the image."""
    return replace(StubNetwork(name, module or LinearNetwork(), BINS), **members)


def stamps(n: int) -> Stamps:
    rng = np.random.default_rng(7)
    return Stamps(
        images=rng.normal(0, 1, (n, len(NOISE_BANDS), NOISE_SIDE, NOISE_SIDE)).astype(np.float32),
        z_spec=np.full(n, np.nan, np.float32),
        ebv=rng.uniform(0, 0.1, n).astype(np.float32),
        object_id=np.arange(n, dtype=np.int64) + (1 << 60),
        sky_sigma=np.ones((n, len(NOISE_BANDS)), np.float32),
        ra=rng.uniform(0, 360, n),
        dec=rng.uniform(-90, 90, n),
    )


def softmax(module: nn.Module, content: Stamps) -> Tensor:
    with torch.no_grad():
        logits = module(torch.from_numpy(content.images), torch.from_numpy(content.ebv))
    return torch.softmax(logits, dim=1)


@pytest.fixture
def qp() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import of qp warns
        module: ModuleType = pytest.importorskip(
            "qp", reason="needs qp-prob: pip install hpcphotoz[dev]", exc_type=ImportError
        )
    return module


def test_qp_reads_the_file_and_agrees_on_the_means(tmp_path: Path, qp: ModuleType) -> None:
    content, out = stamps(50), tmp_path / "pz.hdf5"
    assert predict([stub()], write_stamps(tmp_path / "d", content, shard_rows=24), out, batch=16) == 50
    ensemble = qp.read(str(out))
    assert ensemble.npdf == 50
    # float32 densities: seven digits.
    np.testing.assert_allclose(np.squeeze(ensemble.mean()), ensemble.ancil["zmean"], rtol=1e-5)
    np.testing.assert_allclose(np.squeeze(ensemble.median()), ensemble.ancil["zmedian"], rtol=1e-4)
    np.testing.assert_array_equal(ensemble.ancil["object_id"], content.object_id)
    chunks = list(qp.iterator(str(out), chunk_size=20))
    assert sum(chunk[2].npdf for chunk in chunks) == 50


def test_the_file_holds_the_pdfs_in_order(tmp_path: Path) -> None:
    content, out, network = stamps(50), tmp_path / "pz.hdf5", stub()
    predict([network], write_stamps(tmp_path / "d", content, shard_rows=24), out, batch=7)
    expected = softmax(network.module, content).double().numpy()
    with h5py.File(out) as file:
        pdf = file["data/pdfs"][:] * BINS.width
        np.testing.assert_allclose(pdf, expected, atol=1e-6)
        assert file["meta/pdf_name"][0] == b"hist" and file["meta/pdf_version"][0] == 0
        np.testing.assert_allclose(file["meta/bins"], np.linspace(0, 0.4, 21)[None])
        for name in ("object_id", "ra", "dec", "ebv", "z_spec"):
            np.testing.assert_array_equal(file["ancil"][name], getattr(content, name))
        for name, ours in (("id", "object_id"), ("redshift", "z_spec")):
            np.testing.assert_array_equal(file["ancil"][name], getattr(content, ours))
        np.testing.assert_allclose(file["ancil/zmean"], expected @ BINS.centres().double().numpy(), atol=1e-6)
        assert file.attrs["runs"].tolist() == ["standard step 3"]
        facts = json.loads(file.attrs["dataset"])
        assert facts["name"] == "d" and facts["subset"] == {"part": "all", "where": ""}
        assert facts["manifest_sha256"] == read_manifest(tmp_path / "d").sha256


def test_several_runs_are_averaged_as_pdfs(tmp_path: Path) -> None:
    content, one, two = stamps(20), stub(), stub("other", LinearNetwork(1))
    predict([one, two], write_stamps(tmp_path / "d", content), tmp_path / "pz.hdf5")
    mean = (softmax(one.module, content) + softmax(two.module, content)) / 2
    with h5py.File(tmp_path / "pz.hdf5") as file:
        np.testing.assert_allclose(file["data/pdfs"][:] * BINS.width, mean, atol=1e-6)


def test_tta_averages_eight_views_and_so_ignores_the_orientation() -> None:
    content = stamps(12)
    images, ebv = torch.from_numpy(content.images), torch.from_numpy(content.ebv)
    ids, networks = torch.from_numpy(content.object_id), [stub()]
    pdf = average_pdfs(networks, images, ebv, ids, tta=True)
    views = [v for r in range(4) for v in (images.rot90(r, (2, 3)), images.rot90(r, (2, 3)).flip(3))]
    expected = sum(average_pdfs(networks, view, ebv, ids) for view in views) / 8
    torch.testing.assert_close(pdf, expected)
    turned = average_pdfs(networks, images.rot90(1, (2, 3)), ebv, ids, tta=True)
    torch.testing.assert_close(turned, pdf)
    assert not torch.allclose(average_pdfs(networks, images, ebv, ids), pdf, atol=1e-3)


def test_point_estimates_by_hand() -> None:
    bins = RedshiftBins(4, 0.0, 0.4)
    cases = [[0.25, 0.5, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0], [0.6, 0.0, 0.0, 0.4]]
    found = point_estimates(np.array(cases), bins)
    np.testing.assert_allclose(found["zmode"], [0.15, 0.35, 0.05])
    np.testing.assert_allclose(found["zmean"], [0.15, 0.35, 0.6 * 0.05 + 0.4 * 0.35])
    np.testing.assert_allclose(found["zmedian"], [0.15, 0.35, 0.1 * 0.5 / 0.6])


def test_an_interrupted_prediction_leaves_nothing_and_keeps_the_earlier_file(tmp_path: Path) -> None:
    data, out = write_stamps(tmp_path / "d", stamps(40), shard_rows=24), tmp_path / "out" / "pz.hdf5"
    out.parent.mkdir()
    broken = stub(module=FailingNetwork())  # its second batch, the rest of the first shard, is smaller
    with pytest.raises(RuntimeError, match="went away"):
        predict([broken], data, out, batch=16)
    assert list(out.parent.iterdir()) == []
    predict([stub()], data, out)
    before = out.read_bytes()
    with pytest.raises(RuntimeError, match="went away"):
        predict([broken], data, out, batch=16)
    assert out.read_bytes() == before and list(out.parent.iterdir()) == [out]


def test_memory_does_not_grow_with_the_catalogue(tmp_path: Path) -> None:
    def peak(n: int) -> int:
        data = write_stamps(Path(tempfile.mkdtemp(dir=tmp_path)), stamps(n), shard_rows=n)
        tracemalloc.start()
        predict([stub()], data, tmp_path / "pz.hdf5", batch=8)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(32)  # imports and caches
    # Loading the whole catalogue would add 368 kB, 768 bytes a stamp; uncollected garbage adds 80 kB.
    assert peak(512) - peak(32) < 180_000


class NetworkWithoutCompiler(LinearNetwork):
    def forward(self, images: Tensor, ebv: Tensor) -> Tensor:
        raise OSError("no compiler in PATH")


def test_errors_of_reading_and_of_the_network_are_not_called_errors_of_writing(tmp_path: Path) -> None:
    data, out = write_stamps(tmp_path / "d", stamps(40), shard_rows=24), tmp_path / "out" / "pz.hdf5"
    out.parent.mkdir()
    with pytest.raises(OSError, match="no compiler"):
        predict([stub(module=NetworkWithoutCompiler())], data, out)
    path = data / "shard-00001.hdf5"
    with h5py.File(path, "r") as file:
        offset = file["images"].id.get_offset()
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=f"^{path}: row 0: pixels differ"):
        predict([stub()], data, out)
    assert list(out.parent.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = write_stamps(tmp_path / "d", stamps(40), shard_rows=24), tmp_path / "out" / "pz.hdf5"
    out.parent.mkdir()

    def full(self: h5py.Dataset, rows: object, values: object) -> None:
        raise OSError("Can't write data\n(errno = 28, error message = 'No space left on device')")

    monkeypatch.setattr(h5py.Dataset, "__setitem__", full)
    with pytest.raises(BadInput, match=f"^{out}: cannot be written: Can't write .*No space left") as caught:
        predict([stub()], data, out)
    assert "\n" not in str(caught.value)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("networks", "options", "message"),
    [
        ([], {}, "no network"),
        ([stub(), stub("b", bins=RedshiftBins(20, 0.0, 0.5))], {}, "'standard' and 'b' have different"),
        ([stub(bands=("g", "r", "z"))], {}, "bands"),
        ([stub(stamp=64)], {}, "stamps of 8"),
        ([stub()], {"batch": 0}, "batch"),
    ],
)
def test_unusable_input_is_refused(
    tmp_path: Path, networks: list[StubNetwork], options: dict[str, int], message: str
) -> None:
    data = write_stamps(tmp_path / "d", stamps(5))
    with pytest.raises(BadInput, match=message):
        predict(networks, data, tmp_path / "pz.hdf5", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "pz.hdf5").exists()


@pytest.mark.parametrize("name", ["pz.csv", "pz", "pz.h5", "pz.HDF5"])
def test_a_name_that_qp_would_not_read_is_refused(tmp_path: Path, name: str) -> None:
    data = write_stamps(tmp_path / "d", stamps(5))
    with pytest.raises(BadInput, match=rf"{name}: qp reads .* end in \.hdf5: name it pz\.hdf5$"):
        predict([stub()], data, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_stamps(tmp_path / "d", stamps(5))
    with pytest.raises(BadInput, match=f"^{tmp_path}/nowhere/pz.hdf5: no such folder: {tmp_path}/nowhere$"):
        predict([stub()], data, tmp_path / "nowhere" / "pz.hdf5")
    with pytest.raises(BadInput, match="is a folder"):
        predict([stub()], data, tmp_path)
    with monkeypatch.context() as readonly:
        readonly.setattr("os.access", lambda path, mode: path != tmp_path)
        with pytest.raises(BadInput, match=f"pz.hdf5: no permission to write in {tmp_path}$"):
            predict([stub()], data, tmp_path / "pz.hdf5")
    with pytest.raises(BadInput, match="holds no object"):
        predict([stub()], write_stamps(tmp_path / "empty", stamps(0)), tmp_path / "pz.hdf5")
