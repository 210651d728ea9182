"""Tuning one case: compile ahead, prune, check and time each candidate, halve the field, time the finalists against the default."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace

from autotune.compile import Compiled
from autotune.executor import Slot
from autotune.finals import Finals
from autotune.journal import outcome_from_plain, outcome_to_plain
from autotune.prune import against, too_slow
from autotune.search import Budget, Point, Result, Strategy
from autotune.task import Task
from autotune.tools import Stopped, Tools
from autotune.verdict import Verdict, decide
from kernels.errors import Failure

LATER = 40
"""Candidates of a brief case beyond those are compiled after the first ones of so many further cases."""
AHEAD = 8
"""Candidates compiled ahead per compiling process: while a case ends, or a device's process starts, they would have nothing to do."""
BRIEF_AHEAD, BRIEF_EVALUATIONS = 7, 3
"""Of a brief case: candidates compiled ahead, and those that are tried however short its time is."""


@dataclass(frozen=True)
class Found:
    """What tuning a case came to.

    complete: whether there were finals. reason: why there is no winner. points, verdict: the finalists, the default first where it ran.
    failures: of candidates. evaluated: how many candidates have an outcome, of how many. lead: the default's time where it led and there
    were no finals.
    """

    complete: bool
    reason: str = ""
    points: tuple[Point, ...] = ()
    verdict: Verdict | None = None
    failures: tuple[Failure, ...] = ()
    evaluated: int = 0
    of: int = 0
    lead: float | None = None

    @property
    def default_us(self) -> float | None:
        """The default's time, microseconds, where it could be measured."""
        return self.verdict.times.get(0) if self.verdict else self.lead


def ahead(strategy: Strategy, processes: int, brief: bool, left: float) -> Iterator[tuple[int, int]]:
    """(by how much its compilation is put off, place) of the candidates that are likely to come next. left: evaluations to come at most."""
    for rank, place in enumerate(strategy.preview(int(min(BRIEF_AHEAD if brief else AHEAD * processes, left)))):
        yield LATER if brief and rank >= BRIEF_EVALUATIONS else 0, place


class Tuning:
    """One case. order: its place in the run; compilations of earlier cases come first."""

    def __init__(self, task: Task, tools: Tools, order: int = 0) -> None:
        self.task, self._tools, self._order = task, tools, order
        self._strategy: Strategy = tools.search(task.points, task.starts, 0)
        self._outcomes: dict[int, Result] = {}
        self._ahead: set[int] = set()

    def compile_ahead(self) -> None:
        """Hand the candidates that are likely to come next to the compiling processes."""
        pool = self._tools.pool
        if pool is None:
            return
        left = self._tools.evaluations - len(self._outcomes)
        for later, place in ahead(self._strategy, pool.processes, self._tools.brief, left):
            if place in self._ahead:
                continue
            self._ahead.add(place)
            if self._known(place) is None:
                for unit in self.task.units(self.task.points[place]):
                    pool.submit(unit, self._order + later)

    def run(self, slot: Slot, budget: Budget) -> Found:
        """Search within the budget, then the finals; on one device, since no two of a model are equally fast. Raises Stopped."""
        evaluations = math.inf if budget.evaluations is None else budget.evaluations
        exhausted, least = False, BRIEF_EVALUATIONS if self._tools.brief else 0
        while (not budget.spent or len(self._outcomes) < least) and len(self._outcomes) < evaluations:
            self.compile_ahead()
            place = self._strategy.ask()
            if place is None:
                exhausted = True
                break
            outcome = self._outcome(place, slot)
            self._outcomes[place] = outcome
            self._strategy.tell(place, outcome)
            if self._tools.pool is not None:
                self._tools.observer.compiled(self._tools.pool.done, self._tools.pool.submitted)
            self._tools.observer.trial(self.task, self.task.points[place], outcome)
        if not self._timed() and not exhausted and len(self._outcomes) < evaluations:
            return self._found(False, "the budget was spent")
        if not self._timed():
            failures = self._failures()
            first = f": {failures[0]}" if failures else ""
            return self._found(False, f"no candidate could be measured{first}")
        if self._tools.brief and self._leading() == 0:
            return replace(self._found(True, "the default leads"), lead=self._timed()[0])
        return self._finals(slot)

    def _leading(self) -> int:
        timed = self._timed()
        return min(timed, key=lambda place: (timed[place], place))

    def _timed(self) -> dict[int, float]:
        return {place: outcome for place, outcome in self._outcomes.items() if not isinstance(outcome, Failure)}

    def _failures(self) -> tuple[Failure, ...]:
        return tuple(outcome for outcome in self._outcomes.values() if isinstance(outcome, Failure))

    def _found(self, complete: bool, reason: str, points: Sequence[Point] = (), verdict: Verdict | None = None,
               more: Sequence[Failure] = ()) -> Found:
        failures = (*self._failures(), *more)
        return Found(complete, reason, tuple(points), verdict, failures, len(self._outcomes), len(self.task.points))

    def _known(self, place: int) -> Result | None:
        point = self.task.points[place]
        known = self._tools.journal.get(*self.task.identity, point)
        if known is None:
            return self._tools.poison.get(*self.task.trouble, point)
        outcome = outcome_from_plain(known)
        return None if isinstance(outcome, Failure) and self._tools.poison.retries(outcome) else outcome

    def _outcome(self, place: int, slot: Slot) -> Result:
        """From the journal, from the poison list, by what is known before it runs, or measured."""
        point = self.task.points[place]
        outcome = self._known(place)
        if outcome is None:
            best = min(self._timed().values(), default=math.inf)
            if (slow := too_slow(self.task.bound_us(point), best)) is not None:
                return slow
            outcome = self._refused(point) or self._tools.call(self.task, slot, "evaluate", (dict(point),), self._tools.trial_seconds)
            self._tools.journal.put(outcome_to_plain(outcome), *self.task.identity, point)
        if isinstance(outcome, Failure):  # also one of the journal: that run may have ended before another candidate ran
            self._tools.suspect(self.task, slot, point, outcome)
        return outcome

    def _refused(self, point: Point) -> Failure | None:
        """What the compiler and the machine code say against it."""
        pool = self._tools.pool
        if pool is None:
            return None
        units = list(self.task.units(point))
        for unit, future in [(unit, pool.submit(unit, self._order)) for unit in units]:
            while not wait([future], timeout=0.2).done:
                if self._tools.stop.is_set():
                    raise Stopped
            compiled = future.result()
            if not isinstance(compiled, Compiled):
                return compiled
            if (reason := against(unit, compiled, self.task.gpu)) is not None:
                return reason
        return None

    def _finals(self, slot: Slot) -> Found:
        """The default and the fastest few, interleaved on fresh inputs."""
        ending = Finals(self.task, self._tools, slot)
        points = [dict(self.task.points[place]) for place in dict.fromkeys([0, *ending.halve(self._timed())])]
        known = ending.samples(points)
        if isinstance(known, Failure):
            return self._found(False, str(known), more=(known,))
        failures = [own for own in known if isinstance(own, Failure)]
        samples = {place: own for place, own in enumerate(known) if not isinstance(own, Failure)}
        if not samples:
            return self._found(False, "no finalist could be measured", more=failures)
        verdict = decide(samples)
        return self._found(True, "" if verdict.better else "the default is as good as any", points, verdict, failures)
