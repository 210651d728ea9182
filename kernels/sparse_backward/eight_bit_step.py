"""One training step of one linear layer with a 2:4 weight and 8-bit gradients, on Hopper. The forward pass is exact; the gradients are not.

`int8-gradients`: Y on `sparse-wgmma`; dY rounded to int8 twice in one pass, per token for dX and per out_feature for dW
(`gradient_quantize`); dX from the transposed weight on the dense 8-bit tensor cores; dW from the saved int8 activations, transposed,
as they are. `int8-transposable`: the same with a mask that is 2:4 both ways, so that dX runs on the sparse tensor cores too.

What it is off by, against float64 on a sample of the case's own gradients, is among the notes of every binding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kernels.fragments import unpack_fragments
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, Inputs, TrainInputs
from kernels.kernel import CompileUnit, Kernel, Note, Outputs, Prepared
from kernels.mask_quantize import fragment_pack, transposable
from kernels.mask_quantize.activation import ActivationConfig, activation_config, allocate_activation, launch_activation
from kernels.mask_quantize.transposable import BothOrders, allocate_both_orders, launch_both_orders
from kernels.mask_quantize.two_pass import TwoPassConfig, check_weight
from kernels.problem import DENSE, Problem
from kernels.space import ConfigSpace
from kernels.sparse_backward import gradient_quantize, input_grad, weight_grad_gemm
from kernels.sparse_backward.gradient_quantize import SplitScales, allocate_gradient, launch_gradient
from kernels.sparse_backward.input_grad import check_gradient, train_inputs
from kernels.sparse_backward.weight_grad_gemm import GemmConfig
from kernels.ternary_gemm import dense_triton, sparse_wgmma, sparse_wgmma_config
from kernels.ternary_gemm.sparse_wgmma import FragmentWeight, SparseGemm, padded_rows
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig
from reference.linear import input_grad as exact_input_grad
from reference.linear import weight_grad as exact_weight_grad

MOST_TOKENS = dense_triton.MAX_IN_FEATURES
"""dW adds up products of two int8 codes: 127 · 127 · 131,072 is the last that int32 holds."""
SAMPLE = 64
"""Tokens and out_features whose gradients are compared with float64, spread evenly, for the notes."""


@dataclass(frozen=True)
class EightBitConfig:
    """The configs of a step's parts, also as plain JSON data. stochastic: rounding of dY; seed: of its generator."""

    prepare: TwoPassConfig
    activation: ActivationConfig
    forward: SparseConfig
    input_grad: SparseConfig
    weight_grad: GemmConfig
    stochastic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        types: dict[str, type[Any]] = {"prepare": TwoPassConfig, "activation": ActivationConfig, "forward": SparseConfig,
                                       "input_grad": SparseConfig}  # fmt: skip
        for name, kind in types.items():
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind(**value))
        object.__setattr__(self, "weight_grad", weight_grad_gemm.gemm_config(self.weight_grad))


@dataclass(frozen=True)
class StepWeight:
    """A weight as both GEMMs read it. made: what the packing pass writes; forward: the weight; backward: its transpose, whose scale is in
    dY (w_scale / 64 a row is what the forward pass scales with and what dY is multiplied by)."""

    made: BothOrders
    forward: FragmentWeight
    backward: FragmentWeight

    @property
    def weight_bytes(self) -> int:
        """Bytes as stored: both orders and scales."""
        return self.forward.weight_bytes + self.backward.weight_bytes

    @property
    def scales(self) -> SplitScales:
        """What dY is multiplied by."""
        return SplitScales(self.made.w_scale, self.made.workspace.bounds, self.made.workspace.splits)

    def launch(self, weight: torch.Tensor, config: TwoPassConfig) -> None:
        """Mask, quantize and pack the master: two launches."""
        launch_both_orders(weight, self.made, config)

    def ternary(self) -> torch.Tensor:
        """int8 [N, K] as packed. Synchronizes."""
        return unpack_fragments(self.forward.blocks, self.forward.out_features, self.forward.in_features)


def allocate_weight(problem: Problem, device: torch.device, both_ways: bool) -> StepWeight:
    """Buffers for the problem's weight; synchronizes once. both_ways: under a mask that is 2:4 along rows and columns."""
    rows, columns = problem.out_features, problem.in_features
    made = allocate_both_orders(rows, columns, problem.splits, both_ways, device)
    scale = padded_rows(made.row_scale, rows)
    ones = padded_rows(torch.ones(columns, device=device), columns)
    return StepWeight(dataclasses.replace(made, row_scale=scale), FragmentWeight(made.forward, scale, rows, columns, columns, sparse=True),
                      FragmentWeight(made.backward, ones, columns, rows, rows, sparse=both_ways))  # fmt: skip


def weight_grad_problem(problem: Problem) -> Problem:
    """The GEMM that dW is: out_features are its tokens, tokens are summed over."""
    return Problem("gemm", problem.in_features, max(1, problem.tokens), problem.out_features, DENSE, dtype=problem.dtype)


