"""What a run shows, on a terminal and elsewhere."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from kernels.problem import Problem, Sparsity
from suites import progress
from suites.case import Case
from suites.progress import Reporter, phases, summary, table
from suites.record import CaseRecord, Result

PROBLEM = Problem("gemm", 64, 64, 64, Sparsity(2, 4))
CASE = Case("prefill", "m", "W2", PROBLEM, "hot")


def record(*results: Result, **fields: object) -> CaseRecord:
    return CaseRecord(
        "r", "prefill", "m", "W2", "interleaved", "hot", PROBLEM.to_dict(), str(PROBLEM), PROBLEM.operations, 10**6, results,
        **fields,  # type: ignore[arg-type]
    )


OURS = Result("ours", "variant", "ok", samples_us=(10.0,) * 12)
THEIRS = Result("theirs", "baseline", "ok", samples_us=(20.0,) * 12)
BROKEN = Result("broken", "baseline", "failed", "launch", "[red]boom[/red]")
GOOD = record(OURS, THEIRS, phases={"check": 0.5, "measure": 1.5}, seconds=2.2)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, seconds = io.StringIO(), iter((100.0, 175.0, 190.0))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with Reporter(2, stream) as reporter:
        reporter.case(CASE, GOOD)
        reporter.case(CASE, record(OURS, THEIRS, BROKEN))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[1/2, 1:15 left] prefill m W2 gemm 64x64 T=64 2:4: ours 10.0 µs, 2.00× theirs"
    assert lines[2] == "  ! broken: launch: [red]boom[/red]"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Reporter(1, stream) as reporter:
        reporter.case(CASE, record(OURS, THEIRS, BROKEN))
    shown = stream.getvalue()
    assert "1/1" in shown
    assert "broken: launch: [red]boom[/red]" in shown


def test_summaries() -> None:
    assert summary(record(refusal="8 does not divide")) == "refused: 8 does not divide"
    assert summary(record(THEIRS)) == "no variant measured"
    assert summary(record(OURS)) == "ours 10.0 µs, no exact baseline"
    assert phases([GOOD, GOOD]) == "cases took 4 s: measure 3 s, check 1 s"
    assert phases([]) == ""


def test_the_table_counts_what_is_missing() -> None:
    stream = io.StringIO()
    Console(file=stream, width=120).print(table([GOOD, record(THEIRS)]))
    row = next(line for line in stream.getvalue().splitlines() if "gemm" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == ["prefill", "gemm", "2:4", "2.00", "2.00", "2.00", "1", "1", "2"]
