from __future__ import annotations

import csv
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from reports.build import main
from suites.record import CaseRecord
from suites.statistics import time_us
from suites.store import write_all
from tests.patience import PATIENCE
from tests.reports import golden
from tests.reports.htmlcheck import Page

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton"):
            raise ImportError(name + " is forbidden here")
sys.meta_path.insert(0, Forbid())
from reports.build import main as build
from reports.speedups import main as speedups
code = build(["--gpu", "h200", "--run", sys.argv[1], "--out", sys.argv[2]])
assert code == 0, code
assert speedups(["--gpu", "h200", "--suite", "decode", "--over", "strongest", "--run", sys.argv[1]]) == 0
assert "torch" not in sys.modules and "triton" not in sys.modules
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A run of the head, the roofs and four cases."""
    folder = tmp_path / "small"
    folder.mkdir()
    write_all(folder / "records.jsonl", golden.records(("bitnet-2b",))[:10])
    return folder


def test_neither_torch_nor_triton_is_needed(small: Path, tmp_path: Path) -> None:
    decode = tmp_path / "decode.jsonl"
    records = golden.records(("bitnet-2b",))
    write_all(decode, [records[0], *[r for r in records if getattr(r, "suite", "") == "decode"][:4]])
    out = tmp_path / "page.html"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(decode), str(out)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    Page(out.read_text(encoding="utf-8"))


def test_the_path_is_the_last_line(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder" / "x.html"
    assert main(["--gpu", "h200", "--run", str(small), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    Page(out.read_text(encoding="utf-8"))


def test_where_it_is_written_by_default(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--gpu", "auto", "--run", str(small)]) == 0
    assert (small / "report-h200.html").exists()
    assert main(["--gpu", "rtx3090"]) == 0
    assert "no results for rtx3090" in (tmp_path / "report-rtx3090.html").read_text(encoding="utf-8")


def test_two_runs_are_one_page(small: Path, projected_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    assert main(["--gpu", "h200", "--run", str(small), "--run", str(projected_run), "--out", str(out)]) == 0
    text = Page(out.read_text(encoding="utf-8")).text()
    assert "Projected, not measured" in text
    assert "Every case" in text


def test_compare(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.html"
    assert main(["--gpu", "h200", "--compare", str(small), str(small), "--out", str(out)]) == 0
    assert "Comparison of two runs" in Page(out.read_text(encoding="utf-8")).text()


def test_the_figure_alone_is_an_svg_with_its_own_colours(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "headline.svg"
    assert main(["--gpu", "h200", "--run", str(small), "--figure", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(root.attrib["width"]) > 300
    assert "prefers-color-scheme:dark" in text
    assert root.find("{http://www.w3.org/2000/svg}desc") is not None
    assert "prefill 2:4" in text


def test_the_table_alone_is_csv(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    assert main(["--gpu", "h200", "--run", str(small), "--table", str(out)]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    [first, *_] = [record for record in golden.records(("bitnet-2b",)) if isinstance(record, CaseRecord)]
    assert (rows[0]["kernel"], rows[0]["label"]) == (first.results[0].kernel, first.label)
    assert float(rows[0]["us"]) == pytest.approx(time_us(first.results[0]))


def test_a_figure_of_nothing_says_so(tmp_path: Path) -> None:
    out = tmp_path / "nothing.svg"
    assert main(["--gpu", "rtx3090", "--figure", str(out)]) == 0
    assert "nothing measured yet" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--gpu", "gtx970"], "unknown GPU 'gtx970'; allowed:"),
        (["--gpu", "h200", "--run", "nowhere"], "nowhere: no such file or folder"),
        (["--gpu", "h200", "--run", "bad.jsonl"], "bad.jsonl:1: not JSON"),
        (["--gpu", "h200", "--compare", "bad.jsonl", "bad.jsonl"], "not JSON"),
        (["--gpu", "rtx3090", "--out", "bad.jsonl/x.html"], "cannot be written"),
        (["--gpu", "rtx3090", "--out", "."], "cannot be written"),
        (["--gpu", "rtx3090", "--figure", "bad.jsonl/x.svg"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text("{nonsense}\n{}\n")
    assert main(argv) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1
    assert said in out.err


def test_usage_errors_are_returned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "example" in capsys.readouterr().out
