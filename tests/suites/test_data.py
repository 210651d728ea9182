"""The same shape under ternary, uniform and zero data: inputs, and records through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.inputs import GemmInputs, make_inputs
from kernels.problem import Problem, Sparsity
from suites.data import LARGEST, redrawn
from suites.record import CaseRecord, read
from tests.suites.fakes import SMALL, gemm, lab, measure

PROBLEM = Problem("gemm", 64, 200, 32, Sparsity(2, 4))


def inputs() -> GemmInputs:
    made = make_inputs(PROBLEM)
    assert isinstance(made, GemmInputs)
    return made


def test_values() -> None:
    plain = inputs()
    assert redrawn(plain, "ternary", PROBLEM.sparsity) is plain
    zero, uniform = redrawn(plain, "zero", PROBLEM.sparsity), redrawn(plain, "uniform", PROBLEM.sparsity)
    assert isinstance(zero, GemmInputs)
    assert isinstance(uniform, GemmInputs)
    assert not zero.x_q.any()
    assert not zero.w_ternary.any()
    for made in (zero, uniform):
        assert (made.x_q.stride(0), made.x_q.shape, made.w_ternary.shape) == (plain.x_q.stride(0), plain.x_q.shape, plain.w_ternary.shape)
        assert made.x_scale is plain.x_scale
    assert int(uniform.w_ternary.abs().max()) == LARGEST
    assert int(uniform.x_q.max()) > 120
    kept = (uniform.w_ternary.reshape(64, -1, 4) != 0).sum(-1)
    assert int(kept.max()) == 2
    values = uniform.w_ternary.float()
    assert torch.equal(values.to(torch.float8_e4m3fn).float(), values)
    assert torch.equal(redrawn(plain, "uniform", PROBLEM.sparsity).x_q, uniform.x_q)  # type: ignore[union-attr]


def test_records(tmp_path: Path) -> None:
    kernels = (gemm("dense-triton", 50.0), gemm("dense-bf16", 100.0, "baseline", dense=True))
    line = (*SMALL, "--data", "ternary", "uniform", "zero", "--state", "sustained")
    assert measure(tmp_path / "run", lab(kernels), *line) == 0
    cases = [record for record in read(tmp_path / "run") if isinstance(record, CaseRecord)]
    assert [case.data for case in cases] == ["ternary", "uniform", "zero"]
    assert [case.layer for case in cases] == ["16x32", "16x32 (uniform data)", "16x32 (zero data)"]
    assert len({case.key for case in cases}) == 3
    assert [[result.kernel for result in case.results] for case in cases] == [
        ["dense-triton", "dense-bf16"], ["dense-bf16"], ["dense-triton", "dense-bf16"],
    ]
    assert all(result.status == "ok" for case in cases for result in case.results)


@pytest.mark.parametrize(("arguments", "says"), [
    (("--suite", "layer", "--data", "zero"), "suite layer has only ternary data"), (("--data", "random"), "invalid choice"),
])
def test_refused(arguments: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(tmp_path / "run", None, *arguments) == 2
    assert says in capsys.readouterr().err
