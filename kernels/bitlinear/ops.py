"""The operators of a ternary linear layer for PyTorch: opaque to its compiler, with fake and autograd implementations.

`tersparse::bitlinear` (training: also the int8 activations that the backward pass keeps), `bitlinear_forward` (the same without
autograd), `bitlinear_codes`, `bitlinear_eval`, and `packed_linear` on a weight of which only the pack is left; those of the backward pass
are in `kernels.bitlinear.gradients`. They are pure functions of their arguments and never synchronize the host with a device. On a CPU the
reference computes them, slowly.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from kernels.bitlinear.gradients import backward, codes_of, remember
from kernels.bitlinear.known import Layer, check_input, layer_like, layer_of, tokens_of
from kernels.bitlinear.operator import on, operator
from kernels.bitlinear.pack import KernelPack, Pack, ReferencePack, runs_kernels
from kernels.bitlinear.packs import ACTIVATION, Use, bias_rows, frozen_pack_of, pack_of
from kernels.bitlinear.quantized import allocate_quantized, padded_columns
from kernels.bitlinear.small_kernels import launch_flag
from kernels.errors import UsageError
from kernels.inputs import DTYPES
from reference.linear import linear
from reference.quantize import quantize_activation


@functools.cache
def _warn_of_cpu() -> None:
    warnings.warn("BitLinear runs on the CPU: through the reference, right but slow; move the model to a GPU", stacklevel=2)


def _forward(x: torch.Tensor, pack: Pack, bias: torch.Tensor | None, layer: Layer,
             use: Use) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y [..., N] in x's type, x_q int8 [T, K padded to 128], x_scale float32 [T] of x [..., K], T rows in all."""
    problem = layer.problem
    shape = None if x.dim() == 2 else (*x.shape[:-1], problem.out_features)
    if shape is not None:
        x = x.reshape(problem.tokens, problem.in_features)
    x_q, x_scale = allocate_quantized(problem.tokens, problem.in_features, x.device)
    if isinstance(pack, KernelPack):
        rows = x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
        y = _multiply(rows, x_q, x_scale, pack, bias, layer, use)
    else:
        codes, scales = quantize_activation(x)
        codes_of(x_q, problem.in_features).copy_(codes)
        x_scale.copy_(scales)
        y = _multiply(None, x_q, x_scale, pack, bias, layer, use)
    # Not a view to autograd: past the dispatcher it would be one, and one that was made without gradients refuses to be changed in place.
    return y if shape is None else torch.ops.aten._unsafe_view.default(y, shape), x_q, x_scale


def _multiply(x: torch.Tensor | None, x_q: torch.Tensor, x_scale: torch.Tensor, pack: Pack, bias: torch.Tensor | None,
              layer: Layer, use: Use) -> torch.Tensor:
    """y [T, N]; x_q [T, K padded to 128] and x_scale [T] are filled from x first where x [T, K] is given, on a device."""
    if isinstance(pack, KernelPack):
        if x is None:
            launch_flag(x_scale, pack.flags, ACTIVATION)
        if bias is None:
            return layer.plain(x, x_q, x_scale, pack, None)
        return layer.biased(x, x_q, x_scale, pack, bias_rows(bias, layer.problem.out_features, use))
    assert isinstance(pack, ReferencePack)
    _warn_of_cpu()
    pack.flags[ACTIVATION] |= (~x_scale.isfinite()).any()
    codes = codes_of(x_q, layer.problem.in_features)
    return linear(codes, x_scale, pack.ternary, pack.w_scale, pack.splits, bias).to(DTYPES[layer.problem.dtype])


def _pack_and_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
                      variants: str, use: Use) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    layer = layer_of(x, weight, x.dtype, sparsity, splits, variants, "layer" if use == "eval" else "step")
    with on(x):
        return _forward(x, pack_of(weight, layer.problem.sparsity, layer.problem.splits, use, layer.fragments), bias, layer, use)


