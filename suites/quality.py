"""Whether a measured case can be believed: wrong numbers, failures, noise, and what surrounded it. Pure; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from suites.command import INCONCLUSIVE, WRONG
from suites.record import CaseRecord
from suites.statistics import Ratio, best_variant, speedup, strongest

NOISE = 0.10
"""A case whose headline ratio is uncertain by more than this, end to end, is noisy."""
IMPOSSIBLE = "impossible"
"""The note of a result that is refused, with the reason."""
THERMAL_BITS = 0x8 | 0x20 | 0x40 | 0x80
"""Clock event reasons that spoil a measurement: slowdowns and power brakes. The power cap is the normal state of a busy device."""
ENOUGH = 5
"""So many samples say something of their own distribution."""
DRIFT = 0.25
"""A case whose kernels all became slower or faster by more than this from its first third to its last was measured on unsettled clocks.
The largest of 492 cases on an H200 drifted by 16 % (2026-11-22): large GEMMs run into the power cap within a case."""

RefusalName = Literal[
    "above-roof", "identical-samples", "repeated-inputs", "wrong-after-timing", "other-process", "throttled", "clocks-unsettled",
]


@dataclass(frozen=True)
class Refusal:
    """Why a case, or one kernel in it, is not believed. kernel: None where it is the whole case."""

    name: RefusalName
    detail: str
    kernel: str | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


def headline(case: CaseRecord) -> Ratio | None:
    """The best exact variant over the strongest baseline, or None."""
    ours, theirs = best_variant(case), strongest(case)
    return speedup(ours, theirs) if ours and theirs else None


def noise(ratio: Ratio) -> float:
    """Relative width of a ratio's interval: 0.1 is ten percent from end to end."""
    return ratio.high / ratio.low - 1 if ratio.low > 0 else math.inf


def _shots(case: CaseRecord) -> list[Mapping[str, Any]]:
    return [case.conditions.get(when) or {} for when in ("before", "after")]


def _slowed_down(shot: Mapping[str, Any]) -> str | None:
    """The reasons for which the device slowed down, or None where it did not."""
    bits = shot.get("throttle")
    return str(shot.get("throttle_names") or bits) if bits is not None and int(str(bits), 16) & THERMAL_BITS else None


def _others(shot: Mapping[str, Any]) -> int:
    """Other processes that computed on the device."""
    return int(shot.get("other_processes") or 0)


def spoiled(shot: Mapping[str, Any] | None) -> bool:
    """Whether the conditions at one moment are a reason to refuse what was measured beside it."""
    return shot is not None and (_slowed_down(shot) is not None or _others(shot) > 0)


def case_refusals(case: CaseRecord) -> list[Refusal]:
    """What speaks against every result of a case: its surroundings. Those of single results: `suites.refusals`."""
    return [*_foreign(case), *_throttle(case), *_unsettled(case)]


def _foreign(case: CaseRecord) -> Iterator[Refusal]:
    others = max(map(_others, _shots(case)))
    if others > 0:
        yield Refusal("other-process", f"other processes computed on the device: {others}")


def _throttle(case: CaseRecord) -> Iterator[Refusal]:
    reason = next(filter(None, map(_slowed_down, _shots(case))), None)
    if reason is not None:
        yield Refusal("throttled", reason)


def _unsettled(case: CaseRecord) -> Iterator[Refusal]:
    """Process by process: each has its own clocks."""
    series = [result.samples_us for result in case.results if len(result.samples_us) >= ENOUGH and result.status == "ok"]
    counts = (case.processes or (len(series[0]),)) if series else ()
    parts = [[own[end - count:end] for own in series] for count, end in zip(counts, accumulate(counts), strict=True) if count >= ENOUGH]
    drift = max(map(_drift, parts), key=abs, default=0.0)
    if abs(drift) > math.log1p(DRIFT):
        yield Refusal("clocks-unsettled", f"all kernels together drifted by {math.expm1(drift):+.0%} while they were measured")


def _drift(series: Sequence[Sequence[float]]) -> float:
    """Of the kernels of one process, from the first third of their rounds to the last, logarithmic."""
    third = len(series[0]) // 3
    return float(np.median([math.log(np.median(own[-third:]) / np.median(own[:third])) for own in series]))


def troubles(case: CaseRecord) -> list[tuple[int, str]]:
    """What is wrong with a measured case, each with the exit code that it stands for; empty where it is good, or refused as a whole."""
    if case.refusal:
        return []
    found = [(WRONG, f"{result.kernel} is wrong: {result.reason}") for result in case.results if result.status == "wrong"]
    found += [(INCONCLUSIVE, f"{result.kernel}: {result.stage}: {result.reason}") for result in case.results if result.status == "failed"]
    flagged = [result for result in case.results if IMPOSSIBLE in result.notes]
    found += [(INCONCLUSIVE, f"{result.kernel} is impossible: {result.notes[IMPOSSIBLE]}") for result in flagged]
    variants = {result.status for result in case.results if result.kind == "variant"} - {"unavailable"}
    if variants and best_variant(case) is None and not found:
        found.append((INCONCLUSIVE, "no variant was measured"))
    ratio = headline(case)
    if ratio is not None and noise(ratio) > NOISE:
        found.append((INCONCLUSIVE, f"noisy: the speed-up {ratio.value:.2f} is uncertain by {noise(ratio):.0%}"))
    return found + [(INCONCLUSIVE, str(refusal)) for refusal in case_refusals(case)]
