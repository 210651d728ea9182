"""`PackedLinear`: a BitLinear for inference whose master weight is gone; what is left are 2 bits a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kernels.bitlinear import packs
from kernels.bitlinear.known import check_input
from kernels.bitlinear.module import BitLinear, autocast, pass_hooks, read_sparsity
from kernels.bitlinear.operator import direct
from kernels.bitlinear.ops import evaluate_packed, packed_linear
from kernels.bitlinear.pack import check_bias, runs_kernels
from kernels.bitlinear.plan import Plan, plan_of
from kernels.errors import NonFiniteError, PackError, TerSparseError, UsageError
from kernels.mask_quantize.two_pass import prepare_weight
from kernels.packed import LAYOUT, VERSION, PackedTernary, pack, verify
from kernels.problem import Problem, Sparsity
from reference.quantize import ternary_quantize
from reference.sparsity import nm_mask


class PackedLinear(nn.Module):
    """y = x̂ · ŵᵀ + bias on packed weights, without gradients.

    packed: the weight; bias: [out_features] or None; ShapeError for another one. Its state_dict are `data` (uint8), `w_scale` (float32,
    whatever the model is cast to) and `bias`, and in its metadata, which torch's files keep, the layout and the sizes. Before anything is
    loaded into the layer, SparsityError is raised for codes of another sparsity, PackError for illegal ones, another layout or other
    sizes, NonFiniteError for scales. `set_sparsity` to another one raises UsageError: the weights that were masked are gone.
    """

    data: torch.Tensor
    w_scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, packed: PackedTernary, bias: torch.Tensor | None = None, variants: str = "", label: str = "PackedLinear") -> None:
        super().__init__()
        if bias is not None:
            check_bias(bias, packed.out_features)
        self.in_features, self.out_features, self.splits = packed.in_features, packed.out_features, list(packed.splits)
        self.variants, self.label, self._sparsity = variants, label, str(packed.sparsity)
        self.register_buffer("data", packed.data)
        self.register_buffer("w_scale", packed.w_scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def sparsity(self) -> Sparsity:
        """What the zeros obey."""
        return Sparsity.parse(self._sparsity)

    @property
    def packed(self) -> PackedTernary:
        """The weight, to save or to inspect."""
        return PackedTernary(self.data, self.w_scale, tuple(self.splits), self.in_features, self.sparsity)

    def set_sparsity(self, sparsity: str | Sparsity) -> None:
        """Accepts the sparsity that it has. Raises UsageError, or ShapeError where its group does not divide in_features, for any other."""
        if read_sparsity(sparsity, self.in_features, self.label) != self.sparsity:
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
        made = self.w_scale
        self.w_scale = torch.empty_like(made, dtype=scale.dtype) if scale.is_meta else scale.to(made.device)
        return self

    def _described(self) -> dict[str, Any]:
        return {"layout": LAYOUT, "version": VERSION, "splits": list(self.splits), "in_features": self.in_features}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        words = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if words is not None:
            words["packed"] = self._described()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *rest: Any) -> None:
        mine, theirs = self._described(), local_metadata.get("packed")
        if theirs is not None and theirs != mine:
            raise PackError(f"{self.label}: what is loaded has {_told(theirs)}; this layer has {_told(mine)}")
        given = {name: state_dict[prefix + name] for name in ("data", "w_scale") if prefix + name in state_dict}
        if given and all(one.shape == getattr(self, name).shape and not one.is_meta for name, one in given.items()):
            data, scale = given.get("data", self.data), given.get("w_scale", self.w_scale).float()
            try:
                verify(PackedTernary(data.contiguous(), scale.to(data.device), tuple(self.splits), self.in_features, self.sparsity))
            except TerSparseError as error:
                raise type(error)(f"{self.label}: {error}") from None
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def extra_repr(self) -> str:
        """Sizes, sparsity and splits."""
        return (f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
                f"sparsity={self._sparsity}, splits={tuple(self.splits)}")


def _told(words: Mapping[str, Any]) -> str:
    """One line of what a state_dict says of its packed bytes."""
    return ", ".join(f"{name} {value}" for name, value in words.items())


def pack_weight(weight: torch.Tensor, sparsity: Sparsity, splits: Sequence[int], name: str) -> PackedTernary:
    """The packed ternary weight of a master [N, K]. Raises NonFiniteError, naming it. Synchronizes."""
    if runs_kernels(weight):
        return prepare_weight(weight.detach(), sparsity, splits, name=name)
    ternary, w_scale = ternary_quantize(weight.detach(), splits)
    if not bool(w_scale.isfinite().all()):
        raise NonFiniteError(f"{name} holds a NaN or an infinity; it cannot be quantized")
    return pack(ternary * nm_mask(weight.detach(), sparsity.n, sparsity.m), w_scale, tuple(splits), sparsity)


def freeze(module: BitLinear) -> PackedLinear:
    """The layer for inference, with its hooks and without its master weight. Raises NonFiniteError, naming the layer, and UsageError for
    what is no BitLinear. Synchronizes."""
    if not isinstance(module, BitLinear):
        raise UsageError(f"{type(module).__name__} is no BitLinear")
    packed = pack_weight(module.weight, module.sparsity, module.splits, f"the weight of {module.label}")
    made = PackedLinear(packed, module.bias, module.variants, module.label)
    made.train(module.training)
    pass_hooks(module, made)
    return made
