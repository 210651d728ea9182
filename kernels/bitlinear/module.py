"""`BitLinear`: a ternary, optionally n:m sparse linear layer where `torch.nn.Linear` stood (BitNet, arXiv 2310.11453 and 2402.17764)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from kernels.bitlinear import packs
from kernels.bitlinear.known import NAMES, check_input, chosen
from kernels.bitlinear.operator import direct
from kernels.bitlinear.ops import bitlinear_eval, evaluate
from kernels.bitlinear.pack import runs_kernels
from kernels.bitlinear.plan import Plan, plan_of
from kernels.bitlinear.straight import straight_linear
from kernels.bitlinear.traced import traced_linear
from kernels.bitlinear.variants import Choice
from kernels.errors import NonFiniteError, ShapeError, UsageError
from kernels.problem import Op, Problem, Sparsity

DTYPES = tuple(NAMES)


def read_sparsity(sparsity: str | Sparsity, in_features: int, name: str = "BitLinear") -> Sparsity:
    """A sparsity that fits in_features. Raises UsageError for an unknown one, ShapeError where its group does not divide in_features."""
    parsed = sparsity if isinstance(sparsity, Sparsity) else Sparsity.parse(sparsity)
    if in_features % parsed.m:
        raise ShapeError(f"{name}: in_features {in_features} is not a multiple of the group of {parsed.m} in {parsed}")
    return parsed


def read_splits(splits: Sequence[int] | None, out_features: int) -> tuple[int, ...]:
    """Output rows per weight scale, all in one where none are given. Raises ShapeError unless positive and summing to out_features."""
    parts = tuple(splits) if splits else (out_features,)
    if min(parts) < 1 or sum(parts) != out_features:
        raise ShapeError(f"splits {parts} do not sum to out_features {out_features}")
    return parts


def autocast(x: torch.Tensor) -> torch.Tensor:
    """x in the type that autocast asks for, as it is without; meta tensors have no autocast to ask."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if not x.is_meta and torch.is_autocast_enabled(kind) else x


