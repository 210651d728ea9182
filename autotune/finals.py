"""The end of a case: from timed candidates to finalists, and the finalists interleaved; noise is paid for only near the top."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.executor import Slot
from autotune.journal import outcome_to_plain
from autotune.search import Point
from autotune.task import Task
from autotune.tools import Tools
from kernels.errors import Failure

FINALISTS, BRIEF_FINALISTS = 3, 1
"""So many are timed against the default in the end; in a brief case."""
KEEP = 4
"""One in so many candidates goes on to be timed longer: successive halving, by this factor."""
TURNS = (9, 27)
"""Turns of the candidates that go on; the first timing has three."""
NEAR = 1.2
"""Only candidates within this factor of the best go on."""
FINAL_SECONDS = 180.0


class Finals:
    """Of one case, on the device that its candidates ran on."""

    def __init__(self, task: Task, tools: Tools, slot: Slot) -> None:
        self._task, self._tools, self._slot = task, tools, slot

    def halve(self, times: Mapping[int, float]) -> list[int]:
        """The finalists, fastest first: the best quarter of what was timed, timed three times as long, and so on."""
        if self._tools.brief:
            return _ranked(times)[:BRIEF_FINALISTS]
        for turns in TURNS:
            ranked = _ranked(times)
            kept = [place for place in ranked[: math.ceil(len(ranked) / KEEP)] if times[place] <= NEAR * times[ranked[0]]]
            if len(kept) <= FINALISTS:
                return ranked[:FINALISTS]
            self._tools.observer.halving(self._task, len(kept), turns)
            times = self._again(kept, times, turns)
        return _ranked(times)[:FINALISTS]

    def _again(self, places: Sequence[int], times: Mapping[int, float], turns: int) -> dict[int, float]:
        points = [dict(self._task.points[place]) for place in places]
        key = (*self._task.identity, {"turns": turns, "points": points})
        known = self._tools.journal.get(*key)
        if known is None:
            results = self._call("again", points, turns)
            if isinstance(results, Failure):
                return {place: times[place] for place in places}
            known = [outcome_to_plain(own) for own in results]
            self._tools.journal.put(known, *key)
        return {place: times[place] if isinstance(own, Mapping) else float(own) for place, own in zip(places, known, strict=True)}

    def samples(self, points: Sequence[Point]) -> list[Sequence[float] | Failure] | Failure:
        """Paired samples of these candidates on fresh inputs, or the failure of each; a Failure where there are none of any."""
        self._tools.observer.finals(self._task)
        key = ("finals", *self._task.identity, points)
        known = self._tools.journal.get(*key)
        if known is None:
            results = self._fair(points)
            if isinstance(results, Failure):
                return results
            known = [outcome_to_plain(own) if isinstance(own, Failure) else list(own) for own in results]
            self._tools.journal.put(known, *key)
        return [Failure(own["stage"], own["reason"]) if isinstance(own, Mapping) else own for own in known]

    def _fair(self, points: Sequence[Point]) -> list[Any] | Failure:
        """Samples of each; where one takes the worker with it, each is tried alone and the survivors again together."""
        results = self._call("finals", points)
        if not isinstance(results, Failure):
            return list(results)
        alone = [self._call("finals", [point]) for point in points]
        lost = {place: own for place, own in enumerate(alone) if isinstance(own, Failure)}
        left = [point for place, point in enumerate(points) if place not in lost]
        if not lost or not left:
            return results
        for place, failure in lost.items():
            self._tools.suspect(self._task, self._slot, points[place], failure)
        together = self._call("finals", left)
        if isinstance(together, Failure):
            return together
        rest = iter(together)
        return [lost[place] if place in lost else next(rest) for place in range(len(points))]

    def _call(self, function: str, *arguments: Any) -> Any:
        return self._tools.call(self._task, self._slot, function, arguments, FINAL_SECONDS)


def _ranked(times: Mapping[int, float]) -> list[int]:
    return sorted(times, key=lambda place: (times[place], place))
