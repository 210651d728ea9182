"""The threads of a run: what goes wrong in one is told, and none is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from autotune.beginning import Beginning
from autotune.clock import FakeClock
from autotune.executor import SlotLost
from autotune.job import Job
from autotune.journal import Journal, PoisonList
from autotune.keeping import Keeper
from autotune.pool import CompilePool
from autotune.search import Budget
from autotune.session import Tuner
from autotune.tools import Tools
from autotune.worker import Worker
from kernels.errors import OutputError
from kernels.gpu import by_name
from kernels.kernel import CompileUnit
from kernels.problem import Problem, Sparsity
from tests.autotune.test_run import run
from tests.patience import PATIENCE

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


def unwritable(keeper: Keeper) -> None:
    raise OutputError("the disk is full")


@pytest.mark.parametrize(("write", "error"), [(Keeper.write, BlockingIOError), (unwritable, OutputError)])
def test_an_error_ends_the_run_and_its_threads(
    write: Callable[[Keeper], None], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Keeper, "write", write)
    tools, slot, before = Tools(Journal(tmp_path / "j.jsonl", False), PoisonList(tmp_path / "p.jsonl")), Broken(), {*threading.enumerate()}
    with pytest.raises(error):
        list(Tuner(tools, tmp_path / "h200.json", {}).run([JOB], [slot], Budget()))
    assert slot.closed
    assert tools.stop.is_set()
    assert not {*threading.enumerate()} - before


def test_a_compiler_that_gets_no_process_is_an_error_and_no_endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Worker, *_: object) -> None:
        raise BlockingIOError("no more processes")

    for name in ("begin", "call"):
        monkeypatch.setattr(Worker, name, refused)
    before = {*threading.enumerate()}
    with CompilePool(by_name("h200"), 1) as pool:
        for block in (1, 2):
            future = pool.submit(CompileUnit(None, {}, {"BLOCK": block}))
            with pytest.raises(BlockingIOError):
                future.result(PATIENCE)
    assert not {*threading.enumerate()} - before


class Lost(Broken):
    """A slot on a node that is gone."""

    def call(self, function: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        raise SlotLost("the node is lost")


def test_cases_of_slots_that_are_all_lost_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Beginning, "slots", lambda self, gpu: [Lost(), Lost()])
    assert run(tmp_path, "--kernel", "good", "default-wins") == 4
    out = capsys.readouterr().out
    assert "not tuned: good gemm 24x16 T=128 2:4, default-wins gemm 24x16 T=128 2:4\n" in out
    assert "0 tuned, 0 stay with their default, 2 not tuned" in out


class Busy(Broken):
    """A slot that is at work until it is killed."""

    def __init__(self) -> None:
        self.killed = threading.Event()

    def call(self, function: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        self.killed.wait(PATIENCE)
        raise SlotLost("the node is lost")

    def kill(self) -> None:
        self.killed.set()


def test_an_error_of_planning_ahead_ends_the_run_and_what_runs(tmp_path: Path) -> None:
    class Unplannable(Tuner):
        def _hand_over(self, jobs: Sequence[Job]) -> None:
            raise BlockingIOError("no more processes")

    tools = Tools(Journal(tmp_path / "j.jsonl", False), PoisonList(tmp_path / "p.jsonl"))
    with pytest.raises(BlockingIOError):
        list(Unplannable(tools, tmp_path / "h200.json", {}).run([JOB], [slot := Busy()], Budget()))
    assert slot.killed.is_set()
    assert slot.closed
