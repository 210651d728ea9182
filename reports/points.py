"""What a history keeps of a case in one run: our fastest exact kernel, the strongest baseline, and their paired ratio."""

from __future__ import annotations

from dataclasses import dataclass

from suites.record import CaseRecord
from suites.statistics import Ratio, best_variant, speedup, strongest, time_us


@dataclass(frozen=True)
class Point:
    """One measured case in one run (its id). us: our kernel time; ratio: ours over the rival, with its interval."""

    run: str
    key: str
    kernel: str
    us: float
    rival: str
    ratio: Ratio


def moved(before: tuple[str, str], after: tuple[str, str]) -> list[str]:
    """Which kernels are other ones than before, in words; before, after: ours and the strongest baseline by name."""
    sides = zip(("ours", "strongest"), before, after, strict=True)
    return [f"{side} was {old or 'none'}, is {new or 'none'}" for side, old, new in sides if old != new]


def point_of(case: CaseRecord) -> Point | None:
    """The point of a measured case; None where it was not measured, or has no kernel of ours or no baseline."""
    ours, theirs = (best_variant(case), strongest(case)) if case.evidence == "measured" else (None, None)
    ratio, us = speedup(ours, theirs) if ours and theirs else None, time_us(ours) if ours else None
    if ours is None or theirs is None or ratio is None or us is None:
        return None
    return Point(case.run, case.key, ours.kernel, us, theirs.kernel, ratio)
