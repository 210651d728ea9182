"""One training step of one linear layer with a 2:4 weight and 8-bit gradients, on Hopper. The forward pass is exact; the gradients are not.

`int8-gradients`: Y on `sparse-wgmma`; dY rounded to int8 twice in one pass, per token for dX and per out_feature for dW
(`gradient_quantize`); dX from the transposed weight on the dense 8-bit tensor cores; dW from the saved int8 activations, transposed,
as they are. `int8-transposable`: the same with a mask that is 2:4 both ways, so that dX runs on the sparse tensor cores too.

What it is off by, against float64 on a sample of the case's own gradients, is among the notes of every binding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kernels.gpu import Gpu
from kernels.inputs import DTYPES, Inputs, TrainInputs
from kernels.kernel import CompileUnit, Kernel, Note, Outputs, Prepared
from kernels.mask_quantize import fragment_pack, repack, transposable
from kernels.mask_quantize.activation import ActivationConfig, activation_config, allocate_activation, launch_activation
from kernels.mask_quantize.repack import fragments_shape, launch_repack
from kernels.mask_quantize.transposable import launch_transposable
from kernels.mask_quantize.two_pass import PrepareBuffers, TwoPassConfig, allocate_prepare, check_weight, launch_prepare
from kernels.packed import PackedTernary, unpack
from kernels.problem import DENSE, Problem
from kernels.space import ConfigSpace
from kernels.sparse_backward import gradient_quantize, input_grad
from kernels.sparse_backward.gradient_quantize import (
    allocate_gradient,
    allocate_transposed,
    launch_quantize_both,
    launch_row_scale,
    launch_transpose,
)
from kernels.sparse_backward.input_grad import check_gradient, train_inputs
from kernels.ternary_gemm import dense_config, dense_triton, sparse_wgmma, sparse_wgmma_config
from kernels.ternary_gemm.dense_config import DenseConfig
from kernels.ternary_gemm.dense_triton import Int8Weight
from kernels.ternary_gemm.sparse_wgmma import FragmentWeight, SparseGemm, padded_rows
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig
from reference.linear import input_grad as exact_input_grad
from reference.linear import weight_grad as exact_weight_grad

MOST_TOKENS = dense_triton.MAX_IN_FEATURES
"""dW adds up products of two int8 codes: 127 · 127 · 131,072 is the last that int32 holds."""
INT8_GEMM = next(kernel for kernel in dense_triton.KERNELS if kernel.name == "dense-int8-triton")
"""The dense GEMM of two int8 operands, which dW is."""
SAMPLE = 64
"""Tokens and out_features whose gradients are compared with float64, spread evenly, for the notes."""


@dataclass(frozen=True)
class EightBitConfig:
    """The configs of a step's parts, also as plain JSON data. stochastic: rounding of dY; seed: of its generator."""

    prepare: TwoPassConfig
    activation: ActivationConfig
    forward: SparseConfig
    input_grad: SparseConfig
    weight_grad: DenseConfig
    stochastic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        types: dict[str, type[Any]] = {"prepare": TwoPassConfig, "activation": ActivationConfig, "forward": SparseConfig,
                                       "input_grad": SparseConfig, "weight_grad": DenseConfig}  # fmt: skip
        for name, kind in types.items():
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind(**value))


@dataclass(frozen=True)
class StepWeight:
    """A weight as both GEMMs read it. made: what the packing pass writes; forward: the weight; backward: its transpose, whose scale is in
    dY (w_scale / 64 a row is what the forward pass scales with and what dY is multiplied by)."""

    made: PrepareBuffers
    packed: PackedTernary
    forward: FragmentWeight
    backward: FragmentWeight
    both_ways: bool

    @property
    def weight_bytes(self) -> int:
        """Bytes as stored: both orders, scales, and the packed bytes between."""
        return self.forward.weight_bytes + self.backward.weight_bytes + self.packed.weight_bytes

    def launch(self, weight: torch.Tensor, config: TwoPassConfig) -> None:
        """Mask, quantize and pack the master: five launches."""
        made, packed = self.made, self.packed
        if self.both_ways:
            launch_transposable(weight, made, config)
        else:
            launch_prepare(weight, made.packed, made.w_scale, made.inv_scale, made.workspace, packed.sparsity, packed.splits, config)
        launch_repack(packed, self.forward.blocks, sparse=True)
        launch_repack(packed, self.backward.blocks, sparse=self.both_ways, transposed=True)
        launch_row_scale(made.w_scale, made.workspace.bounds, self.forward.row_scale, packed.out_features)


