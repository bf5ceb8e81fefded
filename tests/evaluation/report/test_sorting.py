"""The report's script in a real browser: what a click on a column's head does."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hpcphotoz.evaluation.report import page
from hpcphotoz.evaluation.report.section import ReportSection

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
ROWS = [
    ["run", "eta", "limit"],
    ["b 10", "9.5 %", "> 1"],
    ["a", "10.0 %", "0.3 ± 0.1"],
    ["b 9", "-", "1"],
    ["c", "1,024 %", "-0.5"],
]
CLICKS = """
const heads = [...document.querySelectorAll("thead th")], seen = [];
for (const i of [0, 0, 1, 1, 2, 2]) {
  heads[i].querySelector("button").click();
  const order = [...document.querySelectorAll("tbody tr")].map((row) => row.cells[0].textContent);
  seen.push(`${heads.map((head) => head.getAttribute("aria-sort")).join()}: ${order.join()}`);
}
document.body.setAttribute("data-seen", seen.join("; "));
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs the browser chromium")
def test_a_click_sorts_numbers_by_value_and_text_by_alphabet(tmp_path: Path) -> None:
    text = page.render_page("data", "", [ReportSection("k", "K", "", [ROWS])], [[]], "")
    # The page's policy refuses the script that clicks, as it should.
    text = re.sub("<meta http-equiv[^>]*>", "", text)
    (tmp_path / "report.html").write_text(text.replace("</body>", f"<script>{CLICKS}</script></body>"))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'report.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    (seen,) = re.findall('data-seen="([^"]*)"', dom)
    assert html.unescape(seen).split("; ") == [
        "ascending,,: a,b 9,b 10,c",
        "descending,,: c,b 10,b 9,a",
        ",ascending,: b 10,a,c,b 9",  # no number: at the end
        ",descending,: c,a,b 10,b 9",
        ",,ascending: c,a,b 9,b 10",
        ",,descending: b 10,b 9,a,c",
    ]
