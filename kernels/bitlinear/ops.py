"""The operators of a ternary linear layer for PyTorch: opaque to its compiler, with fake and autograd implementations.

`tersparse::bitlinear` (training: also the int8 activations that the backward pass keeps), `bitlinear_eval`, `bitlinear_input_grad`,
`bitlinear_weight_grad`, and `packed_linear` on a weight of which only the pack is left. They are pure functions of their arguments and
never synchronize the host with a device. On a CPU the reference computes them, slowly.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kernels.bitlinear.packs import ACTIVATION, GRADIENT, KernelPack, Pack, ReferencePack, Use, frozen_pack_of, pack_of, runs_kernels
from kernels.bitlinear.variants import (
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Call,
    Choice,
    allocate_quantized,
    choose,
    gpu_of,
    launch_flag,
)
from kernels.errors import UsageError
from kernels.inputs import DTYPES
from kernels.packed import PackedTernary
from kernels.problem import DType, Problem, Sparsity
from reference.linear import input_grad, linear, weight_grad
from reference.quantize import quantize_activation

_NAMES: Mapping[torch.dtype, DType] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@functools.cache
def _warn_of_cpu() -> None:
    warnings.warn("BitLinear runs on the CPU: through the reference, right but slow; move the model to a GPU", stacklevel=2)


@functools.lru_cache(maxsize=4096)
def _problem(tokens: int, out_features: int, in_features: int, dtype: torch.dtype, sparsity: str, splits: tuple[int, ...]) -> Problem:
    return Problem("step", out_features, in_features, tokens, Sparsity.parse(sparsity), splits, _NAMES[dtype])


def _tokens(rows: torch.Tensor) -> int:
    """The rows of a tensor [..., features]."""
    return math.prod(rows.shape[:-1])


@functools.lru_cache(maxsize=4096)
def chosen(problem: Problem, index: int | None, variants: str) -> Choice:
    """The kernels of a problem on the GPU with this index: the named ones, else those of `choose`.

    Raises UsageError where a named forward kernel cannot do it.
    """
    if not variants:
        return choose(problem, gpu_of(index))
    choice = Choice.parse(variants)
    reason = FORWARD[choice.forward].refusal(problem.with_(op="gemm"), gpu_of(index))
    if reason:
        raise UsageError(f"{choice.forward} was named and cannot: {reason}")
    return choice


def _on(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _forward(x: torch.Tensor, pack: Pack, bias: torch.Tensor | None, problem: Problem,
             choice: Choice | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y [..., N] in x's type, x_q int8 [T, K padded to 128], x_scale float32 [T] of x [..., K], T rows in all. No choice on the CPU."""
    shape, x = (*x.shape[:-1], problem.out_features), x.reshape(problem.tokens, problem.in_features)
    saved, x_scale = allocate_quantized(problem.tokens, problem.in_features, x.device)
    x_q = saved[:, : problem.in_features]
    if isinstance(pack, KernelPack):
        rows = x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
        return _multiply(rows, x_q, x_scale, pack, bias, problem, choice).view(shape), saved, x_scale
    codes, scales = quantize_activation(x)
    x_q.copy_(codes)
    x_scale.copy_(scales)
    return _multiply(None, x_q, x_scale, pack, bias, problem, choice).view(shape), saved, x_scale


def _multiply(x: torch.Tensor | None, x_q: torch.Tensor, x_scale: torch.Tensor, pack: Pack, bias: torch.Tensor | None, problem: Problem,
              choice: Choice | None) -> torch.Tensor:
    """y [T, N]; x_q [T, K] and x_scale [T] are filled from x first where x [T, K] is given, on a device."""
    if isinstance(pack, KernelPack):
        assert choice is not None
        row_bias = None if bias is None else bias.detach().float().contiguous()
        y = FORWARD[choice.forward].run(Call(problem, gpu_of(x_q.device.index), x, x_q, x_scale, pack, row_bias))
        launch_flag(x_scale, pack.flags[ACTIVATION:])
        return y
    assert isinstance(pack, ReferencePack)
    _warn_of_cpu()
    pack.flags[ACTIVATION] |= (~x_scale.isfinite()).any()
    return linear(x_q, x_scale, pack.ternary, pack.w_scale, pack.splits, bias).to(DTYPES[problem.dtype])


