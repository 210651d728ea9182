"""What is planned: a case, a suite, and a user's choice among them. Needs neither torch nor a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kernels.problem import Problem, Sparsity
from suites import models
from suites.models import Layer

Cache = Literal["hot", "cold"]
State = Literal["interleaved", "sustained"]
Data = Literal["ternary", "uniform", "zero"]


@dataclass(frozen=True)
class Case:
    """A problem as it stands in a suite: model and layer it comes from, cache state, how it is measured, and what its operands hold."""

    suite: str
    model: str
    layer: str
    problem: Problem
    cache: Cache
    state: State = "interleaved"
    data: Data = "ternary"

    @property
    def key(self) -> str:
        """What identifies the case across runs; the same as `CaseRecord.key`."""
        return "/".join((self.suite, self.model, self.layer, str(self.problem), self.cache, self.state))

    def __str__(self) -> str:
        return f"{self.suite} {self.model} {self.layer} {self.problem}"


def asked(kernel: str, names: Sequence[str], suite: str | None = None) -> bool:
    """Whether a kernel was asked for: by its name, in every suite, or as "suite/kernel", in that one; by no names at all, every kernel.

    suite: None asks whether it was in any.
    """
    return not names or any(
        name.rpartition("/")[2] == kernel and (suite is None or name.rpartition("/")[0] in ("", suite)) for name in names
    )


@dataclass(frozen=True)
class Choice:
    """What a suite is expanded over: layers, tokens (sizes for `square`), sparsities."""

    layers: tuple[Layer, ...]
    tokens: tuple[int, ...]
    sparsities: tuple[Sparsity, ...]


@dataclass(frozen=True)
class Suite:
    """A named set of cases.

    cases(choice): expands a choice, its defaults unless the user names others. tokens, sparsities, models, extra_layers: those
    defaults. quick_layers (model, layer) and quick_tokens: what `--quick` keeps of them. shaped: whether layers mean anything to it.
    """

    name: str
    title: str
    cases: Callable[[Choice], Iterator[Case]]
    tokens: tuple[int, ...]
    sparsities: tuple[str, ...]
    models: tuple[str, ...] = ()
    extra_layers: tuple[Layer, ...] = ()
    quick_layers: tuple[tuple[str, str], ...] = ()
    quick_tokens: tuple[int, ...] = ()
    shaped: bool = True

    def layers(self) -> tuple[Layer, ...]:
        """The layers it takes by default."""
        return tuple(layer for name in self.models for layer in models.find(name).layers) + self.extra_layers

    def quick_choice(self) -> tuple[Layer, ...]:
        """The layers that `--quick` keeps."""
        return tuple(layer for layer in self.layers() if (layer.model, layer.name) in self.quick_layers)


def layer_problems(choice: Choice) -> Iterator[tuple[Layer, Sparsity, int]]:
    """Layers, then sparsities, then tokens: cases that share a weight stand side by side."""
    return ((layer, sparsity, tokens) for layer in choice.layers for sparsity in choice.sparsities for tokens in choice.tokens)
