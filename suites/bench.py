"""What kernels are measured with: the bench, copies of the inputs, and timers that know whose turn it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from autotune.clock import Block, Clock, Timer
from autotune.conditions import Monitor
from autotune.failures import failure_of
from kernels.errors import Failure, TerSparseError
from kernels.gpu import Gpu
from kernels.inputs import Inputs, clone
from kernels.kernel import Kernel
from kernels.problem import Op


class Fault(Exception):
    """The device's context is lost (an illegal access, a launch failure): only another process can go on. kernel: who did it, or None."""

    def __init__(self, kernel: str | None, failure: Failure) -> None:
        super().__init__(f"{kernel}: {failure}")
        self.kernel, self.failure = kernel, failure


def _no_mark(text: str) -> None:
    """Nobody watches."""


def _as_it_is() -> None:
    """The device is measured as the case before left it."""


@dataclass(frozen=True)
class Bench:
    """What cases are measured with.

    kernels(op): the kernels to measure. device: where tensors live. mark: is told what runs, before it runs. only: as asked for by
    `--kernel`, of a suite too. warm: called before the rounds of a case, so that a device that rested is not measured as one that did.
    """

    gpu: Gpu
    clock: Clock
    monitor: Monitor
    kernels: Callable[[Op], Sequence[Kernel]]
    device: str = "cuda"
    mark: Callable[[str], None] = _no_mark
    only: Sequence[str] = ()
    warm: Callable[[], None] = _as_it_is


class Copies:
    """A case's inputs and their clones, made when they are first asked for and shared by the kernels."""

    def __init__(self, inputs: Inputs) -> None:
        self._all = [inputs]

    def get(self, index: int) -> Inputs:
        """The inputs, or their index-th copy in memory of its own."""
        while len(self._all) <= index:
            self._all.append(clone(self._all[0]))
        return self._all[index]


class MarkedTimer:
    """A timer that says whose turn it is, so that a hang or a crash has a name; what it raises is a `Fault` of that kernel."""

    def __init__(self, timer: Timer, kernel: str, mark: Callable[[str], None]) -> None:
        self._timer, self._kernel, self._mark = timer, kernel, mark

    @contextmanager
    def _turn(self) -> Iterator[None]:
        self._mark("measure")
        try:
            yield
        except Exception as error:  # whose turn it was is only known here; the case is measured again without this kernel
            raise Fault(self._kernel, as_failure(error)) from error

    def sample(self) -> float:
        """As the timer's."""
        with self._turn():
            return self._timer.sample()

    def call_time(self) -> float:
        """As the timer's."""
        with self._turn():
            return self._timer.call_time()

    def block(self, seconds: float) -> Block:
        """As the timer's."""
        with self._turn():
            return self._timer.block(seconds)

    def outputs(self) -> object:
        """As the timer's."""
        return self._timer.outputs()

    def close(self) -> None:
        """As the timer's."""
        self._timer.close()


def as_failure(error: Exception) -> Failure:
    """The failure that an exception of a kernel stands for."""
    return Failure("refused", str(error)) if isinstance(error, TerSparseError) else failure_of(error)
