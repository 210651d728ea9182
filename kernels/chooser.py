"""Which variant for a problem on a GPU: by the tuned table where it compares variants there, else estimated (`kernels.choose`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels import tuned
from kernels.choose import Estimate, able, estimate, ranked
from kernels.errors import UsageError
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Problem
from kernels.tuned_table import Entry

TUNED, ESTIMATED = "tuned", "estimated"


@dataclass(frozen=True)
class Timed:
    """A variant with the tuned entry that speaks for it here."""

    kernel: Kernel
    entry: Entry


@dataclass(frozen=True)
class Choice:
    """The variants for a problem, best first.

    basis: TUNED where the table holds times of several variants of this layer, the one that is estimated to be the best among them, at one
    number of tokens near enough; ESTIMATED else.
    timed: those, fastest first. estimates: of every variant that can, best first (`kernels.choose`). cannot: the others, and why.
    """

    problem: Problem
    gpu: Gpu
    basis: str
    timed: tuple[Timed, ...]
    estimates: tuple[Estimate, ...]
    cannot: tuple[tuple[Kernel, str], ...]

    @property
    def kernel(self) -> Kernel:
        """The variant to run. Raises UsageError where none can."""
        if self.basis == TUNED:
            return self.timed[0].kernel
        if not self.estimates:
            reasons = "; ".join(f"{kernel.name}: {reason}" for kernel, reason in self.cannot)
            raise UsageError(f"no variant can do {self.problem} on {self.gpu.name}" + (f": {reasons}" if reasons else ""))
        return self.estimates[0].kernel


def choose(problem: Problem, gpu: Gpu, kernels: Iterable[Kernel], path: Path | None = None) -> Choice:
    """The choice among these kernels (of the problem's op), their configs from the table. path: another table than the GPU's own.

    Variants that are not exact are never chosen. A new variant takes part by being among `kernels`.
    """
    can, cannot = able(kernels, problem, gpu)
    estimates = ranked([estimate(kernel, problem, gpu, tuned.lookup(kernel, problem, gpu, path)[0]) for kernel in can])
    timed = _side_by_side(can, estimates[0].kernel, problem, gpu, path) if estimates else []
    return Choice(problem, gpu, TUNED if timed else ESTIMATED, tuple(timed), tuple(estimates), tuple(cannot))


def _side_by_side(kernels: Sequence[Kernel], best: Kernel, problem: Problem, gpu: Gpu, path: Path | None) -> list[Timed]:
    """The usable entries at the nearest number of tokens at which `best` and another variant have one, fastest first; times of different
    numbers of tokens are not compared, and where the variant that is estimated to be the best was not timed nobody knows better."""
    usable: dict[int, list[Timed]] = {}
    for kernel in kernels:
        for entry in tuned.of_layer(kernel, problem, path or tuned.path_of(gpu)):
            if tuned.verdict(entry, kernel, problem, gpu) is None:
                usable.setdefault(entry.tokens, []).append(Timed(kernel, entry))
    several = [tokens for tokens, found in usable.items() if len(found) > 1 and best in [one.kernel for one in found]]
    if not several:
        return []
    nearest = min(several, key=lambda tokens: (max(tokens, problem.tokens) / max(1, min(tokens, problem.tokens)), tokens))
    return sorted(usable[nearest], key=lambda one: one.entry.us)
