"""The gallery of a dataset, for any bands, sizes and redshifts."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.cli import run
from hpcphotoz.data.format import encoding
from hpcphotoz.data.format.manifest import Manifest, read_manifest
from hpcphotoz.data.format.stamps import Stamps
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.magnitudes import ab_magnitude, band_letter, magnitude_band
from hpcphotoz.evaluation.report import figure as figures
from hpcphotoz.evaluation.report.pictures.dataset_sample import sample_dataset
from hpcphotoz.evaluation.report.pictures.gallery import plot_dataset
from hpcphotoz.evaluation.report.pictures.rgb import band_colours, rgb_images, three_bands
from hpcphotoz.sources.noise import stamp_sky_sigma
from tests.helpers.datasets import SKY, make_stamps, write_stamps


def written(
    out: Path, stamps: Stamps, bands: str = "ugriz", storage: str = "float32", shard_rows: int = 40
) -> tuple[Path, Manifest]:
    write_stamps(out, stamps, bands=bands, storage=storage, shard_rows=shard_rows)
    return out, read_manifest(out)


def words(folder: Path, manifest: Manifest, out: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All text of the picture."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    texts: list[str] = []

    class Recorded(Figure):
        def clear(self, keep_observers: bool = False) -> None:
            texts.extend(text.get_text() for text in self.findobj(Text))
            super().clear(keep_observers)

    monkeypatch.setattr(figures, "Figure", Recorded)
    plot_dataset(folder, manifest, out)
    return "\n".join(texts)


def size(png: Path) -> tuple[int, int]:
    head = png.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


@pytest.mark.parametrize(
    ("n", "bands", "stamp", "known", "storage"),
    [
        (1, "r", 16, True, "float32"),
        (3, "JH", 7, True, "float32"),
        (9, "ugrizyJH", 12, False, "float32"),
        (70, "ugriz", 16, True, "int16"),
        (2, "ugriz", 1, True, "float32"),
    ],
)
def test_any_dataset_is_drawn(
    tmp_path: Path, n: int, bands: str, stamp: int, known: bool, storage: str
) -> None:
    five = make_stamps(n, size=stamp)
    band = np.arange(len(bands)) % 5
    stamps = replace(five, images=five.images[:, band], sky_sigma=five.sky_sigma[:, band])
    if not known:
        stamps = replace(stamps, z_spec=np.full(n, np.nan, np.float32))
    folder, manifest = written(tmp_path / "set", stamps, bands, storage)
    plot_dataset(folder, manifest, tmp_path / "out.png")
    width, height = size(tmp_path / "out.png")
    assert width == 1300 and height >= 600
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["out.png"]


def test_images_without_light_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = make_stamps(4)
    folder, manifest = written(tmp_path / "set", replace(stamps, images=-np.ones_like(stamps.images)))
    text = words(folder, manifest, tmp_path / "out.png", monkeypatch)
    assert size(tmp_path / "out.png")
    assert text.count("no mag") == 4 and "no flux above its noise" in text and "dotted" not in text


def test_text_of_the_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = make_stamps(12)
    z_spec = np.where(np.arange(12) < 5, np.float32(np.nan), stamps.z_spec)
    folder, manifest = written(tmp_path / "set", replace(stamps, z_spec=z_spec))
    plain = words(folder, manifest, tmp_path / "out.png", monkeypatch)
    assert "7 known of 12" in plain and "(unknown: 5 of all 12)" in plain
    assert "within radius 2.5 arcsec" in plain and "1: pure sky noise" in plain
    faint = stamps.images.copy()
    faint[:6] /= 50  # some objects on either side of 5 sigma of the sky
    folder, manifest = written(tmp_path / "faint", replace(stamps, images=faint))
    assert "dotted: 5" in words(folder, manifest, tmp_path / "out.png", monkeypatch)
    faint[0] = -1
    folder, manifest = written(tmp_path / "dark", replace(stamps, images=faint))
    text = words(folder, manifest, tmp_path / "out.png", monkeypatch)
    assert "faint: objects below 1 $\\sigma$ of the sky, not drawn" in text and "8.3 %" in text
    resampled = replace(manifest, provenance={"resampling": "Lanczos-3 onto the r frame's grid"})
    text = words(folder, resampled, tmp_path / "out.png", monkeypatch)
    assert "below 1: resampling smooths noise" in text and "pure sky noise" not in text


def test_a_small_dataset_is_measured_whole(tmp_path: Path) -> None:
    stamps = make_stamps(75, size=32)
    sample = sample_dataset(*written(tmp_path / "set", stamps))
    np.testing.assert_array_equal(sample.z_spec, stamps.z_spec)
    assert len(sample.stamps) == 32 and np.isin(sample.stamps.object_id, stamps.object_id).all()
    shown = np.searchsorted(stamps.object_id, sample.stamps.object_id)
    np.testing.assert_array_equal(sample.stamp_flux, sample.flux[shown])
    # A Gaussian blob of sigma 2 pixels and this height, within 2.5 arcsec: 6.3 pixels.
    truth = 2 * (0.5 + stamps.z_spec[:, None]) ** np.arange(5) * 2 * np.pi * 4 * (1 - np.exp(-(6.31**2) / 8))
    assert np.abs((sample.flux - truth) / (sample.noise * np.sqrt(75))).max() < 1
    assert np.abs(((sample.flux - truth) / sample.noise).std() - 1) < 0.2  # 375 values: 5 sigma
    assert np.median(sample.scatter / SKY) == pytest.approx(1, abs=0.03)


def test_a_large_dataset_is_sampled_from_many_shards_reproducibly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcphotoz.evaluation.report.pictures.dataset_sample._MAX_OBJECTS", 128)
    stamps = make_stamps(700, size=4)
    folder, manifest = written(tmp_path / "set", stamps, shard_rows=100)
    first, again, other = (
        sample_dataset(folder, manifest),
        sample_dataset(folder, manifest),
        sample_dataset(folder, manifest, seed=1),
    )
    assert 32 < len(first.z_spec) <= 128 and np.isin(first.z_spec, stamps.z_spec).all()
    assert len(np.unique(first.z_spec)) == len(first.z_spec)
    np.testing.assert_array_equal(first.stamps.object_id, again.stamps.object_id)
    assert first.stamps.object_id.tolist() != other.stamps.object_id.tolist()


def test_colour_survives_the_stretch() -> None:
    images = np.zeros((1, 3, 9, 9), np.float32)
    images[0, :, 3:6, 3:6] = np.array([1.0, 2.0, 4.0])[:, None, None]
    images[0, :, 4, 4] *= 1000  # saturated
    pixels = rgb_images(images, np.full((1, 3), 0.01, np.float32), ("a", "b", "c"))[0]
    assert 0 <= pixels.min() and pixels.max() <= 1
    np.testing.assert_allclose(pixels[4, 4] / pixels[4, 4].max(), pixels[3, 3] / pixels[3, 3].max())
    assert not pixels[0, 0].any()


def test_a_band_has_its_colour_in_every_dataset() -> None:
    assert band_colours(("g", "r", "z")) == [band_colours(tuple("ugriz"))[k] for k in (1, 2, 4)]
    assert band_colours(("des-g", "DES_R", "hsc.Y")) == band_colours(("g", "r", "y"))
    many = ("u", "g", "r", "i", "z", "y", "J", "H", "K")
    assert len(set(band_colours(many))) == len(many)
    assert len(band_colours(tuple(f"J0{k}0" for k in range(30)))) == 30
    names = ("r", "des-g", "HSC-R2", "J", "F606W", "flag", "i_prime")
    assert [band_letter(name) for name in names] == ["r", "g", "r", "", "", "", ""]
    assert magnitude_band(("des-g", "des-r", "des-i", "des-z")) == 1
    assert magnitude_band(("g", "i", "z")) == 1 and magnitude_band(("J",)) == 0


def test_the_scatter_of_the_outer_pixels_is_clipped_and_not_in_steps_of_int16() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(0, 0.03, (200, 1, 64, 64)).astype(np.float32)
    images[:, :, :2, :6] += 3  # a neighbour
    images[:, :, 32, 32] = 40  # needs larger units: 1333 sigma
    sky = np.full((200, 1), 0.03, np.float32)
    stored, unit = encoding.encode(images, sky, "int16")
    fine, coarse = (stamp_sky_sigma(x) / 0.03 for x in (images, encoding.decode(stored, unit)))
    np.testing.assert_allclose(coarse, fine, rtol=0.04)  # a pixel at the cut changes it by 1 %
    assert np.median(np.abs(coarse / fine - 1)) < 0.003
    assert len(np.unique(np.round(coarse, 6))) > 150
    assert coarse.mean() == pytest.approx(1, abs=0.01) and coarse.std() < 0.05
    assert not stamp_sky_sigma(np.ones((1, 1, 8, 8), np.float32)).any()


def test_three_bands_are_chosen_and_magnitudes_are_ab() -> None:
    assert three_bands(("u", "g", "r", "i", "z")) == [3, 2, 1]
    assert three_bands(("Y", "J", "H", "K")) == [3, 2, 0] and three_bands(("r",)) == [0, 0, 0]
    assert three_bands(("des-g", "des-r", "des-i", "des-z")) == [2, 1, 0]
    np.testing.assert_array_equal(
        ab_magnitude(np.array([1.0, 100.0, 0.0, -1.0])), [22.5, 17.5, np.nan, np.nan]
    )


def test_the_command_draws_and_says_what_is_wrong(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["inspect", str(dataset), "--plot", str(tmp_path / "a.png"), "--json"]) == 0
    assert str(tmp_path / "a.png") in capsys.readouterr().out and size(tmp_path / "a.png")
    monkeypatch.setattr("hpcphotoz.data.read.rows.verify", lambda *_: pytest.fail("reads everything first"))
    for name, what in (("a.pdf", "ends in .png"), ("none/a.png", "no such folder")):
        with pytest.raises(BadInput, match=what):
            run(["inspect", str(dataset), "--verify", "--plot", str(tmp_path / name)])
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(BadInput, match=r"b\.png: no permission to write in "):
        run(["inspect", str(dataset), "--verify", "--plot", str(tmp_path / "b.png")])