def _fake_linear(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    """y [..., N] of x [..., K] and a weight, packed or not, of N rows."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_bitlinear(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    kept = x.new_empty((tokens_of(x), padded_columns(weight.shape[1])), dtype=torch.int8), x.new_empty((tokens_of(x),), dtype=torch.float32)
    return (_fake_linear(x, weight), *kept)


@operator(_fake_bitlinear)
def bitlinear_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int], variants: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`bitlinear` without autograd, which takes the host as long as two launches; see `kernels.bitlinear.straight`."""
    return _pack_and_forward(x, weight, bias, sparsity, splits, variants, "train")


@operator(_fake_bitlinear)
def bitlinear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int], variants: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y [..., N] of x [..., K], T rows in all, and a master weight [N, K]; and what the backward pass keeps: x_q int8 [T, K padded to
    128] and x_scale float32 [T].

    The weight is packed where its pack is stale. In the capture of a CUDA graph it always is, so that every replay follows the weight.
    Raises ShapeError for an x that does not fit.
    """
    check_input(x, weight, weight.shape[1])
    return _pack_and_forward(x, weight, bias, sparsity, splits, variants, "train")


def _fake_bitlinear_codes(x_q: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    return x_scale.new_empty((x_q.shape[0], weight.shape[0]), dtype=rest[-1])


@operator(_fake_bitlinear_codes)
def bitlinear_codes(
    x_q: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
    variants: str, dtype: torch.dtype,
) -> torch.Tensor:
    """y [T, N] in `dtype` as `bitlinear` computes it, of activations that are rounded already: x_q int8 [T, K padded to 128], contiguous,
    and x_scale float32 [T]. Without autograd; see `kernels.bitlinear.traced`."""
    layer = layer_of(x_q, weight, dtype, sparsity, splits, variants)
    with on(x_q):
        pack = pack_of(weight, layer.problem.sparsity, layer.problem.splits, "train", layer.fragments)
        return _multiply(None, x_q, x_scale, pack, bias, layer, "train")


def evaluate(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int], variants: str
) -> torch.Tensor:
    """`bitlinear_eval` past PyTorch's dispatcher, which takes the host as long as two launches; for what is `direct`."""
    layer = layer_of(x, weight, x.dtype, sparsity, splits, variants, "layer")
    with on(x):
        return _evaluate(x, pack_of(weight, layer.problem.sparsity, layer.problem.splits, "eval", layer.fragments), bias, layer)


def _evaluate(x: torch.Tensor, pack: Pack, bias: torch.Tensor | None, layer: Layer) -> torch.Tensor:
    """y [..., N] of x [..., K]."""
    if isinstance(pack, KernelPack) and x.is_contiguous() and not x.data_ptr() & 15:
        lean = layer.lean(bias is not None)
        if lean is not None:
            rows = layer.problem.out_features
            return lean(x, pack, None if bias is None else bias_rows(bias, rows), (*x.shape[:-1], rows))
    return _forward(x, pack, bias, layer, "eval")[0]


@operator(_fake_linear)
def bitlinear_eval(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int], variants: str
) -> torch.Tensor:
    """y [..., N] of x [..., K] and a master weight [N, K], which is packed where its pack is stale. Raises ShapeError for another x."""
    check_input(x, weight, weight.shape[1])
    return evaluate(x, weight, bias, sparsity, splits, variants)


def evaluate_packed(
    x: torch.Tensor, data: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
    in_features: int, variants: str,
) -> torch.Tensor:
    """`packed_linear` past PyTorch's dispatcher, for what is `direct`."""
    parts = tuple(splits)
    layer = layer_like(tokens_of(x), data.shape[0], in_features, x.dtype, sparsity, parts, variants, x.device.index, runs_kernels(x),
                       "layer")
    with on(x):
        pack = frozen_pack_of(data, w_scale, parts, in_features, layer.problem.sparsity, layer.fragments)
        return _evaluate(x, pack, bias, layer)


@operator(_fake_linear)
def packed_linear(
    x: torch.Tensor, data: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
    in_features: int, variants: str,
) -> torch.Tensor:
    """y [..., N] of x [..., K] and a packed weight (see `PackedTernary`). Raises ShapeError for an x that does not fit."""
    check_input(x, data, in_features)
    return evaluate_packed(x, data, w_scale, bias, sparsity, splits, in_features, variants)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, weight, bias, *layer = inputs
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    remember(ctx, weight, bias, (layer[0], layer[1], layer[2]), output[1], output[2])


def _no_gradients(ctx: Any, dy: torch.Tensor) -> None:
    """Without this PyTorch would warn and go on with gradients of None."""
    raise UsageError("evaluation and packed weights have no gradients; BitLinear in training has")


torch.library.register_autograd("tersparse::bitlinear", backward, setup_context=_setup)
for _name in ("bitlinear_eval", "packed_linear"):
    torch.library.register_autograd(f"tersparse::{_name}", _no_gradients)
