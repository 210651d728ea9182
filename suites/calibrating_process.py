"""Fresh processes one after the other, the next of which imports what it needs while the one before it measures."""

from __future__ import annotations

import threading
from importlib import import_module

from autotune.measure import Plan
from kernels.errors import Failure
from suites.case import Case
from suites.executor import Worker
from suites.record import CaseRecord

IMPORTS = ("torch", "triton", "kernels.catalogue", "suites.executor", "autotune.graph_timer")
IMPORTED, IMPORT_SECONDS = "suites.calibrating_process:imported", 120.0


class AheadWorker(Worker):
    """A worker whose child may be started before its turn. Until its first case it does not touch the device."""

    _starting: threading.Thread | None = None

    def start(self) -> None:
        """Let the child import what it will need, and return at once: there is a child to end from here on."""
        self._process.begin()
        self._starting = threading.Thread(target=self._import, daemon=True)
        self._starting.start()

    def _import(self) -> None:
        self._process.call(IMPORTED, (), IMPORT_SECONDS)

    def _started(self) -> None:
        if self._starting is not None:
            self._starting.join()
            self._starting = None

    def case(self, case: Case, plan: Plan, excluded: dict[str, Failure]) -> CaseRecord:
        """As a worker's."""
        self._started()
        return super().case(case, plan, excluded)

    def close(self) -> None:
        """End the child, started or not."""
        while self._starting is not None and self._starting.is_alive():  # a child that was killed before it was asked is born again
            self._process.kill()
            self._starting.join(0.1)
        self._started()
        super().close()


def imported() -> int:
    """The child's side of `start`: how many modules are there now."""
    return len([import_module(name) for name in IMPORTS])
