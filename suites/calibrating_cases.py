"""Which cases a calibration measures: those that the asked-for kernels can run, as evenly over the suites as there are cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import TypeVar

from kernels.gpu import Gpu
from kernels.kernel import Kernel
from suites.case import Case

Item = TypeVar("Item")


def choose(cases: Sequence[Case], kernels: Callable[[Case], Sequence[Kernel]], gpu: Gpu, count: int) -> list[Case]:
    """So many of the cases that a variant among their kernels can run, in their order; all of them for 0."""
    able = [case for case in cases if any(kernel.kind == "variant" and runs(kernel, case, gpu) for kernel in kernels(case))]
    by_suite = {suite: [case for case in able if case.suite == suite] for suite in dict.fromkeys(case.suite for case in able)}
    shares = fair([len(own) for own in by_suite.values()], count) if count else [len(own) for own in by_suite.values()]
    return [case for own, share in zip(by_suite.values(), shares, strict=True) for case in spread(own, share)]


def runs(kernel: Kernel, case: Case, gpu: Gpu) -> bool:
    """Whether the kernel can run the case at all."""
    return kernel.unavailable(case.problem, gpu) is None


def fair(sizes: Sequence[int], count: int) -> list[int]:
    """How many to take from each of several heaps, one from each in turn until there are so many or the heaps are empty."""
    taken = [0] * len(sizes)
    while sum(taken) < min(count, sum(sizes)):
        place = min((place for place, size in enumerate(sizes) if taken[place] < size), key=lambda place: taken[place])
        taken[place] += 1
    return taken


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """One of each of so many slices, not always the first: cases alternate in their tokens. All items where there are no more."""
    edges = [place * len(items) // count for place in range(count + 1)] if count else []
    slices = list(pairwise(edges)) if count < len(items) else []
    return [items[low + place % (high - low)] for place, (low, high) in enumerate(slices)] if slices else list(items)


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """In an order of that seed's own. What ran before a case is part of its noise: an idle device has its highest clock for longer."""
    mixed = list(items)
    Random(seed).shuffle(mixed)
    return mixed
