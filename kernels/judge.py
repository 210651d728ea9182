"""Is a kernel's output right? Every variant and baseline is held to the reference by one of the named bounds of `kernels.bounds`.

Nothing a kernel returned is trusted but the scale s it says it used, and that only within 1 ulp of the reference. Packed bytes are
unpacked here by a few plain lines of their own. Very large products are judged on a fixed sample of rows (`kernels.bounds`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from kernels.bounds import BF16, BOUNDS, CANCELLED, bounded, by_rows, refused
from kernels.errors import UsageError
from kernels.inputs import DTYPES, ActivationInputs, GemmInputs, Inputs, LayerInputs, PrepareInputs, TrainInputs
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.problem import Problem
from reference.compare import EXACT, Mismatch, Tolerance, compare
from reference.lifting import lift_activation
from reference.linear import accumulate, input_grad, linear, row_scale, weight_grad
from reference.quantize import EPSILON, quantize_activation, split_slices, ternary_quantize, ternary_scale
from reference.sparsity import chunk_rows, nm_mask, transposable_mask

FLOAT_SCALE_ULPS = 64.0
"""A variant's w_scale is within 1 ulp; the mean of a float baseline may come from a float32 tree of sums."""
DOUBT = 2.0**-16
"""Distance of |w · s| from 1/2 within which a baseline with a scale of its own may round the other way."""
E4M3_MAX = 448.0
EXACT_FORWARD = ("gradient", "transposable", "int8", "int8-transposable")
"""Bounds of gradients: a step that is judged by one has an exact y."""


@dataclass(frozen=True)
class _Weight:
    """values: float64 [N, K], masked; scale: [splits]; doubt: float64 [N, K], how far a value may be elsewhere, or None."""

    values: torch.Tensor
    scale: torch.Tensor
    doubt: torch.Tensor | None = None


def poison(prepared: Prepared) -> None:
    """Fill the buffers a kernel writes with values that are never right, so that what was not written is seen.

    Floats get NaN, uint8 0xAA (four illegal ternary codes), other integers their smallest value, booleans false (no mask is all false).
    """
    for buffer in prepared.buffers.values():
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
        elif buffer.dtype == torch.bool:
            buffer.fill_(False)
        else:
            buffer.fill_(0xAA if buffer.dtype == torch.uint8 else torch.iinfo(buffer.dtype).min)


def judge(problem: Problem, inputs: Inputs, outputs: Outputs, kernel: Kernel) -> Mismatch | None:
    """None where the outputs are right for these inputs, else the first output that is not and by how much.

    Works on the device of the inputs and synchronizes. A missing output, a wrong shape or a wrong type is a mismatch, not an
    exception. Raises UsageError where `kernel.judged` is no name of `BOUNDS`.
    """
    if kernel.judged not in BOUNDS:
        raise UsageError(f"{kernel} is judged by {kernel.judged!r}; allowed: {', '.join(BOUNDS)}")
    return next((mismatch for mismatch in _judge(problem, inputs, outputs, kernel.judged) if mismatch), None)


def _judge(problem: Problem, inputs: Inputs, outputs: Outputs, judged: str) -> Iterator[Mismatch | None]:
    """One entry per property, cheap ones first; what comes after a mismatch is not computed."""
    if isinstance(inputs, PrepareInputs):
        yield from _prepare(problem, inputs.w, outputs, judged)
    elif isinstance(inputs, ActivationInputs):
        yield from _activation(problem, inputs.x, outputs)
    elif isinstance(inputs, TrainInputs):
        yield from _train(problem, inputs, outputs, judged)
    else:
        x, x_scale = _operand(inputs, judged)
        bare = isinstance(inputs, GemmInputs) and (judged in ("raw", "fp8") or problem.dtype == "int32")
        x_scale, w_scale = (torch.ones_like(scale) if bare else scale for scale in (x_scale, inputs.w_scale))
        bias = None if bare else inputs.bias
        yield _forward(problem, outputs, x, x_scale, _Weight(inputs.w_ternary.double(), w_scale), bias, judged)