def input_grad_problem(problem: Problem, both_ways: bool) -> Problem:
    """The GEMM that dX is."""
    sparsity = problem.sparsity if both_ways else DENSE
    return Problem("gemm", problem.in_features, problem.out_features, problem.tokens, sparsity, dtype=problem.dtype)


def prepare_step(problem: Problem, inputs: Inputs, config: EightBitConfig, *, both_ways: bool) -> Prepared:
    """Bind a step: everything from the master weight and the bf16 activations to y, dx and dw is inside of `run`."""
    data = train_inputs(inputs)
    check_weight(data.w, problem.sparsity, problem.splits)
    check_gradient(data.dy, problem.out_features)
    device, (rows, columns), tokens = data.w.device, data.w.shape, problem.tokens
    weight = allocate_weight(problem, device, both_ways)
    x_q, x_scale = allocate_activation(tokens, columns, None, device)
    gradient = allocate_gradient(tokens, rows, columns, device)
    assert gradient.by_token is not None
    y = _bind(x_q, x_scale, weight.forward, problem, config.forward)
    dx = _bind(gradient.by_token, gradient.token_scale, weight.backward, problem, config.input_grad)
    dw = weight_grad_gemm.bind(weight_grad_problem(problem), gradient.by_feature, gradient.feature_scale, gradient.x_t, config.weight_grad)
    outputs = {"y": y.out, "dx": dx.out, "dw": dw.out, "w_scale": weight.made.w_scale, "inv_scale": weight.made.inv_scale}

    def run() -> Outputs:
        weight.launch(data.w, config.prepare)
        launch_activation(data.x, x_q, x_scale, None, config.activation)
        y.launch()
        launch_gradient(data.dy, x_q, x_scale, gradient, weight.scales, config.seed if config.stochastic else None)
        dx.launch()
        dw.launch()
        return outputs

    run()
    workspace = gradient.nbytes + weight.made.scratch.nbytes
    saved = x_q.numel() + x_scale.nbytes
    touched = data.w.nbytes + data.x.nbytes + data.dy.nbytes + y.out.nbytes + dx.out.nbytes + dw.out.nbytes + weight.weight_bytes
    notes: dict[str, Note] = {"rounded": "outputs; dy to int8, per token for dx and per out_feature for dw", "exact": False,
                              "mask": "transposable" if both_ways else "2:4", "saved_activation_bytes": saved, "workspace_bytes": workspace,
                              **gradient_errors(data, weight, outputs)}  # fmt: skip
    return Prepared(run, outputs, touched + workspace + saved, weight.weight_bytes, notes)


def _bind(x_q: torch.Tensor, scale: torch.Tensor, weight: FragmentWeight, problem: Problem, config: SparseConfig) -> SparseGemm:
    processors = sparse_wgmma.multiprocessors(x_q.device)
    return sparse_wgmma.bind(x_q, scale, weight, None, DTYPES[problem.dtype], config, processors)


def gradient_errors(data: TrainInputs, weight: StepWeight, outputs: Outputs) -> dict[str, Note]:
    """dx_error and dw_error, as `relative_error`, of the packed weight and of the unrounded dY. Synchronizes."""
    tokens = _spread(data.dy.shape[0], data.dy.device)
    dx = exact_input_grad(data.dy[tokens], weight.ternary(), weight.made.w_scale, weight.made.workspace.splits)
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


def default_config(both_ways: bool, problem: Problem, gpu: Gpu) -> EightBitConfig:
    """The default config of every part."""
    return EightBitConfig(
        TwoPassConfig(),
        activation_config(problem.in_features, problem.tokens),
        sparse_wgmma_config.default_config(problem, gpu),
        sparse_wgmma_config.default_config(input_grad_problem(problem, both_ways), gpu),
        weight_grad_gemm.default_config(weight_grad_problem(problem), gpu),
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
        transposable.compile_unit(dtype, len(problem.splits), both_ways),
        *gradient_quantize.compile_units(problem.dtype, problem.out_features, aligned, config.stochastic, splits=problem.splits),
        *sparse_wgmma.compile_units(problem, config.forward),
        *sparse_wgmma.compile_units(input_grad_problem(problem, both_ways), config.input_grad, "sparse" if both_ways else "dense"),
        *weight_grad_gemm.compile_units(weight_grad_problem(problem), config.weight_grad),
    ]


def _kernel(name: str, both_ways: bool) -> Kernel:
    return Kernel(name, "step", "variant", partial(prepare_step, both_ways=both_ways), partial(default_config, both_ways),
                  ConfigSpace(EightBitConfig), partial(unavailable, both_ways), exact=False, interpreted=False,
                  judged="int8-transposable" if both_ways else "int8", compile_units=partial(compile_units, both_ways))  # fmt: skip


KERNELS: tuple[Kernel, ...] = (_kernel("int8-gradients", both_ways=False), _kernel("int8-transposable", both_ways=True))
