"""What is done without the device, and that none of it is called measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune.compile import Compiled
from kernels.errors import Failure
from kernels.gpu import Gpu, by_name
from kernels.kernel import CompileUnit
from kernels.problem import DENSE, Problem, Sparsity
from suites import crosscompiled, gate, interpreted, nogpu, projected
from suites.arguments import parser, selection
from suites.case import Case
from suites.catalogue import plan
from suites.record import CaseRecord, RunRecord, read
from tests.suites.fakes import H200, OTHER, OURS, SMALL, THEIRS, absent, gemm, lab, measure

A100 = by_name("a100")


def small(*more: str) -> tuple[Case, ...]:
    return plan(selection(parser().parse_args([*SMALL, *more])))


def unit(*expected: tuple[int, str]) -> CompileUnit:
    return CompileUnit(SimpleNamespace(__name__="multiply"), {}, {}, expects=dict(expected))


def test_projections_are_floors_and_nothing_else() -> None:
    kernels = lab((gemm("sparse", 1.0), gemm("dense-bf16", 1.0, "baseline", dense=True), absent("missing"))).kernels_for
    problem = Problem("gemm", 8192, 8192, 8192, Sparsity(2, 4))
    (record,) = projected.run([Case("prefill", "m", "W2", problem, "hot")], H200, kernels, "run")
    assert record.evidence == "projected"
    assert all(result.samples_us == () and result.call_us == () for result in record.results)
    ours, dense, missing = record.results
    assert ours.projected_us == pytest.approx(2 * 8192**3 / (2 * 1979e12) * 1e6)
    assert dense.projected_us == pytest.approx(2 * 8192**3 / 989e12 * 1e6)
    assert (missing.status, missing.projected_us) == ("unavailable", None)


def test_a_projection_of_few_tokens_is_bound_by_memory() -> None:
    problem = Problem("gemm", 8192, 8192, 1, DENSE)
    (record,) = projected.run([Case("decode", "m", "W2", problem, "cold")], H200, lab((OURS,)).kernels_for, "run")
    assert record.results[0].projected_us == pytest.approx((8192 * 8192 / 4 + 8192 + 8 + 2 * 8192) / 4.8e12 * 1e6, rel=1e-3)


def test_each_kernel_is_compiled_for_few_configs() -> None:
    units = (unit(),)
    kernel = gemm("ours", 1.0, compile_units=lambda problem, config: units)
    found = crosscompiled.jobs(small("--tokens", "4", "8", "16"), H200, lab((kernel, THEIRS, replace(absent("x")))).kernels_for)
    assert [(job.kernel.name, job.case.problem.tokens) for job in found] == [("ours", 4)]
    assert found[0].units == units


@pytest.mark.parametrize(
    ("capability", "instructions", "reason"),
    [("a100", {"IMMA": 4}, None), ("a100", {"HMMA": 4}, "no IMMA"), ("h200", {"IGMMA": 2}, None), ("h200", {"IMMA": 2}, "no IGMMA")],
)
def test_the_tensor_core_instruction_must_be_there(capability: str, instructions: dict[str, int], reason: str | None) -> None:
    compiled = Compiled(128, 0, 1024, instructions, 1.0)
    found = crosscompiled.lacks(unit((80, "IMMA"), (90, "IGMMA")), compiled, by_name(capability))
    assert (found is None) == (reason is None)
    assert found is None or reason in found.reason  # type: ignore[operator]


def test_what_was_compiled_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Compiled(128, 8, 1024, {"IMMA": 4, "IMMA.16832": 4, "FADD": 9}, 1.0), Failure("compile", "out of registers")]
    kernel = gemm("ours", 1.0, compile_units=lambda problem, config: (unit(), unit()))

    def compile_all(units: Sequence[CompileUnit], gpu: Gpu) -> list[Compiled | Failure]:
        return answers

    monkeypatch.setattr(crosscompiled, "compile_all", compile_all)
    (record,) = crosscompiled.run(small(), A100, lab((kernel,)).kernels_for, "run")
    (result,) = record.results
    assert record.evidence == "compiled"
    assert (result.status, result.stage, result.reason) == ("failed", "compile", "multiply: out of registers")
    assert result.compiled == {"multiply": {"registers": 128, "spills": 8, "shared_bytes": 1024, "IMMA": 4}}


def test_a_run_without_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[list[Path]] = []
    monkeypatch.setattr(interpreted, "run", lambda identity: iter(()))
    file, kernels = tmp_path / "records.jsonl", lab((OURS, THEIRS, OTHER)).kernels_for

    def report(gpu: Gpu, results: Sequence[Path], page: Path) -> int:
        asked.append(list(results))
        return 0

    assert nogpu.run(A100, small(), file, ("--quick",), "abc", (), report, kernels) == 0
    head = next(record for record in read(file) if isinstance(record, RunRecord))
    assert (head.evidence, head.timer, head.gpu) == ("projected", "none", "a100")
    assert {record.evidence for record in read(file) if isinstance(record, CaseRecord)} == {"projected"}
    assert asked == [[tmp_path]]
    assert "nothing below is measured" in capsys.readouterr().out
    assert gate.main(["--gpu", "a100", "--run", str(file), "--accepted", str(tmp_path / "none")]) == 5
    assert measure(tmp_path, None, *SMALL, "--resume", gpu="auto", found=A100) == 2
    assert "holds projected results" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "code"), [("wrong", 3), ("failed", 4), ("refused", 0)])
def test_wrong_numbers_in_the_interpreter_are_an_exit_code(tmp_path: Path, status: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = lab((OURS,)).kernels_for
    (record,) = projected.run(small(), A100, kernels, "run")
    bad = replace(record, evidence="interpreted", results=(replace(record.results[0], status=status, stage=status, reason="y"),))
    monkeypatch.setattr(interpreted, "run", lambda identity: iter((bad,)))
    assert nogpu.run(A100, small(), tmp_path / "records.jsonl", (), "abc", (), lambda gpu, results, page: 0, kernels) == code


@pytest.mark.compile
def test_numerics_and_machine_code_of_a_real_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreted, "PROBLEMS", interpreted.PROBLEMS[:1])
    file = tmp_path / "records.jsonl"
    assert nogpu.run(A100, small(), file, (), "abc", ("dense-triton",), lambda gpu, results, page: 0) == 0
    cases = {record.evidence: record for record in read(file) if isinstance(record, CaseRecord)}
    assert set(cases) == {"interpreted", "compiled", "projected"}
    interpreted_result, compiled_result = cases["interpreted"].result("dense-triton"), cases["compiled"].result("dense-triton")
    assert interpreted_result is not None
    assert interpreted_result.status == "ok"
    assert interpreted_result.check == {"judged": "exact"}
    assert compiled_result is not None
    figures = compiled_result.compiled["dense_gemm"]
    assert figures["IMMA"] > 0
    assert figures["occupancy"]["warps"] == figures["occupancy"]["blocks"] * figures["warps"] > 0
    assert figures["loop"]["operations"] > 0
    assert compiled_result.projected_us == pytest.approx(max(figures["walls_us"].values()))
    assert compiled_result.notes["serial_us"] == pytest.approx(sum(figures["walls_us"].values()))


@pytest.mark.interpreter
@pytest.mark.parametrize("problem", interpreted.PROBLEMS, ids=str)
def test_every_plain_variant_is_right_in_the_interpreter(problem: Problem) -> None:
    results = interpreted.check(problem)
    assert {result.status for result in results} <= {"ok", "unavailable"}, results
    assert any(result.status == "ok" for result in results)