def allocate_weight(problem: Problem, device: torch.device, both_ways: bool) -> StepWeight:
    """Buffers for the problem's weight; synchronizes once. both_ways: under a mask that is 2:4 along rows and columns."""
    rows, columns = problem.out_features, problem.in_features
    made = allocate_prepare(rows, columns, problem.splits, device)
    packed = PackedTernary(made.packed, made.w_scale, problem.splits, columns, problem.sparsity)
    blocks, turned = (torch.empty(fragments_shape(packed, way), dtype=torch.int32, device=device) for way in (False, True))
    scale = padded_rows(torch.zeros(rows, device=device), rows)
    ones = padded_rows(torch.ones(columns, device=device), columns)
    return StepWeight(made, packed, FragmentWeight(blocks, scale, rows, columns, columns, sparse=True),
                      FragmentWeight(turned, ones, columns, rows, rows, sparse=both_ways), both_ways)  # fmt: skip


def weight_grad_problem(problem: Problem) -> Problem:
    """The GEMM that dW is: out_features are its tokens, tokens are summed over."""
    return Problem("gemm", problem.in_features, max(1, problem.tokens), problem.out_features, DENSE, dtype=problem.dtype)


def input_grad_problem(problem: Problem, both_ways: bool) -> Problem:
    """The GEMM that dX is."""
    sparsity = problem.sparsity if both_ways else DENSE
    return Problem("gemm", problem.in_features, problem.out_features, problem.tokens, sparsity, dtype=problem.dtype)


def rows_as_weight(x_t: torch.Tensor) -> Int8Weight:
    """Transposed activations [K, T] as the second operand of the dense GEMM, with their padding and the scale 1."""
    features, tokens = x_t.shape
    whole = x_t.as_strided((features, x_t.stride(0)), (x_t.stride(0), 1)) if tokens else x_t
    ends = torch.full((1,), features, dtype=torch.int32, device=x_t.device)  # a copy from the host would synchronize
    return Int8Weight(whole, torch.ones(1, device=x_t.device), ends, (features,), tokens)


def prepare_step(problem: Problem, inputs: Inputs, config: EightBitConfig, *, both_ways: bool) -> Prepared:
    """Bind a step: everything from the master weight and the bf16 activations to y, dx and dw is inside of `run`."""
    data = train_inputs(inputs)
    check_weight(data.w, problem.sparsity, problem.splits)
    check_gradient(data.dy, problem.out_features)
    device, (rows, columns), tokens = data.w.device, data.w.shape, problem.tokens
    weight = allocate_weight(problem, device, both_ways)
    x_q, x_scale = allocate_activation(tokens, columns, None, device)
    x_t, gradient = allocate_transposed(tokens, columns, device), allocate_gradient(tokens, rows, device)
    assert gradient.by_token is not None
    y = _bind(x_q, x_scale, weight.forward, problem, config.forward)
    dx = _bind(gradient.by_token, gradient.token_scale, weight.backward, problem, config.input_grad)
    dw = dense_triton.bind(weight_grad_problem(problem), gradient.by_feature, gradient.feature_scale, rows_as_weight(x_t), None,
                           config.weight_grad)  # fmt: skip
    outputs = {"y": y.out, "dx": dx.out, "dw": dw.out, "w_scale": weight.made.w_scale, "inv_scale": weight.made.inv_scale}

    def run() -> Outputs:
        weight.launch(data.w, config.prepare)
        launch_activation(data.x, x_q, x_scale, None, config.activation)
        y.launch()
        launch_quantize_both(data.dy, weight.forward.row_scale, x_scale, gradient, config.seed if config.stochastic else None)
        dx.launch()
        launch_transpose(x_q, x_t)
        dw.launch(gradient.by_feature)
        return outputs

    run()
    workspace = gradient.nbytes + x_t.numel()
    saved = x_q.numel() + x_scale.nbytes
    touched = data.w.nbytes + data.x.nbytes + data.dy.nbytes + y.out.nbytes + dx.out.nbytes + dw.out.nbytes + weight.weight_bytes
    notes: dict[str, Note] = {"rounded": "outputs; dy to int8, per token for dx and per out_feature for dw", "exact": False,
                              "mask": "transposable" if both_ways else "2:4", "saved_activation_bytes": saved, "workspace_bytes": workspace,
                              **gradient_errors(data, weight.packed, outputs)}  # fmt: skip
    return Prepared(run, outputs, touched + workspace + saved, weight.weight_bytes, notes)


def _bind(x_q: torch.Tensor, scale: torch.Tensor, weight: FragmentWeight, problem: Problem, config: SparseConfig) -> SparseGemm:
    processors = sparse_wgmma.multiprocessors(x_q.device)
    return sparse_wgmma.bind(x_q, scale, weight, None, DTYPES[problem.dtype], config, processors)


