"""What a calibration looks at: a kernel and the baseline it is compared with, in each of several fresh processes. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from suites.record import CaseRecord, Result
from suites.statistics import Estimate, median_error, process_logs, time_us, together

FEWEST = 3
"""Processes without which nothing is said of the spread between them."""


@dataclass(frozen=True)
class Seen:
    """The median logarithmic speed-up of each process, and its standard error as the rounds show it."""

    medians: tuple[float, ...]
    errors: tuple[float, ...]

    @classmethod
    def of(cls, logs: Sequence[np.ndarray]) -> Seen:
        """Of the logarithmic speed-ups of each process, round by round."""
        return cls(tuple(float(np.median(log)) for log in logs), tuple(map(median_error, logs)))

    def only(self, places: Sequence[int]) -> Seen:
        """Of some of the processes."""
        return Seen(tuple(self.medians[place] for place in places), tuple(self.errors[place] for place in places))


@dataclass(frozen=True)
class Pair:
    """What calibration sees of a kernel and its baseline in a case: in all rounds, and in those at full clock (`at_full_clock`).

    us: the kernel's typical time. rounds: of each process.
    """

    key: str
    kernel: str
    baseline: str
    us: float
    rounds: tuple[int, ...]
    all: Seen
    fast: Seen

    @property
    def processes(self) -> int:
        """How many took part."""
        return len(self.rounds)

    def steadier(self) -> bool:
        """Whether the rounds at full clock differ less between the processes than all rounds do."""
        return _squares(self.fast.medians) < _squares(self.all.medians)

    def without(self, *places: int) -> Pair:
        """The same without some of the processes."""
        kept = [place for place in range(self.processes) if place not in places]
        return replace(self, rounds=tuple(self.rounds[place] for place in kept), all=self.all.only(kept), fast=self.fast.only(kept))

    def estimate(self, places: Sequence[int], fast: bool) -> Estimate:
        """What some of the processes say together."""
        seen = (self.fast if fast else self.all).only(places)
        return together(seen.medians, seen.errors, min(self.rounds[place] for place in places))


def _squares(values: Sequence[float]) -> float:
    """Around their mean."""
    middle = sum(values) / len(values)
    return sum((value - middle) ** 2 for value in values)


def pairs_of(cases: Mapping[str, Sequence[CaseRecord]]) -> list[Pair]:
    """Every variant against the `steadiest` baseline. cases: by key, the records of the fresh processes in order."""
    found: list[Pair] = []
    for key, records in cases.items():
        for result in records[0].results:
            if result.kind == "variant" and len(records) >= FEWEST:
                found += _pair(key, result.kernel, records)
    return found


def _pair(key: str, kernel: str, records: Sequence[CaseRecord]) -> Iterable[Pair]:
    ours = [record.result(kernel) for record in records]
    common = [
        theirs for theirs in records[0].results
        if theirs.kind == "baseline" and all(_timed(record.result(theirs.kernel)) for record in records)
    ]
    if not common or not all(map(_timed, ours)):
        return
    baseline = min(common, key=lambda own: steadiest(own, _typical(record.result(own.kernel) for record in records))).kernel
    logs = [
        [
            np.concatenate(process_logs(own, theirs, record.processes, fast)) for own, record in zip(ours, records, strict=True)
            if own is not None and (theirs := record.result(baseline)) is not None
        ]
        for fast in (False, True)
    ]
    yield Pair(key, kernel, baseline, _typical(ours), tuple(map(len, logs[0])), *map(Seen.of, logs))


def steadiest(baseline: Result, us: float) -> tuple[bool, bool, float]:
    """The order in which baselines are compared with: those that run the same algorithm in every process, then exact ones, then fast ones.

    On an H200 cuSPARSELt's search chose another algorithm in five of six processes, which moved its time by 1 to 7 % (2026-11-22).
    """
    return baseline.config_source == "search", not baseline.exact, us


def _timed(result: Result | None) -> bool:
    return result is not None and result.status == "ok" and bool(result.samples_us)


def _typical(results: Iterable[Result | None]) -> float:
    return float(np.median([time for result in results if result is not None and (time := time_us(result)) is not None]))
