"""Writing the report: other files are kept, a failed write keeps the earlier report."""

import json
import re
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.folder import check_report_folder
from hpcphotoz.evaluation.report.section import ReportSection, figure_files
from hpcphotoz.evaluation.report.write import write_report
from tests.helpers.evaluation_results import make_result

pytestmark = pytest.mark.usefixtures("quick_drawing")


def test_a_failed_write_is_reported_in_a_line_and_keeps_the_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(make_result(("standard",)), tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    figures = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        write_report(make_result(("other",)), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "metrics.json", "report.html"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == figures


@pytest.mark.parametrize(
    "name", ["report.html", "metrics.json", "certified_radii.csv", "manifest.json", "checkpoints"]
)
def test_files_that_no_evaluation_wrote_are_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("my thesis")
    with pytest.raises(BadInput, match="choose another folder for the report"):
        write_report(make_result(("standard",)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "my thesis"


def test_foreign_figures_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_report(make_result(("standard",)), out)
    (out / "figures" / "mine.png").write_text("my thesis")
    with pytest.raises(BadInput, match=r"figures/mine.png: exists and was not written by an evaluation"):
        write_report(make_result(("other",)), out)
    assert (out / "figures" / "mine.png").read_text() == "my thesis"
    assert (out / "figures" / "redshifts-standard-clean.png").exists()
    (out / "figures" / "mine.png").unlink()
    (out / "figures" / "index.txt").write_text("a list\nredshifts-standard-clean.png: mine\n")
    with pytest.raises(BadInput, match="figures/[^:]*: exists and was not written"):
        check_report_folder(out)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "figures").write_text("my thesis")
    with pytest.raises(BadInput, match="figures: not a folder of figures"):
        check_report_folder(tmp_path / "new")


def test_figures_of_like_names_are_all_written(tmp_path: Path) -> None:
    figures = {"a b": b"one", "A_b": b"two", "a-b": b"three", "A B": b"four"}
    sections = [ReportSection("k", "K", "", figures=figures), ReportSection("K", "K", "", figures=figures)]
    (first, second) = figure_files(sections)
    assert [one.png for one in first] == [one.png for one in second] == [b"one", b"two", b"three", b"four"]
    names = [one.file for one in first + second]
    assert len(set(names)) == 8 and names[0] == "k-a-b.png"
    assert all(re.fullmatch(r"[a-z0-9._-]+\.png", name) for name in names)


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
    radii = {"certified_radii.csv": "run,object_id,z_spec,z_smooth,radius\n"}
    write_report(make_result(("standard",)), tmp_path, files=radii)
    assert (tmp_path / "certified_radii.csv").exists()
    write_report(make_result(("other",)), tmp_path)
    assert not (tmp_path / "certified_radii.csv").exists()  # of the earlier report alone
    assert "other" in json.loads((tmp_path / "metrics.json").read_text())
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert "redshifts-other-clean.png" in names and not any("standard" in name for name in names)
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(BadInput, match="report.html: exists and was not written by an evaluation"):
        write_report(make_result(("standard",)), tmp_path)
