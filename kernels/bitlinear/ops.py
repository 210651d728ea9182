"""The operators of a ternary linear layer for PyTorch: opaque to its compiler, with fake and autograd implementations.

`tersparse::bitlinear` (training: also the int8 activations that the backward pass keeps), `bitlinear_forward` (the same without
autograd), `bitlinear_codes`, `bitlinear_eval`, `bitlinear_input_grad`, `bitlinear_weight_grad`, `bitlinear_grads` (both in one call), and
`packed_linear` on a weight of which only the pack is left. They are pure functions of their arguments and never synchronize the host with
a device. On a CPU the reference computes them, slowly.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from kernels.bitlinear.known import Layer, layer_like, layer_of, tokens_of
from kernels.bitlinear.packs import ACTIVATION, GRADIENT, KernelPack, Pack, ReferencePack, Use, frozen_pack_of, pack_of, runs_kernels
from kernels.bitlinear.small_kernels import launch_flag
from kernels.bitlinear.variants import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Call, Choice, allocate_quantized
from kernels.inputs import DTYPES, ROW_ALIGNMENT
from kernels.packed import PackedTernary
from kernels.problem import Sparsity
from reference.linear import input_grad, linear, weight_grad
from reference.quantize import quantize_activation

F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def _warn_of_cpu() -> None:
    warnings.warn("BitLinear runs on the CPU: through the reference, right but slow; move the model to a GPU", stacklevel=2)


def _operator(fake: Callable[..., Any]) -> Callable[[F], F]:
    """Make a function `tersparse::<its name>`, the same on the CPU and on CUDA; fake: what it returns, without the values.

    `torch.library.custom_op` does so too, and looks for aliases among the tensors of every call, which takes longer than a launch.
    """

    def register(function: F) -> F:
        name = f"tersparse::{function.__name__}"
        torch.library.define(name, torch.library.infer_schema(function, mutates_args=()), tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, ("cpu", "cuda"), function)
        torch.library.register_fake(name, fake)
        made: F = getattr(torch.ops.tersparse, function.__name__).default
        return made

    return register


def _on(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


def _forward(x: torch.Tensor, pack: Pack, bias: torch.Tensor | None, layer: Layer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y [..., N] in x's type, x_q int8 [T, K padded to 128], x_scale float32 [T] of x [..., K], T rows in all."""
    problem = layer.problem
    shape, x = (*x.shape[:-1], problem.out_features), x.reshape(problem.tokens, problem.in_features)
    saved, x_scale = allocate_quantized(problem.tokens, problem.in_features, x.device)
    x_q = _codes(saved, problem.in_features)
    if isinstance(pack, KernelPack):
        rows = x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
        return _multiply(rows, x_q, x_scale, pack, bias, layer).view(shape), saved, x_scale
    codes, scales = quantize_activation(x)
    x_q.copy_(codes)
    x_scale.copy_(scales)
    return _multiply(None, x_q, x_scale, pack, bias, layer).view(shape), saved, x_scale


def _codes(saved: torch.Tensor, in_features: int) -> torch.Tensor:
    """[T, K] of codes [T, K padded to 128]."""
    return saved if saved.shape[1] == in_features else saved[:, :in_features]


def _multiply(x: torch.Tensor | None, x_q: torch.Tensor, x_scale: torch.Tensor, pack: Pack, bias: torch.Tensor | None,
              layer: Layer) -> torch.Tensor:
    """y [T, N]; x_q [T, K] and x_scale [T] are filled from x first where x [T, K] is given, on a device."""
    if isinstance(pack, KernelPack):
        assert layer.choice is not None
        row_bias = None if bias is None else bias.detach().float().contiguous()
        y = FORWARD[layer.choice.forward].run(Call(layer.problem, layer.gpu, x, x_q, x_scale, pack, row_bias))
        launch_flag(x_scale, pack.flags, ACTIVATION)
        return y
    assert isinstance(pack, ReferencePack)
    _warn_of_cpu()
    pack.flags[ACTIVATION] |= (~x_scale.isfinite()).any()
    return linear(x_q, x_scale, pack.ternary, pack.w_scale, pack.splits, bias).to(DTYPES[layer.problem.dtype])


def _pack_and_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
                      variants: str, use: Use) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    layer = layer_of(x, weight, x.dtype, sparsity, splits, variants)
    with _on(x):
        return _forward(x, pack_of(weight, layer.problem.sparsity, layer.problem.splits, use, layer.fragments), bias, layer)


