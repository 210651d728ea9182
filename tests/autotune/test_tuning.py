"""One case through the whole of `Tuning`, on a slot that answers from a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from autotune.clock import FakeClock
from autotune.events import Observer
from autotune.job import Job
from autotune.journal import Journal, PoisonList
from autotune.pool import Compilation, CompilePool
from autotune.search import Budget, Point, Result, strategy
from autotune.task import Task
from autotune.tools import Stopped, Tools
from autotune.tuning import Tuning
from kernels.errors import Failure
from kernels.gpu import by_name
from kernels.kernel import CompileUnit
from kernels.problem import Problem, Sparsity

H200 = by_name("h200")
JOB = Job("none", Problem("gemm", 24, 16, 128, Sparsity(2, 4)), H200, FakeClock(), "nowhere", "cpu")
POINTS = tuple({"size": size} for size in range(40))
DEATH = Failure("launch", "the worker process died of SIGSEGV")


def task(**changes: Any) -> Task:
    made = Task("a case", ("k",), ("k", "driver 1"), POINTS, JOB, H200, functions="script")
    return replace(made, **changes)


@dataclass
class Scripted:
    """Times by size; `dies` says which configs kill whatever call they are in."""

    times: Callable[[int], Result]
    dies: tuple[int, ...] = ()
    device: str = "cpu"
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def call(self, function: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        name, (job, points, *_) = function.removeprefix("script:"), arguments
        assert job == JOB
        self.calls.append((name, points))
        if name == "evaluate":
            return self.times(points["size"])
        if any(point["size"] in self.dies for point in points):
            return DEATH
        if name == "again":
            return [self.times(point["size"]) for point in points]
        return [[self.times(point["size"]) * (1 + 0.0001 * turn) for turn in range(10)] for point in points]  # type: ignore[operator]  # times

    def kill(self) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


class Heard(Observer):
    def __init__(self) -> None:
        self.halved: list[tuple[int, int]] = []

    def halving(self, task: Task, count: int, turns: int) -> None:
        self.halved.append((count, turns))


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(Journal(tmp_path / "j.jsonl", resume=False), PoisonList(tmp_path / "poison.jsonl"), observer=Heard())


def valley(size: int) -> float:
    return 10.0 + abs(size - 23) / 10


def sizes(points: tuple[Point, ...]) -> list[int]:
    return [point["size"] for point in points]


def test_the_field_is_halved_and_the_finalists_meet_the_default(tools: Tools) -> None:
    slot = Scripted(valley)
    found = Tuning(task(), tools).run(slot, Budget())
    assert isinstance(tools.observer, Heard)
    assert tools.observer.halved == [(10, 9)], "the best quarter of 40; a quarter of that is too few to go on"
    assert sizes(found.points) == [0, 23, 22, 24]
    assert found.verdict is not None
    assert found.points[found.verdict.winner] == {"size": 23}
    assert found.default_us == pytest.approx(valley(0), rel=1e-3)
    assert (found.evaluated, found.of) == (40, 40)


def test_what_is_far_from_the_best_is_not_timed_again(tools: Tools) -> None:
    slot = Scripted(lambda size: 10.0 if size < 2 else 100.0 + size)
    Tuning(task(), tools).run(slot, Budget())
    assert [name for name, _ in slot.calls].count("again") == 0


def test_a_finalist_that_kills_is_found_and_the_others_are_timed(tools: Tools) -> None:
    found = Tuning(task(), tools).run(Scripted(valley, dies=(23,)), Budget())
    assert found.complete
    assert DEATH in found.failures
    assert found.verdict is not None
    assert found.points[found.verdict.winner] in ({"size": 22}, {"size": 24})


def test_a_machine_that_kills_everything_poisons_nothing(tools: Tools, tmp_path: Path) -> None:
    found = Tuning(task(), tools).run(Scripted(lambda size: DEATH), Budget())
    assert not found.complete
    assert "no candidate could be measured: launch: the worker process died" in found.reason
    assert (tmp_path / "poison.jsonl").read_text() == ""


def test_a_killer_is_poisoned_once_another_ran_and_is_not_tried_again(tools: Tools, tmp_path: Path) -> None:
    def times(size: int) -> Result:
        return DEATH if size == 3 else valley(size)

    Tuning(task(), tools).run(Scripted(times), Budget())
    assert len((tmp_path / "poison.jsonl").read_text().splitlines()) == 1
    fresh = replace(tools, journal=Journal(tmp_path / "other.jsonl", resume=False))
    slot = Scripted(times)
    found = Tuning(task(), fresh).run(slot, Budget())
    assert found.failures == (DEATH,)
    assert ("evaluate", {"size": 3}) not in slot.calls
    slot = Scripted(times)
    Tuning(task(trouble=("k", "driver 2")), replace(fresh, journal=Journal(tmp_path / "third.jsonl", resume=False))).run(slot, Budget())
    assert ("evaluate", {"size": 3}) in slot.calls, "another driver, another chance"


def test_the_last_candidate_is_poisoned_too_where_the_finals_run(tools: Tools, tmp_path: Path) -> None:
    found = Tuning(task(), tools).run(Scripted(lambda size: DEATH if size == 39 else valley(size)), Budget())
    assert found.complete
    assert tools.poison.get("k", "driver 1", {"size": 39}) == DEATH
    assert len((tmp_path / "poison.jsonl").read_text().splitlines()) == 1


def test_a_killer_of_the_finals_is_poisoned(tools: Tools) -> None:
    Tuning(task(), tools).run(Scripted(valley, dies=(23,)), Budget())
    assert tools.poison.get("k", "driver 1", {"size": 23}) == DEATH
    assert tools.poison.get("k", "driver 1", {"size": 22}) is None


def test_a_killer_is_poisoned_when_another_case_runs_on_its_device_or_after_a_resume(tools: Tools, tmp_path: Path) -> None:
    slot = Scripted(lambda size: DEATH)
    Tuning(task(points=POINTS[:2]), tools).run(slot, Budget())
    assert tools.poison.get("k", "driver 1", POINTS[1]) is None
    Tuning(task(identity=("other",), trouble=("other",)), tools).run(Scripted(valley), Budget())
    assert tools.poison.get("k", "driver 1", POINTS[1]) is None, "another device says nothing of this one"
    slot.times = valley
    Tuning(task(identity=("third",), trouble=("third",)), tools).run(slot, Budget())
    assert tools.poison.get("k", "driver 1", POINTS[1]) == DEATH
    tools.journal.close()
    resumed = Tools(Journal(tmp_path / "j.jsonl", resume=True), PoisonList(tmp_path / "empty.jsonl"))
    Tuning(task(points=POINTS[:3]), resumed).run(Scripted(valley), Budget())
    assert resumed.poison.get("k", "driver 1", POINTS[1]) == DEATH, "its run ended before another candidate ran"


@pytest.mark.parametrize("retry", [True, False])
def test_what_killed_is_tried_again_where_that_is_asked_for_though_the_journal_knows_it(retry: bool, tmp_path: Path) -> None:
    wrong, path = Failure("wrong", "y"), tmp_path / "j.jsonl"
    before = Tools(Journal(path, resume=False), PoisonList(tmp_path / "p.jsonl"))
    Tuning(task(), before).run(Scripted(lambda size: {3: DEATH, 4: wrong}.get(size, valley(size))), Budget())
    before.journal.close()
    slot = Scripted(valley)
    found = Tuning(task(), Tools(Journal(path, resume=True), PoisonList(tmp_path / "p.jsonl", retry))).run(slot, Budget())
    assert [points["size"] for name, points in slot.calls if name == "evaluate"] == ([3] if retry else [])
    assert found.failures == ((wrong,) if retry else (DEATH, wrong))


def test_a_bound_that_is_above_the_best_saves_the_timing(tools: Tools) -> None:
    slot = Scripted(valley)

    def bound(point: Mapping[str, Any]) -> float:
        return 99.0 if point["size"] >= 30 else 0.0

    found = Tuning(task(bound_us=bound), tools).run(slot, Budget())
    assert max(points["size"] for name, points in slot.calls if name == "evaluate") == 29
    assert sum(failure.reason.startswith("pruned") for failure in found.failures) == 10
    assert found.evaluated == 40


def test_an_interrupt_does_not_wait_for_the_compiler(tools: Tools) -> None:
    """It comes when a candidate has been handed to a compiler that never answers."""
    class Endless(CompilePool):
        def submit(self, unit: CompileUnit, order: int = 0) -> Compilation:
            tools.stop.set()
            return Future()

    unit = CompileUnit(None, {}, {})
    stuck = Tuning(task(units=lambda point: [unit]), replace(tools, pool=Endless(H200)))
    with pytest.raises(Stopped):
        stuck.run(Scripted(valley), Budget())


def test_a_budget_of_evaluations_ends_in_finals(tools: Tools) -> None:
    slot = Scripted(valley)
    found = Tuning(task(starts=(0, 20)), replace(tools, search=strategy("local"))).run(slot, Budget(None, 10))
    assert [name for name, _ in slot.calls].count("evaluate") == found.evaluated == 10
    assert found.complete
    assert found.verdict is not None
    assert found.points[found.verdict.winner] == {"size": 23}, "local search walks there"


def test_time_that_is_spent_ends_in_finals_of_what_was_timed(tools: Tools) -> None:
    now = iter([0.0, *(0.1 * tick for tick in range(1000))])
    found = Tuning(task(), tools).run(Scripted(valley), Budget(1.0, now=lambda: next(now)))
    assert found.complete
    assert 5 <= found.evaluated <= 11
    assert not Tuning(task(), tools).run(Scripted(valley), Budget(0.0)).complete
