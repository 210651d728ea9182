"""What all cases of a tuning run share: its files, its compilers, how it searches, and the way to the processes on its devices."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from autotune.events import Observer
from autotune.executor import Slot
from autotune.journal import Journal, PoisonList
from autotune.pool import CompilePool
from autotune.search import Maker, Point, exhaustive
from autotune.task import FUNCTIONS, Task
from kernels.errors import Failure

TRIAL_SECONDS = 60.0


class Stopped(Exception):
    """The run was interrupted; nothing of the candidate in flight is kept."""


@dataclass
class Tools:
    """What all cases of a run share. pool: None compiles nothing ahead. stop: set when the run is interrupted. functions: see `Task`.

    brief: many cases in little time: few candidates of each are compiled ahead and compared in the end, and there are no finals where the
    default leads. evaluations: of each case at most, what is beyond is not compiled ahead. busy: seconds that
    the devices' processes worked, together.
    """

    journal: Journal
    poison: PoisonList
    pool: CompilePool | None = None
    search: Maker = exhaustive
    observer: Observer = field(default_factory=Observer)
    trial_seconds: float = TRIAL_SECONDS
    stop: threading.Event = field(default_factory=threading.Event)
    functions: str = FUNCTIONS
    brief: bool = False
    evaluations: float = math.inf
    busy: float = 0.0
    _suspects: dict[int, list[tuple[tuple[Any, ...], Failure]]] = field(default_factory=dict, init=False)  # by id of the slot
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def call(self, task: Task, slot: Slot, function: str, arguments: tuple[Any, ...], seconds: float) -> Any:
        """What that function of the task's module returns in the slot's process, or the Failure. Raises Stopped.

        Where it returns, the slot's suspects are poisoned: what kills every candidate is the machine.
        """
        started = time.monotonic()
        result = slot.call(f"{task.functions}:{function}", (task.on(slot.device), *arguments), seconds)
        with self._lock:
            self.busy += time.monotonic() - started
        if self.stop.is_set():
            raise Stopped
        if not isinstance(result, Failure):
            for key, failure in self._suspects.pop(id(slot), ()):
                self.poison.put(failure, *key)
        return result

    def suspect(self, task: Task, slot: Slot, point: Point, failure: Failure) -> None:
        """A candidate may have killed its process: poisoned, if its failure is of that kind, once another call on the slot returns."""
        self._suspects.setdefault(id(slot), []).append(((*task.trouble, point), failure))