def _operand(inputs: GemmInputs | LayerInputs, judged: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The activations [T, K] that the named bound is about, and their scale [T]."""
    if isinstance(inputs, GemmInputs):
        return (_e4m3(inputs.x_q.float()) if judged == "fp8" else inputs.x_q), inputs.x_scale
    if judged in ("float", "unquantized"):
        return inputs.x, torch.ones(inputs.x.shape[0], device=inputs.x.device)
    if judged == "fp8":
        absmax = inputs.x.float().abs().amax(dim=1).clamp(min=EPSILON)
        largest = torch.full_like(absmax, E4M3_MAX)
        return _e4m3(inputs.x.float() * (largest / absmax)[:, None]), absmax / largest
    return quantize_activation(inputs.x)


def _e4m3(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float8_e4m3fn).float()


def _forward(
    problem: Problem, outputs: Outputs, x: torch.Tensor, x_scale: torch.Tensor, weight: _Weight, bias: torch.Tensor | None, judged: str
) -> Mismatch | None:
    """y [T, N] = x · weightᵀ with its scales and bias."""
    splits, terms, exact = problem.splits, x.shape[1], judged in ("exact", "raw")

    def expect(rows: torch.Tensor) -> tuple[torch.Tensor, Tolerance]:
        a, scale = x[rows], x_scale[rows]
        if problem.dtype == "int32":
            return accumulate(a, weight.values), EXACT
        y = linear(a, scale, weight.values, weight.scale, splits)
        offset = torch.zeros((), dtype=torch.float64, device=y.device) if bias is None else bias.double()
        if exact:
            return y + offset, Tolerance(1, CANCELLED * (y.abs() + offset.abs()))
        squares = linear(a.double().square(), scale.double().square(), weight.values.square(), weight.scale.double().square(), splits)
        slack = BF16 * offset.abs()
        if weight.doubt is not None:
            slack = slack + linear(a.double().abs(), scale, weight.doubt, weight.scale, splits)
        return y + offset, bounded(y, squares, BOUNDS[judged].share(terms), slack, y + offset, outputs["y"].dtype)

    return by_rows("y", outputs, (problem.tokens, problem.out_features), (DTYPES[problem.dtype],), terms, exact, expect)


def _prepare(problem: Problem, w: torch.Tensor, outputs: Outputs, judged: str) -> Iterator[Mismatch | None]:
    """What was made of a master weight w [N, K]: any of packed, mask, w_fake with its scales."""
    (rows, columns), scales = w.shape, (len(problem.splits),)
    if not {"packed", "mask", "w_fake"} & set(outputs):
        yield Mismatch(1, 1, name="packed", reason="the kernel returned none of packed, mask, w_fake")
        return
    mask = nm_mask(w, problem.sparsity.n, problem.sparsity.m)
    if "mask" in outputs:
        yield _exact("mask", outputs, mask, (torch.bool, torch.uint8))
    reference = ternary_scale(w, problem.splits)
    ulps = FLOAT_SCALE_ULPS if judged == "float" else 1.0
    for name, truth in (("w_scale", reference), ("inv_scale", torch.ones_like(reference) / reference)):
        if name in outputs:
            refusal = refused(name, outputs, scales, (torch.float32,))
            yield refusal or _named(name, compare(outputs[name], truth, Tolerance(ulps)))
    ternary, _ = ternary_quantize(w, problem.splits, outputs.get("inv_scale"))
    ternary *= mask
    if "packed" in outputs:
        refusal = refused("packed", outputs, (rows, -(-columns // 256) * 64), (torch.uint8,))
        padded = torch.nn.functional.pad(ternary, (0, -columns % 256))
        yield refusal or _named("packed", compare(_unpacked(outputs["packed"]), padded))
    if "w_fake" in outputs:
        scale = outputs.get("w_scale", reference).repeat_interleave(torch.tensor(problem.splits, device=w.device))[:, None]
        tolerance = Tolerance(1, _doubt(w, mask, problem.splits, reference) * scale) if judged == "float" else EXACT
        refusal = refused("w_fake", outputs, (rows, columns), (torch.bfloat16,))
        yield refusal or _named("w_fake", compare(outputs["w_fake"], (ternary * scale).bfloat16(), tolerance))


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    """int8 [N, padded K] of dense2 bytes [N, padded K / 4]: field f of byte b of a block is its column 64·f + b; 2 for the illegal code."""
    blocks = packed.reshape(packed.shape[0], -1, 1, 64)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed.device).view(1, 1, 4, 1)
    codes = torch.tensor([0, 1, 2, -1], dtype=torch.int8, device=packed.device)
    out = torch.empty((packed.shape[0], packed.shape[1] * 4), dtype=torch.int8, device=packed.device)
    for chunk in chunk_rows(*out.shape):
        out[chunk] = codes[((blocks[chunk] >> shifts) & 3).int()].flatten(1)
    return out


def _doubt(w: torch.Tensor, mask: torch.Tensor, splits: tuple[int, ...], w_scale: torch.Tensor) -> torch.Tensor:
    """1 where a kept weight lies so near a rounding boundary that a slightly different scale moves it, else 0: float32 [N, K]."""
    doubt = torch.empty(w.shape, dtype=torch.float32, device=w.device)
    for rows, scale in zip(split_slices(splits, w.shape[0]), w_scale, strict=True):
        part, kept, out = w[rows], mask[rows], doubt[rows]
        for chunk in chunk_rows(*part.shape):
            out[chunk] = (((part[chunk].float() / scale).abs() - 0.5).abs() < DOUBT) & kept[chunk]
    return doubt


def _activation(problem: Problem, x: torch.Tensor, outputs: Outputs) -> Iterator[Mismatch | None]:
    """int8 activations and their scales, exact; lifted where the sparsity is."""
    x_q, x_scale = quantize_activation(x)
    yield _exact("x_scale", outputs, x_scale, (torch.float32,))
    yield _exact("x_q", outputs, lift_activation(x_q, problem.sparsity.m) if problem.sparsity.lifted else x_q, (torch.int8,))


def _exact(name: str, outputs: Outputs, expected: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> Mismatch | None:
    return refused(name, outputs, tuple(expected.shape), dtypes) or _named(name, compare(outputs[name], expected))


def _named(name: str, mismatch: Mismatch | None) -> Mismatch | None:
    return mismatch and replace(mismatch, name=name)


def _train(problem: Problem, inputs: TrainInputs, outputs: Outputs, judged: str) -> Iterator[Mismatch | None]:
    """The outputs of a training op: y, dx, dw, and in a step whatever it prepared."""
    if {"packed", "mask", "w_fake"} & set(outputs):
        yield from _prepare(problem, inputs.w, outputs, judged)
    weight, splits = _trained_weight(problem, inputs, outputs, judged), problem.splits
    x, x_scale = inputs.x_q, inputs.x_scale
    if judged in ("unquantized", "dense-linear"):
        x, x_scale = inputs.x, torch.ones_like(x_scale)
    bound = BOUNDS["gradient" if judged == "exact" else judged]
    types = (DTYPES[problem.dtype], torch.float32)
    if problem.op in ("forward", "step"):
        yield _forward(problem, outputs, x, x_scale, weight, None, "exact" if judged in EXACT_FORWARD else judged)
    if problem.op in ("input-grad", "step"):

        def expect_dx(rows: torch.Tensor) -> tuple[torch.Tensor, Tolerance]:
            dy = inputs.dy[rows].double()
            dx = input_grad(dy, weight.values, weight.scale, splits)
            squares = input_grad(dy.square(), weight.values.square(), weight.scale.double().square(), splits)
            slack = torch.zeros_like(dx) if weight.doubt is None else input_grad(dy.abs(), weight.doubt, weight.scale, splits)
            if bound.codes:
                slack = slack + bound.rounding(dy * row_scale(weight.scale, splits, problem.out_features), weight.values)
            return dx, bounded(dx, squares, bound.share(problem.out_features), slack, dx, outputs["dx"].dtype)

        yield by_rows("dx", outputs, (problem.tokens, problem.in_features), types, problem.out_features, False, expect_dx)
    if problem.op in ("weight-grad", "step"):
        wide = x.double()

        def expect_dw(rows: torch.Tensor) -> tuple[torch.Tensor, Tolerance]:
            dy = inputs.dy[:, rows].double()
            dw = weight_grad(dy, wide, x_scale)
            squares = weight_grad(dy.square(), wide.square(), x_scale.double().square())
            slack = bound.rounding((dy * x_scale.double()[:, None]).t(), wide) if bound.codes and problem.tokens else torch.zeros_like(dw)
            return dw, bounded(dw, squares, bound.share(problem.tokens), slack, dw, outputs["dw"].dtype)

        yield by_rows("dw", outputs, (problem.out_features, problem.in_features), types, problem.tokens, False, expect_dw)


def _trained_weight(problem: Problem, inputs: TrainInputs, outputs: Outputs, judged: str) -> _Weight:
    """The weight a training op computes with: by the s it returned, which `_prepare` has judged by now, else the reference's."""
    if judged == "dense-linear":
        return _Weight(inputs.w.double(), torch.ones_like(inputs.w_scale))
    both_ways = BOUNDS[judged].both_ways
    if judged != "float" and "inv_scale" not in outputs and not both_ways:
        return _Weight(inputs.w_ternary.double(), inputs.w_scale)
    mask = transposable_mask(inputs.w) if both_ways else nm_mask(inputs.w, problem.sparsity.n, problem.sparsity.m)
    if "inv_scale" in outputs or both_ways:
        ternary, _ = ternary_quantize(inputs.w, problem.splits, outputs.get("inv_scale"))
        return _Weight((ternary * mask).double(), outputs.get("w_scale", inputs.w_scale))
    doubt = _doubt(inputs.w, mask, problem.splits, inputs.w_scale).double()
    return _Weight(inputs.w_ternary.double(), inputs.w_scale, doubt if doubt.any() else None)
