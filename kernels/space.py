"""Configuration spaces: the axes of a kernel's config and the reasons for which a config is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from kernels.gpu import Gpu
from kernels.problem import Problem

Config: TypeAlias = Any
"""A frozen dataclass that stands beside its kernel; `NoConfig` for a kernel without choices."""


@dataclass(frozen=True)
class NoConfig:
    """The config of a kernel that has nothing to choose."""


def _never(problem: Problem, gpu: Gpu, config: Config) -> str | None:
    return None


@dataclass(frozen=True)
class ConfigSpace:
    """All configs a kernel may have: `config_type` filled from every combination of `axes` that `reject` lets pass.

    `reject(problem, gpu, config)` gives the reason against a config, or None; it is the single source of truth. choices: the combinations
    that can be good for any problem, where the axes have too many to ask one by one; all, if left out.
    """

    config_type: type[Any] = NoConfig
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    reject: Callable[[Problem, Gpu, Config], str | None] = _never
    choices: Callable[[], Iterable[Config]] | None = None

    def candidates(self) -> Iterator[Config]:
        """The choices, or every combination of the axes in their order; refused ones included."""
        if self.choices is not None:
            yield from self.choices()
            return
        for values in itertools.product(*self.axes.values()):
            yield self.config_type(**dict(zip(self.axes, values, strict=True)))

    def allowed(self, problem: Problem, gpu: Gpu) -> Iterator[Config]:
        """The combinations that `reject` lets pass."""
        return (config for config in self.candidates() if self.reject(problem, gpu, config) is None)

    def from_dict(self, data: Mapping[str, Any]) -> Config:
        """A config from plain JSON data; raises TypeError for unknown or missing names."""
        return self.config_type(**data)


def config_to_dict(config: Config) -> dict[str, Any]:
    """A config as plain JSON data."""
    return asdict(config)
