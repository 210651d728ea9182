"""Whether what was read from a results file is what its schema says: types by the annotations, values by what they mean."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from kernels.errors import TerSparseError
from kernels.problem import Problem

LEAST_US, MOST_US = 1e-9, 1e15
"""Times beyond these are of no device: their ratios are no numbers any more."""


NO_TIME = f"samples must be positive numbers of microseconds, {LEAST_US:g} to {MOST_US:g}"
_HEXADECIMAL = re.compile("(0x)?[0-9a-fA-F]{1,16}")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def misfit(value: Any) -> str | None:
    """The first field of a dataclass instance whose value is not of the type it is annotated with, or None."""
    kind: Any = type(value)
    hints = _hints(kind)
    for entry in fields(value):
        content = getattr(value, entry.name)
        if not _fits(content, hints[entry.name]):
            return f"{entry.name} {repr(content)[:60]}; allowed: {_words(hints[entry.name])}"
    return None


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else re.sub(r"\b(?:\w+\.)+", "", str(kind))


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(entry, arguments[0]) for entry in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(isinstance(name, str) and _fits(entry, arguments[1]) for name, entry in value.items())
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool))


def is_time(us: float) -> bool:
    """Whether so many microseconds can be what a call took."""
    return LEAST_US <= us <= MOST_US


def result_fault(result: Any) -> str | None:
    """What is wrong with the types or figures of a `Result`, or None."""
    wrong = misfit(result)
    if wrong:
        return wrong
    if not all(map(is_time, (*result.samples_us, *result.call_us))):
        return NO_TIME
    if min(result.ceiling, default=1.0) <= 0 or (result.ceiling and len(result.ceiling) != len(result.samples_us)):
        return "a ceiling must be a positive number of op/s for each sample"
    for block in result.blocks:
        if block.get("seconds", 0) <= 0 or block.get("calls", 0) <= 0:
            return "each block needs seconds and calls, positive numbers"
        if not is_time(block["seconds"] / block["calls"] * 1e6):
            return f"a block's seconds per call must come to {LEAST_US:g} to {MOST_US:g} microseconds"
    if result.projected_us is not None and result.projected_us <= 0:
        return "projected_us must be a positive number of microseconds"
    return None


def case_fault(case: Any) -> str | None:
    """What is wrong with the types, figures, problem, conditions or results of a `CaseRecord`, or None."""
    wrong = misfit(case)
    if wrong:
        return wrong
    try:
        Problem.from_dict(dict(case.problem))
    except (TerSparseError, KeyError, TypeError, ValueError) as error:
        return f"bad problem: {error}"
    for name in ("operations", "compulsory_bytes"):
        if getattr(case, name) < 0:
            return f"{name} {getattr(case, name)} is not a whole number of them"
    found = next(filter(None, (_shot_fault(when, case.conditions.get(when)) for when in ("before", "after"))), None)
    if found:
        return f"bad conditions: {found}"
    if case.processes and any(len(result.samples_us) not in (0, sum(case.processes)) for result in case.results):
        return f"processes {case.processes} do not add up to the samples"
    faults = ((result.kernel, result_fault(result)) for result in case.results)
    return next((f"{kernel}: {fault}" for kernel, fault in faults if fault), None)


def _shot_fault(when: str, shot: Any) -> str | None:
    """What is wrong with the conditions at one moment, as far as verdicts rest on them, or None."""
    if shot is not None and not isinstance(shot, dict):
        return f"{when} {repr(shot)[:60]}; allowed: an object"
    for name, kind in (("throttle", str), ("other_processes", int)):
        content = (shot or {}).get(name)
        if content is not None and (not isinstance(content, kind) or isinstance(content, bool)):
            return f"{when}: {name} {repr(content)[:60]}; allowed: {kind.__name__}"
    bits = (shot or {}).get("throttle")
    return None if bits is None or _HEXADECIMAL.fullmatch(bits) else f"{when}: throttle {bits[:60]!r}; allowed: hexadecimal, such as 0x4"


def roof_fault(roof: Any) -> str | None:
    """What is wrong with a `RoofRecord`, or None."""
    wrong = misfit(roof)
    if wrong or (roof.value > 0 and roof.unit in ("B/s", "op/s")):
        return wrong
    return f"roof {roof.name!r}: {roof.value!r} {roof.unit!r} is not a positive number of B/s or op/s"
