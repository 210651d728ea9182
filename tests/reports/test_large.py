"""100,000 records: the page from them takes as long as parsing a part of them, and 1 GB (docs/report.md has what it took in seconds)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reports.load import accepted_path
from suites.record import CaseRecord, RunRecord, read, to_line
from tests.patience import PATIENCE

COUNT = 100_000
PARSED, TIMES, BYTES = 2_000, 150, 1_000_000_000
"""Time is measured by what parsing so many of the records takes on the same machine: the page takes 51 to 93 times that, and may 150
(100 are 20 s on the machine of docs/report.md)."""
CODE = """
import json, resource, sys
from pathlib import Path
from reports.build import main

def used():
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime

def parsing(count):
    with min(Path(sys.argv[4]).iterdir()).open("rb") as file:
        lines = [line for line, _ in zip(file, range(500))]
    began = used()
    for place in range(count):
        json.loads(lines[place % len(lines)])
    return used() - began

yardstick, began = parsing(PARSED), used()
assert main(sys.argv[1:]) == 0
took = used() - began
print(took, max(yardstick, parsing(PARSED)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Path]:
    """Runs of the committed cases, as the suites write them, until there are so many, no two of the same case."""
    records = list(read(accepted_path("h200")))
    [head, *_] = [record for record in records if isinstance(record, RunRecord)]
    cases = [record for record in records if isinstance(record, CaseRecord)]
    lines = [(f'"run":"{case.run}"', to_line(case)) for case in cases]
    folder = tmp_path / "many"
    folder.mkdir()
    for start in range(0, COUNT, len(lines)):
        name = f"run-{start:06d}"
        opening = to_line(replace(head, id=name, planned=()))
        own = (
            line.replace(named, f'"run":"{name}"', 1).replace('"layer":"', f'"layer":"{name} ', 1)
            for named, line in lines[: COUNT - start]
        )
        (folder / f"{name}.jsonl").write_text("\n".join([opening, *own]) + "\n", encoding="utf-8")
    yield folder
    shutil.rmtree(folder)  # half a gigabyte


def test_a_page_from_100_000_records(many: Path, tmp_path: Path, repository: Path) -> None:
    page = tmp_path / "page.html"
    line = [sys.executable, "-c", CODE.replace("PARSED", str(PARSED)), "--gpu", "h200", "--run", str(many), "--out", str(page)]
    done = subprocess.run(line, capture_output=True, check=True, text=True, timeout=5 * PATIENCE, cwd=repository)
    seconds, yardstick, peak = map(float, done.stdout.split()[-3:])
    assert seconds < TIMES * yardstick, f"{seconds:.1f} s, {seconds / yardstick:.0f} times {yardstick:.2f} s"
    assert peak * (1 if sys.platform == "darwin" else 1024) < BYTES
    assert 2_000_000 < page.stat().st_size < 5_000_000, "as many cases as a page holds"
