"""The README's table of results is what the committed records say: every figure of every row, rounded once."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from reports import speedups
from reports.figures import times
from reports.load import Results, load

BETWEEN = " · "
"""Between the two halves of a row that holds two baselines."""
ROW = re.compile(r"\| (?P<words>.*?`--.*?) \| (?P<geomean>[\d. ·]+) \| (?P<least>[\d. ·]+) \| (?P<greatest>[\d. ·]+) \| (?P<count>\d+) \|")


def rows(text: str) -> Iterator[tuple[list[str], list[str], int]]:
    """The arguments of each comparison, its three figures as printed, and its number of cases."""
    before: list[str] = []
    for found in map(ROW.match, text.splitlines()):
        if found is None:
            continue
        first, *others = [shlex.split(words) for words in re.findall(r"`(--.*?)`", found["words"])]
        if found["words"].startswith("the same"):
            first = before + first
        else:
            before = first
        base = first[: first.index("--over")] + first[first.index("--over") + 2 :]
        figures = [found[name].split(BETWEEN) for name in ("geomean", "least", "greatest")]
        for place, arguments in enumerate([first, *(base + other for other in others)]):
            yield arguments, [own[place] for own in figures], int(found["count"])


def test_the_table_says_what_the_committed_records_say(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = load("h200")

    def known(gpu: str, runs: list[str]) -> Results:
        assert (gpu, runs) == ("h200", [])
        return committed

    monkeypatch.setattr(speedups, "load", known)
    seen = list(rows((repository / "README.md").read_text(encoding="utf-8")))
    assert len(seen) > 25
    for arguments, figures, count in seen:
        assert speedups.main(["--gpu", "h200", *arguments, "--json"]) == 0, arguments
        summary = json.loads(capsys.readouterr().out)["summary"]
        printed = [times(summary[name]).removesuffix("×") for name in ("geomean", "min", "max")]
        assert (figures, count) == (printed, summary["n"]), arguments
