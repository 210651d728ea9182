"""How a run starts: children that do not wait for each other, and the forecast of what it will compile."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from autotune import options as arguments
from autotune import pool
from autotune.beginning import Beginning, Surroundings
from autotune.clock import CudaClock
from autotune.compile import pickled
from autotune.early import PER_PROCESS, Forecast, Plan
from autotune.executor import LocalSlot, local_slots
from autotune.journal import Journal, PoisonList
from autotune.pool import NICE, CompilePool
from autotune.search import Budget, strategy
from autotune.task import of_job
from autotune.tools import Tools
from autotune.tuned import all_known
from autotune.tuning import Tuning
from autotune.worker import Worker, waking
from kernels.errors import Failure, UsageError
from kernels.gpu import by_name
from kernels.kernel import CompileUnit
from tests.autotune.slow_import import WAITS_FOR
from tests.patience import PATIENCE, until

H200 = by_name("h200")
SPARSE = ["--op", "gemm", "--shape", "2560x6912", "--tokens", "2048", "--sparsity", "2:4", "--kernel", "sparse-wgmma", "sparse-mma"]
CASES = {
    "200 candidates": ("autotune.wide", ["--gpu", "h200", *SPARSE, "--search", "random", "--budget", "104"], False),
    "every op": ("kernels.catalogue", ["--gpu", "h200", "--shape", "2560x6912", "--tokens", "16", "2048", "--budget", "9s"], True),
}


class Gathering(CompilePool):
    """Keeps what it is asked to compile."""

    def __init__(self, processes: int) -> None:
        super().__init__(H200, processes)
        self.units: list[tuple[int, bytes]] = []

    def submit_pickled(self, key: bytes, order: int = 0) -> object:  # type: ignore[override]  # nobody waits for it
        self.units.append((order, key))
        return None

    def submit(self, unit: CompileUnit, order: int = 0) -> object:  # type: ignore[override]
        return self.submit_pickled(pickled(unit), order)


def planned(catalogue: str, argv: list[str], brief: bool, folder: Path) -> Plan:
    options = arguments.parser().parse_args(argv)
    wanted = arguments.answerable(arguments.problems(options, arguments.shapes(options)))
    return Plan(options, wanted, H200, catalogue, folder / "table.json", 16, brief, 104 if "104" in argv else math.inf)


@pytest.fixture(params=CASES)
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Plan:
    return planned(*CASES[request.param], tmp_path)


def own_units(plan: Plan, folder: Path) -> Iterator[tuple[int, bytes]]:
    """What the run itself submits for all its cases, with torch."""
    pool, search = Gathering(plan.processes), strategy(arguments.search(plan.options))
    journal, poison = Journal(folder / "journal.jsonl", False), PoisonList(folder / "poison.jsonl")
    tools = Tools(journal, poison, pool, search, brief=plan.brief, evaluations=plan.evaluations)
    for number, job in enumerate(arguments.jobs(plan.options, plan.wanted, H200, CudaClock(), plan.catalogue)):
        Tuning(of_job(job, {}, all_known(plan.table)), tools, number).compile_ahead()
    yield from pool.units


def test_the_forecast_is_what_the_run_submits(plan: Plan, tmp_path: Path) -> None:
    with Worker() as worker:
        foreseen = list(worker.stream("autotune.early:units", (plan,), PATIENCE))
    assert foreseen
    assert not [item for item in foreseen if isinstance(item, Failure)]
    wanted = list(own_units(plan, tmp_path))
    assert len(foreseen) == min(PER_PROCESS * plan.processes, len(wanted))
    assert foreseen == wanted[: len(foreseen)], "the same bytes, or the run would compile them a second time"


def test_planning_has_types_and_nothing_else_of_torch() -> None:
    with Worker() as worker:
        assert worker.call("tests.autotune.jobs:torch_of_a_plan", (("bfloat16", "int32"),), PATIENCE) == ["torch.bfloat16", "torch.int32"]
        failure = worker.call("tests.autotune.jobs:torch_of_a_plan", (("zeros",),), PATIENCE)
        assert "has no attribute 'zeros'" in failure.reason
        again = worker.call("autotune.early:stand_in", (), PATIENCE)
        assert "imported in this process already" in again.reason


def test_a_forecast_fills_the_pool_and_ends(tmp_path: Path) -> None:
    pool = Gathering(2)
    forecast = Forecast(planned(*CASES["200 candidates"], tmp_path), pool)
    forecast._thread.join(PATIENCE)
    found = len(pool.units)
    assert found >= 2 * PER_PROCESS
    assert forecast._worker._child is None
    forecast.close()
    wrong = planned("autotune.wide", ["--gpu", "h200", *SPARSE[:-2], "nobody"], False, tmp_path)
    late = Forecast(wrong, pool)
    late.close()
    assert len(pool.units) == found
    assert not late._thread.is_alive()


def test_a_begun_child_is_not_waited_for_and_imports(tmp_path: Path) -> None:
    """It imports what waits for a file, and the file is made when `begin` has returned."""
    first = waking("tests.autotune.slow_import"), ("tests.autotune.jobs:later", ()), waking("no.such.module")
    with Worker({WAITS_FOR: str(tmp_path / "go on")}, first, nice=3) as worker:
        worker.begin()
        (tmp_path / "go on").touch()
        child = worker._child
        assert worker.call("tests.autotune.jobs:loaded", ("tests.autotune.slow_import",), PATIENCE) is True
        assert worker.call("tests.autotune.jobs:loaded", ("late.module",), PATIENCE) is True, "its thread was waited for"
        assert worker.call("os:nice", (0,), PATIENCE) == min(os.nice(0) + 3, 19)
        assert worker._child is child
        worker.close()
        assert worker.call("tests.autotune.jobs:loaded", ("tests.autotune.slow_import",), PATIENCE) is True, "a reborn one, too"


def test_compiling_gives_way_to_timing() -> None:
    with CompilePool(H200, 1) as pool:
        pool.warm()
        (worker,) = pool._workers
        until(lambda: worker._ready, "the compiler")
        assert worker._child is not None
        assert os.getpriority(os.PRIO_PROCESS, worker._child.pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)


def test_the_first_devices_process_is_the_one_that_was_begun() -> None:
    begun = LocalSlot("cuda:1")
    first, second = local_slots(["cuda:0", "cuda:1"], begun)
    assert second is begun
    assert (first.device, second.device) == ("cuda:0", "cuda:1")


@pytest.mark.parametrize(("device", "found"), [((), "a100"), (("--device", "1"), "h200")])
def test_the_gpu_of_a_run_is_that_of_the_device_that_was_named(device: tuple[str, ...], found: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        begun = mixed(device, found, tmp_path, stack)
        assert begun.machine().name == found
        assert begun.slots(by_name(found))[0].device == f"cuda:{device[1] if device else 0}"


@pytest.mark.parametrize("index", ["-1", "2"])
def test_a_device_that_is_not_there_is_a_usage_error(index: str, tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(UsageError, match=f"--device {index}: this machine has devices 0 to 1"):
        mixed(("--device", index), "h200", tmp_path, stack).machine()


def mixed(device: tuple[str, ...], claimed: str, folder: Path, stack: ExitStack) -> Beginning:
    """Of a run on a machine with an A100 and an H200."""
    options = arguments.parser().parse_args(["--gpu", claimed, *SPARSE[:8], *device])
    begun = Beginning(options, Surroundings(catalogue="tests.autotune.fakes", table=folder / "t.json", warm=False), stack, Budget())
    begun._models = [by_name("a100"), H200]
    return begun


def test_everything_starts_before_the_catalogue_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "cores", lambda: 2)  # of many there would be as many processes
    options = arguments.parser().parse_args(["--gpu", "h200", *SPARSE, "--budget", "3"])
    around = Surroundings(catalogue="autotune.wide", table=tmp_path / "table.json", functions="tests.autotune.scripted")
    before = {*threading.enumerate()}
    with ExitStack() as stack:
        begun = Beginning(options, around, stack, Budget(None, 3))
        assert begun._slot._worker._child is not None
        assert all(worker._child is not None for worker in begun.pool._workers)
        assert len(begun.pool._workers) == begun.pool.processes
    assert begun._slot._worker._child is None
    assert all(worker._child is None for worker in begun.pool._workers)
    assert not {*threading.enumerate()} - before
