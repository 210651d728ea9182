"""100,000 records: the page from them takes less than 20 s of a processor and 1 GB (docs/report.md has what it took on an idle one)."""

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

COUNT = 100_000
SECONDS, BYTES = 20.0, 1_000_000_000
SLOWER = 2.0
"""How much slower than the machine of the figures, or how much busier, this one may be."""


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
    code = (
        "import resource, sys; from reports.build import main; assert main(sys.argv[1:]) == 0; "
        "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime, used.ru_maxrss)"
    )
    line = [sys.executable, "-c", code, "--gpu", "h200", "--run", str(many), "--out", str(page)]
    done = subprocess.run(line, capture_output=True, check=True, text=True, timeout=300, cwd=repository)
    seconds, peak = map(float, done.stdout.split()[-2:])
    assert seconds < SLOWER * SECONDS
    assert peak * (1 if sys.platform == "darwin" else 1024) < BYTES
    assert 2_000_000 < page.stat().st_size < 5_000_000, "as many cases as a page holds"
