"""The harness is only worth something if it turns red: each fault has its own exit code, from the command line to the exit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from suites import gate
from suites.record import CaseRecord, RunRecord, read
from suites.store import write_all
from tests.suites.fakes import OTHER, OURS, SMALL, THEIRS, absent, gemm, lab, measure


@pytest.fixture
def accepted(tmp_path: Path) -> Path:
    """The accepted results of a good run."""
    assert measure(tmp_path / "good") == 0
    file = tmp_path / "accepted.jsonl"
    assert gate.main(["--gpu", "h200", "--run", str(tmp_path / "good"), "--accepted", str(file), "--accept"]) == 0
    return file


def judged(run: Path, accepted: Path) -> int:
    return gate.main(["--gpu", "h200", "--run", str(run), "--accepted", str(accepted)])


def test_the_same_again_is_good(tmp_path: Path, accepted: Path) -> None:
    assert measure(tmp_path / "run", lab(seed=7)) == 0
    assert judged(tmp_path / "run", accepted) == 0


def test_a_wrong_kernel(tmp_path: Path, accepted: Path) -> None:
    assert measure(tmp_path / "run", lab((gemm("ours", 50.0, does="wrong"), THEIRS, OTHER))) == 3
    assert judged(tmp_path / "run", accepted) == 3
    case = next(record for record in read(tmp_path / "run") if isinstance(record, CaseRecord))
    wrong, theirs = case.result("ours"), case.result("theirs")
    assert wrong is not None
    assert theirs is not None
    assert wrong.status == "wrong"
    assert wrong.samples_us == ()
    assert len(theirs.samples_us) == 12


def test_a_kernel_that_writes_nothing(tmp_path: Path, accepted: Path) -> None:
    assert measure(tmp_path / "run", lab((gemm("ours", 50.0, does="silent"), THEIRS, OTHER))) == 3
    assert judged(tmp_path / "run", accepted) == 3


def test_a_kernel_that_is_wrong_only_while_it_is_timed(tmp_path: Path, accepted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(tmp_path / "run", lab((gemm("ours", 50.0, does="late"), THEIRS, OTHER))) == 3
    assert judged(tmp_path / "run", accepted) == 3
    assert "after timing" in capsys.readouterr().out
    late, other = gemm("ours", 50.0, does="late"), gemm("dense-bf16", 80.0, "baseline")
    assert measure(tmp_path / "busy", lab((late, other)), *SMALL, "--state", "sustained") == 3
    assert "after timing" in capsys.readouterr().out


def test_a_slow_kernel(tmp_path: Path, accepted: Path) -> None:
    assert measure(tmp_path / "run", lab((gemm("ours", 60.0), THEIRS, OTHER))) == 0
    assert judged(tmp_path / "run", accepted) == 1


def test_a_fast_kernel_is_good(tmp_path: Path, accepted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(tmp_path / "run", lab((gemm("ours", 40.0), THEIRS, OTHER))) == 0
    assert judged(tmp_path / "run", accepted) == 0
    assert "IMPROVED" in capsys.readouterr().out


def test_a_noisy_clock(tmp_path: Path, accepted: Path) -> None:
    assert measure(tmp_path / "run", lab(noise=0.3)) == 4
    assert judged(tmp_path / "run", accepted) == 4


def test_a_throttled_device(tmp_path: Path, accepted: Path) -> None:
    assert measure(tmp_path / "run", lab(throttle=0x40)) == 4
    assert judged(tmp_path / "run", accepted) == 4


def test_the_power_cap_is_no_throttling(tmp_path: Path, accepted: Path) -> None:
    assert measure(tmp_path / "run", lab(throttle=0x4)) == 0
    assert judged(tmp_path / "run", accepted) == 0


@pytest.mark.parametrize("kernels", [(OURS, absent("theirs"), OTHER), (OURS, OTHER)])
def test_a_missing_baseline(tmp_path: Path, accepted: Path, kernels: tuple) -> None:
    assert measure(tmp_path / "run", lab(kernels)) == 0
    assert judged(tmp_path / "run", accepted) == 4


def test_a_baseline_that_breaks(tmp_path: Path, accepted: Path) -> None:
    broken = gemm("theirs", 100.0, "baseline", does=RuntimeError("CUDA error: unhappy"))
    assert measure(tmp_path / "run", lab((OURS, broken, OTHER))) == 4
    assert judged(tmp_path / "run", accepted) == 4


def test_a_result_above_its_roof(tmp_path: Path) -> None:
    larger = ("--suite", "prefill", "--shape", "256x128", "--tokens", "256", "--sparsity", "2:4")
    assert measure(tmp_path / "run", lab((gemm("ours", 1e-6), THEIRS)), *larger) == 4
    assert judged(tmp_path / "run", tmp_path / "none.jsonl") == 4


def test_a_case_that_was_planned_but_not_measured(tmp_path: Path, accepted: Path) -> None:
    assert measure(tmp_path / "run") == 0
    file = tmp_path / "run" / "records.jsonl"
    write_all(file, [record for record in read(file) if not isinstance(record, CaseRecord)] + [_projected(file)])
    assert judged(tmp_path / "run", accepted) == 5
    both = [*read(tmp_path / "good"), *read(tmp_path / "run")]
    assert judged(tmp_path / "good", accepted) == 0
    heads = [replace(r, planned=(*r.planned, "prefill/another")) for r in both if isinstance(r, RunRecord)][:1]
    write_all(tmp_path / "part.jsonl", [*heads, *(r for r in both if not isinstance(r, RunRecord) and r.run == heads[0].id)])
    assert judged(tmp_path / "part.jsonl", accepted) == 4


def test_a_gate_over_projections(tmp_path: Path, accepted: Path) -> None:
    assert measure(tmp_path / "run") == 0
    file = tmp_path / "run" / "records.jsonl"
    heads = [replace(record, evidence="projected") for record in read(file) if isinstance(record, RunRecord)]
    write_all(file, [*heads, _projected(file)])
    assert judged(tmp_path / "run", accepted) == 5


def _projected(file: Path) -> CaseRecord:
    """The file's case as a projection."""
    case = next(record for record in read(file) if isinstance(record, CaseRecord))
    results = tuple(replace(result, samples_us=(), call_us=(), projected_us=12.0) for result in case.results)
    return replace(case, evidence="projected", results=results)
