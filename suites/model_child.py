"""The child's side of the model-level step: a process that trains one variant, and answers with evidence and with timed turns."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from autotune import worker
from kernels.errors import Failure, NonFiniteError
from suites.model_variants import Evidence, Layers
from suites.models import Model

if TYPE_CHECKING:
    from suites.trainer import Trainer

Master = Literal["bf16", "fp32"]
CHECKED_STEPS = 4
TURN_FACTOR = 20
"""A turn that takes so many times as long as it should counts as hanging, from `TURN_SECONDS` on."""
TURN_SECONDS = 60.0


@dataclass(frozen=True)
class Spec:
    """What a child process trains.

    variant: its name; layers: what stands in the place of linear ones; backend: what compiles blocks and head, None for eager. blocks,
    vocabulary: of the decoder that stands for the model. tokens: of a micro-batch, in sequences of `context`; micro_batches: how many there
    are. master: type of the weights; fp32 ones run under autocast. device: a name for torch.
    """

    variant: str
    layers: Layers
    backend: str | None
    model: Model
    blocks: int
    vocabulary: int
    tokens: int
    context: int
    micro_batches: int
    sparsity: str
    master: Master
    seed: int
    device: str


@dataclass(frozen=True)
class Started:
    """A trainer that is ready. step_us: of one more optimizer step over one micro-batch. facts: see `Trainer.facts`."""

    evidence: Evidence
    step_us: float
    facts: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Turn:
    """Microseconds of an optimizer step, of the host alone to enqueue one, and the most bytes that were allocated; None off the device."""

    step_us: float
    host_us: float
    peak_bytes: int | None


class Child(Protocol):
    """One variant in training."""

    def start(self) -> Started | Failure:
        """Build it, compile it, take the first steps."""

    def turn(self, accumulation: int, steps: int) -> Turn | Failure:
        """Time so many optimizer steps."""

    def kill(self) -> None:
        """End it from another thread than the one that waits for it."""

    def close(self) -> None:
        """End it and free what it holds."""


class ProcessChild:
    """A variant in a process of its own: what faults or hangs there costs only this variant. start_seconds: the most that `start` may
    take, compilation included."""

    def __init__(self, spec: Spec, start_seconds: float) -> None:
        self._spec, self._start_seconds, self._expected = spec, start_seconds, 0.0
        self._process = worker.Worker()

    def start(self) -> Started | Failure:
        """Build, compile and check, in a new process."""
        try:
            found: Started | Failure = self._process.call("suites.model_child:start", (self._spec,), self._start_seconds)
        except NonFiniteError as error:
            return Failure("wrong", str(error))
        if isinstance(found, Started):
            self._expected = found.step_us / 1e6
        return found

    def turn(self, accumulation: int, steps: int) -> Turn | Failure:
        """One turn in that process."""
        seconds = max(TURN_SECONDS, TURN_FACTOR * self._expected * accumulation * steps)
        found: Turn | Failure = self._process.call("suites.model_child:turn", (self._spec, accumulation, steps), seconds)
        return found

    def kill(self) -> None:
        """End the process; a call in flight ends with a Failure."""
        self._process.kill()

    def close(self) -> None:
        """End the process."""
        self._process.close()


@functools.cache
def _trainer(spec: Spec) -> Trainer:
    """The one trainer of this process."""
    from suites.trainer import Trainer

    return Trainer(spec)


def start(spec: Spec) -> Started:
    """Build the trainer, take the first steps, and say what they came to; NonFiniteError where a layer saw a NaN or an infinity."""
    began = time.monotonic()
    made = _trainer(spec)
    probe = made.probe()
    losses = [float(made.step(1)) for _ in range(CHECKED_STEPS)]
    made.check()
    facts = made.facts()
    made.synchronize()
    before = time.perf_counter()
    made.step(1)
    made.synchronize()
    step_us = (time.perf_counter() - before) * 1e6
    made.release()
    return Started(Evidence(probe, losses), step_us, facts, time.monotonic() - began)


def turn(spec: Spec, accumulation: int, steps: int) -> Turn:
    """See `Trainer.turn`."""
    return _trainer(spec).turn(accumulation, steps)