def gradient_errors(data: TrainInputs, packed: PackedTernary, outputs: Outputs) -> dict[str, Note]:
    """dx_error and dw_error, as `relative_error`, of the weight in `packed` and of the unrounded dY. Synchronizes."""
    tokens = _spread(data.dy.shape[0], data.dy.device)
    dx = exact_input_grad(data.dy[tokens], unpack(packed), packed.w_scale, packed.splits)
    return {"dx_error": relative_error(outputs["dx"], tokens, dx), "dw_error": relative_error(outputs["dw"], *exact_weight_rows(data))}


def exact_weight_rows(data: TrainInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Some out_features and their dW in float64."""
    rows = _spread(data.dy.shape[1], data.dy.device)
    return rows, exact_weight_grad(data.dy[:, rows], data.x_q, data.x_scale)


def relative_error(gradient: torch.Tensor, rows: torch.Tensor, exact: torch.Tensor) -> float | None:
    """|gradient − exact| / |exact| of these rows, Frobenius norms; None where one is not finite, or there is nothing. Synchronizes."""
    error = float((gradient[rows].double() - exact).norm() / exact.norm())
    return float(f"{error:.3g}") if math.isfinite(error) else None


def _spread(count: int, device: torch.device) -> torch.Tensor:
    """Up to `SAMPLE` of so many rows, evenly."""
    return torch.linspace(0, max(0, count - 1), min(SAMPLE, count), device=device).long()


def weight_grad_config(problem: Problem, gpu: Gpu) -> DenseConfig:
    """Of dW: tiles of 128 × 128 where they fill the GPU twice, in groups where a row of them is long; else the heuristic for few tiles.

    H200, 2026-11-22, T = 16384: 2048×11008 1,349 TOPS in groups and 1,280 without, 4608×3584 1,357 and 1,476.
    """
    tiles = -(-problem.out_features // 128) * -(-problem.in_features // 128)
    if tiles >= 2 * gpu.sms:
        return DenseConfig(128, 128, 128, num_warps=4, num_stages=3, group=8 if problem.in_features > 8192 else 1)
    return dense_config.int8_default_config(weight_grad_problem(problem), gpu)


def default_config(both_ways: bool, problem: Problem, gpu: Gpu) -> EightBitConfig:
    """The default config of every part."""
    return EightBitConfig(
        TwoPassConfig(),
        activation_config(problem.in_features, problem.tokens),
        sparse_wgmma_config.default_config(problem, gpu),
        sparse_wgmma_config.default_config(input_grad_problem(problem, both_ways), gpu),
        weight_grad_config(problem, gpu),
    )


def unavailable(both_ways: bool, problem: Problem, gpu: Gpu) -> str | None:
    """Why a step cannot run so, or None: 2:4, Hopper, as many tokens as int32 sums hold."""
    if not problem.tokens:
        return "no tokens to multiply"
    if problem.tokens > MOST_TOKENS:
        return f"{problem.tokens} tokens; int32 sums of products of int8 hold {MOST_TOKENS}"
    mask = transposable.unavailable(problem) if both_ways else fragment_pack.unavailable(problem)
    gemms = (problem, input_grad_problem(problem, both_ways=True))
    refusals = (sparse_wgmma_config.unavailable(gemm, gpu) for gemm in gemms)
    return mask or next(filter(None, refusals), None) or input_grad.unavailable(problem, gpu)


def compile_units(both_ways: bool, problem: Problem, config: EightBitConfig) -> Sequence[CompileUnit]:
    """What is compiled for this step alone, and its GEMMs, as the problem and the config make them."""
    dtype, sizes = DTYPES[problem.dtype], (problem.out_features, problem.in_features, problem.tokens)
    aligned = all(size % 64 == 0 for size in sizes)
    return [
        *([transposable.compile_unit(dtype, len(problem.splits))] if both_ways else ()),
        repack.compile_unit(sparse=both_ways, transposed=True),
        *gradient_quantize.compile_units(problem.dtype, aligned, config.stochastic),
        *sparse_wgmma.compile_units(problem, config.forward),
        *sparse_wgmma.compile_units(input_grad_problem(problem, both_ways), config.input_grad, "sparse" if both_ways else "dense"),
        *INT8_GEMM.compile_units(weight_grad_problem(problem), config.weight_grad),
    ]


def _kernel(name: str, both_ways: bool) -> Kernel:
    return Kernel(name, "step", "variant", partial(prepare_step, both_ways=both_ways), partial(default_config, both_ways),
                  ConfigSpace(EightBitConfig), partial(unavailable, both_ways), exact=False, interpreted=False,
                  judged="int8-transposable" if both_ways else "int8", compile_units=partial(compile_units, both_ways))  # fmt: skip


KERNELS: tuple[Kernel, ...] = (_kernel("int8-gradients", both_ways=False), _kernel("int8-transposable", both_ways=True))
