"""`PackedLinear`: a BitLinear for inference whose master weight is gone; what is left are 2 bits a weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from kernels.bitlinear import packs
from kernels.bitlinear.module import BitLinear, autocast, check_input
from kernels.bitlinear.operator import direct
from kernels.bitlinear.ops import evaluate_packed, packed_linear
from kernels.bitlinear.pack import runs_kernels
from kernels.bitlinear.plan import Plan, plan_of
from kernels.errors import NonFiniteError, UsageError
from kernels.mask_quantize.two_pass import prepare_weight
from kernels.packed import PackedTernary, pack, unpack
from kernels.problem import Problem, Sparsity
from reference.quantize import ternary_quantize
from reference.sparsity import nm_mask


class PackedLinear(nn.Module):
    """y = x̂ · ŵᵀ + bias on packed weights, without gradients.

    packed: the weight; bias: [out_features] or None. Its state_dict are `data` (uint8), `w_scale` (float32, whatever the model is cast
    to) and `bias`; codes of another sparsity raise SparsityError as they are loaded. `set_sparsity` to another one raises UsageError:
    the weights that were masked are gone.
    """

    data: torch.Tensor
    w_scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, packed: PackedTernary, bias: torch.Tensor | None = None, variants: str = "", label: str = "PackedLinear") -> None:
        super().__init__()
        self.in_features, self.out_features, self.splits = packed.in_features, packed.out_features, list(packed.splits)
        self.variants, self.label, self._sparsity = variants, label, str(packed.sparsity)
        self.register_buffer("data", packed.data)
        self.register_buffer("w_scale", packed.w_scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_load_state_dict_post_hook(_check_loaded)  # type: ignore[no-untyped-call] # torch has no types there

    @property
    def sparsity(self) -> Sparsity:
        """What the zeros obey."""
        return Sparsity.parse(self._sparsity)

    @property
    def packed(self) -> PackedTernary:
        """The weight, to save or to inspect."""
        return PackedTernary(self.data, self.w_scale, tuple(self.splits), self.in_features, self.sparsity)

    def set_sparsity(self, sparsity: str | Sparsity) -> None:
        """Accepts the sparsity that it has; UsageError for any other."""
        if str(sparsity) != self._sparsity:
            raise UsageError(f"{self.label}: packed as {self._sparsity}, without the master weight that {sparsity} would be made from")

    def plan(self, *tokens: int) -> Plan:
        """As `BitLinear.plan`, for bf16 activations."""
        problem = Problem("layer", self.out_features, self.in_features, 1, self.sparsity, tuple(self.splits))
        return plan_of(problem, self.data, self.variants, *([tokens] if tokens else []))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """y [..., out_features] of x [..., in_features]. Raises ShapeError for another x."""
        check_input(input, self.data, self.in_features)
        x = autocast(input)
        arguments = (x, self.data, self.w_scale, self.bias, self._sparsity, self.splits, self.in_features, self.variants)
        y: torch.Tensor = evaluate_packed(*arguments) if direct(x, self.data) else packed_linear(*arguments)
        return y

    def check(self) -> None:
        """Raises NonFiniteError, naming the layer, where an activation since the last check held a NaN or an infinity. Synchronizes."""
        if packs.take_flags(self.data)[packs.ACTIVATION]:
            raise NonFiniteError(f"{self.label}: NaN or infinity in its activation")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PackedLinear:
        scale = self.w_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # torch has no types there
        self.w_scale = scale.to(self.w_scale.device)
        return self

    def extra_repr(self) -> str:
        """Sizes, sparsity and splits."""
        return (f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
                f"sparsity={self._sparsity}, splits={tuple(self.splits)}")


def _check_loaded(module: nn.Module, keys: Any) -> None:
    assert isinstance(module, PackedLinear)
    packed = module.packed
    pack(unpack(packed), packed.w_scale, packed.splits, packed.sparsity)


def pack_weight(weight: torch.Tensor, sparsity: Sparsity, splits: Sequence[int], name: str) -> PackedTernary:
    """The packed ternary weight of a master [N, K]. Raises NonFiniteError, naming it. Synchronizes."""
    if runs_kernels(weight):
        return prepare_weight(weight.detach(), sparsity, splits, name=name)
    ternary, w_scale = ternary_quantize(weight.detach(), splits)
    if not bool(w_scale.isfinite().all()):
        raise NonFiniteError(f"{name} holds a NaN or an infinity; it cannot be quantized")
    return pack(ternary * nm_mask(weight.detach(), sparsity.n, sparsity.m), w_scale, tuple(splits), sparsity)


def freeze(module: BitLinear) -> PackedLinear:
    """The layer for inference, without its master weight. Raises NonFiniteError, naming the layer. Synchronizes."""
    packed = pack_weight(module.weight, module.sparsity, module.splits, f"the weight of {module.label}")
    return PackedLinear(packed, module.bias, module.variants, module.label)
