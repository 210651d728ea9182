"""The one type of everything that is checked and timed: ours (variants) and theirs (baselines)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from kernels.gpu import Gpu
from kernels.problem import Op, Problem
from kernels.space import Config, ConfigSpace, NoConfig

if TYPE_CHECKING:
    import torch

    from kernels.inputs import Inputs

Outputs = Mapping[str, "torch.Tensor"]
Note = str | int | float | bool | None


@dataclass(frozen=True)
class Prepared:
    """A kernel bound to its inputs.

    run: launches on the current stream without host synchronization and returns the outputs by name; capturable in a CUDA graph.
    buffers: the tensors that `run` writes in place, for the checker to poison; empty where `run` allocates its outputs.
    footprint: bytes of inputs, weights and outputs that one call touches (what must fit a cache to be hot).
    weight_bytes: bytes of the weight as this kernel stores it, scales included.
    notes: what a reader must know of this binding (algorithm id, padded tokens, split-k), recorded as it is.
    """

    run: Callable[[], Outputs]
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)
    footprint: int = 0
    weight_bytes: int = 0
    notes: Mapping[str, Note] = field(default_factory=dict)


@dataclass(frozen=True)
class CompileUnit:
    """One Triton function as it is compiled for a config, for cross-compilation without a device.

    signature: parameter name to Triton type ("*i8", "i32", "constexpr"); constexprs: name to value; divisible: names of the
    parameters that are multiples of 16; options: num_warps, num_stages …; expects: machine instructions that must appear per
    architecture ("IMMA", "IGMMA"), keyed by the smallest architecture they hold for. since: constexprs and options that are others from
    an architecture on, keyed likewise ({90: {"PDL": True}}).
    """

    function: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    divisible: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    expects: Mapping[int, str] = field(default_factory=dict)
    since: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def on(self, capability: int) -> CompileUnit:
        """This unit as it is for that architecture."""
        known = [start for start in self.since if start <= capability]
        if not known:
            return self
        others = self.since[max(known)]
        constexprs = {name: value for name, value in others.items() if name in self.signature}
        options = {name: value for name, value in others.items() if name not in self.signature}
        return replace(self, constexprs={**self.constexprs, **constexprs}, options={**self.options, **options}, since={})


def _always(problem: Problem, gpu: Gpu) -> str | None:
    return None


def _no_config(problem: Problem, gpu: Gpu) -> Config:
    return NoConfig()


def _no_units(problem: Problem, config: Config) -> Sequence[CompileUnit]:
    return ()


@dataclass(frozen=True)
class Kernel:
    """A variant or a baseline.

    name: unique within its op. op: what it computes. kind: ours or theirs.
    prepare(problem, inputs, config): binds it to inputs; raises `TerSparseError` on bad ones.
    default_config(problem, gpu): a heuristic config for problems nobody tuned. space: what a tuner may try.
    unavailable(problem, gpu): why it cannot run here, or None (asks for libraries, never for a device).
    resolve(problem, inputs, gpu): for libraries with a search of their own: runs it, outside of any timing, and returns the config.
    exact: computes exactly the case's function, so that it may count as `strongest` (raw cuSPARSELt without scales does not).
    judged: the tolerance it is held to: "exact" (int32 bit for bit, rounded outputs within 1 ulp), or a named bound of `kernels.judge`.
    dense: a dense baseline (for `strongest-dense`). compile_units(problem, config): what to cross-compile; empty for libraries.
    interpreted: Triton's interpreter can run it: plain `tl`, neither Gluon nor inline assembly.
    """

    name: str
    op: Op
    kind: Literal["variant", "baseline"]
    prepare: Callable[[Problem, Inputs, Config], Prepared]
    default_config: Callable[[Problem, Gpu], Config] = _no_config
    space: ConfigSpace = field(default_factory=ConfigSpace)
    unavailable: Callable[[Problem, Gpu], str | None] = _always
    resolve: Callable[[Problem, Inputs, Gpu], Config] | None = None
    exact: bool = True
    judged: str = "exact"
    dense: bool = False
    compile_units: Callable[[Problem, Config], Sequence[CompileUnit]] = _no_units
    interpreted: bool = True

    def __str__(self) -> str:
        return f"{self.name} ({self.op})"
