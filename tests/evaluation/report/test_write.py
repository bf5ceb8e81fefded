"""Writing the report: other files are kept, a failed write keeps the earlier report."""

import json
from pathlib import Path

import pytest

from hpcphotoz.errors import BadInput
from hpcphotoz.evaluation.report.write import check_report_folder, write_report
from tests.helpers.evaluation_results import make_result


def test_a_failed_write_is_reported_in_a_line_and_keeps_the_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(make_result(("standard",)), tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        write_report(make_result(("other",)), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "report.html"]


@pytest.mark.parametrize("name", ["report.html", "metrics.json", "manifest.json", "checkpoints"])
def test_files_that_no_evaluation_wrote_are_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("my thesis")
    with pytest.raises(BadInput, match="choose another folder for the report"):
        write_report(make_result(("standard",)), tmp_path)
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
    write_report(make_result(("standard",)), tmp_path)
    write_report(make_result(("other",)), tmp_path)
    assert "other" in json.loads((tmp_path / "metrics.json").read_text())
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(BadInput, match="report.html: exists and was not written by an evaluation"):
        write_report(make_result(("standard",)), tmp_path)
