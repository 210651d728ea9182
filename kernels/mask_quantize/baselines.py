"""What `two-pass` and `activation` are compared with: PyTorch expressions, plain and compiled, and a mask of one program per group."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.errors import ShapeError
from kernels.gpu import Gpu
from kernels.inputs import ActivationInputs, Inputs, PrepareInputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.packed import packed_width
from kernels.problem import DENSE, Problem, Sparsity
from kernels.space import Config, ConfigSpace
from reference.lifting import lifted_columns

GRID_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class MaskConfig:
    """Warps of a program that masks one group."""

    warps: int = 1


@triton.jit
def group_mask_kernel(w_ptr, mask_ptr, in_features, row_stride, GROUP: tl.constexpr, KEEP: tl.constexpr, LANES: tl.constexpr):
    """The mask of one group: each member counts the greater ones and the equal ones before it. Slow because of its grid, by design."""
    groups = in_features // GROUP
    row = (tl.program_id(0) // groups).to(tl.int64)
    lane = tl.arange(0, LANES)
    column = (tl.program_id(0) % groups) * GROUP + lane
    w = tl.load(w_ptr + row * row_stride + column, mask=lane < GROUP, other=0.0)
    score = tl.where(lane < GROUP, tl.abs(w.to(tl.float32)), -1.0)
    before = (score[None, :] > score[:, None]) | ((score[None, :] == score[:, None]) & (lane[None, :] < lane[:, None]))
    rank = tl.sum(before.to(tl.int32), axis=1)
    tl.store(mask_ptr + row * in_features + column, (rank < KEEP).to(tl.uint8), mask=lane < GROUP)


def launch_group_mask(weight: torch.Tensor, mask: torch.Tensor, sparsity: Sparsity, config: MaskConfig) -> None:
    """mask bool or uint8 [N, K] of weight [N, K] (unit column stride), one program per group of m, as Sparse-BitNet (arXiv 2603.05168)
    masks its weights. Raises ShapeError where the groups do not divide K or outnumber a grid."""
    rows, in_features = weight.shape
    if in_features % sparsity.m or rows * in_features // sparsity.m > GRID_LIMIT or weight.stride(1) != 1:
        raise ShapeError(f"weight {list(weight.shape)} stride {weight.stride()}: one program per group of {sparsity.m} needs contiguous "
                         f"rows of whole groups, at most {GRID_LIMIT} in all")
    if rows:
        group_mask_kernel[(rows * in_features // sparsity.m,)](
            weight, mask.view(torch.uint8), in_features, weight.stride(0), GROUP=sparsity.m, KEEP=sparsity.n,
            LANES=triton.next_power_of_2(sparsity.m), num_warps=config.warps,
        )


def _prepare_mask(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
    weight = _master(inputs)
    mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)

    def run() -> Outputs:
        launch_group_mask(weight, mask, problem.sparsity, config)
        return {"mask": mask}

    return Prepared(run, {"mask": mask}, weight.numel() * (weight.element_size() + 1), mask.numel(), {"computes": "the mask alone"})


def _mask_unavailable(problem: Problem, gpu: Gpu) -> str | None:
    return "a dense weight has no mask" if problem.sparsity == DENSE else None


def _mask_units(problem: Problem, config: Config) -> tuple[CompileUnit, ...]:
    pointer = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32"}[problem.dtype]
    group = problem.sparsity.m
    signature = {"w_ptr": pointer, "mask_ptr": "*u8", "in_features": "i32", "row_stride": "i32", "GROUP": "constexpr",
                 "KEEP": "constexpr", "LANES": "constexpr"}
    constants = {"GROUP": group, "KEEP": problem.sparsity.n, "LANES": triton.next_power_of_2(group)}
    return (CompileUnit(group_mask_kernel, signature, constants, ("w_ptr", "mask_ptr"), {"num_warps": config.warps}),)


def keep_by_rank(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """bool [N, K]: fewer than n of a position's group of m are greater in |w|, or equal with a lower index; one fusible expression."""
    score = weight.abs().unflatten(1, (-1, m))
    ranks = []
    for i in range(m):
        own = score[:, :, i]
        ranks.append(sum((score[:, :, j] >= own if j < i else score[:, :, j] > own).to(torch.uint8) for j in range(m) if j != i))
    return torch.stack([rank < n for rank in ranks], dim=2).flatten(1) if m > 1 else torch.ones_like(weight, dtype=torch.bool)


