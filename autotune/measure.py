"""Samples: interleaved pairs for ratios in cycles, sustained blocks for what a busy device delivers. See docs/measuring.md."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from autotune.clock import MAX_COPIES, TURN_US, Call, Clock, Timer, Unmeasurable
from autotune.conditions import Monitor, Watch
from kernels.errors import Failure

T = TypeVar("T")
METHOD = "interleaved-palindrome/1"
FLOOR_ROUNDS = 5
"""Where a case is so slow that it overruns its time threefold, this many rounds are enough."""


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    rounds: at least so many, one sample of every timer each. max_rounds, relative_width, seconds: more rounds until the interval of every
    ratio to the fastest is narrower than relative_width, or max_rounds or seconds are used up. turn_us: length of a timed turn, for
    the clock. call_samples: rounds of call times. block_seconds, blocks, settle_seconds: sustained blocks, how many of each timer, and
    what is dropped at the start of each.
    """

    rounds: int
    max_rounds: int
    relative_width: float
    seconds: float
    call_samples: int
    turn_us: float = TURN_US
    block_seconds: float = 2.7
    blocks: int = 3
    settle_seconds: float = 1.0


QUICK = Plan(rounds=5, max_rounds=5, relative_width=0.05, seconds=0.15, call_samples=2, turn_us=1000.0)
FULL = Plan(rounds=10, max_rounds=20, relative_width=0.01, seconds=0.4, call_samples=3, turn_us=2000.0)
SUSTAINED = Plan(rounds=10, max_rounds=10, relative_width=0.01, seconds=1.2, call_samples=5)


@dataclass(frozen=True)
class Samples:
    """kernel_us: kernel time per call, one per round. call_us: call time. blocks: seconds, calls, joules, sm_mhz, power_w of each."""

    kernel_us: tuple[float, ...] = ()
    call_us: tuple[float, ...] = ()
    blocks: tuple[dict[str, float], ...] = ()


def copies_needed(footprint: int, l2_bytes: int, cold: bool) -> int:
    """Copies of inputs and weights that a call needs: 1 when hot; when cold so many that together they exceed twice the L2.

    At most `MAX_COPIES`: those are played once per turn behind a flush of the L2, so they are cold though they would fit it.
    """
    if not cold:
        return 1
    return max(2, min(MAX_COPIES, 2 * l2_bytes // max(1, footprint) + 1))


def bind(clock: Clock, calls: Sequence[Call], cold: bool) -> Timer | Failure:
    """A timer, or why this clock cannot time these calls. RuntimeError on a device fault, which the caller's process does not survive."""
    try:
        return clock.timer(calls, cold)
    except Unmeasurable as error:
        return Failure("measure", str(error))


def interleaved(timers: Mapping[str, Timer], plan: Plan, now: Callable[[], float] = time.monotonic) -> dict[str, Samples]:
    """Rounds in palindromic order (A B C, C B A, …): sample i of every timer is from round i, so a drift hits all alike.

    Stops by the plan's rule; call times follow in rounds of their own. now: the time in seconds that the rule goes by.
    """
    kernel: dict[str, list[float]] = {name: [] for name in timers}
    call: dict[str, list[float]] = {name: [] for name in timers}
    started = now()
    for count in range(plan.max_rounds):
        if _enough(kernel, count, plan, now() - started):
            break
        for name in _order(timers, count):
            kernel[name].append(timers[name].sample())
    for count in range(plan.call_samples):
        for name in _order(timers, count):
            call[name].append(timers[name].call_time())
    return {name: Samples(tuple(kernel[name]), tuple(call[name])) for name in timers}


def paired(
    make: Callable[[T], Timer | Failure], what: Sequence[T], plan: Plan, wrong: Callable[[object], Failure | None]
) -> list[tuple[float, ...] | Failure]:
    """Kernel times of each of these, sample i of all from round i, or its failure. make: binds one. wrong: looks at what was timed last."""
    timers: dict[int, Timer] = {}
    results: dict[int, tuple[float, ...] | Failure] = {}
    try:
        for place, one in enumerate(what):
            made = make(one)
            if isinstance(made, Failure):
                results[place] = made
            else:
                timers[place] = made
        samples = interleaved({str(place): timer for place, timer in timers.items()}, plan)
        for place, timer in timers.items():
            results[place] = wrong(timer.outputs()) or samples[str(place)].kernel_us
    finally:
        for timer in timers.values():
            timer.close()
    return [results[place] for place in range(len(what))]


def _order(timers: Mapping[str, Timer], count: int) -> list[str]:
    names = list(timers)
    return names if count % 2 == 0 else names[::-1]


def _enough(samples: Mapping[str, Sequence[float]], count: int, plan: Plan, elapsed: float) -> bool:
    if not samples or (count >= FLOOR_ROUNDS and elapsed > 3 * plan.seconds):
        return True
    if count < plan.rounds:
        return False
    return elapsed > plan.seconds or max(ratio_widths(samples)) <= plan.relative_width


def ratio_widths(samples: Mapping[str, Sequence[float]]) -> list[float]:
    """Relative width of the 95 % interval of each timer's paired ratio to the fastest: 0.01 is one percent from end to end."""
    fastest = min(samples.values(), key=statistics.median)
    widths = []
    for own in samples.values():
        low, high = median_interval([math.log(a / b) for a, b in zip(own, fastest, strict=True)])
        widths.append(math.expm1(high - low))
    return widths


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The order statistics around the median with 95 % confidence (sign test); the extremes for fewer than six values."""
    ordered = sorted(values)
    total, tail, skipped = len(ordered), 0.0, 0
    while skipped < (total - 1) // 2:
        tail += math.comb(total, skipped) / 2**total
        if tail > 0.025:
            break
        skipped += 1
    first = max(0, skipped - 1)
    return ordered[first], ordered[total - 1 - first]


def sustained(timers: Mapping[str, Timer], plan: Plan, monitor: Monitor) -> dict[str, Samples]:
    """Blocks round-robin, each timer `plan.blocks` times; the first `settle_seconds` of each are not counted.

    Each block's dict: seconds, calls, and where the monitor can tell joules, sm_mhz and power_w (medians), all of the settled part.
    """
    blocks: dict[str, list[dict[str, float]]] = {name: [] for name in timers}
    for _ in range(plan.blocks):
        for name, timer in timers.items():
            timer.block(plan.settle_seconds)
            with Watch(monitor) as watch:
                block = timer.block(plan.block_seconds - plan.settle_seconds)
            blocks[name].append({"seconds": block.seconds, "calls": block.calls, **watch.summary(block.seconds)})
    return {name: Samples(blocks=tuple(own)) for name, own in blocks.items()}
