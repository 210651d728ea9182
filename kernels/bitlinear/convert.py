"""Whole models: swapping their linear layers, switching their sparsity, schedules, and checks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from kernels.bitlinear.frozen import PackedLinear, freeze
from kernels.bitlinear.module import BitLinear, from_linear, read_sparsity
from kernels.bitlinear.variants import Choice
from kernels.errors import ShapeError, TerSparseError, UsageError
from kernels.problem import Sparsity

LEFT_OUT = ("lm_head", "embed_out", "output_projection", "score", "classifier")
"""Names of output heads, which stay as they are unless `exclude` says otherwise."""

READ_DIRECTLY = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that read the weights of their linear layers instead of calling these: a layer swapped there would be passed by."""


def convert(
    model: nn.Module, sparsity: str | Sparsity = "2:4", include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = LEFT_OUT, splits: Mapping[str, Sequence[int]] | None = None, variants: str | None = None,
    traced: bool = False,
) -> nn.Module:
    """Swap the `nn.Linear` layers of a model, in place, for BitLinear layers on the same parameters; returns the model.

    include (None: all) and exclude: patterns (`*`, `?`) over a layer's dotted name, the last part of it, or the class of the layer or of a
    module around it ("q_proj", "*.mlp.*", "LlamaMLP"). splits: by pattern, the output rows per weight scale of fused projections; separate
    q, k and v stay separate layers. variants, traced: as of `BitLinear`. Left out always: embeddings, whatever shares its weight with one,
    what the model's `get_output_embeddings` names, subclasses of `nn.Linear`, and layers that torch's own attention and encoder modules
    read directly.
    Raises UsageError where nothing is left and for splits of no layer, ShapeError that names every layer that does not fit; all before
    anything is changed.
    """
    parsed = sparsity if isinstance(sparsity, Sparsity) else Sparsity.parse(sparsity)
    if variants:
        Choice.parse(variants)
    found = {layer: names for layer, names in _linears(model).items()
             if any(_matches(include, *one) for one in names) and not (exclude and any(_matches(exclude, *one) for one in names))}
    if not found:
        raise UsageError(f"no nn.Linear layer of {type(model).__name__} is left to convert (include {include}, exclude {exclude})")
    unused = [pattern for pattern in splits or {} if not any(_matches(pattern, name, ()) for names in found.values() for name, _ in names)]
    if unused:
        raise UsageError(f"splits are given for {', '.join(unused)}, which no layer that is converted is called")
    made, refusals = {}, []
    for layer, names in found.items():
        label = names[0][0] or type(model).__name__
        try:
            parts = next((rows for pattern, rows in (splits or {}).items() if any(_matches(pattern, name, ()) for name, _ in names)), None)
            made[layer] = from_linear(layer, parsed, parts, variants, label, traced)
        except TerSparseError as error:
            refusals.append(str(error))
    if refusals:
        raise ShapeError("; ".join(refusals))
    for layer, new in made.items():
        if layer is model:
            return new
        _put(model, [name for name, _ in found[layer]], new)
    return model


def _put(model: nn.Module, names: Iterable[str], layer: nn.Module) -> None:
    """Let a layer stand where these dotted names point to."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)


def _linears(model: nn.Module) -> dict[nn.Linear, list[tuple[str, tuple[str, ...]]]]:
    """The layers that may be swapped, each with all its names and, to each, those of the classes from the model down to it."""
    kept = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))}
    output: Callable[[], object] | None = getattr(model, "get_output_embeddings", None)
    head = output() if callable(output) else None
    found: dict[nn.Linear, list[tuple[str, tuple[str, ...]]]] = {}
    read_directly = set()
    for name, layer in model.named_modules(remove_duplicate=False):
        if type(layer) is not nn.Linear or layer is head or id(layer.weight) in kept:
            continue
        parts = name.split(".") if name else []
        around = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
        found.setdefault(layer, []).append((name, tuple(type(module).__name__ for module in around)))
        if isinstance(around[-2 if len(around) > 1 else -1], READ_DIRECTLY):
            read_directly.add(layer)
    return {layer: names for layer, names in found.items() if layer not in read_directly}


def _matches(patterns: str | Iterable[str] | None, name: str, classes: Sequence[str]) -> bool:
    if patterns is None:
        return True
    texts = (name, name.rpartition(".")[2], *classes)
    return any(fnmatchcase(text, pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns) for text in texts)


def layers(model: nn.Module) -> dict[str, BitLinear | PackedLinear]:
    """Our layers of a model by dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (BitLinear, PackedLinear))}


def set_sparsity(model: nn.Module, sparsity: str | Sparsity) -> None:
    """Switch every layer of a live model. Raises ShapeError or UsageError, before any is switched, where one cannot be."""
    found = layers(model)
    for name, layer in found.items():
        read_sparsity(sparsity, layer.in_features, name or type(layer).__name__)
        if isinstance(layer, PackedLinear):
            layer.set_sparsity(sparsity)
    for layer in found.values():
        layer.set_sparsity(sparsity)


def freeze_model(model: nn.Module) -> nn.Module:
    """Swap every BitLinear for a `PackedLinear`, in place; returns the model. Master weights that nothing else holds are freed."""
    found: dict[BitLinear, list[str]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, BitLinear):
            found.setdefault(layer, []).append(name)
    for layer, names in found.items():
        if layer is model:
            return freeze(layer)
        _put(model, names, freeze(layer))
    return model


def check(model: nn.Module) -> None:
    """`check` of every layer: NonFiniteError names the first that saw a NaN or an infinity. Synchronizes."""
    for layer in layers(model).values():
        layer.check()


def repack(model: nn.Module) -> None:
    """`BitLinear.repack` of every layer."""
    with torch.no_grad():
        for layer in layers(model).values():
            if isinstance(layer, BitLinear):
                layer.repack()


@dataclass(frozen=True)
class Schedule:
    """Which sparsity from which optimizer step on: `Schedule(((0, "dense"), (1000, "2:4")))` trains dense, then 2:4.

    phases: (first step, sparsity), the first at step 0, in rising order. Raises UsageError for others.
    """

    phases: tuple[tuple[int, str], ...]

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.phases]
        if not steps or steps[0] != 0 or any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise UsageError(f"schedule {self.phases}: phases begin at step 0 and rise")
        for _, sparsity in self.phases:
            Sparsity.parse(sparsity)

    def at(self, step: int) -> Sparsity:
        """The sparsity of a step; the first one before step 0."""
        reached = [sparsity for first, sparsity in self.phases if first <= step] or [self.phases[0][1]]
        return Sparsity.parse(reached[-1])

    def apply(self, model: nn.Module, step: int) -> bool:
        """Give a live model the sparsity of a step; call it before the step's forward pass. Returns whether anything changed."""
        wanted = self.at(step)
        if all(layer.sparsity == wanted for layer in layers(model).values()):
            return False
        set_sparsity(model, wanted)
        return True