def _fake_linear(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    """y [..., N] of x [..., K] and a weight, packed or not, of N rows."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_bitlinear(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    padded = -(-weight.shape[1] // ROW_ALIGNMENT) * ROW_ALIGNMENT
    kept = x.new_empty((tokens_of(x), padded), dtype=torch.int8), x.new_empty((tokens_of(x),), dtype=torch.float32)
    return (_fake_linear(x, weight), *kept)


@_operator(_fake_bitlinear)
def bitlinear_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int], variants: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`bitlinear` without autograd, which takes the host as long as two launches; see `kernels.bitlinear.straight`."""
    return _pack_and_forward(x, weight, bias, sparsity, splits, variants, "train")


@_operator(_fake_bitlinear)
def bitlinear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int], variants: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y [..., N] of x [..., K], T rows in all, and a master weight [N, K]; and what the backward pass keeps: x_q int8 [T, K padded to
    128] and x_scale float32 [T].

    The weight is packed where its pack is stale. In the capture of a CUDA graph it always is, so that every replay follows the weight.
    """
    return _pack_and_forward(x, weight, bias, sparsity, splits, variants, "train")


def _fake_bitlinear_codes(x_q: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    return x_scale.new_empty((x_q.shape[0], weight.shape[0]), dtype=rest[-1])


@_operator(_fake_bitlinear_codes)
def bitlinear_codes(
    x_q: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
    variants: str, dtype: torch.dtype,
) -> torch.Tensor:
    """y [T, N] in `dtype` as `bitlinear` computes it, of activations that are rounded already: x_q int8 [T, K padded to 128], contiguous,
    and x_scale float32 [T]. Without autograd; see `kernels.bitlinear.traced`."""
    layer = layer_of(x_q, weight, dtype, sparsity, splits, variants)
    with _on(x_q):
        pack = pack_of(weight, layer.problem.sparsity, layer.problem.splits, "train", layer.fragments)
        return _multiply(None, _codes(x_q, weight.shape[1]), x_scale, pack, bias, layer)


@_operator(_fake_linear)
def bitlinear_eval(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int], variants: str
) -> torch.Tensor:
    """y [..., N] of x [..., K] and a master weight [N, K], which is packed where its pack is stale."""
    return _pack_and_forward(x, weight, bias, sparsity, splits, variants, "eval")[0]


@_operator(_fake_linear)
def packed_linear(
    x: torch.Tensor, data: torch.Tensor, w_scale: torch.Tensor, bias: torch.Tensor | None, sparsity: str, splits: Sequence[int],
    in_features: int, variants: str,
) -> torch.Tensor:
    """y [..., N] of x [..., K] and a packed weight (see `PackedTernary`)."""
    packed = PackedTernary(data.detach(), w_scale, tuple(splits), in_features, Sparsity.parse(sparsity))
    layer = layer_like(tokens_of(x), packed.out_features, in_features, x.dtype, sparsity, packed.splits, variants, x.device.index,
                       runs_kernels(x))
    with _on(x):
        return _forward(x, frozen_pack_of(data, packed, layer.fragments), bias, layer)[0]


def _fake_input_grad(dy: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    return dy.new_empty((*dy.shape[:-1], weight.shape[1]))


@_operator(_fake_input_grad)
def bitlinear_input_grad(dy: torch.Tensor, weight: torch.Tensor, sparsity: str, splits: Sequence[int], variants: str) -> torch.Tensor:
    """dx [..., K] in dy's type: dy [..., N] times the masked ternary weight and its scales."""
    layer = layer_of(dy, weight, dy.dtype, sparsity, splits, variants)
    with _on(dy):
        return _input_grad(_rows(dy), weight, layer).view(*dy.shape[:-1], weight.shape[1])


def _rows(dy: torch.Tensor) -> torch.Tensor:
    """[T, N], contiguous, of [..., N]."""
    return dy.reshape(tokens_of(dy), dy.shape[-1]).contiguous()