def _chosen_pack(weight: torch.Tensor, problem: Problem, variants: str, use: Use) -> tuple[Pack, Choice | None]:
    """The pack of a master weight in the layouts that the chosen kernels read, and these; none on a CPU."""
    choice = chosen(problem, weight.device.index, variants) if runs_kernels(weight) else None
    fragments = choice is not None and FORWARD[choice.forward].fragments
    return pack_of(weight, problem.sparsity, problem.splits, use, fragments), choice


def _pack_and_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
                      variants: str, use: Use) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    problem = _problem(_tokens(x), *weight.shape, x.dtype, sparsity, tuple(splits))
    with _on(x):
        pack, choice = _chosen_pack(weight, problem, variants, use)
        return _forward(x, pack, bias, problem, choice)


@torch.library.custom_op("tersparse::bitlinear", mutates_args=())
def bitlinear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int], variants: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y [..., N] of x [..., K], T rows in all, and a master weight [N, K]; and what the backward pass keeps: x_q int8 [T, K padded to
    128] and x_scale float32 [T].

    The weight is packed where its pack is stale. In the capture of a CUDA graph it always is, so that every replay follows the weight.
    """
    return _pack_and_forward(x, weight, bias, sparsity, splits, variants, "train")


@bitlinear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
      variants: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    padded = -(-weight.shape[1] // 128) * 128
    kept = x.new_empty((_tokens(x), padded), dtype=torch.int8), x.new_empty((_tokens(x),), dtype=torch.float32)
    return (x.new_empty((*x.shape[:-1], weight.shape[0])), *kept)


@torch.library.custom_op("tersparse::bitlinear_codes", mutates_args=())
def bitlinear_codes(
    x_q: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
    variants: str, dtype: torch.dtype,
) -> torch.Tensor:
    """y [T, N] in `dtype` as `bitlinear` computes it, of activations that are rounded already: x_q int8 [T, K padded to 128], contiguous,
    and x_scale float32 [T]. Without autograd; see `kernels.bitlinear.traced`."""
    problem = _problem(x_q.shape[0], *weight.shape, dtype, sparsity, tuple(splits))
    with _on(x_q):
        pack, choice = _chosen_pack(weight, problem, variants, "train")
        return _multiply(None, x_q[:, : problem.in_features], x_scale, pack, bias, problem, choice)


@bitlinear_codes.register_fake
def _(x_q: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
      variants: str, dtype: torch.dtype) -> torch.Tensor:
    return x_scale.new_empty((x_q.shape[0], weight.shape[0]), dtype=dtype)


@torch.library.custom_op("tersparse::bitlinear_eval", mutates_args=())
def bitlinear_eval(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int], variants: str
) -> torch.Tensor:
    """y [..., N] of x [..., K] and a master weight [N, K], which is packed where its pack is stale."""
    return _pack_and_forward(x, weight, bias, sparsity, splits, variants, "eval")[0]


@bitlinear_eval.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
      variants: str) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("tersparse::packed_linear", mutates_args=())
def packed_linear(
    x: torch.Tensor, data: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
    in_features: int, variants: str,
) -> torch.Tensor:
    """y [..., N] of x [..., K] and a packed weight (see `PackedTernary`)."""
    packed = PackedTernary(data.detach(), w_scale, tuple(splits), in_features, Sparsity.parse(sparsity))
    problem = _problem(_tokens(x), packed.out_features, in_features, x.dtype, sparsity, packed.splits)
    with _on(x):
        choice = chosen(problem, x.device.index, variants) if runs_kernels(x) else None
        fragments = choice is not None and FORWARD[choice.forward].fragments
        return _forward(x, frozen_pack_of(data, packed, fragments), bias, problem, choice)[0]


@packed_linear.register_fake
def _(x: torch.Tensor, data: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
      in_features: int, variants: str) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], data.shape[0]))


@torch.library.custom_op("tersparse::bitlinear_input_grad", mutates_args=())
def bitlinear_input_grad(dy: torch.Tensor, weight: torch.Tensor, sparsity: str, splits: Sequence[int], variants: str) -> torch.Tensor:
    """dx [..., K] in dy's type: dy [..., N] times the masked ternary weight and its scales."""
    problem = _problem(_tokens(dy), *weight.shape, dy.dtype, sparsity, tuple(splits))
    shape, dy = (*dy.shape[:-1], problem.in_features), dy.reshape(problem.tokens, problem.out_features)
    with _on(dy):
        pack = pack_of(weight, problem.sparsity, problem.splits, "backward")
        if isinstance(pack, KernelPack):
            kernel = INPUT_GRAD[chosen(problem, dy.device.index, variants).input_grad]
            dx = kernel(problem, gpu_of(dy.device.index), dy.contiguous(), pack.packed)
            launch_flag(dx[:, 0], pack.flags[GRADIENT:])  # a NaN or an infinity in a row of dy is in every column of its dx
            return dx.view(shape)
        assert isinstance(pack, ReferencePack)
        dx = input_grad(dy, pack.ternary, pack.w_scale, pack.splits).to(dy.dtype)
        pack.flags[GRADIENT] |= (~dx[:, 0].isfinite()).any()
        return dx.view(shape)


