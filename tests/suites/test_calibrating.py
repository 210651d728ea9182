"""What a calibration measures, and in which processes."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.catalogue import kernels_for
from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity
from suites import calibrate, calibrating, calibrating_process, calibrating_work, calibration, catalogue
from suites.bench import Bench
from suites.calibrating_cases import choose, fair, spread
from suites.calibrating_process import AheadWorker
from suites.calibrating_samples import label_of
from suites.calibrating_work import schedule
from suites.case import Case
from suites.executor import Local
from suites.injected import SlowedCase
from suites.record import CaseRecord, read
from tests.patience import PATIENCE, alive
from tests.suites.fakes import H200, PLAN, gemm, lab

CASE = Case("prefill", "custom", "16x32", Problem("gemm", 16, 32, 4, Sparsity(2, 4)), "hot")


def test_a_child_started_ahead_measures_and_ends() -> None:
    worker = AheadWorker("tests.suites.crashing:executor", "nothing", seconds=PATIENCE)
    worker.start()
    try:
        record = worker.case(CASE, PLAN, {})
    finally:
        worker.close()
    assert all(result.status == "ok" for result in record.results)


def test_a_child_that_is_not_needed_after_all_ends_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take an hour to import the rest of what it needs."""
    monkeypatch.setattr(calibrating_process, "IMPORTED", "tests.patience:hang")
    monkeypatch.setattr(calibrating_process, "IMPORT_SECONDS", 3600.0)
    worker = AheadWorker("tests.suites.crashing:executor", "nothing")
    worker.start()
    child = worker._process._child
    worker.close()
    assert child is not None
    assert child.poll() == -signal.SIGKILL


def test_cases_are_of_all_suites_and_have_a_kernel_to_measure() -> None:
    cases = catalogue.plan(catalogue.Selection(quick=True))
    names = ("sparse-wgmma", "decode", "dense-triton", "exact-cublas", "two-pass", "activation", "dense-bf16")
    chosen = choose(cases, lambda case: [kernel for kernel in kernels_for(case.problem.op) if kernel.name in names], by_name("h200"), 24)
    assert len(chosen) == len({case.key for case in chosen}) == 24
    assert [case.key for case in cases if case in chosen] == [case.key for case in chosen], "in the order of the suites"
    counts = [sum(case.suite == suite.name for case in chosen) for suite in catalogue.SUITES]
    assert counts == [4] * 6
    assert not {case.problem.op for case in chosen} & {"input-grad", "weight-grad"}, "none of these kernels computes them"
    two_pass = [kernel for kernel in kernels_for("prepare") if kernel.name == "two-pass"]
    everything = choose(cases, lambda case: two_pass if case.problem.op == "prepare" else [], by_name("h200"), 0)
    assert {case.problem.op for case in everything} == {"prepare"}


@pytest.mark.parametrize(("sizes", "count", "taken"), [((12, 4, 12), 20, [8, 4, 8]), ((1, 1), 5, [1, 1]), ((3, 3), 3, [2, 1])])
def test_fair_shares(sizes: tuple[int, ...], count: int, taken: list[int]) -> None:
    assert fair(sizes, count) == taken


def test_even_distances() -> None:
    assert spread(range(10), 3) == [0, 4, 8]
    assert spread(range(12), 6) == [0, 3, 4, 7, 8, 11], "odd ones and even ones"
    assert spread(range(2), 3) == [0, 1]


def test_what_a_budget_cuts_off_comes_last() -> None:
    steps = [(step.slowed, step.number) for step in schedule(9, 1)]
    fresh = [(False, number) for number in range(9)]
    assert steps == [*fresh[:6], (True, 0), (True, 1), (True, 2), *fresh[6:]]
    assert not [step for step in schedule(9, 0) if step.slowed]


def test_the_delay_that_another_share_suggests() -> None:
    known = measured_case({"injected_cycles": 400, "injected_measured": 0.021})
    case = SlowedCase.of(CASE, "ours", 0.02, known)
    assert (case.cycles, case.came_to, case.guess) == (400, 0.021, 0)
    case = SlowedCase.of(CASE, "ours", 0.05, None, known)
    assert (case.cycles, case.guess) == (0, round(400 * 0.05 / 0.021))
    assert SlowedCase.of(CASE, "ours", 0.05, None, measured_case({})).guess == 0


def measured_case(notes: dict[str, object]) -> CaseRecord:
    made = lab()
    record = Local(Bench(H200, made.clock, made.monitor, made.kernels_for, "cpu")).case(CASE, PLAN, {})
    return replace(record, results=tuple(replace(own, notes=notes) if own.kernel == "ours" else own for own in record.results))


def test_a_calibration_in_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device: a child for each process and each round of slowed kernels, none of which outlives it."""
    names = {"ours": gemm("ours", 50.0), "theirs": gemm("theirs", 100.0, "baseline")}
    numbers = itertools.count()
    monkeypatch.setattr(calibrating_work, "DeviceArguments", lambda *_, **__: next(numbers))  # what is told to each process
    monkeypatch.setattr(calibrating_work, "ON_DEVICE", "tests.suites.calibrated:executor")
    monkeypatch.setattr(calibrating_work, "SLOWED", "tests.suites.calibrated:executor")
    for module in (calibrating, calibrating_work):
        monkeypatch.setattr(module, "catalogued", lambda only=(): lambda op: [*names.values()] if op == "gemm" else [])
    monkeypatch.setattr(calibrating_work, "injectable", lambda kernel, problem, gpu: True)
    monkeypatch.setattr(calibrating_work.conditions, "device_facts", lambda index: {"uuid": "card-1"})
    line = ["--gpu", "h200", "--suite", "prefill", "--shape", "16x32", "--tokens", "1", "2", "3", "4", "--sparsity", "2:4",
            "--processes", "6", "--inject", "1", "--out", str(tmp_path), "--commit", "abc",
            "--accepted", str(tmp_path / "h200.jsonl"), "--accept"]
    assert calibrate.main(line, detect=lambda index: H200) == 0
    cases = [record for record in read(tmp_path / "records.jsonl") if isinstance(record, CaseRecord)]
    by_label: dict[str, set[object]] = {}
    for record in cases:
        by_label.setdefault(label_of(record.run), set()).update(result.notes["process"] for result in record.results)
    fresh = [by_label[f"p{number}"] for number in range(6)]
    assert all(len(own) == 1 for own in fresh)
    assert len(set.union(*fresh)) == 6, "six processes"
    assert by_label["slow2-0"] == by_label["slow10-0"] != by_label["slow2-1"], "one process slows by all shares"
    for process in set.union(*by_label.values()):
        assert not alive(int(str(process)))
    limits = calibration.read(tmp_path / "h200.calibration.json")
    assert limits is not None
    assert (limits.uuid, len(limits.noises), limits.timed[limits.noises[0].key]) == ("card-1", 4, ("ours", "theirs"))
    assert list(limits.checks["injections"].values()) == ["REGRESSED"] * 3
    orders = {number: [record.key for record in cases if label_of(record.run) == f"p{number}"] for number in range(6)}
    assert len({tuple(order) for order in orders.values()}) > 3, "each in an order of its own"
    assert all(sorted(order) == sorted(orders[0]) for order in orders.values())
