"""The report: a self-contained page, and a summary whose keys other programs read."""

import base64
import hashlib
import html
import json
import re
import struct
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hpcphotoz.data.select.predicate import Predicate
from hpcphotoz.data.select.subset import Subset
from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.attack_grid import METHODS
from hpcphotoz.evaluation.report import write
from hpcphotoz.evaluation.report.plots.redshifts import pit_histograms, redshift_scatter
from hpcphotoz.evaluation.report.plots.robustness import networks_under_each_attack
from hpcphotoz.evaluation.report.section import ReportSection
from hpcphotoz.evaluation.report.summary import print_table, report_summary
from hpcphotoz.evaluation.report.write import write_report
from hpcphotoz.evaluation.scoring.pdf_calibration import Calibration
from tests.helpers.evaluation_results import BANDS, make_baseline, make_result

BASELINE = {**make_baseline(), "sigma_mad": 0.019, "eta": 0.05}


class Page(HTMLParser):
    """Collects tags, images, texts of the script, links of the contents and their targets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.alts: list[str] = []
        self.links: list[str] = []
        self.targets: list[str] = []
        self.scripts: list[str] = []
        self.rows = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        found = dict(attrs)
        assert tag == "img" or not {"src", "srcset"} & set(found), "nothing but pictures has a source"
        if tag == "script":
            assert not attrs
            self.scripts.append("")
        if tag == "a":
            self.links.append(found["href"] or "")
        if tag == "section":
            self.targets.append(f"#{found['id']}")
        if tag == "img":
            self.pictures.append(found["src"] or "")
            self.alts.append(found["alt"] or "")
        elif tag not in ("meta",):
            self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data


@pytest.mark.usefixtures("quick_drawing")
def test_the_summary_has_the_keys_that_programs_read(tmp_path: Path) -> None:
    result = make_result()
    tree = write_report(result, tmp_path / "report", BASELINE)
    written = json.loads((tmp_path / "report" / "metrics.json").read_text())
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


@pytest.mark.usefixtures("quick_drawing")
def test_the_page_says_which_pdfs_are_calibrated(tmp_path: Path) -> None:
    write_report(make_result(), tmp_path)
    assert "PDFs are the networks&#x27; own: none is calibrated." in (tmp_path / "report.html").read_text()
    calibrations = {"adversarial": Calibration(temperature=1.5, pit=(0.1, 0.2))}
    tree = write_report(replace(make_result(), calibrations=calibrations), tmp_path)
    words = "adversarial: temperature 1.5, map of the PIT of degree 2), those of standard are not."
    assert words in (tmp_path / "report.html").read_text()
    assert tree["adversarial"]["calibration"] == {"temperature": 1.5, "pit": [0.1, 0.2]}
    assert tree["standard"]["calibration"] is None


def test_the_page_is_whole_self_contained_and_free_of_requests(tmp_path: Path) -> None:
    write_report(make_result(), tmp_path, BASELINE)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    # Six tables of three conditions a run and of kNN; transfer.
    assert page.rows == 6 * (1 + 2 * 3 + 1) + 3
    # Redshifts, robustness, attacks compared, calibration, change; galaxies.
    assert len(page.pictures) == 4 + 2 + 2 + 2 + 2 + 2 * 3
    assert page.links == page.targets and len(set(page.targets)) == 10
    (script,) = page.scripts
    assert script == (Path(write.__file__).with_name("page.js")).read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]
    for source in page.pictures:
        png = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", png[16:24])
        assert width > 400 and height > 300
    plain = re.sub(r'src="[^"]*"', "", text)
    assert not re.search(r"://|url\(|@import|fetch\(|XMLHttp|import\(", plain)
    assert "survey &amp; more" in text
    assert not re.search("STRONGEST|EPS|NETWORK|OBJECT|FIRST", re.sub(r'src="[^"]*"', "", text))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "metrics.json", "report.html"]
    files = {path.name: path.read_bytes() for path in (tmp_path / "figures").glob("*.png")}
    assert sorted(files.values()) == sorted(base64.b64decode(one.split(",")[1]) for one in page.pictures)
    assert "redshifts-standard-clean.png" in files and "robustness-pgd.png" in files


@pytest.mark.usefixtures("quick_drawing")
def test_alternative_texts_tell_what_is_measured(tmp_path: Path) -> None:
    result = make_result()
    write_report(result, tmp_path)
    alts = Page((tmp_path / "report.html").read_text()).alts
    assert len(set(alts)) == len(alts) and min(map(len, alts)) > 60
    m = result.networks[1].at("pgd", 0.1).metrics
    figures = f"{m['sigma_mad']:.4f}", f"{100 * m['eta']:.1f} %"
    for words in (("z_phot of adversarial", "under PGD"), ("against epsilon under PGD",)):
        (alt,) = (one for one in alts if all(word in one for word in words) and "Change" not in one)
        assert all(figure in alt for figure in figures), alt
    index = (tmp_path / "figures" / "index.txt").read_text().splitlines()[1:]
    assert [line.split(": ", 1)[1] for line in index] == alts


@pytest.mark.usefixtures("quick_drawing")
def test_columns_of_numbers_are_marked_whatever_their_units(tmp_path: Path) -> None:
    head = ["bin", "name", "error", "share", "limit", "none", "mixed", "text"]
    rows = [
        [
            "0.1 - 0.2",
            "a<b",
            "+1.5 ± 0.2",
            "2.1 %",
            "> 1",
            "",
            "3",
            "1, 2 and 3 are the numbers of a sentence",
        ],
        ["1,024", "2nd", "-", "0.0159 / 3 %", "1e-3", "", "x", "2"],
    ]
    section = ReportSection("one", "One", "Text.", [[head, *rows]])
    write_report(make_result(("standard",), known=False), tmp_path, sections=[section])
    text = (tmp_path / "report.html").read_text()
    found = re.findall(r'<th scope="col"( class="\w+")?>(\w+)</th>', text.split("<h2>One</h2>")[1])[:8]
    assert {name: mark.strip() for mark, name in found} == {
        **dict.fromkeys(("bin", "error", "share", "limit"), 'class="number"'),
        **dict.fromkeys(("name", "none", "mixed"), ""),
        "text": 'class="long"',
    }
    assert '<td class="number">+1.5 ± 0.2</td>' in text and "<td>a&lt;b</td>" in text


@pytest.mark.usefixtures("quick_drawing")
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
    result = replace(make_result(methods=methods), restarts=3)
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


@pytest.mark.usefixtures("quick_drawing")
def test_without_any_redshift_the_page_shows_the_change_of_the_mean(tmp_path: Path) -> None:
    tree = write_report(make_result(("standard",), known=False), tmp_path)
    assert tree["standard"]["pgd"]["shift_median"] == pytest.approx(0.01)
    assert "bias" not in tree["standard"]["pgd"]
    assert (
        len(Page((tmp_path / "report.html").read_text()).pictures) == 2 + 3
    )  # change of each method; a galaxy
    json.loads((tmp_path / "metrics.json").read_text())
    assert "No z_spec is known: there are no metrics, and each" in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("quick_drawing")
def test_summary_page_and_table_say_which_objects_were_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = Predicate.parse("z_spec < 0.3 and\n ebv < 1", BANDS)
    result = replace(make_result(("standard",)), subset=Subset("test", 0.05, 0.2, 7, where), limit=60)
    tree = write_report(result, tmp_path)
    assert tree["data"]["subset"] == {
        "part": "test",
        "where": "z_spec < 0.3 and\n ebv < 1",
        "split": {"validation": 0.05, "test": 0.2, "seed": 7},
        "limit": 60,
    }
    words = (
        "(test part of a split into 0.05 validation, 0.2 test, seed 7; where z_spec < 0.3 and ebv < 1; "
        "the first 60)"
    )
    text = (tmp_path / "report.html").read_text()
    assert f"60 galaxies of survey &amp; more {html.escape(words)} in u, g" in text
    print_table(result)
    assert words in " ".join(capsys.readouterr().out.split())
    whole = write_report(replace(make_result(("standard",)), unlabelled=2), tmp_path)
    assert whole["data"]["subset"] == {"part": "all", "where": "", "limit": None}
    text = (tmp_path / "report.html").read_text()
    assert "60 galaxies of survey &amp; more in u, g" in text
    assert "2 without z_spec: each is attacked away from the most probable redshift of its own" in text


def test_the_names_of_runs_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    name = r"_$\foo$[a][/x]:ok:"
    result = make_result((name,))
    plots = [*networks_under_each_attack(result, None), *redshift_scatter(result), *pit_histograms(result)]
    assert all(plot.png for plot in plots)
    print_table(result)
    assert name in "".join(capsys.readouterr().out.split())


def test_the_terminal_shows_every_run_and_the_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(make_result(), BASELINE)
    output = capsys.readouterr().out
    for word in ("standard", "adversarial", "kNN colours", "pgd", "0.0190", "5.0 %"):
        assert word in output
    unlabelled = replace(make_result(known=False), limit=99)
    print_table(unlabelled)
    output = capsys.readouterr().out
    assert "adversarial" in output and "60 galaxies of survey & more, 60 with no z_spec" in output
    assert max(map(len, output.splitlines())) <= 80 and "…" not in output


@pytest.mark.usefixtures("quick_drawing")
def test_a_further_measurement_is_on_the_page_and_in_the_metrics(tmp_path: Path) -> None:
    section = ReportSection(
        "sky",
        "The <sky>",
        "1 < 2 & so on.",
        [[["night", "dz"], ["<a>", "0.1"]]],
        {"a picture": b"png"},
        {"n": 3},
        captions=["Per <night>"],
    )
    tree = write_report(make_result(), tmp_path, sections=[section])
    assert tree["sky"] == {"n": 3} and "clean" in tree["standard"]
    page = (tmp_path / "report.html").read_text()
    for text in (
        "<h2>The &lt;sky&gt;</h2>",
        "<p>1 &lt; 2 &amp; so on.</p>",
        '<th scope="row">&lt;a&gt;</th>',
        '<p class="caption">Per &lt;night&gt;</p><div class="wide"',
        'alt="The &lt;sky&gt;: a picture"',
    ):
        assert text in page
    with pytest.raises(BadInput, match="run 'standard': its name is a key"):
        report_summary(make_result(), sections=[replace(section, key="standard")])


def test_a_run_must_not_be_called_like_a_key() -> None:
    with pytest.raises(BadInput, match="rename"):
        report_summary(make_result(("versions",)))


def test_matplotlib_is_needed_only_by_the_page_and_missed_in_a_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from hpcphotoz.errors import BadInput\n"
        "import hpcphotoz.evaluation.report.write, hpcphotoz.evaluation.robustness, hpcphotoz.predict\n"
        "report = 'hpcphotoz.evaluation.report'\n"
        "names = [f'{report}.plots.redshifts', f'{report}.pictures.gallery']\n"
        "for name in [*names, 'hpcphotoz.evaluation.report.figure']:\n"
        "    try:\n        __import__(name)\n"
        "    except BadInput as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'hpcphotoz[report]'") == 3
