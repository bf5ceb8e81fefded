"""Prediction writes a file that qp reads: streamed, averaged over runs, and complete or absent."""

import json
import tempfile
import tracemalloc
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
from hpcphotoz.predict import Calibration, average_pdfs, partial, point_estimates, predict
from hpcphotoz.predict.columns import ANCIL
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


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Columns of a table, by the readers that users have."""
    if path.suffix == ".fits":
        from astropy.table import Table

        table = Table.read(path)
        assert table["ra"].unit == "deg"
        return {name: np.asarray(table[name]) for name in table.colnames}
    if path.suffix == ".parquet":
        from pyarrow import parquet

        columns = parquet.read_table(path)
        return {name: columns[name].to_numpy() for name in columns.column_names}
    found = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    return {name: found[name] for name in found.dtype.names or ()}


def softmax(module: nn.Module, content: Stamps) -> Tensor:
    with torch.no_grad():
        logits = module(torch.from_numpy(content.images), torch.from_numpy(content.ebv))
    return torch.softmax(logits, dim=1)


def test_qp_reads_the_file_and_agrees_on_the_means(tmp_path: Path, qp: ModuleType) -> None:
    content, out = stamps(50), tmp_path / "pz.hdf5"
    assert predict([stub()], write_stamps(tmp_path / "d", content, shard_rows=24), out, batch=16) == 50
    ensemble = qp.read(str(out))
    assert ensemble.npdf == 50
    # float32 densities: seven digits.
    np.testing.assert_allclose(np.squeeze(ensemble.mean()), ensemble.ancil["zmean"], rtol=1e-5)
    np.testing.assert_allclose(np.squeeze(ensemble.median()), ensemble.ancil["zmedian"], rtol=1e-4)
    np.testing.assert_allclose(np.squeeze(ensemble.ppf(0.16)), ensemble.ancil["z_lower"], rtol=1e-4)
    np.testing.assert_allclose(np.squeeze(ensemble.ppf(0.84)), ensemble.ancil["z_upper"], rtol=1e-4)
    # qp puts the probability of a bin at its centre; sigma has the variance within a bin, too.
    variance = np.squeeze(ensemble.std()) ** 2 + BINS.width**2 / 12
    np.testing.assert_allclose(np.sqrt(variance), ensemble.ancil["sigma"], rtol=1e-5)
    np.testing.assert_array_equal(ensemble.ancil["object_id"], content.object_id)
    chunks = list(qp.iterator(str(out), chunk_size=20))
    assert sum(chunk[2].npdf for chunk in chunks) == 50


def test_qp_reads_interpolated_pdfs(tmp_path: Path, qp: ModuleType) -> None:
    content, out, network = stamps(30), tmp_path / "pz.hdf5", stub()
    predict([network], write_stamps(tmp_path / "d", content), out, batch=16, form="interp")
    ensemble = qp.read(str(out))
    assert ensemble.npdf == 30 and ensemble.metadata["pdf_name"][0] in (b"interp", "interp")
    density = softmax(network.module, content).double().numpy() / BINS.width
    edges = BINS.edges()
    np.testing.assert_allclose(ensemble.pdf((edges[1:] + edges[:-1]) / 2), density, rtol=2e-5)
    # Written with integral 1 and not normalised by the reader: exact for the trapezoids between the nodes.
    with h5py.File(out) as file:
        x, y = file["meta/xvals"][0], file["data/yvals"][:].astype(np.float64)
    np.testing.assert_allclose(np.trapezoid(y, x, axis=1), 1, rtol=1e-6)
    assert (x[0], x[-1]) == (BINS.z_min, BINS.z_max)


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
    np.testing.assert_allclose(found["z_lower"], [0.1 * 0.16 / 0.25, 0.3 + 0.016, 0.1 * 0.16 / 0.6])
    np.testing.assert_allclose(
        found["z_upper"], [0.2 + 0.1 * 0.09 / 0.25, 0.3 + 0.084, 0.3 + 0.1 * 0.24 / 0.4]
    )
    within = 0.1**2 / 12  # variance of the uniform density inside a bin
    variances = [0.5 * 0.1**2 + within, within, 0.6 * 0.4 * 0.3**2 + within]
    np.testing.assert_allclose(found["sigma"], np.sqrt(variances))


def test_weights_and_calibration_change_the_pdfs_and_are_recorded(tmp_path: Path) -> None:
    content, one, two = stamps(20), stub(), stub("other", LinearNetwork(1))
    calibration = Calibration((0.8, 0.2), 1.5, (0.1,))
    data, out = write_stamps(tmp_path / "d", content), tmp_path / "pz.hdf5"
    predict([one, two], data, out, calibration=calibration)
    mean = 0.8 * softmax(one.module, content) + 0.2 * softmax(two.module, content)
    expected = calibration(mean.double().numpy())
    with h5py.File(out) as file:
        np.testing.assert_allclose(file["data/pdfs"][:] * BINS.width, expected, atol=1e-6)
        means = expected @ BINS.centres().double().numpy()
        np.testing.assert_allclose(file["ancil/zmean"], means, atol=1e-6)
        recorded = json.loads(file.attrs["prediction"])
    assert recorded == {
        "tta": False,
        "weights": [0.8, 0.2],
        "temperature": 1.5,
        "pit": [0.1],
        "flag_below": None,
        "precision": "fp32",
    }


@pytest.mark.parametrize("suffix", [".fits", ".parquet", ".csv"])
def test_points_are_the_columns_beside_the_pdfs(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip({".fits": "astropy", ".parquet": "pyarrow"}.get(suffix, "csv"))
    content, out, points = stamps(50), tmp_path / "pz.hdf5", tmp_path / f"points{suffix}"
    data = write_stamps(tmp_path / "d", content, shard_rows=24)
    predict([stub()], data, out, batch=16, points=points)
    found = read_table(points)
    with h5py.File(out) as file:
        assert list(found) == [name for name in ANCIL if name not in ("id", "redshift")]
        for name, values in found.items():
            np.testing.assert_array_equal(values, file["ancil"][name][:])
    with pytest.raises(BadInput, match=f"points{suffix}: exists"):
        predict([stub()], data, out, points=points)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", points.name, "pz.hdf5"]


def test_a_table_of_no_known_form_is_refused(tmp_path: Path) -> None:
    data = write_stamps(tmp_path / "d", stamps(5))
    for name in ("points.txt", "points"):
        with pytest.raises(BadInput, match=rf"{name}: the suffix .* \*.fits or \*.parquet or \*.csv$"):
            predict([stub()], data, tmp_path / "pz.hdf5", points=tmp_path / name)
    assert not (tmp_path / "pz.hdf5").exists()


def test_an_interrupted_prediction_keeps_the_earlier_file(tmp_path: Path) -> None:
    data, out = write_stamps(tmp_path / "d", stamps(40), shard_rows=24), tmp_path / "out" / "pz.hdf5"
    out.parent.mkdir()
    broken = stub(module=FailingNetwork())  # its second batch, the rest of the first shard, is smaller
    predict([stub()], data, out)
    before = out.read_bytes()
    with pytest.raises(RuntimeError, match="went away"):
        predict([broken], data, out, batch=16, points=out.with_name("points.csv"))
    assert out.read_bytes() == before
    assert {path.name for path in out.parent.iterdir()} == {"pz.hdf5", "pz.hdf5.partial"}


def test_memory_does_not_grow_with_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_PART_OBJECTS", 32)

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
    assert list(out.parent.iterdir()) == []  # no row is complete
    path = data / "shard-00001.hdf5"
    with h5py.File(path, "r") as file:
        offset = file["images"].id.get_offset()
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=f"^{path}: row 0: pixels differ"):
        predict([stub()], data, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError("Can't write data\n(errno = 28, error message = 'No space left on device')"),
            "Can't write .*",
        ),
        (OSError(28, "Can't synchronously write data (file write failed: time = Mon Nov 30, buf = 0x1)"), ""),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, says: str
) -> None:
    data, out = write_stamps(tmp_path / "d", stamps(40), shard_rows=24), tmp_path / "out" / "pz.hdf5"
    out.parent.mkdir()

    def full(self: h5py.Dataset, rows: object, values: object) -> None:
        raise error

    monkeypatch.setattr(h5py.Dataset, "__setitem__", full)
    with pytest.raises(BadInput, match=f"^{out}: cannot be written: {says}No space left") as caught:
        predict([stub()], data, out)
    assert "\n" not in str(caught.value)
    assert [path.name for path in out.parent.iterdir()] == ["pz.hdf5.partial"]


@pytest.mark.parametrize(
    ("networks", "options", "message"),
    [
        ([], {}, "no network"),
        ([stub(), stub("b", bins=RedshiftBins(20, 0.0, 0.5))], {}, "'standard' and 'b' have different"),
        ([stub(bands=("g", "r", "z"))], {}, "bands"),
        ([stub(stamp=64)], {}, "stamps of 8"),
        ([stub()], {"batch": 0}, "batch"),
        ([stub()], {"flag_below": 0.0}, "flag_below 0.0: must be above 0"),
    ],
)
def test_unusable_input_is_refused(
    tmp_path: Path, networks: list[StubNetwork], options: dict[str, Any], message: str
) -> None:
    data = write_stamps(tmp_path / "d", stamps(5))
    with pytest.raises(BadInput, match=message):
        predict(networks, data, tmp_path / "pz.hdf5", **options)
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


def test_bfloat16_moves_the_mean_redshifts_little(tmp_path: Path) -> None:
    content, out = stamps(50), tmp_path / "pz.hdf5"
    data = write_stamps(tmp_path / "d", content)
    found = {}
    for precision in ("fp32", "bf16"):
        predict([stub()], data, out, precision=precision)
        with h5py.File(out) as file:
            found[precision] = file["ancil/zmean"][:], file["ancil/sigma"][:]
            assert json.loads(file.attrs["prediction"])["precision"] == precision
    change = np.abs(found["bf16"][0] - found["fp32"][0]) / found["fp32"][1]
    assert 0 < change.max() < 0.05
    with pytest.raises(BadInput, match="precision 'fp16': want one of"):
        predict([stub()], data, out, precision="fp16")
