"""The threads of a run: what goes wrong in one is told, and none is left."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from autotune.clock import FakeClock
from autotune.job import Job
from autotune.journal import Journal, PoisonList
from autotune.search import Budget
from autotune.session import Tuner
from autotune.tuning import Tools
from kernels.errors import OutputError
from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity

JOB = Job("good", Problem("gemm", 24, 16, 128, Sparsity(2, 4)), by_name("h200"), FakeClock(), "tests.autotune.fakes", "cpu")


class Broken:
    """A slot that the operating system grants no process."""

    device = "cpu"
    closed = 0

    def call(self, function: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        raise BlockingIOError("no more processes")

    def kill(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        self.closed += 1


class Unwritable(Tuner):
    """Its table cannot be written."""

    def _write(self) -> None:
        raise OutputError("the disk is full")


@pytest.mark.parametrize(("kind", "error"), [(Tuner, BlockingIOError), (Unwritable, OutputError)])
def test_an_error_ends_the_run_and_its_threads(kind: type[Tuner], error: type[Exception], tmp_path: Path) -> None:
    tools, slot, before = Tools(Journal(tmp_path / "j.jsonl", False), PoisonList(tmp_path / "p.jsonl")), Broken(), threading.active_count()
    with pytest.raises(error):
        list(kind(tools, tmp_path / "h200.json", {}).run([JOB], [slot], Budget()))
    assert slot.closed
    assert tools.stop.is_set()
    assert threading.active_count() == before
