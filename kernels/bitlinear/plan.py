"""What serves a layer in evaluation, for people: the kernel for each number of tokens, and the memory that the weight takes for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kernels.bitlinear.forward import FORWARD
from kernels.bitlinear.known import chosen
from kernels.bitlinear.pack import runs_kernels
from kernels.problem import Problem
from kernels.storage import fragment_bytes, packed_bytes

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""What a plan is asked for where nothing else is."""


@dataclass(frozen=True)
class Plan:
    """kernels: the forward kernel by number of tokens. nbytes: of the weight in memory by what holds it, once all of these have run."""

    kernels: Mapping[int, str]
    nbytes: Mapping[str, int]

    def __str__(self) -> str:
        runs: list[tuple[str, list[int]]] = []
        for tokens, name in sorted(self.kernels.items()):
            if not runs or runs[-1][0] != name:
                runs.append((name, []))
            runs[-1][1].append(tokens)
        served = ", ".join(f"{found[0]} … {found[-1]}: {name}" if len(found) > 1 else f"{found[0]}: {name}" for name, found in runs)
        return f"tokens {served}; " + ", ".join(f"{name} {count / 1e6:.1f} MB" for name, count in self.nbytes.items())


def plan_of(problem: Problem, held: torch.Tensor, variants: str, tokens: tuple[int, ...] = TOKENS) -> Plan:
    """Of a `layer`, on the device of `held`: its master weight, or the packed codes of one that has none. Tokens between those that are
    asked for go by the same rules. Choosing takes the host 10 to 60 ms for each number that was not asked for before. Raises UsageError
    for a negative number of tokens."""
    problems = {count: problem.with_(tokens=count) for count in tokens}
    rows, columns, sparsity = problem.out_features, problem.in_features, problem.sparsity
    nbytes = {"master": held.nbytes} if held.is_floating_point() else {}
    if not runs_kernels(held):
        return Plan(dict.fromkeys(tokens, "reference"), {**nbytes, "int8": rows * columns})
    names = {count: chosen(one, held.device.index, variants).forward for count, one in problems.items()}
    nbytes["codes"] = packed_bytes(rows, columns, len(problem.splits))
    for kind in sorted({kind for name in names.values() if (kind := FORWARD[name].fragments(sparsity)) is not None}):
        nbytes[f"{kind} fragments"] = fragment_bytes(rows, columns)
    return Plan(names, nbytes)
