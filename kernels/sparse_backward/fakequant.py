"""Training baselines that quantize in PyTorch: bf16 GEMMs on fake-quantized operands, as published training code does it.

Weights: w_scale · ternary · mask, activations: x_scale · int8, each in float32 and rounded once to bf16, so that a GEMM library sees
ordinary matrices. Gradients pass straight through: dX uses the quantized weight, dW is dense and uses the quantized activation.
No autograd and no detach trick are timed, which flatters these baselines. `-compiled` runs the same expressions under torch.compile,
compiled once for all shapes, before the clock.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kernels.gpu import Gpu
from kernels.inputs import DTYPES, Inputs, TrainInputs
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.mask_quantize.baselines import MaskConfig, launch_group_mask
from kernels.problem import Op, Problem
from kernels.space import Config
from kernels.sparse_backward.input_grad import train_inputs, unavailable

ROUNDED = "weight and activation to the input type, products in it too where the library splits a sum"
EPSILON = 1e-5
INT8_MAX = 127.0


def pairwise_mask(w: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """bool [N, K]: a weight stays where fewer than n of its group of m are greater in magnitude, or equal with a lower index."""
    score = w.abs().view(w.shape[0], -1, m)
    index = torch.arange(m, device=w.device)
    rank = torch.zeros_like(score, dtype=torch.int32)
    for j in range(m):
        other = score[:, :, j : j + 1]
        rank += (other > score) | ((other == score) & (j < index))
    return (rank < n).view(w.shape)


def fake_weight(w: torch.Tensor, mask: torch.Tensor, averages: torch.Tensor, split_of_row: torch.Tensor) -> torch.Tensor:
    """mask · ternary · w_scale in w's type, [N, K]; float32 arithmetic, row sums added in float64.

    averages: float64 [splits, N], 1 / (rows · K) at the rows of a split; split_of_row: int64 [N].
    """
    mean = torch.mv(averages, w.float().abs().sum(dim=1).double())
    scale = mean.float().clamp(min=EPSILON)[split_of_row][:, None]
    ternary = (w.float() * (1.0 / scale)).round().clamp(-1, 1)
    return torch.where(mask, ternary * scale, 0.0).to(w.dtype)


def masked_fake_weight(w: torch.Tensor, n: int, m: int, averages: torch.Tensor, split_of_row: torch.Tensor) -> torch.Tensor:
    """Mask by pairwise rank and `fake_weight`, one expression."""
    return fake_weight(w, pairwise_mask(w, n, m), averages, split_of_row)


def fake_activation(x: torch.Tensor) -> torch.Tensor:
    """x rounded to per-token absmax int8 and back, in x's type."""
    absmax = x.float().abs().amax(dim=1, keepdim=True).clamp(min=EPSILON)
    return ((x.float() * (INT8_MAX / absmax)).round() * (absmax / INT8_MAX)).to(x.dtype)


@functools.cache
def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function under torch.compile, one graph for all shapes; more kinds of inputs than it may compile for are an error."""
    result: Callable[..., torch.Tensor] = torch.compile(function, dynamic=True, fullgraph=True)
    return result


@dataclass(frozen=True)
class FakeQuant:
    """The quantizing halves of a step: `weight()` gives the fake-quantized weight, `activation()` the activation, both in bf16."""

    weight: Callable[[], torch.Tensor]
    activation: Callable[[], torch.Tensor]


def fake_quant(problem: Problem, data: TrainInputs, published: bool, compile_: bool) -> FakeQuant:
    """Bind the expressions to a problem's tensors. published: the mask comes from a Triton kernel with one program per group."""
    wrap = compiled if compile_ else _plain
    n, m = problem.sparsity.n, problem.sparsity.m
    averages, split_of_row = split_tensors(problem.splits, problem.in_features, data.w.device)
    activation = functools.partial(wrap(fake_activation), data.x)
    if not published:
        return FakeQuant(functools.partial(wrap(masked_fake_weight), data.w, n, m, averages, split_of_row), activation)
    mask = torch.empty(data.w.shape, dtype=torch.bool, device=data.w.device)

    def weight() -> torch.Tensor:
        launch_group_mask(data.w, mask, problem.sparsity, MaskConfig())
        return wrap(fake_weight)(data.w, mask, averages, split_of_row)

    return FakeQuant(weight, activation)


