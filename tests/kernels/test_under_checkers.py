"""One small launch or a few of every kind of kernel, for the checkers of memory and of races, which take hundreds of times as long.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m pytest tests/kernels/test_under_checkers.py
    compute-sanitizer --tool racecheck --kernel-name kns=sparse_gemm python -m pytest tests/kernels/test_under_checkers.py -k wgmma

Inputs are made and outputs are judged on the CPU, so that little but the kernels runs on the device. docs/kernels.md says how a report is
judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import pytest
import torch

from kernels.catalogue import KERNELS, find
from kernels.gpu import by_name, detect
from kernels.inputs import Inputs, make_inputs, pad_rows
from kernels.judge import judge, poison
from kernels.problem import DENSE, DType, Op, Problem, Sparsity
from kernels.space import Config
from kernels.ternary_gemm import sparse_wgmma
from kernels.ternary_gemm.decode_config import DecodeConfig
from kernels.ternary_gemm.sparse_mma_config import MmaConfig
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig, most_stages, split_refusal

TWO_FOUR, SIX_EIGHT = Sparsity(2, 4), Sparsity(6, 8)
PROCESSORS = 4
"""Multiprocessors that the Hopper GEMMs are told of: a few programs then have several tiles each."""
H200 = by_name("h200")


@dataclass(frozen=True)
class Case:
    """A kernel on a problem: what is particular about it, and its config where that is not the default."""

    kernel: str
    about: str
    op: Op
    tokens: int
    out_features: int
    in_features: int
    sparsity: Sparsity = TWO_FOUR
    config: Config = None
    dtype: DType = "bf16"

    @property
    def problem(self) -> Problem:
        splits = (self.out_features - self.out_features // 3, self.out_features // 3) if self.out_features else ()
        bias = self.op in ("gemm", "layer") and self.dtype != "int32"
        return Problem(self.op, self.out_features, self.in_features, self.tokens, self.sparsity, splits, self.dtype, bias)

    def __str__(self) -> str:
        return f"{self.kernel}-{self.op}-{self.about}"


def wgmma(tiles: int, block_t: int, splits: int = 1) -> SparseConfig:
    return SparseConfig(tiles, block_t, most_stages(tiles, block_t, splits, H200.shared_bytes), splits)


CHOSEN = (
    Case("sparse-wgmma", "many-tiles", "gemm", 190, 512, 2304, config=wgmma(1, 64)),
    Case("sparse-wgmma", "tall-tiles", "gemm", 250, 768, 384, config=wgmma(3, 128)),
    Case("sparse-wgmma", "whole-and-parts", "gemm", 300, 256, 1024, config=wgmma(1, 128, 2)),
    Case("sparse-wgmma", "parts-of-large-tiles", "gemm", 100, 512, 1152, config=wgmma(2, 128, 2)),
    Case("sparse-wgmma", "value-by-value", "gemm", 100, 130, 320, config=wgmma(1, 64), dtype="int32"),
    Case("sparse-wgmma", "lifted", "layer", 65, 136, 320, SIX_EIGHT),
    Case("dense-wgmma", "dense", "gemm", 100, 136, 384, DENSE, wgmma(2, 128)),
    Case("sparse-mma", "many-tiles", "gemm", 80, 2048, 384, config=MmaConfig(4, 1, 1, 1, 6, 2)),
    Case("sparse-mma", "large-tiles", "gemm", 150, 264, 1024, config=MmaConfig(2, 4, 4, 2, 4)),
    Case("sparse-mma", "parts", "gemm", 63, 130, 1024, SIX_EIGHT, MmaConfig(2, 2, 4, 4, 4, splits=4), "int32"),
    Case("decode", "default", "gemm", 7, 136, 776),
    Case("decode", "shares", "gemm", 13, 264, 2304, config=DecodeConfig(4, 2, 4, 3, 3, 32)),
    Case("decode", "dense", "gemm", 33, 200, 1152, DENSE, DecodeConfig(4, 1, 8, 3)),
    Case("decode", "clusters", "gemm", 33, 264, 2304, config=DecodeConfig(2, 1, 4, 4, 4, 32, group=16, clustered=True)),
    Case("decode", "rounds", "gemm", 9, 600, 1024, config=DecodeConfig(4, 1, 4, 3, rounds=3)),
    Case("decode", "warpgroups", "gemm", 17, 264, 1152, config=DecodeConfig(2, 4, 2, 4, wgmma=True)),
    Case("decode", "warpgroups-in-chunks", "gemm", 33, 136, 2304, DENSE, DecodeConfig(1, 4, 2, 4, 2, 8, 16, clustered=True, wgmma=True)),
    Case("decode", "quantizes", "layer", 1, 136, 1024, config=DecodeConfig(2, 2, 4, 3, 2)),
    Case("decode-narrow", "default", "gemm", 7, 136, 776),
    Case("decode-narrow", "quantizes", "layer", 1, 136, 1024),
    Case("two-pass", "pairs", "prepare", 0, 34, 1032),
    Case("two-pass", "groups-of-eight", "prepare", 0, 34, 1032, SIX_EIGHT),
    Case("activation", "plain", "activation", 7, 0, 1032),
    Case("activation", "lifted", "activation", 7, 0, 1032, SIX_EIGHT),
    Case("bf16-transposable", "splits-of-whole-steps", "step", 63, 192, 320),
)


def others() -> Iterator[Case]:
    """Every variant of the catalogue that was not chosen, with its default config."""
    for kernel in KERNELS:
        if kernel.kind == "variant" and all((case.kernel, case.op) != (kernel.name, kernel.op) for case in CHOSEN):
            tokens = {"prepare": 0, "activation": 7}.get(kernel.op, 63)
            case = Case(kernel.name, "default", kernel.op, tokens, 0 if kernel.op == "activation" else 136, 320)
            yield case if kernel.unavailable(case.problem, H200) is None else replace(case, sparsity=DENSE)


CASES = (*CHOSEN, *others())


def moved(inputs: Inputs, device: str) -> Inputs:
    """The same inputs on a device, rows padded as the generator pads them."""
    tensors = {entry.name: getattr(inputs, entry.name) for entry in fields(inputs)}
    tensors = {name: tensor.to(device) for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    return replace(inputs, **{name: pad_rows(tensor) if name == "x_q" else tensor for name, tensor in tensors.items()})


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_and_right(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_wgmma, "multiprocessors", lambda device: PROCESSORS)
    kernel, problem, gpu = find(case.kernel, case.op), case.problem, detect() or H200
    reason = kernel.unavailable(problem, gpu)
    if reason is not None:
        pytest.skip(reason)
    inputs = make_inputs(problem)
    prepared = kernel.prepare(problem, moved(inputs, "cuda"), case.config or kernel.default_config(problem, gpu))
    poison(prepared)
    outputs = prepared.run()
    mismatch = judge(problem, inputs, {name: tensor.cpu() for name, tensor in outputs.items()}, kernel)
    assert mismatch is None, f"{case}: {mismatch}"


def test_the_cases_are_what_they_say() -> None:
    for case in CASES:
        kernel, problem = find(case.kernel, case.op), case.problem
        assert kernel.unavailable(problem, H200) is None, case
        assert problem.refusal is None, case
    for parts in (case for case in CASES if "parts" in case.about and case.kernel == "sparse-wgmma"):
        assert split_refusal(parts.config, parts.tokens, parts.out_features, parts.in_features, PROCESSORS) is None
    many = next(case for case in CASES if case.about == "many-tiles")
    plan = sparse_wgmma.schedule(many.config, many.tokens, many.out_features, PROCESSORS)
    assert plan.row_tiles * plan.token_tiles >= 3 * PROCESSORS
    variants = {(kernel.name, kernel.op) for kernel in KERNELS if kernel.kind == "variant"}
    assert {(case.kernel, case.op) for case in CASES} == variants
    assert len({str(case) for case in CASES}) == len(CASES)


def test_inputs_arrive_as_they_were_made() -> None:
    inputs = make_inputs(CASES[0].problem)
    there = moved(inputs, "cpu")
    for entry in fields(inputs):
        assert torch.equal(getattr(inputs, entry.name), getattr(there, entry.name))
    assert there.x_q.stride() == inputs.x_q.stride()
