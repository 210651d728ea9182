"""Which variant and which config for a problem on a GPU, and why: by the tuned table where it compares variants, else estimated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune import tuned
from kernels.choose import Estimate, able, estimate, ranked
from kernels.errors import UsageError
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Problem
from kernels.space import config_to_dict

TUNED, ESTIMATED = "tuned", "estimated"


@dataclass(frozen=True)
class Timed:
    """A variant with the tuned entry that speaks for it here."""

    kernel: Kernel
    entry: tuned.Entry


@dataclass(frozen=True)
class Choice:
    """The variants for a problem, best first.

    basis: TUNED where the table holds times of several variants of this layer at one number of tokens near enough, ESTIMATED else.
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
    timed = _side_by_side(can, problem, gpu, path)
    return Choice(problem, gpu, TUNED if timed else ESTIMATED, tuple(timed), tuple(estimates), tuple(cannot))


def _side_by_side(kernels: Sequence[Kernel], problem: Problem, gpu: Gpu, path: Path | None) -> list[Timed]:
    """The usable entries at the nearest number of tokens at which at least two variants have one, fastest first; times of different
    numbers of tokens are not compared."""
    usable: dict[int, list[Timed]] = {}
    for kernel in kernels:
        for entry in tuned.of_layer(kernel, problem, path or tuned.path_of(gpu)):
            if tuned.verdict(entry, kernel, problem, gpu) is None:
                usable.setdefault(entry.tokens, []).append(Timed(kernel, entry))
    several = [tokens for tokens, found in usable.items() if len(found) > 1]
    if not several:
        return []
    nearest = min(several, key=lambda tokens: (max(tokens, problem.tokens) / max(1, min(tokens, problem.tokens)), tokens))
    return sorted(usable[nearest], key=lambda one: one.entry.us)


def lines(choice: Choice, path: Path | None = None) -> list[str]:
    """What the choice is and why, for people: the variant, the others, those that cannot, and the tuned entries of each."""
    problem, gpu = choice.problem, choice.gpu
    if not choice.estimates:
        told = [f"{problem} on {gpu.name}: no variant can"]
    elif choice.basis == TUNED:
        entry = choice.timed[0].entry
        told = [f"{problem} on {gpu.name}: {choice.kernel.name}, tuned: the fastest of {len(choice.timed)} at {entry.tokens} tokens"]
        told += [f"  {one.kernel.name}: {one.entry.us:.2f} µs ({one.entry.date or 'unknown date'})" for one in choice.timed]
        known = {one.kernel.name for one in choice.timed}
        told += [f"  {one.kernel.name}: not tuned beside them; {one}" for one in choice.estimates if one.kernel.name not in known]
    else:
        told = [f"{problem} on {gpu.name}: {choice.kernel.name}, estimated: no two variants of this layer were tuned near these tokens"]
        told += [f"  {one.kernel.name}: {one}" for one in choice.estimates]
    told += [f"  {kernel.name}: cannot: {reason}" for kernel, reason in choice.cannot]
    for one in choice.estimates:
        if one.kernel.space.axes:
            told.append(tuned.explain(one.kernel, problem, gpu, path))
        else:
            told.append(f"{one.kernel} for {problem} on {gpu.name}: nothing to choose {config_to_dict(one.config) or ''}".rstrip())
    return told


def explain(
    problems: Sequence[Problem], gpu: Gpu, kernels: Iterable[Kernel], names: Sequence[str] = (), path: Path | None = None,
) -> list[str]:
    """The `lines` of every problem. names: of the kernels to look at, none for all.

    Raises UsageError for a name that is none of the kernels, and where none of them is a variant for any of the problems.
    """
    every = list(kernels)
    known = dict.fromkeys(kernel.name for kernel in every)
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"unknown kernel {', '.join(unknown)}; allowed: {', '.join(sorted(known))}")
    every = [kernel for kernel in every if not names or kernel.name in names]
    told: list[str] = []
    for problem in problems:
        own = [kernel for kernel in every if kernel.op == problem.op and kernel.kind == "variant"]
        if own:
            told += lines(choose(problem, gpu, own, path), path)
    if not told:
        raise UsageError("nothing to explain: no variant of these ops and names is there")
    return told
