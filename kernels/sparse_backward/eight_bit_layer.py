"""8-bit gradients one at a time: `int8-triton`, dW on its own; and both for a layer whose backward pass makes each in a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.errors import UsageError
from kernels.gpu import Gpu
from kernels.inputs import Inputs
from kernels.kernel import CompileUnit, Kernel, Note, Outputs, Prepared
from kernels.mask_quantize.activation import allocate_activation
from kernels.mask_quantize.repack import fragments_shape, launch_repack
from kernels.packed import PackedTernary
from kernels.problem import DType, Problem
from kernels.space import ConfigSpace
from kernels.sparse_backward import eight_bit_step, gradient_quantize, input_grad, int8_grad, weight_grad_gemm
from kernels.sparse_backward.eight_bit_step import MOST_TOKENS, weight_grad_problem
from kernels.sparse_backward.gradient_quantize import allocate_gradient, launch_gradient
from kernels.sparse_backward.input_grad import check_gradient, train_inputs
from kernels.sparse_backward.weight_grad import check_activation
from kernels.sparse_backward.weight_grad_gemm import BoundGemm, GemmConfig
from kernels.ternary_gemm import dense_triton, sparse_wgmma
from kernels.ternary_gemm.sparse_wgmma import FragmentWeight, padded_rows

NAMES: dict[torch.dtype, DType] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Int8WeightGradConfig:
    """gemm: of the two int8 operands, also as plain JSON data. stochastic: rounding of dY; seed: of its generator."""

    gemm: GemmConfig
    stochastic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gemm", weight_grad_gemm.gemm_config(self.gemm))


@dataclass(frozen=True)
class Int8WeightGrad:
    """dW bound to its buffers."""

    gradient: gradient_quantize.GradientBuffers
    gemm: BoundGemm
    seed: int | None

    def launch(self, dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        """dw [N, K] of dy [T, N], x_q int8 [T, K] and x_scale float32 [T]: four launches."""
        launch_gradient(dy, x_q, x_scale, self.gradient, None, self.seed)
        self.gemm.launch()
        return self.gemm.out


def bind_weight_grad(problem: Problem, device: torch.device, config: Int8WeightGradConfig) -> Int8WeightGrad:
    """Buffers for dW of a problem, in its dtype. Raises ShapeError for more tokens than int32 sums hold."""
    gradient = allocate_gradient(problem.tokens, problem.out_features, problem.in_features, device, both=False)
    codes, x_t = gradient.by_feature, gradient.x_t
    gemm = weight_grad_gemm.bind(weight_grad_problem(problem), codes, gradient.feature_scale, x_t, config.gemm)
    return Int8WeightGrad(gradient, gemm, config.seed if config.stochastic else None)


def layer_input_grad(problem: Problem, gpu: Gpu, dy: torch.Tensor, packed: PackedTernary) -> torch.Tensor:
    """dx [T, K] of dy [T, N] rounded to int8 per token, on Hopper's dense 8-bit tensor cores; the weight is transposed from its bytes.

    Raises UsageError where that cannot be.
    """
    if reason := int8_grad.unavailable(problem, gpu):
        raise UsageError(f"8-bit input gradients: {reason}")
    rows, columns, tokens = problem.out_features, problem.in_features, problem.tokens
    if not tokens:
        return dy.new_empty((0, columns))
    blocks = torch.empty(fragments_shape(packed, transposed=True), dtype=torch.int32, device=dy.device)
    launch_repack(packed, blocks, sparse=False, transposed=True)
    counts = packed.split_ends.diff(prepend=packed.split_ends.new_zeros(1))
    q, scale = allocate_activation(tokens, rows, None, dy.device)
    int8_grad.launch_quantize_gradient(dy, packed.w_scale.repeat_interleave(counts, output_size=rows) / 64, q, scale)
    ones = padded_rows(torch.ones(columns, device=dy.device), columns)
    weight = FragmentWeight(blocks, ones, columns, rows, rows, sparse=False)
    config = int8_grad.default_config(problem, gpu).gemm
    gemm = sparse_wgmma.bind(q, scale, weight, None, dy.dtype, config, sparse_wgmma.multiprocessors(dy.device))
    gemm.launch()
    return gemm.out


def layer_weight_grad(
    problem: Problem, gpu: Gpu, dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """dw [N, K] in `dtype` of dy [T, N] rounded to int8 per out_feature, with x_scale in it, and x_q int8 [T, K] as it is.

    Raises ShapeError for more tokens than int32 sums hold.
    """
    target = problem.with_(dtype=NAMES[dtype])
    return bind_weight_grad(target, dy.device, default_config(target, gpu)).launch(dy, x_q, x_scale)


def prepare(problem: Problem, inputs: Inputs, config: Int8WeightGradConfig) -> Prepared:
    """Bind dW to the saved activations; both transposes are inside of `run`."""
    data = train_inputs(inputs)
    check_gradient(data.dy, problem.out_features)
    check_activation(data.dy, data.x_q, data.x_scale)
    bound = bind_weight_grad(problem, data.dy.device, config)

    def run() -> Outputs:
        return {"dw": bound.launch(data.dy, data.x_q, data.x_scale)}

    workspace = bound.gradient.nbytes
    touched = data.dy.nbytes + data.x_q.nbytes + bound.gemm.out.nbytes + workspace
    error = eight_bit_step.relative_error(run()["dw"], *eight_bit_step.exact_weight_rows(data))
    notes: dict[str, Note] = {"rounded": "dy to int8 per out_feature, dw", "exact": False, "workspace_bytes": workspace, "dw_error": error}
    return Prepared(run, {"dw": bound.gemm.out}, touched, notes=notes)


def default_config(problem: Problem, gpu: Gpu) -> Int8WeightGradConfig:
    """The step's, rounding to the nearest."""
    return Int8WeightGradConfig(weight_grad_gemm.default_config(weight_grad_problem(problem), gpu))


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why dW cannot be made so, or None."""
    if problem.tokens > MOST_TOKENS:
        return f"{problem.tokens} tokens; int32 sums of products of int8 hold {MOST_TOKENS}"
    return input_grad.unavailable(problem, gpu) or dense_triton.refusal(weight_grad_problem(problem), gpu)


def compile_units(problem: Problem, config: Int8WeightGradConfig) -> Sequence[CompileUnit]:
    """Both passes and the GEMM as the problem and the config make them."""
    aligned = all(size % 64 == 0 for size in (problem.out_features, problem.in_features, problem.tokens))
    return [*gradient_quantize.compile_units(problem.dtype, problem.out_features, aligned, config.stochastic, both=False),
            *weight_grad_gemm.compile_units(weight_grad_problem(problem), config.gemm)]  # fmt: skip


KERNELS: tuple[Kernel, ...] = (
    Kernel("int8-triton", "weight-grad", "variant", prepare, default_config, ConfigSpace(Int8WeightGradConfig), unavailable, exact=False,
           judged="int8", compile_units=compile_units),
)  # fmt: skip