def _input_grad(dy: torch.Tensor, weight: torch.Tensor, layer: Layer) -> torch.Tensor:
    """dx [T, K] of dy [T, N], contiguous."""
    pack = pack_of(weight, layer.problem.sparsity, layer.problem.splits, "backward")
    if isinstance(pack, KernelPack):
        assert layer.choice is not None
        dx = INPUT_GRAD[layer.choice.input_grad](layer.problem, layer.gpu, dy, pack.packed)
        launch_flag(dx, pack.flags, GRADIENT)  # a NaN or an infinity in a row of dy is in every column of its dx
        return dx
    assert isinstance(pack, ReferencePack)
    dx = input_grad(dy, pack.ternary, pack.w_scale, pack.splits).to(dy.dtype)
    pack.flags[GRADIENT] |= (~dx[:, 0].isfinite()).any()
    return dx


def _fake_weight_grad(
    dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, in_features: int, dtype: torch.dtype, variants: str
) -> torch.Tensor:
    return dy.new_empty((dy.shape[-1], in_features), dtype=dtype)


@_operator(_fake_weight_grad)
def bitlinear_weight_grad(
    dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, in_features: int, dtype: torch.dtype, variants: str
) -> torch.Tensor:
    """dw [N, K] in `dtype`, dense: the transpose of dy [..., N], T rows in all, times x_q · x_scale; x_q int8 [T, at least K]."""
    layer = layer_like(tokens_of(dy), dy.shape[-1], in_features, dy.dtype, "dense", (), "", dy.device.index, runs_kernels(dy))
    named = Choice.parse(variants) if variants else layer.choice
    with _on(dy):
        return _weight_grad(_rows(dy), _codes(x_q, in_features), x_scale, dtype, layer, named)


def _weight_grad(dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, dtype: torch.dtype, layer: Layer,
                 choice: Choice | None) -> torch.Tensor:
    """dw [N, K] of dy [T, N], contiguous, x_q [T, K] and x_scale [T]; layer: its sparsity is of no importance."""
    if layer.choice is None or choice is None:
        return weight_grad(dy, x_q, x_scale).to(dtype)
    return WEIGHT_GRAD[choice.weight_grad](layer.problem, layer.gpu, dy, x_q, x_scale, dtype)


def _fake_grads(dy: torch.Tensor, weight: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _fake_input_grad(dy, weight), dy.new_empty(weight.shape, dtype=weight.dtype)


@_operator(_fake_grads)
def bitlinear_grads(
    dy: torch.Tensor, weight: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor, sparsity: str, splits: Sequence[int], variants: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx and dw, in the weight's type, as the two operators give them, in one call."""
    layer = layer_of(dy, weight, dy.dtype, sparsity, splits, variants)
    with _on(dy):
        rows = _rows(dy)
        dx = _input_grad(rows, weight, layer).view(*dy.shape[:-1], weight.shape[1])
        return dx, _weight_grad(rows, _codes(x_q, weight.shape[1]), x_scale, weight.dtype, layer, layer.choice)


def backward(ctx: Any, dy: torch.Tensor | None, *kept: None) -> tuple[torch.Tensor | None, ...]:
    """Straight through: as if the roundings of x and the weight and the mask were not there; dw is dense. ctx: see `remember`."""
    weight, x_q, x_scale = ctx.saved_tensors
    dx = dw = dbias = None
    if dy is not None:
        if ctx.needs_input_grad[0] and ctx.needs_input_grad[1]:
            dx, dw = bitlinear_grads(dy, weight, x_q, x_scale, *ctx.layer)
        elif ctx.needs_input_grad[0]:
            dx = bitlinear_input_grad(dy, weight, *ctx.layer)
        elif ctx.needs_input_grad[1]:
            dw = bitlinear_weight_grad(dy, x_q, x_scale, weight.shape[1], weight.dtype, ctx.layer[2])
        if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
            dbias = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return dx, dw, dbias, None, None, None


def remember(ctx: Any, weight: torch.Tensor, bias: torch.Tensor | None, layer: tuple[str, Sequence[int], str], x_q: torch.Tensor,
             x_scale: torch.Tensor) -> None:
    """Keep in ctx what `backward` needs. layer: sparsity, splits, variants."""
    ctx.layer, ctx.bias_dtype = layer, None if bias is None else bias.dtype
    ctx.save_for_backward(weight, x_q, x_scale)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, weight, bias, *layer = inputs
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    remember(ctx, weight, bias, (layer[0], layer[1], layer[2]), output[1], output[2])


torch.library.register_autograd("tersparse::bitlinear", backward, setup_context=_setup)
