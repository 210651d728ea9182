"""Which variant and which config for a problem on a GPU, and why, for people: what `kernels.chooser` chooses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from autotune import tuned
from kernels.chooser import TUNED, Choice, choose
from kernels.errors import UsageError
from kernels.gpu import Gpu
from kernels.kernel import Kernel
from kernels.problem import Problem
from kernels.space import config_to_dict


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
        alone = len(choice.estimates) == 1
        why = "the only one to choose from" if alone else "estimated: it and another variant were not both tuned near these tokens"
        told = [f"{problem} on {gpu.name}: {choice.kernel.name}, {why}"]
        told += [f"  {one.kernel.name}: {one}" for one in choice.estimates]
    told += [f"  {kernel.name}: cannot: {reason}" for kernel, reason in choice.cannot]
    if problem.op == "layer" and choice.estimates:
        from kernels.bitlinear.variants import choose as of_bitlinear  # here: it needs torch

        told.append(f"  a BitLinear in evaluation runs {of_bitlinear(problem, gpu, path=path).forward}")
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