def split_tensors(splits: Sequence[int], in_features: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`averages` and `split_of_row` of `fake_weight`."""
    rows = torch.tensor(splits)
    split_of_row = torch.repeat_interleave(torch.arange(len(splits)), rows)
    averages = (split_of_row[None, :] == torch.arange(len(splits))[:, None]).double() / (rows.double() * in_features).clamp(min=1)[:, None]
    return averages.to(device), split_of_row.to(device)


def _plain(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return function


def prepare_forward(problem: Problem, inputs: Inputs, config: Config, *, published: bool, compile_: bool) -> Prepared:
    """y = x̂ · ŵᵀ: the activation is quantized in `run`; the weight too where it is done in every forward (published), else before it."""
    data = train_inputs(inputs)
    quant = fake_quant(problem, data, published, compile_)
    y = torch.empty((problem.tokens, problem.out_features), dtype=data.x.dtype, device=data.x.device)
    once = None if published else quant.weight()

    def run() -> Outputs:
        weight = quant.weight() if once is None else once
        torch.mm(quant.activation(), weight.t(), out=y)
        return {"y": y}

    touched = 2 * data.x.nbytes + data.w.nbytes * (2 if published else 1) + y.nbytes
    return _warm(Prepared(run, {"y": y}, touched, data.w.nbytes, {"rounded": ROUNDED}))


def prepare_step(problem: Problem, inputs: Inputs, config: Config, *, published: bool, compile_: bool) -> Prepared:
    """A whole step: quantize weight and activation, then three GEMMs."""
    data = train_inputs(inputs)
    quant = fake_quant(problem, data, published, compile_)
    outputs = step_outputs(problem, data)

    def run() -> Outputs:
        weight, x = quant.weight(), quant.activation()
        torch.mm(x, weight.t(), out=outputs["y"])
        torch.mm(data.dy, weight, out=outputs["dx"])
        torch.mm(data.dy.t(), x, out=outputs["dw"])
        return outputs

    touched = 2 * (data.w.nbytes + data.x.nbytes) + data.dy.nbytes + sum(output.nbytes for output in outputs.values())
    return _warm(Prepared(run, outputs, touched, data.w.nbytes, {"rounded": ROUNDED}))


def prepare_input_grad(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
    """dx = dy · ŵ with the weight that the forward pass quantized."""
    data = train_inputs(inputs)
    weight = fake_quant(problem, data, published=False, compile_=False).weight()
    dx = torch.empty((problem.tokens, problem.in_features), dtype=data.dy.dtype, device=data.dy.device)

    def run() -> Outputs:
        torch.mm(data.dy, weight, out=dx)
        return {"dx": dx}

    return Prepared(run, {"dx": dx}, data.dy.nbytes + weight.nbytes + dx.nbytes, weight.nbytes, {"rounded": ROUNDED})


def prepare_weight_grad(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
    """dw = dyᵀ · x̂ with the activation that the forward pass quantized."""
    data = train_inputs(inputs)
    x = fake_activation(data.x)
    dw = torch.empty((problem.out_features, problem.in_features), dtype=data.dy.dtype, device=data.dy.device)

    def run() -> Outputs:
        torch.mm(data.dy.t(), x, out=dw)
        return {"dw": dw}

    return Prepared(run, {"dw": dw}, data.dy.nbytes + x.nbytes + dw.nbytes, notes={"rounded": ROUNDED})


def step_outputs(problem: Problem, data: TrainInputs) -> dict[str, torch.Tensor]:
    """Fresh y [T, N], dx [T, K] and dw [N, K] in the problem's type."""
    shapes = {"y": (problem.tokens, problem.out_features), "dx": (problem.tokens, problem.in_features),
              "dw": (problem.out_features, problem.in_features)}  # fmt: skip
    return {name: torch.empty(shape, dtype=DTYPES[problem.dtype], device=data.x.device) for name, shape in shapes.items()}


def _warm(prepared: Prepared) -> Prepared:
    """The same after one call, so that whatever is compiled is compiled before the clock."""
    prepared.run()
    return prepared


def _compiled_unavailable(problem: Problem, gpu: Gpu) -> str | None:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "torch.compile needs a C compiler and finds none"
    return unavailable(problem, gpu)


def _same_gemm(name: str, problem: Problem, gpu: Gpu) -> str | None:
    return f"the same GEMM on the same saved operands as {name}: measured once, there"


def _kernel(name: str, op: Op, published: bool, compile_: bool) -> Kernel:
    reason = _compiled_unavailable if compile_ else unavailable
    if op in ("forward", "step"):
        prepare = functools.partial(prepare_forward if op == "forward" else prepare_step, published=published, compile_=compile_)
        return Kernel(name, op, "baseline", prepare, unavailable=reason, judged="float")
    if published or compile_:
        reason = functools.partial(_same_gemm, "fakequant-bf16")
    backward = prepare_input_grad if op == "input-grad" else prepare_weight_grad
    return Kernel(name, op, "baseline", backward, unavailable=reason, judged="float")


NAMES: dict[str, tuple[bool, bool]] = {
    "fakequant-bf16": (False, False),
    "fakequant-bf16-compiled": (False, True),
    "fakequant-published": (True, False),
    "fakequant-published-compiled": (True, True),
}
OPS: tuple[Op, ...] = ("forward", "input-grad", "weight-grad", "step")

KERNELS: tuple[Kernel, ...] = tuple(_kernel(name, op, *how) for op in OPS for name, how in NAMES.items())