@bitlinear_input_grad.register_fake
def _(dy: torch.Tensor, weight: torch.Tensor, sparsity: str, splits: Sequence[int], variants: str) -> torch.Tensor:
    return dy.new_empty((*dy.shape[:-1], weight.shape[1]))


@torch.library.custom_op("tersparse::bitlinear_weight_grad", mutates_args=())
def bitlinear_weight_grad(
    dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, in_features: int, dtype: torch.dtype, variants: str
) -> torch.Tensor:
    """dw [N, K] in `dtype`, dense: the transpose of dy [..., N], T rows in all, times x_q · x_scale; x_q int8 [T, at least K]."""
    dy, codes = dy.reshape(_tokens(dy), dy.shape[-1]), x_q[:, :in_features]
    if not runs_kernels(dy):
        return weight_grad(dy, codes, x_scale).to(dtype)
    problem = _problem(dy.shape[0], dy.shape[1], in_features, dy.dtype, "dense", ())
    with _on(dy):
        name = (Choice.parse(variants) if variants else chosen(problem, dy.device.index, "")).weight_grad
        return WEIGHT_GRAD[name](problem, gpu_of(dy.device.index), dy.contiguous(), codes, x_scale, dtype)


@bitlinear_weight_grad.register_fake
def _(dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, in_features: int, dtype: torch.dtype, variants: str) -> torch.Tensor:
    return dy.new_empty((dy.shape[-1], in_features), dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, weight, bias, ctx.sparsity, ctx.splits, ctx.variants = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, output[1], output[2])


def _backward(ctx: Any, dy: torch.Tensor | None, *kept: None) -> tuple[torch.Tensor | None, ...]:
    """Straight through: as if the roundings of x and the weight and the mask were not there; dw is dense."""
    weight, x_q, x_scale = ctx.saved_tensors
    dx = dw = dbias = None
    if dy is not None:
        if ctx.needs_input_grad[0]:
            dx = bitlinear_input_grad(dy, weight, ctx.sparsity, ctx.splits, ctx.variants)
        if ctx.needs_input_grad[1]:
            dw = bitlinear_weight_grad(dy, x_q, x_scale, weight.shape[1], weight.dtype, ctx.variants)
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            dbias = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return dx, dw, dbias, None, None, None


bitlinear.register_autograd(_backward, setup_context=_setup)
