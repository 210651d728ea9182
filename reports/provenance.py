"""Where results come from: the commits, cards and versions behind them, run by run, and the conditions around the cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.compare import in_order
from reports.load import Case, Results
from reports.tables import one_line
from suites.record import RunRecord

NAMES = {
    "name": "GPU", "power_cap_w": "power cap, W", "max_sm_mhz": "highest SM clock, MHz", "max_mem_mhz": "highest memory clock, MHz",
    "cuda": "CUDA", "cusparselt": "cuSPARSELt", "cublas": "cuBLAS", "torch": "PyTorch", "triton": "Triton", "python": "Python",
}
"""Facts of a device and versions by their names for people; others keep their own."""
READINGS = {
    "sm_mhz": "SM clock, MHz", "mem_mhz": "memory clock, MHz", "power_w": "power, W", "temperature_c": "temperature, °C",
    "throttle_names": "slowed down by", "other_processes": "other processes on the GPU",
}
"""What the driver says around a case by its name for people; others keep their own."""
MASK, SPELT = "throttle", "throttle_names"
"""Bits, and the reading that says them in words."""
SEEN = ("before", "after")
CARD = 12
"""So many letters of a card's UUID tell cards apart."""


@dataclass(frozen=True)
class Origin:
    """Behind the measured cases. commits: (commit, dirty, cases), most cases first. cards: their UUIDs. days: first and last."""

    commits: list[tuple[str, bool, int]]
    cards: list[str]
    days: tuple[str, str]


def origin(results: Results) -> Origin | None:
    """Where the measured cases come from; None where nothing was measured."""
    heads = {run.id: run for run in results.runs}
    used = [head for case in results.measured if (head := heads.get(case.record.run))]
    if not used:
        return None
    commits: dict[tuple[str, bool], int] = {}
    for head in used:
        commits[head.commit, head.dirty] = commits.get((head.commit, head.dirty), 0) + 1
    days = sorted({head.started[:10] for head in used})
    ordered = sorted(((commit, dirty, count) for (commit, dirty), count in commits.items()), key=lambda entry: (-entry[2], entry[0]))
    return Origin(ordered, sorted({str(head.device.get("uuid") or "unknown") for head in used}), (days[0], days[-1]))


@dataclass(frozen=True)
class RunRow:
    """One run. cases, roofs: how many of the results are its. card: the start of its UUID."""

    run: RunRecord
    card: str
    cases: int
    roofs: int


def run_rows(results: Results) -> list[RunRow]:
    """The runs that any result is of, in the order they started; all runs where there is no result."""
    cases, roofs = _count(case.record.run for case in results.cases), _count(roof.run for roof in results.roofs)
    heads = {run.id: run for run in results.runs}
    rows = [
        RunRow(run, str(run.device.get("uuid") or "–")[:CARD], cases.get(run.id, 0), roofs.get(run.id, 0))
        for run in sorted(heads.values(), key=lambda run: (run.started, run.id))
    ]
    return [row for row in rows if row.cases or row.roofs] or rows


def facts(rows: Sequence[RunRow]) -> list[tuple[str, str]]:
    """Device, versions and method of the runs: each fact once, with its values and how many runs have each where they differ."""
    values: dict[str, dict[str, int]] = {}
    for row in rows:
        own = {**row.run.device, **row.run.versions, "method": row.run.method, "timer": row.run.timer}
        for key, value in own.items():
            if value is not None and key != "uuid":
                found = values.setdefault(NAMES.get(key, key), {})
                text = one_line(value) if isinstance(value, Mapping) else version(value, key)
                found[text] = found.get(text, 0) + 1
    return [(name, _values(found)) for name, found in values.items()]


def _values(found: Mapping[str, int]) -> str:
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{text} ({count} {'run' if count == 1 else 'runs'})" for text, count in found.items())


def version(value: object, name: str) -> str:
    """A version for people: cuSPARSELt counts its own as 100 times the minor and 1 times the patch, so 800 is 0.8.0."""
    if name == "cusparselt" and isinstance(value, (int, str)) and str(value).isdigit():
        number = int(value)
        return f"{number // 1000}.{number // 100 % 10}.{number % 100}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def conditions(cases: Iterable[Case]) -> list[tuple[str, str, str]]:
    """The conditions before and after the cases, by name: least, median and greatest of what is a number, the distinct values of what is
    not, a dash where nothing was recorded."""
    values: dict[str, dict[str, list[Any]]] = {}
    for case in cases:
        for when in SEEN:
            for name, value in (case.record.conditions.get(when) or {}).items():
                if value is not None and (name != MASK or SPELT not in case.record.conditions[when]):
                    values.setdefault(name, {}).setdefault(when, []).append(value)
    ordered = in_order(values, tuple(READINGS))
    before, after = SEEN
    return [(READINGS.get(name, name), _spread(values[name].get(before, [])), _spread(values[name].get(after, []))) for name in ordered]


def _spread(found: list[Any]) -> str:
    if not found:
        return "–"
    numbers = [value for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) == len(found):
        low, middle, high = min(numbers), float(np.median(numbers)), max(numbers)
        return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}, median {middle:.4g}"
    counts = sorted(_count(str(value) or "none" for value in found).items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{name} ({count})" for name, count in counts[:8]) + ("; …" if len(counts) > 8 else "")
