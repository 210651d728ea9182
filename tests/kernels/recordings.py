"""Calls of bound kernels, recorded once and replayed: in a CUDA graph, or on a CPU as the calls they are.

A replay poisons what its kernels write, calls them one right after another, and counts whose outputs have other bits than the right ones:
on the device, without a synchronization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kernels.inputs import Inputs
from kernels.judge import poison
from kernels.kernel import Kernel, Outputs, Prepared
from kernels.problem import Problem


@dataclass(frozen=True)
class Bound:
    """A kernel bound to inputs in guarded memory. first: what its first call returned. dangerous: programs of a launch meet, or a
    launch begins before the one ahead has ended."""

    kernel: Kernel
    problem: Problem
    inputs: Inputs
    prepared: Prepared
    first: Outputs
    lane: int
    dangerous: bool

    def __str__(self) -> str:
        return f"{self.kernel} on {self.problem}"


@dataclass(frozen=True)
class Recording:
    """Calls of several kernels, one after another on a lane's stream. outputs: what every replay writes again, by member; right: copies of
    what they must be; wrong: int64 [members], in how many replays they were not."""

    lane: int
    members: tuple[Bound, ...]
    outputs: tuple[Outputs, ...]
    right: tuple[Outputs, ...]
    wrong: torch.Tensor
    replay: Callable[[], object]

    def __str__(self) -> str:
        return " then ".join(map(str, self.members))


def recorded(lane: int, members: tuple[Bound, ...], stream: Any) -> Recording:
    """stream: where the graph is captured and will be replayed; None on a CPU, where the members are called here and now.

    What is right lies outside of the graph's memory, where every replay would write what calls leave there in passing.
    """
    wrong = torch.zeros(len(members), dtype=torch.int64, device="cpu" if stream is None else "cuda")
    right = tuple({name: torch.empty_like(tensor) for name, tensor in member.first.items()} for member in members)
    if stream is None:
        outputs = called(members)

        def replay() -> None:
            called(members)
            count(outputs, right, wrong)

        return Recording(lane, members, outputs, right, wrong, replay)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        outputs = called(members)
        count(outputs, right, wrong)
        graph.capture_end()
    return Recording(lane, members, outputs, right, wrong, graph.replay)


def called(members: Sequence[Bound]) -> tuple[Outputs, ...]:
    """Poison what the kernels write, then call one right after another."""
    for member in members:
        poison(member.prepared)
    return tuple(member.prepared.run() for member in members)


def count(outputs: Sequence[Outputs], right: Sequence[Outputs], wrong: torch.Tensor) -> None:
    """Add one for every member whose outputs are not right, without a synchronization."""
    for index, (found, wanted) in enumerate(zip(outputs, right, strict=True)):
        differs = [(bits(found[name]) != bits(tensor)).any() for name, tensor in wanted.items()]
        wrong[index] += torch.stack(differs).any()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same elements as integers: NaNs equal themselves, and the signs of zeros count."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
