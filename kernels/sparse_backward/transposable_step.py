"""`bf16-transposable`: one training step with bf16 gradients and a mask that is 2:4 both ways, so that two of the three GEMMs are sparse.

Y from int8 activations on `sparse-wgmma`; dX = dY · Ŵ in bf16 by cuSPARSELt, which compresses the transposed weight in every step; dW by
cuBLAS from the dequantized activations, which are saved in bf16. Each is exact as in `exact-sparse-wide`, for another mask than the
problem's: so it is no exact variant of the case, and judged with that mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from kernels.gpu import Gpu
from kernels.inputs import DTYPES, Inputs
from kernels.kernel import CompileUnit, Kernel, Note, Outputs, Prepared
from kernels.mask_quantize import repack_wide, transposable
from kernels.mask_quantize.activation import ActivationConfig, activation_config, allocate_activation, launch_activation
from kernels.mask_quantize.repack import fragments_shape, launch_repack
from kernels.mask_quantize.repack_wide import launch_unpack_transposed
from kernels.mask_quantize.transposable import launch_transposable
from kernels.mask_quantize.two_pass import TwoPassConfig, allocate_prepare, check_weight
from kernels.packed import PackedTernary
from kernels.problem import Problem
from kernels.space import ConfigSpace
from kernels.sparse_backward import sparse_step
from kernels.sparse_backward.gradient_quantize import launch_row_scale
from kernels.sparse_backward.input_grad import check_gradient, train_inputs
from kernels.ternary_gemm import cusparselt, sparse_wgmma
from kernels.ternary_gemm.cusparselt import OUT_FEATURE_ALIGNMENT, TOKEN_ALIGNMENT, CuSparseLtConfig, SparseOperands
from kernels.ternary_gemm.sparse_wgmma import FragmentWeight, padded_rows
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig


@dataclass(frozen=True)
class TransposableConfig:
    """The configs of a step's parts, also as plain JSON data; input_grad: what the library's search chose."""

    prepare: TwoPassConfig
    activation: ActivationConfig
    forward: SparseConfig
    input_grad: CuSparseLtConfig = field(default_factory=CuSparseLtConfig)

    def __post_init__(self) -> None:
        types: dict[str, type[Any]] = {"prepare": TwoPassConfig, "activation": ActivationConfig, "forward": SparseConfig,
                                       "input_grad": CuSparseLtConfig}  # fmt: skip
        for name, kind in types.items():
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, kind(**value))


def prepare_step(problem: Problem, inputs: Inputs, config: TransposableConfig) -> Prepared:
    """Bind a step: everything from the master weight and the bf16 activations to y, dx and dw is inside of `run`."""
    data = train_inputs(inputs)
    check_weight(data.w, problem.sparsity, problem.splits)
    check_gradient(data.dy, problem.out_features)
    device, (rows, columns) = data.w.device, data.w.shape
    made = allocate_prepare(rows, columns, problem.splits, device)
    packed = PackedTernary(made.packed, made.w_scale, problem.splits, columns, problem.sparsity)
    packed.split_ends  # noqa: B018 (made here, outside of any graph capture)
    blocks = torch.empty(fragments_shape(packed, transposed=False), dtype=torch.int32, device=device)
    weight = FragmentWeight(blocks, padded_rows(torch.zeros(rows, device=device), rows), rows, columns, columns, sparse=True)
    x_q, x_scale = allocate_activation(problem.tokens, columns, None, device)
    gemm = sparse_wgmma.bind(x_q, x_scale, weight, None, DTYPES[problem.dtype], config.forward, sparse_wgmma.multiprocessors(device))
    w_t = torch.empty((columns, rows), dtype=torch.bfloat16, device=device)
    x_wide, dw = torch.empty_like(data.x), torch.empty_like(data.w)
    kept = {"y": gemm.out, "dw": dw, "w_scale": made.w_scale, "inv_scale": made.inv_scale}

    def run() -> Outputs:
        launch_transposable(data.w, made, config.prepare)
        launch_repack(packed, blocks, sparse=True)
        launch_row_scale(made.w_scale, made.workspace.bounds, weight.row_scale, rows)
        launch_unpack_transposed(packed, w_t)
        launch_activation(data.x, x_q, x_scale, None, config.activation, x_wide)
        gemm.launch()
        dx = cusparselt.multiply(SparseOperands(torch._cslt_compress(w_t), data.dy, None), config.input_grad)
        torch.matmul(data.dy.t(), x_wide, out=dw)
        return {**kept, "dx": dx}

    workspace = w_t.nbytes + w_t.nbytes * 9 // 16 + x_q.numel()
    touched = data.w.nbytes + 2 * data.x.nbytes + data.dy.nbytes + gemm.out.nbytes + dw.nbytes + weight.weight_bytes + workspace
    notes: dict[str, Note] = {"rounded": "outputs, x_q · x_scale for dw, w_scale for dx", "mask": "transposable", "library": "cuSPARSELt",
                              "version": cusparselt.version(), "saved_activation_bytes": x_wide.nbytes, "workspace_bytes": workspace,
                              **asdict(config.input_grad)}  # fmt: skip
    return Prepared(run, {**kept, "x_wide": x_wide, "w_t": w_t}, touched, weight.weight_bytes + packed.weight_bytes, notes)


def default_config(problem: Problem, gpu: Gpu) -> TransposableConfig:
    """The default config of every part, and the library's default algorithm."""
    step = sparse_step.default_config(problem, gpu)
    return TransposableConfig(step.prepare, activation_config(problem.in_features, problem.tokens), step.gemm)


