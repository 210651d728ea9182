"""What a tuning run shows while it goes: bars and the best so far on a terminal, one plain line per case elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autotune.events import Observer
from autotune.search import Budget, Point
from autotune.task import Task
from kernels.errors import Failure
from kernels.gpu import Gpu
from kernels.problem import Problem

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ROWS = 4
"""Cases shown at once; those of other devices are counted."""
SHOWN = 3
"""Reasons of rejected candidates shown at once."""


@dataclass
class Case:
    """A case under way. best, default: microseconds so far. floor: what the datasheet's rates allow."""

    device: str
    floor: float
    of: int
    done: int = 0
    best: float | None = None
    default: float | None = None
    stage: str = "search"


def floor_us(problem: Problem, gpu: Gpu) -> float:
    """Microseconds that a GEMM needs at the datasheet's rates, its 2-bit weight, int8 inputs and 2-byte outputs moved once."""
    tokens, rows, width = problem.tokens, problem.out_features, problem.in_features
    moved = tokens * width + rows * width / 4 + 2 * tokens * rows
    return gpu.floor_seconds(problem.operations, moved, "int8", problem.sparsity.m > 1) * 1e6


@dataclass
class View(Observer):
    """Counts what it hears; `table` draws it. total: cases of the whole run. console: None prints plain lines. budget: of the run.

    rejected: by case and reason, the candidates that its space refused.
    """

    total: int
    console: Console | None = None
    budget: Budget | None = None
    over: int = 0
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    cases: dict[str, Case] = field(default_factory=dict)
    rejected: dict[str, Mapping[str, int]] = field(default_factory=dict)
    compilations: tuple[int, int] = (0, 0)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, task: Task, device: str) -> None:
        """A new row."""
        with self._lock:
            problem = getattr(task.job, "problem", None)
            self.rejected[task.label] = task.rejected
            self.cases[task.label] = Case(device, 0.0 if problem is None else floor_us(problem, task.gpu), len(task.points))

    def trial(self, task: Task, point: Point, outcome: float | Failure) -> None:
        """One more candidate."""
        with self._lock:
            self.done += 1
            case = self.cases[task.label]
            case.done += 1
            if isinstance(outcome, Failure):
                self.failed["pruned" if outcome.reason.startswith("pruned: ") else outcome.stage] += 1
                return
            case.best = outcome if case.best is None else min(case.best, outcome)
            if point == task.points[0]:
                case.default = outcome

    def halving(self, task: Task, count: int, turns: int) -> None:
        """The row says so."""
        self.cases[task.label].stage = f"{count} timed again, {turns} turns"

    def finals(self, task: Task) -> None:
        """The row says so; candidates that will not be tried count as done."""
        with self._lock:
            case = self.cases[task.label]
            case.done, case.stage = case.of, "finals"

    def finished(self, task: Task) -> None:
        """Its row goes."""
        with self._lock:
            self.over += self.cases.pop(task.label, None) is not None

    def compiled(self, done: int, of: int) -> None:
        """Shown in the heading."""
        self.compilations = (done, of)

    def say(self, text: str) -> None:
        """A line above the table, or a plain line."""
        if self.console is None:
            print(text, flush=True)
        else:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def never_tried(self, most: int) -> str:
        """What the spaces of the cases so far do not let pass, the commonest reasons first, so many of them; "" where there is none."""
        with self._lock:
            reasons = sum(map(Counter, self.rejected.values()), Counter[str]())
        if not reasons:
            return ""
        told = [f"{count} {reason}" for reason, count in reasons.most_common(most)]
        more = len(reasons) - len(told)
        return f"{reasons.total()} rejected before compiling: {'; '.join(told)}" + (f"; {more} more reasons" if more else "")

    def left(self) -> str:
        """The time left, as far as it can be told: by the cases, no longer than the budget."""
        with self._lock:
            done = self.over + sum(min(1.0, case.done / max(1, case.of)) for case in self.cases.values())
        limit = self.budget.seconds if self.budget is not None else None
        if not done:
            return "time left unknown" if limit is None else _span(limit)
        seconds = (time.monotonic() - self.started) / done * max(0.0, self.total - done)
        return _span(seconds if limit is None else min(seconds, limit))

    def table(self) -> Table:
        """The state as a table."""
        from rich.table import Table
        from rich.text import Text

        left, caption = self.left(), self.never_tried(SHOWN)
        with self._lock:
            failed = ", ".join(f"{count} {stage}" for stage, count in sorted(self.failed.items())) or "none failed"
            compiled = f"compiled {self.compilations[0]}/{self.compilations[1]}"
            head = f"{self.over}/{self.total} cases, {left}; {self.done} candidates; {compiled}; {failed}"
            table = Table(title=head, title_justify="left", caption=Text(caption), caption_justify="left", expand=False)
            for name in ("case", "on", "tried", "best µs", "over default", "of roof", "stage"):
                table.add_column(name, no_wrap=name != "case")
            for label, case in list(self.cases.items())[-ROWS:]:
                gain = f"{case.default / case.best:.2f}x" if case.default and case.best else ""
                roof = f"{case.floor / case.best:.0%}" if case.best and case.floor else ""
                best = f"{case.best:.2f}" if case.best else ""
                table.add_row(Text(label), case.device, f"{case.done}/{case.of}", best, gain, roof, Text(case.stage))
            return table


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"


@contextmanager
def view(total: int, console: Console | None = None, budget: Budget | None = None) -> Iterator[View]:
    """A live table on a terminal, else only what is said, line by line. console: another one than standard output."""
    if console is None and not sys.stdout.isatty():
        yield View(total, None, budget)
        return
    from rich.console import Console
    from rich.live import Live

    console = console or Console()
    shown = View(total, console, budget)
    if not console.is_terminal:
        yield shown
        return
    with Live(get_renderable=shown.table, console=console, refresh_per_second=4, transient=True):
        yield shown
