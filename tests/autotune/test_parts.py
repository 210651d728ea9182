"""The parts of the pipeline: lock, verdict, pruning, the compiling pool, the live view."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from autotune import compile as compiler
from autotune.clock import FakeClock
from autotune.compile import WAIT_FOR_ALL, Compiled, count_instructions
from autotune.job import Job
from autotune.journal import Journal, PoisonList
from autotune.live import View, view
from autotune.lock import FolderLock
from autotune.pool import LEAST_SECONDS, CompilePool
from autotune.prune import against, bound_us, too_slow
from autotune.search import Budget
from autotune.task import of_job
from autotune.verdict import chance_of_best, decide
from autotune.worker import Worker
from kernels.errors import Failure, OutputError, UsageError
from kernels.gpu import by_name
from kernels.kernel import CompileUnit
from kernels.problem import Problem, Sparsity
from tests.autotune import scripted
from tests.patience import PATIENCE, alive, until

H200 = by_name("h200")
PROBLEM = Problem("gemm", 8192, 8192, 8192, Sparsity(2, 4))
GOOD = Compiled(128, 0, 100_000, {"IGMMA": 16, "WARPGROUP.DEPBAR": 4}, 1.0)
UNIT = CompileUnit(None, {}, {}, options={"num_warps": 8}, expects={80: "IMMA", 90: "IGMMA"})


def test_one_owner_at_a_time_and_a_dead_one_frees_it(tmp_path: Path, repository: Path) -> None:
    imports = "import time; from pathlib import Path; from autotune.lock import FolderLock"
    code = f"{imports}\nwith FolderLock(Path({str(tmp_path)!r})): time.sleep(3600)"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=repository)
    try:
        until(lambda: (tmp_path / "lock").exists() and (tmp_path / "lock").read_text(), "the lock")
        with pytest.raises(UsageError, match=rf"in use by process {child.pid} on .+, for \d+ s"), FolderLock(tmp_path):
            pass
    finally:
        child.kill()
    child.wait(PATIENCE)
    with FolderLock(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()}"), FolderLock(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError), FolderLock(tmp_path / "file"):
        pass


def test_a_clear_winner_a_tie_and_a_default_that_stays() -> None:
    draw = random.Random(1)
    noisy = {place: [us * draw.gauss(1, 0.002) for _ in range(20)] for place, us in enumerate((12.0, 10.0, 10.001, 15.0))}
    verdict = decide(noisy)
    assert verdict.winner in (1, 2)
    assert verdict.better
    assert verdict.ties == (3 - verdict.winner,)
    assert 0.3 < verdict.chance < 1
    assert decide({0: noisy[1], 1: noisy[2]}).better is False
    assert decide({0: noisy[0], 3: noisy[3]}).better is False
    assert decide({2: noisy[3]}) == decide({2: noisy[3]})
    assert decide({2: noisy[3]}).better, "the default cannot run"
    assert chance_of_best({0: noisy[0], 1: noisy[1]}, 1) == 1.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None), ({"spills": 8}, None), ({"spills": 200}, "200 bytes a thread are spilled"),
        ({"registers": 255, "warps": 16}, "do not fit a multiprocessor"), ({"shared_bytes": 300_000}, "shared memory"),
        ({"instructions": {"IMMA": 64}}, "no IGMMA in the machine code for sm_90"),
        ({"instructions": {"IGMMA": 16, "WARPGROUP.DEPBAR": 18}}, None), ({"instructions": {"IGMMA": 16, WAIT_FOR_ALL: 16}}, "serialized"),
    ],
)
def test_machine_code_speaks_against_a_candidate(changes: dict[str, object], reason: str | None) -> None:
    unit = replace(UNIT, options={"num_warps": changes.get("warps", 8)})
    failure = against(unit, replace(GOOD, **changes), H200)  # type: ignore[arg-type]  # a test's changes
    assert (failure is None) == (reason is None)
    assert reason is None or reason in str(failure)


def test_waits_for_all_products_are_counted() -> None:
    sass = """
        /*0800*/                   IGMMA.64x128x32.S8.S8 R24, gdesc[UR4], R24, gsb0 ;
        /*0810*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0820*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
    """
    counts = count_instructions(sass)
    assert (counts["IGMMA"], counts["WARPGROUP.DEPBAR"], counts[WAIT_FOR_ALL]) == (1, 2, 1)
    assert WAIT_FOR_ALL not in count_instructions("")


def test_a_candidate_below_its_roofline_bound_is_not_timed() -> None:
    whole = bound_us(PROBLEM, H200, {"block_n": 128, "block_t": 128})
    assert 2 * 8192**3 / (2 * 1979e12) * 1e6 * 0.9 < whole < 300
    one = PROBLEM.with_(tokens=1)
    assert bound_us(one, H200, {"block_n": 128, "block_t": 256}) == pytest.approx(2 * bound_us(one, H200, {"block_n": 128, "block_t": 128}))
    assert bound_us(one, H200, {"block_n": 512, "block_t": 16, "split_k": 4}) < bound_us(one, H200, {"block_n": 512, "block_t": 16})
    assert bound_us(PROBLEM, H200, {"tile": 3}) == 0
    assert bound_us(PROBLEM.with_(op="prepare"), H200, {"block_n": 64, "block_t": 64}) == 0
    assert too_slow(9.0, 10.0) is None
    assert str(too_slow(11.0, 10.0)).startswith("refused: pruned")


def test_poison_outlives_the_run_until_something_changes(tmp_path: Path) -> None:
    poison = PoisonList(tmp_path / "poison.jsonl")
    poison.put(Failure("timeout", "hangs"), "k", "driver 1", {"a": 1})
    poison.put(Failure("wrong", "off"), "k", "driver 1", {"a": 2})
    poison.close()
    later = PoisonList(tmp_path / "poison.jsonl")
    assert later.get("k", "driver 1", {"a": 1}) == Failure("timeout", "hangs")
    assert later.get("k", "driver 2", {"a": 1}) is None
    assert later.get("k", "driver 1", {"a": 2}) is None
    assert PoisonList(tmp_path / "poison.jsonl", retry=True).get("k", "driver 1", {"a": 1}) is None


def test_a_journal_is_shared_by_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    journal = Journal(tmp_path / "j.jsonl", resume=False)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda place: journal.put(place, "k", place), range(200)))
    journal.close()
    rows = [json.loads(line)["value"] for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert sorted(rows) == list(range(200))


def test_a_task_says_what_was_rejected_and_where_to_begin() -> None:
    job = Job("thousand", Problem("gemm", 24, 16, 128, Sparsity(2, 4)), H200, FakeClock(), "tests.autotune.scripted", "cpu")
    task = of_job(job, {"triton": "3.6.0"})
    assert (len(task.points), sum(task.rejected.values())) == (990, 10)
    assert list(task.rejected) == ["c is #, more than a is #"]
    assert task.points[0] == {"a": 0, "b": 0, "c": 0}
    assert task.starts == (0,)
    assert scripted.find("thousand", "gemm").space.axes


def test_a_terminal_sees_the_best_so_far_and_others_plain_lines() -> None:
    job = Job("ravine", Problem("gemm", 24, 16, 128, Sparsity(2, 4)), H200, FakeClock(), "tests.autotune.scripted", "cpu")
    task = replace(of_job(job, {}), rejected={"c is #, more than a is #": 16})
    shown = View(4, Console(file=io.StringIO(), width=200))
    assert shown.never_tried(3) == ""
    shown.begin(task, "cuda:1")
    shown.compiled(3, 9)
    for point, outcome in ((task.points[0], 20.0), (task.points[1], 16.0), (task.points[2], Failure("timeout", "hangs")),
                           (task.points[3], Failure("refused", "pruned: spills"))):
        shown.trial(task, point, outcome)
    shown.halving(task, 5, 9)
    console = Console(file=io.StringIO(), width=200)
    console.print(shown.table())
    assert "16 rejected before compiling" in console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert shown.never_tried(3) == "16 rejected before compiling: 16 c is #, more than a is #"
    words = ("0/4 cases", "4 candidates", "compiled 3/9", "1 pruned, 1 timeout", "16.00", "1.25x", "cuda:1", "5 timed again")
    assert [word for word in words if word not in text] == []
    shown.finals(task)
    assert shown.done == 4
    assert shown.cases[task.label].done == len(task.points)
    shown.finished(task)
    assert shown.cases == {}
    assert shown.over == 1
    shown.begin(replace(task, label="other", rejected={"too large": 20, "c is #, more than a is #": 1}), "cuda:2")
    assert shown.never_tried(1) == "37 rejected before compiling: 20 too large; 1 more reasons"
    assert shown.left().endswith(" left")
    assert View(10, budget=Budget(50.0, now=lambda: 0.0)).left() == "50 s left"
    shown.budget = Budget(0.0, now=lambda: 0.0)
    assert shown.left() == "0 s left"
    plain = io.StringIO()
    with view(10, Console(file=plain)) as lines:
        lines.say("a line with [brackets]")
    assert plain.getvalue() == "a line with [brackets]\n"
    live = io.StringIO()
    with view(10, Console(file=live, force_terminal=True)) as lines:
        lines.say("above")
    assert "0/10 cases" in live.getvalue()


def test_a_cache_that_was_carried_is_made_usable(tmp_path: Path) -> None:
    home = tmp_path / "KEY"
    home.mkdir()
    (home / "k.cubin").write_bytes(b"code")
    (home / "__grp__k.json").write_text(json.dumps({"child_paths": {"k.cubin": "/elsewhere/KEY/k.cubin"}}))
    assert compiler.settle_cache(tmp_path) == 1
    assert json.loads((home / "__grp__k.json").read_text())["child_paths"] == {"k.cubin": str(home / "k.cubin")}
    assert compiler.settle_cache(tmp_path) == 1
    assert sorted(file.name for file in home.iterdir()) == ["__grp__k.json", "k.cubin"]


@pytest.mark.compile
def test_the_pool_compiles_into_a_cache_that_a_launch_would_find(tmp_path: Path) -> None:
    from tests.autotune import kernels_to_compile as source

    signature = {"a": "*i8", "b": "*i8", "c": "*i32", "rows": "i32", "BLOCK": "constexpr"}
    good = CompileUnit(source.int8_dot, signature, {"BLOCK": 64}, divisible=("a", "b", "c"))
    broken = CompileUnit(source.broken, {"a": "*i8"}, {})
    with CompilePool(H200, processes=1, cache=str(tmp_path)) as pool:
        first, again, bad = pool.submit(good), pool.submit(good), pool.submit(broken)
        assert again is first
        assert isinstance(first.result(PATIENCE), Compiled)
        failure = bad.result(PATIENCE)
        assert isinstance(failure, Failure)
        assert failure.stage == "compile"
        assert (pool.done, pool.submitted) == (2, 2)
        assert pool.limit() > LEAST_SECONDS
    assert list(tmp_path.glob("*/int8_dot.cubin"))


