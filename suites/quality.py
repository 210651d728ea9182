"""Whether a measured case can be believed: wrong numbers, failures, noise, throttling. Pure; needs no torch."""

from __future__ import annotations

import math

from suites.command import INCONCLUSIVE, WRONG
from suites.record import CaseRecord
from suites.statistics import Ratio, best_variant, speedup, strongest

NOISE = 0.10
"""A case whose headline ratio is uncertain by more than this, end to end, is noisy."""
IMPOSSIBLE = "impossible"
"""The note of a result that lies above its roof."""
THERMAL_BITS = 0x8 | 0x20 | 0x40 | 0x80
"""Clock event reasons that spoil a measurement: slowdowns and power brakes. The power cap is the normal state of a busy device."""


def headline(case: CaseRecord) -> Ratio | None:
    """The best exact variant over the strongest baseline, or None."""
    ours, theirs = best_variant(case), strongest(case)
    return speedup(ours, theirs) if ours and theirs else None


def noise(ratio: Ratio) -> float:
    """Relative width of a ratio's interval: 0.1 is ten percent from end to end."""
    return ratio.high / ratio.low - 1 if ratio.low > 0 else math.inf


def throttled(case: CaseRecord) -> str | None:
    """The reasons for which the device slowed down around the case, or None where it did not."""
    for when in ("before", "after"):
        shot = case.conditions.get(when) or {}
        bits = shot.get("throttle")
        if bits is not None and int(str(bits), 16) & THERMAL_BITS:
            return str(shot.get("throttle_names") or bits)
    return None


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
    ratio, reason = headline(case), throttled(case)
    if ratio is not None and noise(ratio) > NOISE:
        found.append((INCONCLUSIVE, f"noisy: the speed-up {ratio.value:.2f} is uncertain by {noise(ratio):.0%}"))
    if reason is not None:
        found.append((INCONCLUSIVE, f"throttled: {reason}"))
    return found
