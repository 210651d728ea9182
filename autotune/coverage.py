"""What a table of tuned configs covers of the suites: every problem that they measure and a tuner has a choice for. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autotune import plan
from kernels.problem import Problem
from kernels.tuned_table import REACH, Entry


@dataclass(frozen=True)
class Coverage:
    """Of one suite. problems: how many there are. tuned: for how many another config than the default won. stays: for how many nothing was
    shown to be faster. carried: those of either kind whose entry is of other tokens, near enough. missing: those without an entry."""

    suite: str
    problems: int
    tuned: int
    stays: int
    carried: int
    missing: tuple[Problem, ...]

    def __str__(self) -> str:
        covered = self.problems - len(self.missing)
        told = f"{self.suite}: {covered} of {self.problems} problems, {self.tuned} tuned, {self.stays} stay with their default"
        told += f" ({self.carried} by the entry of other tokens)" if self.carried else ""
        return told + (f"; not covered: {', '.join(map(str, self.missing))}" if self.missing else "")


def coverage(entries: Iterable[Entry]) -> list[Coverage]:
    """Suite by suite. A problem with entries of several kernels counts as tuned where any of them won against its default."""
    found: dict[tuple[object, ...], dict[int, bool]] = {}
    for entry in entries:
        own = found.setdefault((entry.op, entry.out_features, entry.in_features, entry.sparsity, entry.dtype), {})
        own[entry.tokens] = own.get(entry.tokens, False) or not entry.stays
    told = []
    for suite in dict.fromkeys(row.suite for row in plan.ROWS):
        wanted = list(dict.fromkeys(one for row in plan.ROWS if row.suite == suite for group in row.groups() for one in group))
        known = [_nearest(found, one) for one in wanted]
        missing = tuple(one for one, (_, won) in zip(wanted, known, strict=True) if won is None)
        wins = [won for _, won in known]
        carried = sum(won is not None and tokens != one.tokens for one, (tokens, won) in zip(wanted, known, strict=True))
        told.append(Coverage(suite, len(wanted), wins.count(True), wins.count(False), carried, missing))
    return told


def _nearest(found: Mapping[tuple[object, ...], Mapping[int, bool]], problem: Problem) -> tuple[int, bool | None]:
    """The tokens of the entry that applies, the nearest within `REACH`, and whether it is a winner; None where there is none."""
    own = found.get((problem.op, problem.out_features, problem.in_features, str(problem.sparsity), problem.dtype), {})
    ratios = {tokens: max(tokens, problem.tokens, 1) / max(1, min(tokens, problem.tokens)) for tokens in own}
    best = min(ratios, key=lambda tokens: ratios[tokens], default=0)
    return (best, own[best]) if own and ratios[best] <= REACH else (0, None)


def told_of(made: Mapping[str, Any]) -> list[str]:
    """A line about the run that made a table, where the table knows."""
    if not made:
        return []
    return [f"made by {made.get('command')} on {made.get('date')}: {made.get('seconds')} s on {made.get('devices')} devices, "
            f"{made.get('complete')} of {made.get('cases')} cases, {made.get('evaluated')} candidates"]
