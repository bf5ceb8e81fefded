"""The report: a self-contained page, and a summary whose keys other programs read."""

import base64
import html
import json
import re
import struct
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hpcphotoz.data.format.manifest import Header
from hpcphotoz.data.select.predicate import Predicate
from hpcphotoz.data.select.subset import Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation import metrics
from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.report.summary import print_table, report_summary
from hpcphotoz.evaluation.report.write import check_report_folder, write_report
from hpcphotoz.evaluation.result import ConditionResult, EvaluationResult, ExampleGalaxy, NetworkResult
from hpcphotoz.models.bins import RedshiftBins

BINS = RedshiftBins(20, 0.0, 0.4)
BANDS = ("u", "g", "r", "i", "z")
BASELINE = {"bias": 0.001, "sigma_mad": 0.019, "eta": 0.05, "crps": 0.012, "n": 60}


def made(
    names: tuple[str, ...] = ("standard", "adversarial"),
    *,
    known: bool = True,
    n: int = 60,
    methods: tuple[str, ...] = ("fgsm", "pgd"),
) -> EvaluationResult:
    rng = np.random.default_rng(0)
    z = rng.uniform(0.02, 0.38, n).astype(np.float32)

    def condition(method: str, eps: float) -> ConditionResult:
        z_phot = np.clip(z + rng.normal(0, 0.02 + 0.2 * eps, n), 0, 0.4).astype(np.float32)
        figures = metrics.summary(z_phot, z, np.full(n, 0.01 + eps), np.full(n, -5.0)) if known else {}
        pit = rng.uniform(0, 1, n) if known else np.full(n, np.nan)
        return ConditionResult(method, eps, z_phot, pit.astype(np.float32), figures, eps / 10, eps / 5)

    grid = [("clean", 0.0), *((method, eps) for method in methods for eps in (0.05, 0.1, 0.5))]
    networks = tuple(
        NetworkResult(name, 7, BINS, tuple(condition(*point) for point in grid)) for name in names
    )
    image = rng.normal(0, 0.02, (5, 16, 16)).astype(np.float32)
    pdf = rng.dirichlet(np.ones(20)).astype(np.float32)
    example = ExampleGalaxy(
        object_id=42,
        z_spec=float(z[0]) if known else float("nan"),
        image=image,
        sky_sigma=np.full(5, 0.02, np.float32),
        attacked={name: image + np.float32(0.002) for name in names},
        pdf_clean={name: pdf for name in names},
        pdf_attacked={name: pdf[::-1].copy() for name in names},
    )
    own = networks[0].at(methods[0], 0.1).metrics
    return EvaluationResult(
        data=Path("survey & more"),
        header=Header(BANDS, 16, 0.396),
        object_id=np.arange(n),
        z_spec=z if known else np.full(n, np.nan, np.float32),
        methods=methods,
        eps=(0.05, 0.1, 0.5),
        headline_eps=0.1,
        steps=10,
        loss="cross_entropy",
        precision="fp32",
        seed=0,
        networks=networks,
        transfer={a: {b: own for b in names if b != a} for a in names} if len(names) > 1 else {},
        example=example,
    )