def resolve(problem: Problem, inputs: Inputs, gpu: Gpu) -> TransposableConfig:
    """The default with the library's search for dX, for a transposed weight under this mask."""
    data, config = train_inputs(inputs), default_config(problem, gpu)
    made = allocate_prepare(problem.out_features, problem.in_features, problem.splits, data.w.device)
    launch_transposable(data.w, made, config.prepare)
    w_t = torch.empty((problem.in_features, problem.out_features), dtype=torch.bfloat16, device=data.w.device)
    launch_unpack_transposed(PackedTernary(made.packed, made.w_scale, problem.splits, problem.in_features, problem.sparsity), w_t)
    operands = SparseOperands(torch._cslt_compress(w_t), data.dy, None)

    def bind(chosen: CuSparseLtConfig) -> Prepared:
        return Prepared(lambda: {"dx": cusparselt.multiply(operands, chosen)})

    return replace(config, input_grad=cusparselt.resolve(operands, bind))


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why a step cannot run so, or None: 2:4, bf16, Hopper, cuSPARSELt with sizes that it takes without padding."""
    sizes = {"out_features": (problem.out_features, OUT_FEATURE_ALIGNMENT), "in_features": (problem.in_features, OUT_FEATURE_ALIGNMENT),
             "tokens": (problem.tokens, TOKEN_ALIGNMENT)}  # fmt: skip
    odd = next((f"{name} {size} is not a multiple of {of}" for name, (size, of) in sizes.items() if size % of), None)
    return sparse_step.unavailable(problem, gpu) or transposable.unavailable(problem) or cusparselt.unavailable(problem, gpu) or odd


def compile_units(problem: Problem, config: TransposableConfig) -> Sequence[CompileUnit]:
    """The packing pass, the transposed unpacking and the forward GEMM as the problem and the config make them."""
    splits = len(problem.splits)
    return [transposable.compile_unit(DTYPES[problem.dtype], splits), repack_wide.compile_unit(splits),
            *sparse_wgmma.compile_units(problem, config.forward)]  # fmt: skip


STEPS: tuple[Kernel, ...] = (
    Kernel("bf16-transposable", "step", "variant", prepare_step, default_config, ConfigSpace(TransposableConfig), unavailable, resolve,
           exact=False, judged="transposable", compile_units=compile_units, interpreted=False),
)  # fmt: skip
