"""The whole table by one command: what it is made for, a budget that does not reach everything, an interrupt, and going on."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from autotune import plan
from autotune.beginning import Surroundings
from autotune.clock import FakeClock
from autotune.coverage import coverage
from autotune.pool import CompilePool, cores
from autotune.predict import MODELS, likely
from autotune.run import main
from kernels import catalogue
from kernels.gpu import by_name
from kernels.problem import DENSE, Problem, Sparsity
from kernels.tuned_table import Entry, Table, read_table
from reports.landscape import covered
from tests.autotune.everything import HOLD
from tests.patience import PATIENCE, until

H200 = by_name("h200")


def test_the_plan_is_what_the_suites_measure() -> None:
    from suites import catalogue as suites

    cases = suites.plan(suites.Selection())
    wanted = {case.problem for case in cases if case.problem.op != "step"}
    planned = plan.problems()
    assert len(planned) == len(set(planned))
    assert set(planned) == wanted
    for case in cases[::37]:
        assert case.problem.op == "step" or case.suite in plan.suites(case.problem)
    step = catalogue.kernels_for("step")
    assert not any(kernel.space.axes for kernel in step), "a step has nothing of its own to tune"


def test_every_suite_is_begun_before_any_is_finished() -> None:
    planned = plan.problems()
    groups = sum(1 for row in plan.ROWS for group in row.groups())
    first = [(suite, one.op, one.tokens, one.sparsity) for one in planned[:groups] for suite in plan.suites(one)]
    assert {suite for suite, *_ in first} == {row.suite for row in plan.ROWS}
    assert {(row.op, tokens) for row in plan.ROWS for tokens in row.tokens} == {(op, tokens) for _, op, tokens, _ in first}


def test_the_likeliest_kernels_come_first_and_need_a_choice() -> None:
    def names(gpu: str, problem: Problem) -> list[str]:
        return [kernel.name for kernel, _ in plan.chosen([problem], by_name(gpu), catalogue.kernels_for)]

    many, few = Problem("gemm", 2560, 6912, 2048, Sparsity(2, 4)), Problem("gemm", 2560, 6912, 4, Sparsity(6, 8))
    assert names("h200", many) == ["sparse-wgmma", "dense-wgmma"]
    assert names("h200", few) == ["decode", "sparse-wgmma"]
    assert names("h200", few.with_(tokens=64)) == ["sparse-wgmma", "decode"]
    assert names("h200", few.with_(sparsity=DENSE)) == ["decode", "dense-wgmma"]
    assert "sparse-mma" in names("a100", many)
    assert not any("wgmma" in name for name in names("a100", many))
    assert names("h200", Problem("input-grad", 2048, 2048, 4096, Sparsity(2, 4))) == ["unpack-dot"]
    chosen = plan.chosen(plan.problems(), H200, catalogue.kernels_for)
    assert {problem for _, problem in chosen[: len(plan.problems())]} == set(plan.problems()), "each has one before any has two"


@pytest.mark.parametrize("name", [name for name, _ in MODELS])
def test_cost_models_rank_candidates_with_the_default_near_the_front(name: str) -> None:
    problem = Problem("gemm", 2560, 6912, 16 if name == "decode" else 2048, Sparsity(2, 4))
    kernel = catalogue.find(name, "gemm")
    configs = list(kernel.space.allowed(problem, H200))
    order = likely(name, problem, H200, configs, len(configs))
    times = [MODELS[name, type(configs[0])](problem, H200, configs[place]) for place in order]
    assert times == sorted(times)
    assert math.isfinite(times[-1])
    default = replace(kernel.default_config(problem, H200), **({"pair": 1} if "wgmma" in name else {}))
    assert configs.index(default) in order[: max(3, len(order) // 4)]
    assert likely("dense-triton", problem, H200, configs, 3) == []
    assert likely(name, problem, H200, [object()], 3) == []


def test_coverage_counts_by_suite_and_names_what_is_missing() -> None:
    def entry(problem: Problem, **changes: object) -> Entry:
        sizes = problem.out_features, problem.in_features, problem.tokens
        made = Entry("k", problem.op, *sizes, str(problem.sparsity), problem.dtype, {}, 5.0, 5.0, "hash")
        return replace(made, **changes)  # type: ignore[arg-type]  # a test's changes

    square = Problem("gemm", 8192, 8192, 8192, Sparsity(2, 4))
    other = square.with_(sparsity=Sparsity(6, 8))
    told = {one.suite: one for one in coverage([entry(square), entry(square, kernel="other", config={"tile": 1}), entry(other)])}
    assert (told["square"].problems, told["square"].tuned, told["square"].stays, len(told["square"].missing)) == (10, 1, 1, 8)
    assert square not in told["square"].missing
    assert "square: 2 of 10 problems, 1 tuned, 1 stay with their default; not covered: gemm 1024x1024 T=1024 2:4" in str(told["square"])
    assert not any(one.missing or one.carried for one in coverage(map(entry, plan.problems())))
    near = Problem("gemm", 2560, 6912, 8192, Sparsity(2, 4))
    (prefill,) = (one for one in coverage([entry(near), entry(near.with_(tokens=100), config={"tile": 1})]) if one.suite == "prefill")
    assert (prefill.tuned, prefill.stays, prefill.carried) == (1, 2, 2), "16,384 from 8,192 and 128 from 100 tokens"
    assert near.with_(tokens=2048) in prefill.missing
    made = {"command": "python -m autotune.run --gpu h200 --budget 5m", "date": "2026-11-22", "seconds": 290.5, "devices": 2,
            "complete": 700, "cases": 1162, "evaluated": 4000}
    html = str(covered(Table((entry(square, config={"tile": 1}),), (entry(other),), made)))
    assert "made by python -m autotune.run --gpu h200 --budget 5m on 2026-11-22: 290.5 s on 2 devices, 700 of 1162 cases" in html
    assert '<th scope="row">square</th><td class="r">2 of 10</td><td class="r">1</td><td class="r">1</td>' in html


def tune(folder: Path, *arguments: str) -> int:
    """On a clock that every look advances by a millisecond: what a budget reaches depends on the run and not on the machine."""
    looks = itertools.count()
    around = Surroundings(
        lambda: H200, lambda gpu: ["cpu", "cpu"], "tests.autotune.everything", folder / "h200.json", folder / "runs", PATIENCE,
        "tests.autotune.everything", lambda: {"triton": None, "driver": None}, False, lambda: 1e-3 * next(looks),
    )
    return main(["--gpu", "h200", *arguments], FakeClock(), around)


def test_a_budget_covers_a_part_and_resume_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = ["--op", "prepare", "activation", "weight-grad"]
    assert tune(tmp_path, *some, "--budget", "0.4s") == 4
    out = capsys.readouterr().out
    first = rows(tmp_path / "h200.json")
    assert 0 < first < 106
    assert "not tuned: " in out
    assert "the budget was spent" in out
    assert "s left] " in out
    assert tune(tmp_path, *some, "--budget", "60s", "--resume") == 0
    out = capsys.readouterr().out
    assert f"{106 - first} cases on h200 (cpu, cpu)" in out, "what the table holds is not asked again"
    table = read_table(tmp_path / "h200.json")
    assert rows(tmp_path / "h200.json") == 106
    assert all(one.default_us == pytest.approx(11.0, rel=0.05) for one in table.entries)
    assert {json.dumps(one.config) for one in table.entries} == {'{"a": 6, "b": 3, "c": 2}'}
    assert table.made == {}, "not the whole table"
    last = json.loads((tmp_path / "runs/tune-h200/last.json").read_text())
    assert last["complete"] == last["cases"] == 106 - first
    assert last["device_seconds"] > 0
    around = Surroundings(table=tmp_path / "h200.json", catalogue="tests.autotune.everything")
    assert main(["--gpu", "h200", "--coverage"], None, around) == 4
    out = capsys.readouterr().out
    assert "prepare: 58 of 58 problems" in out
    assert "decode: 0 of 144 problems" in out


def rows(path: Path) -> int:
    table = read_table(path)
    return len(table.entries) + len(table.stays)


@contextmanager
def spawned(folder: Path, repository: Path, *arguments: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """Writes to `out` and `err` in the folder, and does not outlive the test. more: variables of its environment."""
    code = "import sys; from pathlib import Path; from tests.autotune.test_plan import tune;"
    line = [sys.executable, "-c", f"{code} sys.exit(tune(Path({str(folder)!r}), *{arguments!r}))"]
    environment = {**os.environ, "PYTHONPATH": str(repository), **more}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        child = subprocess.Popen(line, stdout=out, stderr=err, cwd=folder, env=environment)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def outcomes(folder: Path) -> int:
    """How many a run has told of."""
    return (folder / "out").read_text().count(" left] ")


def test_the_whole_table_interrupted_and_gone_on_with(tmp_path: Path, repository: Path) -> None:
    """What was done is in the table, and a second run goes on with the rest. (Killed tuners: see the test of endurance.)"""
    path = tmp_path / "h200.json"
    with spawned(tmp_path, repository, "--budget", "4m", **{HOLD: "1000"}) as child:
        until(lambda: outcomes(tmp_path) >= 20 or child.poll() is not None, "twenty cases")
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == 130, (tmp_path / "err").read_text()
    before, kept = read_table(path), rows(path)
    assert outcomes(tmp_path) <= kept + 2
    assert before.made["command"] == "python -m autotune.run --gpu h200 --budget 4m"
    assert before.made["devices"] == 2
    assert before.made["complete"] == kept >= 20
    path.write_text(path.read_text().replace(f'"seconds": {before.made["seconds"]}', '"seconds": 1000.5'))
    with spawned(tmp_path, repository, "--budget", "1s", "--resume") as again:
        assert again.wait(PATIENCE) == 4, (tmp_path / "err").read_text()
    after = read_table(path)
    assert rows(path) > kept
    assert after.made["seconds"] >= 1000.5, "the time of both"
    assert {one.key for one in (*before.entries, *before.stays)} <= {one.key for one in (*after.entries, *after.stays)}


def test_cores_are_those_of_the_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(192)), raising=False)
    for text, count in (("max 100000", 192), ("1600000 100000", 16), ("50000 100000", 1), ("19300000 100000", 192)):
        monkeypatch.setattr(Path, "read_text", lambda path, encoding, text=text: text)
        assert cores() == count


def test_a_warm_pool_has_its_processes_before_there_is_work() -> None:
    with CompilePool(H200, processes=2) as pool:
        pool.warm()
        until(lambda: all(worker._child is not None for worker in pool._workers), "the processes")
        assert len(pool._workers) == 2
        assert all(worker._child is not None for worker in pool._workers)
        assert pool.submitted == 0
    assert all(worker._child is None for worker in pool._workers)