class Page(HTMLParser):
    """Collects open tags, image sources and links that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.rows = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")
        elif tag not in ("meta",):
            self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_summary_has_the_keys_that_programs_read(tmp_path: Path) -> None:
    result = made()
    tree = write_report(result, tmp_path / "report", BASELINE)
    written = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert written == tree
    for name in ("standard", "adversarial"):
        for condition, eps in (("clean", 0), ("fgsm", 0.1), ("pgd", 0.1)):
            figures = written[name][condition]
            assert {"bias", "sigma_mad", "eta", "crps", "eps_sky_sigma", "n"} <= set(figures)
            assert figures["eps_sky_sigma"] == eps
        assert [point["eps_sky_sigma"] for point in written["robustness_curves"][name]["pgd"]] == [
            0,
            0.05,
            0.1,
            0.5,
        ]
    expected = result.networks[1].at("pgd", 0.1).metrics["sigma_mad"]
    assert written["adversarial"]["pgd"]["sigma_mad"] == expected
    assert written["knn_colours"] == BASELINE
    assert {"transfer", "data", "versions", "attack"} <= set(written)


def test_the_page_is_whole_self_contained_and_free_of_requests(tmp_path: Path) -> None:
    write_report(made(), tmp_path, BASELINE)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.rows == 1 + 2 * 3 + 1 + 3  # head, three conditions a run, kNN; transfer
    assert len(page.pictures) == 4 + 2  # redshifts, robustness, calibration, change; a galaxy a run
    for source in page.pictures:
        png = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", png[16:24])
        assert width > 400 and height > 300
    assert "http" not in re.sub(r'src="[^"]*"', "", text)
    assert "survey &amp; more" in text
    assert not re.search("STRONGEST|EPS|NETWORK|OBJECT|FIRST", re.sub(r'src="[^"]*"', "", text))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "summary.json"]


@pytest.mark.parametrize(
    ("methods", "pictured", "bound"),
    [
        (tuple(METHODS), "APGD", "at most 0.1 sky sigma a pixel"),
        (("flux", "l2"), "PGD-flux", "at most 0.1 sky sigma a pixel"),
        (("l2",), "PGD-L2", "of root mean square 0.1 sky sigma"),
    ],
)
def test_every_method_has_a_line_a_panel_a_row_and_a_sentence(
    tmp_path: Path, methods: tuple[str, ...], pictured: str, bound: str
) -> None:
    result = replace(made(methods=methods), restarts=3)
    write_report(result, tmp_path)
    assert Page((tmp_path / "report.html").read_text()).open == []
    text = re.sub(r'src="[^"]*"', "", (tmp_path / "report.html").read_text())
    text = " ".join(text.split())
    for name in methods:
        assert f"<td>{name}</td>" in text and METHODS[name].label in text
    assert f"The {pictured} perturbation, {bound}" in text and f"under {pictured} at 0.1" in text
    assert "Of 3 random starts the best is kept" in text
    assert ("(PGD-L2: in the root mean square)" in text) == ("l2" in methods)
    assert not re.search("STEPS|BOUND|ROOTMEAN", text)


def test_without_any_redshift_the_page_shows_the_change_of_the_mean(tmp_path: Path) -> None:
    tree = write_report(made(("standard",), known=False), tmp_path)
    assert tree["standard"]["pgd"]["shift_median"] == pytest.approx(0.01)
    assert "bias" not in tree["standard"]["pgd"]
    assert len(Page((tmp_path / "report.html").read_text()).pictures) == 2
    json.loads((tmp_path / "summary.json").read_text())


def test_summary_page_and_table_say_which_objects_were_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = Predicate.parse("z_spec < 0.3 and\n ebv < 1", BANDS)
    result = replace(made(("standard",)), subset=Subset("test", 0.05, 0.2, 7, where), limit=60)
    tree = write_report(result, tmp_path)
    assert tree["data"]["subset"] == {
        "part": "test",
        "where": "z_spec < 0.3 and\n ebv < 1",
        "split": {"validation": 0.05, "test": 0.2, "seed": 7},
        "limit": 60,
    }
    words = (
        "(test part of a split into 0.05 validation, 0.2 test, seed 7; where z_spec < 0.3 and ebv < 1; "
        "at most the first 60)"
    )
    text = (tmp_path / "report.html").read_text()
    assert f"60 galaxies of survey &amp; more {html.escape(words)} in u, g" in text
    print_table(result)
    assert words in " ".join(capsys.readouterr().out.split())
    whole = write_report(made(("standard",)), tmp_path)
    assert whole["data"]["subset"] == {"part": "all", "where": "", "limit": None}
    assert "60 galaxies of survey &amp; more in u, g" in (tmp_path / "report.html").read_text()


def test_the_terminal_shows_every_run_and_the_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(made(), BASELINE)
    output = capsys.readouterr().out
    for word in ("standard", "adversarial", "kNN colours", "pgd", "0.0190", "5.0 %"):
        assert word in output


def test_a_failed_write_is_reported_in_a_line_and_keeps_the_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(made(("standard",)), tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        write_report(made(("other",)), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "summary.json"]


@pytest.mark.parametrize("name", ["report.html", "summary.json", "manifest.json", "checkpoints"])
def test_what_no_evaluation_wrote_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("my thesis")
    with pytest.raises(BadInput, match="choose another folder for the report"):
        write_report(made(("standard",)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "my thesis"


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_cannot_be_written_is_refused_before_any_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    out = tmp_path if there else tmp_path / "new" / "report"
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(BadInput, match=f"^{out}: .*no permission to write in {tmp_path}$"):
        check_report_folder(out)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file/report: cannot make the folder: .*file is a file$"):
        check_report_folder(tmp_path / "file" / "report")


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    write_report(made(("standard",)), tmp_path)
    write_report(made(("other",)), tmp_path)
    assert "other" in json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(BadInput, match="report.html: exists and was not written by an evaluation"):
        write_report(made(("standard",)), tmp_path)


def test_a_run_must_not_be_called_like_a_key() -> None:
    with pytest.raises(BadInput, match="rename"):
        report_summary(made(("versions",)))


def test_matplotlib_is_needed_only_by_the_page_and_missed_in_a_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from hpcphotoz.errors import BadInput\n"
        "import hpcphotoz.evaluation.report.write, hpcphotoz.evaluation.robustness, hpcphotoz.predict\n"
        "names = ['hpcphotoz.evaluation.report.plots', 'hpcphotoz.evaluation.report.galaxy']\n"
        "for name in [*names, 'hpcphotoz.evaluation.report.figure']:\n"
        "    try:\n        __import__(name)\n"
        "    except BadInput as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'hpcphotoz[report]'") == 3


@pytest.mark.parametrize("bands", [BANDS, ("g", "r", "z"), ("r",)])
def test_the_colour_picture_is_on_zero_to_one_and_the_same_stretch_compares(bands: tuple[str, ...]) -> None:
    from hpcphotoz.evaluation.report.rgb import rgb_image

    rng = np.random.default_rng(0)
    image = rng.normal(0, 0.02, (len(bands), 16, 16))
    image[:, 8, 8] = 5
    picture = rgb_image(image, image, bands)
    assert picture.shape == (16, 16, 3) and picture.min() >= 0 and picture.max() <= 1
    assert picture[8, 8].min() > 0.5 > np.median(picture)
    brighter = rgb_image(image * np.where(image > 1, 1, 1) + 0.05, image, bands)
    assert np.median(brighter) > np.median(picture)
