"""Why a case is slower than it was accepted, as far as its records tell. Pure; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from suites.quality import THERMAL_BITS
from suites.record import CaseRecord, Result, RunRecord
from suites.statistics import time_us

LIBRARIES = ("torch", "triton", "cuda", "driver", "cublas", "cusparselt")
POWER_CAP = 0x4
CLOCK = 0.02
"""A clock counts as lower from this share on."""
HEAT_C = 8.0


@dataclass(frozen=True)
class Sides:
    """A case as it is and as it was accepted: the records, the kernel and its baseline in each, and the heads of their runs."""

    now: CaseRecord
    then: CaseRecord
    ours: tuple[Result, Result]
    theirs: tuple[Result, Result]
    heads: Mapping[str, RunRecord]

    def head(self, case: CaseRecord) -> RunRecord | None:
        """The head of the run that a case is from."""
        return self.heads.get(case.run)

    def fact(self, name: str) -> tuple[float, float] | None:
        """A condition after the case, now and then; None where one of them is unknown."""
        values = [(case.conditions.get("after") or {}).get(name) for case in (self.now, self.then)]
        numbers = [float(value) for value in values if isinstance(value, (int, float))]
        return (numbers[0], numbers[1]) if len(numbers) == 2 else None

    def times(self, pair: tuple[Result, Result]) -> tuple[float, float]:
        """Microseconds now and then."""
        return time_us(pair[0]) or math.nan, time_us(pair[1]) or math.nan


def probable(sides: Sides) -> str:
    """The probable reason of a regression; the first is the likelier where there are two."""
    found = [*_changed(sides), *(_baseline(sides) or _device(sides))]
    return "; ".join(found[:2])


def other_card(sides: Sides) -> bool:
    """Whether the two runs are known to be from different cards of the model."""
    heads = sides.head(sides.now), sides.head(sides.then)
    uuids = {head.device.get("uuid") for head in heads if head is not None} - {None}
    return len(uuids) > 1


def _changed(sides: Sides) -> Iterator[str]:
    now, then = sides.head(sides.now), sides.head(sides.then)
    if now and then:
        if (now.method, now.timer) != (then.method, then.timer):
            yield f"the method changed: {then.method} with {then.timer} → {now.method} with {now.timer}"
        changed = [name for name in LIBRARIES if None not in (now.versions.get(name), then.versions.get(name))]
        changed = [f"{name} {then.versions[name]} → {now.versions[name]}" for name in changed if now.versions[name] != then.versions[name]]
        if changed:
            yield f"versions changed: {', '.join(changed)}"
    ours, before = sides.ours
    if dict(ours.config) != dict(before.config):
        names = [name for name in {**before.config, **ours.config} if ours.config.get(name) != before.config.get(name)]
        texts = [f"{name} {before.config.get(name)} → {ours.config.get(name)}" for name in sorted(names)[:4]]
        yield f"its config changed: {', '.join(texts)}"
    if other_card(sides):
        yield "another card of the model"


def _baseline(sides: Sides) -> list[str]:
    """The baseline moved: against what else both runs measured, it changed and the kernel did not."""
    (now, then), (base_now, base_then) = sides.times(sides.ours), sides.times(sides.theirs)
    named = {sides.ours[0].kernel, sides.theirs[0].kernel}
    others = [
        math.log(new / old) for result in sides.now.results if result.kernel not in named and (new := time_us(result))
        if (before := sides.then.result(result.kernel)) is not None and (old := time_us(before))
    ]
    rest = float(np.median(others)) if others else 0.0
    ours, theirs = math.log(now / then) - rest, math.log(base_now / base_then) - rest
    if -theirs > abs(ours):
        moved = f"{sides.theirs[0].kernel} {base_then:.2f} → {base_now:.2f} µs"
        return [f"the baseline moved: {moved}, while {sides.ours[0].kernel} took {then:.2f} → {now:.2f} µs"]
    return []


def _device(sides: Sides) -> list[str]:
    """A lower clock with its cause, where it explains the time; else the kernel needs more cycles."""
    now, then = sides.times(sides.ours)
    clocks = sides.fact("sm_mhz")
    if clocks is None:
        return [f"slower in time, at unknown clocks: {then:.2f} → {now:.2f} µs"]
    cycles = now * clocks[0] / 1e3, then * clocks[1] / 1e3
    if clocks[0] > (1 - CLOCK) * clocks[1] or cycles[0] / cycles[1] > math.sqrt(now / then):
        return [f"slower in cycles: {cycles[1]:.1f} → {cycles[0]:.1f} thousand ({then:.2f} → {now:.2f} µs)"]
    fall = f"{clocks[1]:.0f} → {clocks[0]:.0f} MHz"
    bits = int(str((sides.now.conditions.get("after") or {}).get("throttle") or "0"), 16)
    heat, power = sides.fact("temperature_c"), sides.fact("power_w")
    if bits & THERMAL_BITS or (heat and heat[0] - heat[1] >= HEAT_C):
        return ["heat: " + (f"{heat[1]:.0f} → {heat[0]:.0f} °C, " if heat else "") + fall]
    if bits & POWER_CAP:
        return ["power cap: " + (f"{power[1]:.0f} → {power[0]:.0f} W, " if power else "") + fall]
    return [f"lower clock: {fall}"]