class BitLinear(nn.Linear):
    """y = x̂ · ŵᵀ + bias: x̂ the per-token int8 activations, ŵ the ternary, masked weight with one scale per split.

    in_features, out_features, bias, device, dtype as in `nn.Linear`; dtype bf16, fp16 or fp32 is that of the master weight, the one that an
    optimizer sees and that `state_dict` holds: files of `nn.Linear` load as they are, and the reverse. sparsity: "dense", "2:4", "6:8" or
    another n:m along in_features. splits: output rows per weight scale, for fused projections. variants: names of kernels joined
    by "+" (see `Choice`); None lets `choose` choose. label: what errors call the layer. traced: torch.compile is
    shown the rounding of activations in training, so that it fuses it into what stands before the layer (`kernels.bitlinear.traced`).

    Gradients pass straight through the roundings, dense in the weight. y has x's type, or autocast's. The weight is packed when it has
    changed since it was packed last: once per optimizer step, however many forward passes follow. Nothing synchronizes; NaN and
    infinities become NaN and set flags that `check` reads. Raises ShapeError or UsageError before anything runs.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: torch.dtype | None = None, *,
        sparsity: str | Sparsity = "dense", splits: Sequence[int] | None = None, variants: str | None = None, label: str = "BitLinear",
        traced: bool = False,
    ) -> None:
        kind = dtype or torch.get_default_dtype()
        if min(in_features, out_features) < 1 or kind not in DTYPES:
            raise ShapeError(f"{label}: {kind} {out_features}x{in_features}; bf16, fp16 or fp32 and positive sizes are needed")
        parsed, parts = read_sparsity(sparsity, in_features, label), read_splits(splits, out_features)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.splits, self.label, self.traced = list(parts), label, traced
        self.variants = str(Choice.parse(variants)) if variants else ""
        self._sparsity = str(parsed)

    def __setattr__(self, name: str, value: Any) -> None:
        # FSDP puts the gathered weight and bias here before each use, their values changed behind their version counters.
        if name in ("weight", "bias") and isinstance(value, torch.Tensor):
            packs.forget(value)
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> BitLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # torch has no types there
        for parameter in self._parameters.values():  # `half` and then `float` may end at the address where they began
            if parameter is not None:
                packs.forget(parameter)
        return self

    @property
    def sparsity(self) -> Sparsity:
        """The sparsity of the next forward pass."""
        return Sparsity.parse(self._sparsity)

    def set_sparsity(self, sparsity: str | Sparsity) -> None:
        """Use another sparsity from the next forward pass on. Raises UsageError or ShapeError and changes nothing where it cannot be."""
        self._sparsity = str(read_sparsity(sparsity, self.in_features, self.label))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """y [..., out_features] of x [..., in_features]. Raises ShapeError for another x."""
        weight, bias = self.weight, self.bias
        check_input(input, weight, self.in_features)
        x = autocast(input)
        arguments = (x, weight, bias, self._sparsity, self.splits, self.variants)
        if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
            return traced_linear(*arguments) if self.traced and torch.compiler.is_compiling() else straight_linear(*arguments)
        return evaluate(*arguments) if direct(x, weight) else bitlinear_eval(*arguments)

    def chosen(self, tokens: int, training: bool = True) -> Choice:
        """The kernels that this many tokens in bf16 run, by name, on the device of the weight: in training, or in evaluation. For a weight
        on a CPU, where the reference computes instead, those that Triton's interpreter would run."""
        op: Op = "step" if training else "layer"
        problem = Problem(op, self.out_features, self.in_features, tokens, self.sparsity, tuple(self.splits))
        return chosen(problem, self.weight.device.index, self.variants)

    def plan(self, *tokens: int) -> Plan:
        """Which kernel serves which number of tokens in evaluation, and what the weight then takes in memory; `print` it."""
        problem = Problem("layer", self.out_features, self.in_features, 1, self.sparsity, tuple(self.splits), NAMES[self.weight.dtype])
        return plan_of(problem, self.weight, self.variants, *([tokens] if tokens else []))

    def repack(self) -> None:
        """Pack the weight now, in place: after changes that leave no trace in its version (`Tensor.data`, replays of captured graphs)."""
        with torch.cuda.device_of(self.weight):  # type: ignore[no-untyped-call] # torch has no types there
            packs.pack_of(self.weight, self.sparsity, tuple(self.splits), "renew")
            if self.bias is not None and runs_kernels(self.bias):
                packs.bias_rows(self.bias, self.out_features, "renew")

    @property
    def packings(self) -> int:
        """How often the weight was packed, all sparsities together."""
        return sum(pack.count for pack in packs.packs_of(self.weight).values())

    def check(self) -> None:
        """Raises NonFiniteError, naming the layer, where the weight, its gradient, or an activation or gradient of a pass since the last
        check held a NaN or an infinity; clears the flags of the passes. Synchronizes."""
        flags = packs.take_flags(self.weight)
        grads = [parameter.grad for parameter in (self.weight, self.bias) if parameter is not None and parameter.grad is not None]
        found = {
            "weight": not bool(self.weight.isfinite().all()),
            "activation": flags[packs.ACTIVATION],
            "gradient": flags[packs.GRADIENT] or any(not bool(grad.isfinite().all()) for grad in grads),
        }
        if any(found.values()):
            what = " and ".join(name for name, bad in found.items() if bad)
            raise NonFiniteError(f"{self.label}: NaN or infinity in its {what}")

    def extra_repr(self) -> str:
        """As of `nn.Linear`, with sparsity and splits."""
        return f"{super().extra_repr()}, sparsity={self._sparsity}, splits={tuple(self.splits)}"


def from_linear(
    linear: nn.Linear, sparsity: str | Sparsity = "dense", splits: Sequence[int] | None = None, variants: str | None = None,
    label: str = "BitLinear", traced: bool = False,
) -> BitLinear:
    """A BitLinear on the parameters of `linear` themselves, so that optimizers that hold them go on, with its hooks. Raises as `BitLinear`,
    and UsageError for what is no `nn.Linear` or has a weight that pruning or a norm computes."""
    if not isinstance(linear, nn.Linear):
        raise UsageError(f"{label}: {type(linear).__name__} is no nn.Linear")
    if not isinstance(linear.weight, nn.Parameter):
        raise UsageError(f"{label}: its weight is no parameter but computed, as by pruning or a weight norm; make that permanent first")
    made = BitLinear(linear.in_features, linear.out_features, linear.bias is not None, "meta", linear.weight.dtype,
                     sparsity=sparsity, splits=splits, variants=variants, label=label, traced=traced)  # fmt: skip
    made.weight, made.bias = linear.weight, linear.bias
    made.train(linear.training)
    pass_hooks(linear, made)
    return made


def pass_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give a module the forward and backward hooks of the one whose place it takes; their handles go on removing them."""
    vars(new).update({name: held for name, held in vars(old).items() if name.startswith(("_forward_", "_backward_", "_is_full_backward"))})