@pytest.mark.compile
def test_a_cross_compiled_unit_has_the_key_of_a_launch() -> None:
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    from tests.autotune import kernels_to_compile as source

    target = GPUTarget("cuda", 90, 32)
    tensors = [torch.empty(4096, dtype=kind) for kind in (torch.int8, torch.int8, torch.int32)]
    signature = {"a": "*i8", "b": "*i8", "c": "*i32", "rows": "i32", "BLOCK": "constexpr"}
    for rows, divisible in ((48, ("a", "b", "c", "rows")), (7, ("a", "b", "c"))):
        function, backend = source.int8_dot, make_backend(target)
        bind = create_function_from_signature(function.signature, function.params, backend)
        bound, special, rest = bind(*tensors, rows, BLOCK=64)
        _, kinds, constants, attributes = function._pack_args(backend, rest, bound, special, None)
        unit = CompileUnit(function, signature, {"BLOCK": 64}, divisible)
        made = compiler._source(unit, target)
        assert (made.signature, made.constants, list(made.attrs.items())) == (kinds, constants, list(attributes.items()))
        assert str(made.attrs) == str(attributes), "in the same order: it is hashed as text"


def test_a_unit_that_is_wanted_sooner_is_compiled_sooner_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    first = threading.Event()

    def compiled(pool: CompilePool, worker: object, key: bytes) -> Failure:
        first.wait(PATIENCE)
        order.append(pickle.loads(key).constexprs["A"])
        return Failure("compile", "not really")

    monkeypatch.setattr(CompilePool, "_compiled", compiled)
    unit = CompileUnit(None, {}, {})
    with CompilePool(H200, processes=1) as pool:
        pool.submit(replace(unit, constexprs={"A": 0}))
        until(lambda: pool._begun, "the first to be begun")
        futures = [pool.submit(replace(unit, constexprs={"A": place}), 10 * place) for place in (1, 2, 3)]
        assert pool.submit(replace(unit, constexprs={"A": 3}), 5) is futures[2]
        assert pool.submit(replace(unit, constexprs={"A": 2}), 99) is futures[1]
        first.set()
        assert [future.result(PATIENCE).stage for future in futures] == ["compile"] * 3
    assert order == [0, 3, 1, 2]


def test_a_pool_that_is_closed_leaves_no_process_and_cancels_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a compilation that would take for ever, the process that it started included."""
    note = tmp_path / "pids"

    def compiled(pool: CompilePool, worker: Worker, key: bytes) -> Failure:
        failure: Failure = worker.call("tests.autotune.jobs:hang_with_child", (str(note),), 10 * PATIENCE)
        return failure

    monkeypatch.setattr(CompilePool, "_compiled", compiled)
    pool = CompilePool(H200, processes=1)
    futures = [pool.submit(CompileUnit(None, {}, {"A": place})) for place in range(50)]
    until(lambda: note.exists() and len(note.read_text().split()) == 2, "the compiler")
    pool.close()
    assert all(future.cancelled() for future in futures)
    assert all(worker._child is None for worker in pool._workers)
    until(lambda: not any(alive(int(process)) for process in note.read_text().split()), "the processes to end")