def prepare_expression(weight: torch.Tensor, sparsity: Sparsity, splits: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Mask, ternary values and packed bytes of weight [N, K] in PyTorch: packed, w_scale and inv_scale as `two-pass` returns them."""
    parts = weight.split(splits)
    mean = torch.stack([part.abs().sum(dtype=torch.float64) / part.numel() for part in parts]).float()
    w_scale = mean.clamp(min=1e-5)
    inv_scale = _divide(torch.ones_like(w_scale), w_scale)
    scaled = torch.cat([part.float() * inverse for part, inverse in zip(parts, inv_scale, strict=True)])
    ternary = scaled.round().clamp(-1, 1) * keep_by_rank(weight, sparsity.n, sparsity.m)
    width = packed_width(weight.shape[1])
    padded = torch.nn.functional.pad(ternary.to(torch.int32) & 3, (0, 4 * width - weight.shape[1]))
    fields = padded.view(weight.shape[0], width // 64, 4, 64)
    packed = fields[:, :, 0] | fields[:, :, 1] << 2 | fields[:, :, 2] << 4 | fields[:, :, 3] << 6
    return {"packed": packed.to(torch.uint8).flatten(1), "w_scale": w_scale, "inv_scale": inv_scale}


def activation_expression(x: torch.Tensor, columns: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Per-token absmax int8 of x [T, K] in PyTorch: x_q (through `columns` where it is lifted) and x_scale."""
    values = x.float()
    absmax = values.abs().amax(dim=1).clamp(min=1e-5)
    codes = (values * _divide(torch.full_like(absmax, 127.0), absmax)[:, None]).round().to(torch.int8)
    return {"x_q": codes if columns is None else codes[:, columns], "x_scale": _divide(absmax, torch.full_like(absmax, 127.0))}


def _divide(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """The correctly rounded float32 quotient, also where a compiler's float32 division is an approximation: the float64 one, rounded."""
    return (numerator.double() / denominator.double()).float()


@functools.lru_cache(maxsize=2)
def _compiled(expression: Callable[..., dict[str, torch.Tensor]], problem: Problem) -> Callable[..., dict[str, torch.Tensor]]:
    """The expression under torch.compile for one problem's shapes, shared by all copies of its inputs. A code object of its own: the
    compiler falls back to eager, without a word, where one code object meets more than eight shapes (and fullgraph makes any other
    fallback an error). `problem` only tells one compilation from the next."""
    assert isinstance(expression, FunctionType)
    own = FunctionType(expression.__code__.replace(), expression.__globals__)
    result: Callable[..., dict[str, torch.Tensor]] = torch.compile(own, dynamic=False, fullgraph=True)
    return result


def _compiler_missing(problem: Problem, gpu: Gpu) -> str | None:
    return None if any(map(shutil.which, ("cc", "gcc", "clang"))) else "torch.compile needs a C compiler and finds none"


def _master(inputs: Inputs) -> torch.Tensor:
    if not isinstance(inputs, PrepareInputs):
        raise ShapeError(f"a master weight is needed, not {type(inputs).__name__}")
    return inputs.w


def _torch_prepare(compiled: bool) -> Callable[[Problem, Inputs, Config], Prepared]:
    def prepare(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
        weight = _master(inputs)
        if problem.refusal:
            raise ShapeError(problem.refusal)
        expression = _compiled(prepare_expression, problem) if compiled else prepare_expression
        stored = weight.shape[0] * packed_width(weight.shape[1]) + 4 * len(problem.splits)
        footprint = weight.numel() * weight.element_size() + stored
        if compiled:
            expression(weight, problem.sparsity, problem.splits)  # compiles now, not under the clock
        return Prepared(lambda: expression(weight, problem.sparsity, problem.splits), {}, footprint, stored)

    return prepare


def _torch_activation(compiled: bool) -> Callable[[Problem, Inputs, Config], Prepared]:
    def prepare(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
        if not isinstance(inputs, ActivationInputs):
            raise ShapeError(f"activations are needed, not {type(inputs).__name__}")
        if problem.refusal:
            raise ShapeError(problem.refusal)
        x = inputs.x
        columns = lifted_columns(x.shape[1], problem.sparsity.m).to(x.device) if problem.sparsity.lifted else None
        expression = _compiled(activation_expression, problem) if compiled else activation_expression
        width = x.shape[1] if columns is None else len(columns)
        footprint = x.numel() * x.element_size() + x.shape[0] * (width + 4)
        if compiled:
            expression(x, columns)  # compiles now, not under the clock
        return Prepared(lambda: expression(x, columns), {}, footprint)

    return prepare


def _torch_kernel(op: Any, compiled: bool) -> Kernel:
    bind = _torch_prepare if op == "prepare" else _torch_activation
    if not compiled:
        return Kernel(name="torch-eager", op=op, kind="baseline", prepare=bind(False))
    return Kernel(name="torch-compiled", op=op, kind="baseline", prepare=bind(True), unavailable=_compiler_missing)


KERNELS = (
    Kernel(
        name="mask-only", op="prepare", kind="baseline", prepare=_prepare_mask, default_config=lambda problem, gpu: MaskConfig(),
        space=ConfigSpace(MaskConfig, {"warps": (1, 2, 4)}), unavailable=_mask_unavailable, exact=False, compile_units=_mask_units,
    ),
    *(_torch_kernel(op, compiled) for op in ("prepare", "activation") for compiled in (False, True)),
)
