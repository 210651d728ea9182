"""The one clock: CUDA graph replay between events, hot or cold, and a fake of the same shape for tests.

Kernel time and call time are two different things and never mixed: `Timer.sample` is what the device needs per call,
`Timer.call_time` what a plain Python call costs, launch and host work included. See docs/measuring.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from autotune.graph_timer import GraphTimer

Call = Callable[[], object]
TURN_US = 3000.0
MAX_COPIES = 512
"""Most copies of its inputs that a cold call is given, and most calls in a turn."""


class Unmeasurable(RuntimeError):
    """A call that this clock cannot time (it cannot be captured in a CUDA graph, say); the device is still usable.

    The text is one line. `measure.bind` turns it into `Failure("measure", text)`. Faults of the device stay plain RuntimeErrors.
    """


@dataclass(frozen=True)
class Block:
    """A sustained stretch of back-to-back calls: its length in seconds and the calls in it."""

    seconds: float
    calls: int


class Timer(Protocol):
    """One kernel bound to one or more copies of its inputs."""

    def sample(self) -> float:
        """One turn: kernel time, microseconds per call; whatever sets caches and queue lies before the clock starts."""

    def call_time(self) -> float:
        """Microseconds per plain Python call, launch and host work included."""

    def block(self, seconds: float) -> Block:
        """Calls back to back for about that long."""

    def outputs(self) -> object:
        """What the last timed call returned: the same tensors that it wrote while it was timed."""

    def close(self) -> None:
        """Free the graphs and their memory; the timer is dead afterwards."""


class Clock(Protocol):
    """Makes timers. name: "cuda-graph" or "fake", recorded with every run."""

    @property
    def name(self) -> str:
        """What the clock is."""

    def timer(self, calls: Sequence[Call], cold: bool) -> Timer:
        """Bind to calls, one per copy of the inputs, rotated; one when hot. Raises Unmeasurable; RuntimeError on a device fault."""


@dataclass(frozen=True)
class CudaClock:
    """CUDA graph replays between events on the current stream of the current device.

    turn_us: how long one timed turn should last, microseconds; a turn has at least one and at most `MAX_COPIES` calls. copies: so many
    copies of a cold call's inputs are enough: where a call has no more, a turn plays each at most once, behind a flush of the L2.
    """

    turn_us: float = TURN_US
    copies: int = MAX_COPIES

    @property
    def name(self) -> str:
        """Always "cuda-graph"."""
        return "cuda-graph"

    def timer(self, calls: Sequence[Call], cold: bool) -> GraphTimer:
        """Warm up, capture, and size the turn. Raises Unmeasurable for calls that cannot be captured, RuntimeError for device faults."""
        from autotune.graph_timer import GraphTimer

        _check(calls, cold)
        return GraphTimer(calls, cold, self.turn_us, self.copies)


def _check(calls: Sequence[Call], cold: bool) -> None:
    if not calls or (len(calls) > 1 and not cold):
        raise ValueError(f"{len(calls)} calls for a {'cold' if cold else 'hot'} timer; hot takes exactly one, cold one per copy")


@dataclass(frozen=True)
class FakeCall:
    """A call with a scripted kernel time, microseconds, for `FakeClock`; calling it calls `function`."""

    function: Call
    cost_us: float

    def __call__(self) -> object:
        """Whatever the function returns."""
        return self.function()


class FakeClock:
    """A clock that knows the answers: product code for tests; needs neither torch nor a device.

    costs: microseconds per call, by call object, or a function of it; without one the call's own `cost_us` (see `FakeCall`). A cold
    call costs `cold_factor` times as much. noise: standard deviation of each sample relative to its value (normal, seeded).
    drift: relative slowdown per turn of all timers together. host_us: what a Python call costs at least. Every binding and every call
    time really calls; `seconds` is the virtual time passed so far.
    """

    def __init__(
        self, costs: Mapping[Call, float] | Callable[[Call], float] | None = None, *, noise: float = 0.005, seed: int = 0,
        drift: float = 0.0, host_us: float = 20.0, cold_factor: float = 1.0, turn_us: float = TURN_US,
    ) -> None:
        self._costs, self._random = costs, random.Random(seed)
        self.noise, self.drift, self.host_us, self.cold_factor, self.turn_us = noise, drift, host_us, cold_factor, turn_us
        self.turns = 0
        self.seconds = 0.0

    @property
    def name(self) -> str:
        """Always "fake"."""
        return "fake"

    def timer(self, calls: Sequence[Call], cold: bool) -> FakeTimer:
        """Call every copy once and bind. Raises Unmeasurable for a call without a scripted cost."""
        _check(calls, cold)
        return FakeTimer(self, calls, self._cost(calls[0]) * (self.cold_factor if cold else 1.0))

    def _cost(self, call: Call) -> float:
        if callable(self._costs):
            return self._costs(call)
        if self._costs is not None and call in self._costs:
            return self._costs[call]
        cost: Any = getattr(call, "cost_us", None)
        if cost is None:
            raise Unmeasurable(f"no scripted cost for {call!r}")
        return float(cost)

    def draw(self, cost_us: float, seconds: float) -> float:
        """One noisy sample of that cost, and `seconds` of virtual time gone."""
        self.seconds += seconds
        self.turns += 1
        return max(1e-3, cost_us * (1 + self.drift * self.turns) * (1 + self.noise * self._random.gauss(0, 1)))


class FakeTimer:
    """A timer of `FakeClock`."""

    def __init__(self, clock: FakeClock, calls: Sequence[Call], cost_us: float) -> None:
        self._clock, self._calls, self.cost_us = clock, calls, cost_us
        self._last = [call() for call in calls][-1]

    def sample(self) -> float:
        """The scripted cost with its noise, microseconds."""
        return self._clock.draw(self.cost_us, self._clock.turn_us * 1e-6)

    def call_time(self) -> float:
        """The cost, or the host's if that is larger; really calls once."""
        self._last = self._calls[-1]()
        cost = max(self.cost_us, self._clock.host_us)
        return self._clock.draw(cost, cost * 1e-6)

    def block(self, seconds: float) -> Block:
        """A block of that virtual length; really calls once."""
        self._last = self._calls[-1]()
        return Block(seconds, max(1, round(seconds * 1e6 / self._clock.draw(self.cost_us, seconds))))

    def outputs(self) -> object:
        """What the last real call returned."""
        return self._last

    def close(self) -> None:
        """Drop the calls."""
        self._calls = ()
