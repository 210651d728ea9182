"""The variants of the model-level step, and when two of them compute the same. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kernels.errors import UsageError

COMPILED = "-compiled"
LOSS_BOUND = 0.01
"""Nats by which the losses of one micro-batch may differ."""
GRADIENT_BOUND = 0.15
"""Share of a weight gradient's norm by which it may differ: all round to bf16 in other places, which moves int8 codes downstream (0.02 in
four narrow blocks); another mask or scale, or no quantization at all, differ by more than the gradient's norm."""
TRAINED_BOUND = 0.1
"""Share of what the loss has moved over the first steps by which it may differ after them, beside `LOSS_BOUND` / 10."""

Layers = Literal["dense-bf16", "bitlinear", "bitlinear-traced", "fakequant-bf16", "fakequant-published"]


@dataclass(frozen=True)
class Variant:
    """One way to train: which layers, and whether every block and the head are compiled. dense: nothing is quantized."""

    name: str
    kind: Literal["variant", "baseline"]
    layers: Layers
    compiled: bool

    @property
    def dense(self) -> bool:
        """Whether it quantizes nothing, and so computes another function than the others."""
        return self.layers == "dense-bf16"


def _of(kind: Literal["variant", "baseline"], layers: Layers, compiled: Sequence[bool] = (False, True)) -> tuple[Variant, ...]:
    return tuple(Variant(layers + (COMPILED if how else ""), kind, layers, how) for how in compiled)


VARIANTS: tuple[Variant, ...] = (
    *_of("baseline", "dense-bf16"), *_of("baseline", "fakequant-bf16"), *_of("baseline", "fakequant-published"),
    *_of("variant", "bitlinear"), *_of("variant", "bitlinear-traced", (True,)),
)  # fmt: skip
OURS = tuple(variant.name for variant in VARIANTS if variant.kind == "variant")
RIVALS = ("fakequant-bf16" + COMPILED, "fakequant-published" + COMPILED, "dense-bf16" + COMPILED)
"""Baselines that the summary compares with."""


def chosen(names: Sequence[str]) -> tuple[Variant, ...]:
    """The variants of these names, all for none, with what they are checked against; UsageError for an unknown name."""
    known = {variant.name: variant for variant in VARIANTS}
    for name in names:
        if name not in known:
            raise UsageError(f"unknown variant {name!r}; allowed: {', '.join(known)}")
    wanted = set(names or known)
    wanted |= {reference(known[name]) for name in wanted}
    return tuple(variant for variant in VARIANTS if variant.name in wanted)


def reference(variant: Variant) -> str:
    """The variant that another one is checked against: in plain PyTorch, not compiled."""
    return "dense-bf16" if variant.dense else "fakequant-bf16"


@dataclass(frozen=True)
class Evidence:
    """What a variant is judged by: probe, the loss of the first micro-batch and values of every gradient; losses of the first steps."""

    probe: Mapping[str, Sequence[float]]
    losses: Sequence[float]


def deviation(found: Evidence, expected: Evidence) -> dict[str, float]:
    """How far a variant is from its reference: loss (nats), the worst gradient (share of its norm, with its name), and trained, the largest
    difference of the losses of the first steps as a share of what the reference's moved."""
    worst = {name: _relative(found.probe.get(name, ()), values) for name, values in expected.probe.items() if name != "loss"}
    name = max(worst, key=lambda one: math.inf if math.isnan(worst[one]) else worst[one])
    loss = abs(found.probe["loss"][0] - expected.probe["loss"][0])
    return {"loss": loss, f"gradient of {name}": worst[name], "trained": _trained(found.losses, expected.losses)}


def wrong(found: Mapping[str, float]) -> str | None:
    """Why a deviation is too large, or None."""
    for name, value in found.items():
        bound = {"loss": LOSS_BOUND, "trained": TRAINED_BOUND}.get(name, GRADIENT_BOUND)
        if not value <= bound:
            return f"{name} is off by {value:.3g}, allowed is {bound:g}"
    return None


def _trained(found: Sequence[float], expected: Sequence[float]) -> float:
    """NaN where a loss is not finite, or where nothing has moved."""
    moved = max(expected) - min(expected)
    if len(found) != len(expected) or not all(map(math.isfinite, (*found, *expected))) or not moved:
        return math.nan
    apart = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    return max(0.0, apart - LOSS_BOUND / 10) / moved


def _relative(found: Sequence[float], expected: Sequence[float]) -> float:
    """The norm of the difference over that of the expected; infinite where the counts differ, NaN where one is not finite."""
    if len(found) != len(expected):
        return math.inf
    values = (*found, *expected)
    if not all(map(math.isfinite, values)):
        return math.nan
    size = math.sqrt(math.fsum(value * value for value in expected))
    off = math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(found, expected, strict=True)))
    return off / size if size else math.inf
