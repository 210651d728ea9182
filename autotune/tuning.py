"""Tuning one case: compile ahead, prune, check and time each candidate, halve the field, time the finalists against the default."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field, replace
from typing import Any

from autotune.compile import Compiled
from autotune.events import Observer
from autotune.executor import Slot
from autotune.journal import Journal, PoisonList, outcome_from_plain, outcome_to_plain
from autotune.pool import CompilePool
from autotune.prune import against, too_slow
from autotune.search import Budget, Maker, Point, Result, Strategy, exhaustive
from autotune.task import FUNCTIONS, Task
from autotune.verdict import Verdict, decide
from kernels.errors import Failure

FINALISTS = 3
"""So many are timed against the default in the end."""
KEEP = 4
"""One in so many candidates goes on to be timed longer: successive halving, by this factor."""
TURNS = (9, 27)
"""Turns of the candidates that go on; the first timing has three."""
NEAR = 1.2
"""Only candidates within this factor of the best go on."""
LATER = 40
"""Candidates of a brief case beyond those are compiled after the first ones of so many further cases."""
TRIAL_SECONDS = 60.0
FINAL_SECONDS = 180.0
AHEAD = 8
"""Candidates compiled ahead per compiling process: while a case ends, or a device's process starts, they would have nothing to do."""
BRIEF_AHEAD, BRIEF_FINALISTS, BRIEF_EVALUATIONS = 7, 1, 3
"""Of a brief case: candidates compiled ahead, finalists beside the default, and candidates that are tried however short its time is."""


class Stopped(Exception):
    """The run was interrupted; nothing of the candidate in flight is kept."""


@dataclass
class Tools:
    """What all cases of a run share. pool: None compiles nothing ahead. stop: set when the run is interrupted. functions: see `Task`.

    brief: many cases in little time: few candidates of each are compiled ahead and compared in the end, and there are no finals where the
    default leads. evaluations: of each case at most, what is beyond is not compiled ahead. busy: seconds that
    the devices' processes worked, together.
    """

    journal: Journal
    poison: PoisonList
    pool: CompilePool | None = None
    search: Maker = exhaustive
    observer: Observer = field(default_factory=Observer)
    trial_seconds: float = TRIAL_SECONDS
    stop: threading.Event = field(default_factory=threading.Event)
    functions: str = FUNCTIONS
    brief: bool = False
    evaluations: float = math.inf
    busy: float = 0.0


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
        self._suspects: list[tuple[int, Failure]] = []
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
        return self._finals(self._halve(slot), slot)

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
        return self._tools.poison.get(*self.task.trouble, point) if known is None else outcome_from_plain(known)

    def _outcome(self, place: int, slot: Slot) -> Result:
        """From the journal, from the poison list, by what is known before it runs, or measured."""
        if (known := self._known(place)) is not None:
            return known
        point = self.task.points[place]
        best = min(self._timed().values(), default=math.inf)
        if (slow := too_slow(self.task.bound_us(point), best)) is not None:
            return slow
        outcome: Result = self._refused(point) or self._call(slot, "evaluate", (dict(point),), self._tools.trial_seconds)
        self._tools.journal.put(outcome_to_plain(outcome), *self.task.identity, point)
        self._suspect(place, outcome)
        return outcome

    def _suspect(self, place: int, outcome: Result) -> None:
        """A candidate that killed is poisoned once another one runs: what kills every candidate is the machine."""
        if isinstance(outcome, Failure):
            self._suspects.append((place, outcome))
            return
        for guilty, failure in self._suspects:
            self._tools.poison.put(failure, *self.task.trouble, self.task.points[guilty])
        self._suspects.clear()

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

    def _call(self, slot: Slot, function: str, arguments: tuple[Any, ...], seconds: float) -> Any:
        started = time.monotonic()
        result = slot.call(f"{self.task.functions}:{function}", (self.task.on(slot.device), *arguments), seconds)
        self._tools.busy += time.monotonic() - started
        if self._tools.stop.is_set():
            raise Stopped
        return result

    def _halve(self, slot: Slot) -> list[int]:
        """The finalists: the best quarter, timed three times as long, and so on; noise is paid for only near the top."""
        times = self._timed()
        if self._tools.brief:
            return sorted(times, key=lambda place: (times[place], place))[:BRIEF_FINALISTS]
        for turns in TURNS:
            ranked = sorted(times, key=lambda place: (times[place], place))
            kept = [place for place in ranked[: math.ceil(len(ranked) / KEEP)] if times[place] <= NEAR * times[ranked[0]]]
            if len(kept) <= FINALISTS:
                return ranked[:FINALISTS]
            self._tools.observer.halving(self.task, len(kept), turns)
            times = self._again(kept, times, turns, slot)
        return sorted(times, key=lambda place: (times[place], place))[:FINALISTS]

    def _again(self, places: Sequence[int], times: Mapping[int, float], turns: int, slot: Slot) -> dict[int, float]:
        points = [dict(self.task.points[place]) for place in places]
        key = (*self.task.identity, {"turns": turns, "points": points})
        known = self._tools.journal.get(*key)
        if known is None:
            results = self._call(slot, "again", (points, turns), FINAL_SECONDS)
            if isinstance(results, Failure):
                return {place: times[place] for place in places}
            known = [outcome_to_plain(own) for own in results]
            self._tools.journal.put(known, *key)
        return {place: times[place] if isinstance(own, Mapping) else float(own) for place, own in zip(places, known, strict=True)}

    def _finals(self, best: Sequence[int], slot: Slot) -> Found:
        """The default and the fastest few, interleaved on fresh inputs."""
        points = [dict(self.task.points[place]) for place in dict.fromkeys([0, *best])]
        self._tools.observer.finals(self.task)
        key = ("finals", *self.task.identity, points)
        known = self._tools.journal.get(*key)
        if known is None:
            results = self._fair(points, slot)
            if isinstance(results, Failure):
                return self._found(False, str(results), more=(results,))
            known = [outcome_to_plain(own) if isinstance(own, Failure) else list(own) for own in results]
            self._tools.journal.put(known, *key)
        failures = [Failure(own["stage"], own["reason"]) for own in known if isinstance(own, Mapping)]
        samples = {place: own for place, own in enumerate(known) if not isinstance(own, Mapping)}
        if not samples:
            return self._found(False, "no finalist could be measured", more=failures)
        verdict = decide(samples)
        return self._found(True, "" if verdict.better else "the default is as good as any", points, verdict, failures)

    def _fair(self, points: Sequence[Point], slot: Slot) -> list[Any] | Failure:
        """Samples of each; where one takes the worker with it, each is tried alone and the survivors again together."""
        results = self._call(slot, "finals", (points,), FINAL_SECONDS)
        if not isinstance(results, Failure):
            return list(results)
        alone = [self._call(slot, "finals", ([point],), FINAL_SECONDS) for point in points]
        lost = {place: own for place, own in enumerate(alone) if isinstance(own, Failure)}
        left = [point for place, point in enumerate(points) if place not in lost]
        if not lost or not left:
            return results
        together = self._call(slot, "finals", (left,), FINAL_SECONDS)
        if isinstance(together, Failure):
            return together
        rest = iter(together)
        return [lost[place] if place in lost else next(rest) for place in range(len(points))]
