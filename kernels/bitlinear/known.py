"""What is known of a pass of a layer from sizes, types and names alone: looked up in every pass, worked out in the first one."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from kernels.bitlinear.forward import FORWARD, Decode, Run, bind, gpu_of
from kernels.bitlinear.pack import Fragments, KernelPack, runs_kernels
from kernels.bitlinear.variants import Choice, choose
from kernels.errors import ShapeError, UsageError
from kernels.gpu import Gpu
from kernels.problem import DType, Op, Problem, Sparsity

NAMES: Mapping[torch.dtype, DType] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def check_input(x: torch.Tensor, weight: torch.Tensor, in_features: int) -> None:
    """Raises ShapeError unless x is [..., in_features] in bf16, fp16 or fp32 on the device of the weight."""
    if x.dim() < 1 or x.shape[-1] != in_features or x.dtype not in NAMES:
        raise ShapeError(f"x is {x.dtype} {list(x.shape)}; bf16, fp16 or fp32 [..., {in_features}] is needed")
    if x.device != weight.device:
        raise ShapeError(f"x is on {x.device}, the weight on {weight.device}; they must be together")


def tokens_of(rows: torch.Tensor) -> int:
    """The rows of a tensor [..., features]."""
    return math.prod(rows.shape[:-1])


@functools.lru_cache(maxsize=4096)
def chosen(problem: Problem, index: int | None, variants: str) -> Choice:
    """The kernels of a problem on the GPU with this index (None: in Triton's interpreter): the named ones, else those of `choose`.

    Raises UsageError where a named forward kernel cannot do it.
    """
    if not variants:
        return choose(problem, gpu_of(index), interpreted=index is None)
    choice = Choice.parse(variants)
    reason = FORWARD[choice.forward].refusal(problem.with_(op="gemm"), gpu_of(index))
    if reason:
        raise UsageError(f"{choice.forward} was named and cannot: {reason}")
    return choice


@dataclass(frozen=True)
class Layer:
    """What is known of a pass without its tensors' values. choice: None on a CPU."""

    problem: Problem
    gpu: Gpu
    choice: Choice | None
    device: torch.device

    @functools.cached_property
    def plain(self) -> Run:
        """The forward kernel of a layer without a bias; on a device."""
        return self._bound(biased=False)

    @functools.cached_property
    def biased(self) -> Run:
        """The same with a bias."""
        return self._bound(biased=True)

    def lean(self, biased: bool) -> Callable[[torch.Tensor, KernelPack, torch.Tensor | None, Sequence[int]], torch.Tensor] | None:
        """The same for contiguous x at a multiple of 16 bytes, at less of the host's time, where the kernel has such a way."""
        run = self.biased if biased else self.plain
        return run.lean if isinstance(run, Decode) and run.able else None

    def _bound(self, biased: bool) -> Run:
        assert self.choice is not None
        return bind(self.choice.forward, self.problem, self.gpu, self.device, biased)

    @functools.cached_property
    def fragments(self) -> Fragments | None:
        """The layout of fragments that the forward kernel reads, or None."""
        return FORWARD[self.choice.forward].fragments(self.problem.sparsity) if self.choice else None


@functools.lru_cache(maxsize=16384)
def layer_like(tokens: int, out_features: int, in_features: int, dtype: torch.dtype, sparsity: str, splits: tuple[int, ...],
               variants: str, index: int | None, kernels: bool, op: Op = "step") -> Layer:
    """Of a pass of so many tokens on the GPU with this index; dtype: of the activations; kernels: whether these run, or the reference; op:
    "step" in training, "layer" in evaluation."""
    problem = Problem(op, out_features, in_features, tokens, Sparsity.parse(sparsity), splits, NAMES[dtype])
    device = torch.device("cpu") if index is None else torch.device("cuda", index)
    return Layer(problem, gpu_of(index), chosen(problem, index, variants) if kernels else None, device)


def layer_of(rows: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, sparsity: str, splits: Sequence[int], variants: str,
             op: Op = "step") -> Layer:
    """Of rows [..., any] and a weight [N, K]; dtype: of the activations. Found by what is cheap to compare: this is asked in every pass."""
    out_features, in_features = weight.shape
    return layer_like(tokens_of(rows), out_features, in_features, dtype, sparsity, tuple(splits), variants, weight.device.index,
                      runs_kernels(weight), op)  # fmt: skip
