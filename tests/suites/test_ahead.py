"""Compiling ahead of measuring: each kernel once, on its smallest problem, and no failure stops a run."""

from __future__ import annotations

import pytest
import torch

import kernels.inputs
from kernels.catalogue import kernels_for
from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity
from suites.ahead import TOKENS, Compilation, compilations, compile_ahead, compile_share
from suites.case import Case
from suites.catalogue import Selection, plan

H200 = by_name("h200")


def case(out_features: int, tokens: int, sparsity: str = "2:4", in_features: int = 896) -> Case:
    return Case("prefill", "m", "l", Problem("gemm", out_features, in_features, tokens, Sparsity.parse(sparsity)), "hot")


def test_what_compiles_alike_is_compiled_once_on_the_smallest_weight() -> None:
    found = [item for item in compilations([case(4096, 8192), case(2048, 8192)], kernels_for, H200) if item.kernel == "dense-triton"]
    assert found == [Compilation("dense-triton", case(2048, 8192).problem)]


def test_what_compiles_otherwise_is_kept_apart() -> None:
    cases = [case(2048, 8192), case(2056, 8192), case(2048, 4), case(2048, 8192, in_features=1024)]
    assert len([item for item in compilations(cases, kernels_for, H200) if item.kernel == "dense-triton"]) == 4


def test_only_kernels_that_triton_compiles_and_problems_that_have_an_answer() -> None:
    refused = case(2048, 8192, "6:8", in_features=900)
    names = {item.kernel for item in compilations([case(2048, 8192), refused], kernels_for, H200)}
    assert {"dense-triton", "dense-int8-triton"} <= names
    assert not names & {"dense-bf16", "cusparselt-int8", "cusparselt-int8-scaled"}
    assert not compilations([refused], kernels_for, H200)


def test_the_default_plan_is_covered_by_far_fewer_compilations_than_it_has_cases_times_kernels() -> None:
    cases = plan(Selection())
    work = compilations(cases, kernels_for, H200)
    variants = {(kernel.name, item.problem.op) for item in cases for kernel in kernels_for(item.problem.op) if kernel.compile_units}
    assert 100 < len(work) < 3 * len(cases)
    assert {item.kernel for item in work} <= {name for name, _ in variants}
    assert TOKENS >= 256


def test_failures_are_counted_and_stop_nothing() -> None:
    work = compilations([case(64, 8)], kernels_for, H200)
    assert compile_ahead(work, H200, index=99, processes=2) == (0, len(work)), "without this device nothing runs, and nothing is raised"


def test_a_compiling_process_is_on_its_device_before_it_touches_any(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def made(problem: Problem, device: str) -> None:
        seen.append(f"inputs on {device}")
        raise RuntimeError("no device")

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append(f"set {device}"))
    monkeypatch.setattr(kernels.inputs, "make_inputs", made)
    assert compile_share([Compilation("dense-triton", case(64, 8).problem)], H200, "cuda:1") == (0, 1)
    assert seen == ["set cuda:1", "inputs on cuda:1"]
