"""Measuring the model-level step: every variant in a process of its own, checked against plain PyTorch, then timed in turns."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from autotune.conditions import Monitor
from kernels.errors import Failure
from suites.model_child import Child, Spec, Started, Turn
from suites.model_record import ModelCase, ModelResult
from suites.model_variants import VARIANTS, Evidence, Variant, deviation, reference, wrong

MOST_STEPS = 64


@dataclass(frozen=True)
class ModelPlan:
    """rounds of turns, one of every variant each; turn_seconds: what a turn should last."""

    rounds: int
    turn_seconds: float


MOST_JOBS = 6
"""Children that start at a time, on half of the cores: each compiles, and holds the memory of a step."""
FULL = ModelPlan(10, 0.3)
QUICK = ModelPlan(4, 0.15)

Say = Callable[[str], None]


@dataclass
class Entry:
    """One variant of a setting while it is measured."""

    variant: Variant
    spec: Spec
    child: Child
    result: ModelResult
    step_us: float = 0.0
    evidence: Evidence | None = None
    parameters: int = 0
    turns: list[Turn] = field(default_factory=list)

    def fail(self, failure: Failure) -> None:
        """Record why there is no result, and end the child."""
        self.result = replace(
            self.result, status="wrong" if failure.stage == "wrong" else "failed", stage=failure.stage, reason=failure.reason
        )
        self.child.close()


class Setting:
    """The variants of one model, batch and sparsity, alive at the same time; use as a context manager."""

    def __init__(self, specs: Sequence[Spec], make: Callable[[Spec], Child], plan: ModelPlan, monitor: Monitor, say: Say) -> None:
        self._plan, self._monitor, self._say = plan, monitor, say
        kinds = {variant.name: variant for variant in VARIANTS}
        self.entries = [Entry(kinds[spec.variant], spec, make(spec), _empty(kinds[spec.variant])) for spec in specs]

    def __enter__(self) -> Setting:
        return self

    def __exit__(self, *_: object) -> None:
        for entry in self.entries:
            entry.child.close()

    @property
    def alive(self) -> list[Entry]:
        """What has not failed."""
        return [entry for entry in self.entries if entry.result.status == "ok"]

    def start(self) -> None:
        """Start all children, a few at a time, and check each against its reference."""
        pool = ThreadPoolExecutor(max(1, min(MOST_JOBS, (os.cpu_count() or 1) // 2)))
        try:
            started = list(pool.map(self._started, self.entries))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for entry in self.entries:
                entry.child.kill()
            raise
        finally:
            pool.shutdown()
        for entry, found in zip(self.entries, started, strict=True):
            if isinstance(found, Failure):
                entry.fail(found)
                continue
            entry.evidence, entry.step_us, entry.parameters = found.evidence, found.step_us, found.facts["parameters"]
            entry.result = replace(
                entry.result, losses=tuple(one for one in found.evidence.losses if math.isfinite(one)), chosen=found.facts["chosen"],
                packings=found.facts["packings"], start_seconds=round(found.seconds, 1),
            )
        for entry in self.alive:
            self._check(entry)
        for entry in self.entries:
            self._say(f"  {entry.variant.name}: {_words(entry.result)}")

    def _started(self, entry: Entry) -> Started | Failure:
        return entry.child.start()

    def _check(self, entry: Entry) -> None:
        """Against the reference, which is checked against itself: finite. What nothing vouches for is not timed."""
        name = reference(entry.variant)
        expected = next((other.evidence for other in self.entries if other.variant.name == name), None)
        assert entry.evidence is not None
        if expected is None:
            entry.fail(Failure("unavailable", f"not checked, and so not timed: {name} failed"))
            return
        found = deviation(entry.evidence, expected)
        reason = wrong(found)
        if reason:
            entry.fail(Failure("wrong", f"against {name}: {reason}"))
        entry.result = replace(entry.result, deviation={one: value for one, value in found.items() if math.isfinite(value)})

    def measure(self, accumulation: int, run: str) -> ModelCase:
        """One case: rounds of turns in palindromic order over what is alive."""
        began, before = time.monotonic(), self._monitor.snapshot()
        for entry in self.entries:
            entry.turns = []
        for turn in range(self._plan.rounds):
            order = self.alive if turn % 2 == 0 else self.alive[::-1]
            for entry in order:
                found = entry.child.turn(accumulation, self._steps(entry, accumulation))
                if isinstance(found, Failure):
                    entry.fail(found)
                else:
                    entry.turns.append(found)
        results = tuple(_timed(entry) for entry in self.entries)
        spec, parameters = self.entries[0].spec, max(entry.parameters for entry in self.entries)
        return ModelCase(
            run, spec.model.name, spec.blocks, spec.model.blocks, spec.vocabulary, spec.tokens, spec.context, accumulation, spec.sparsity,
            spec.master, parameters, results, {"before": before, "after": self._monitor.snapshot()}, round(time.monotonic() - began, 1),
        )

    def _steps(self, entry: Entry, accumulation: int) -> int:
        """Steps of a turn; the first turn of a variant tells how long a step is, what it took after the start does until then."""
        step_us = entry.turns[0].step_us if entry.turns else entry.step_us * accumulation
        return max(1, min(MOST_STEPS, round(self._plan.turn_seconds * 1e6 / step_us)))


def _empty(variant: Variant) -> ModelResult:
    return ModelResult(variant.name, variant.kind, "ok", dense=variant.dense)


def _timed(entry: Entry) -> ModelResult:
    if entry.result.status != "ok":
        return entry.result
    peaks = [turn.peak_bytes for turn in entry.turns if turn.peak_bytes is not None]
    return replace(
        entry.result, samples_us=tuple(turn.step_us for turn in entry.turns), host_us=tuple(turn.host_us for turn in entry.turns),
        peak_bytes=max(peaks, default=None),
    )


def _words(result: ModelResult) -> str:
    if result.status != "ok":
        return f"{result.status}: {result.stage}: {result.reason}"
    loss = f", loss {result.losses[0]:.4f} to {result.losses[-1]:.4f}" if result.losses else ""
    return f"ready in {result.start_seconds:.0f} s{loss}"

