"""Which variant for which problem where nobody has measured: an estimate from what each kernel declares, the same rule for all of them.

A kernel takes part by being in the catalogue. What counts is its expected matrix instruction on the architecture (`CompileUnit.expects`),
the tile of its config (`block_t`, its own or its `tile`'s, where it has one), and whether it takes few tokens only. Time is the larger of

* arithmetic: operations (lifted where the instruction is sparse, tokens rounded up to the tile) at the datasheet's rate times the
  share of it that kernels with this instruction reach (`SHARES`; `SPECIALISTS` for kernels of few tokens);
* memory: the compulsory bytes at the datasheet's bandwidth times `STREAMED`, or `STREAMED_BY_SPECIALISTS`,

and what a launch takes that has next to nothing to do, `START_US` or `SPECIALISTS_START_US`. A GPU without a datasheet here is taken for
a smaller or larger one of the listed GPU that is nearest below it in architecture (`assumed`).

It ranks kernels; its microseconds are no prediction. Where several variants were tuned, their times decide (`kernels.chooser`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from kernels.gpu import GPUS, Gpu
from kernels.kernel import Kernel
from kernels.problem import Problem
from kernels.space import Config

MANY_TOKENS = 1 << 16
"""A kernel that refuses so many tokens is a specialist of few."""

SHARES: Mapping[tuple[str, int], float] = {
    ("IGMMA.SP", 90): 0.54, ("IGMMA", 90): 0.50, ("IMMA.SP", 90): 0.29, ("IMMA", 90): 0.30, ("HGMMA", 90): 0.55, ("HMMA", 90): 0.30,
}
"""Share of the datasheet's dense or sparse rate by instruction and architecture, in whole GEMMs on an H200 (2026-11-22): wgmma.sp 2,147 of
3,958 TOPS, dense-triton by wgmma 0.50 of 1,979 at 8,192 tokens (median), mma.sp 1,151 of 3,958 at 8192^3; the others are assumed."""

SPECIALISTS: Mapping[tuple[str, int], float] = {("IMMA.SP", 90): 0.17, ("IMMA", 90): 0.22, ("IGMMA.SP", 90): 0.18}
"""The same of kernels of few tokens: decode at 64 tokens did 834 and 546 TOPS by mma.sp, an earlier version 456 and 411 by mma
(57344x8192, 8192x28672). That by wgmma.sp, and the two starts, are set on the choices at 64 tokens (docs/gpus.md)."""

START_US, SPECIALISTS_START_US = 3.2, 2.0
"""Microseconds: 2048x2048 at one token took sparse-wgmma 3.5, dense-wgmma 3.8, dense-triton 4.2, decode 2.2 to 3.7 (H200, 2026-11-22)."""

ELSEWHERE, SPECIALISTS_ELSEWHERE, LIBRARY = 0.60, 0.30, 0.80
"""Shares where nobody measured: on the H200 a GEMM by mma.sp and decode at 64 tokens reach 0.62 and 0.32 of what the instruction does from
registers. Of a library's dense product: cuBLAS bf16 reached 0.81 there."""

STREAMED, STREAMED_BY_SPECIALISTS = 0.65, 0.75
"""Shares of the bandwidth at 1 token on the H200: dense-triton 0.67 on 57344x8192 and 0.43 on 8192x28672, decode 0.79 and 0.87."""


WHOLE_TILE = 64
"""Tokens of a tile below which a kernel of many tokens reaches less of its share, in proportion: dense-triton in tiles of 32 and 64 took
7.3 and 9.1 us at 2560x2560, 13.1 and 17.0 at 8192x8192, decode 4.5 and 12.5 at 32 tokens (6:8 layers, H200, 2026-11-22)."""


@dataclass(frozen=True)
class Estimate:
    """us: to rank by. wall: "arithmetic" or "memory". instructions: by which the products are expected to be made, "library" where a
    kernel does not say. specialist: takes few tokens only. rates: the GPU whose rates were assumed, "" where the GPU's own are known."""

    kernel: Kernel
    config: Config
    us: float
    wall: str
    instructions: tuple[str, ...]
    specialist: bool
    rates: str = ""

    def __str__(self) -> str:
        few = "; made for few tokens" if self.specialist else ""
        whose = f"; rates assumed as the {self.rates}'s by multiprocessor" if self.rates else ""
        return f"about {self.us:.1f} µs by {self.wall}, {' + '.join(self.instructions)}{few}{whose}"


def able(kernels: Iterable[Kernel], problem: Problem, gpu: Gpu) -> tuple[list[Kernel], list[tuple[Kernel, str]]]:
    """(the exact variants that can do the problem on that GPU, the other variants with the reason)."""
    can, cannot = [], []
    for kernel in kernels:
        if kernel.kind != "variant":
            continue
        reason = kernel.unavailable(problem, gpu) or (None if kernel.exact else "not exact: runs only where it is named")
        if reason is None:
            can.append(kernel)
        else:
            cannot.append((kernel, reason))
    return can, cannot


def rank(kernels: Iterable[Kernel], problem: Problem, gpu: Gpu) -> list[Estimate]:
    """The estimates of the exact variants that can do the problem, with their default configs, best first."""
    return ranked([estimate(kernel, problem, gpu, kernel.default_config(problem, gpu)) for kernel in able(kernels, problem, gpu)[0]])


def ranked(estimates: Iterable[Estimate]) -> list[Estimate]:
    """Best first; equal ones in the order they came in, the catalogue's."""
    return sorted(estimates, key=lambda one: one.us)


def assumed(gpu: Gpu) -> Gpu | None:
    """The listed GPU whose rates by multiprocessor an unlisted one is ranked with, and nothing else: the first of the highest architecture
    that is not above its own. None for a GPU whose rates are known, and where there is none."""
    below = [] if gpu.peak else [one for one in GPUS if one.capability <= gpu.capability]
    return max(below, key=lambda one: one.capability, default=None)


def estimate(kernel: Kernel, problem: Problem, gpu: Gpu, config: Config) -> Estimate:
    """The estimate of one kernel with that config."""
    instructions, like = _instructions(kernel, problem, gpu, config), assumed(gpu)
    if like is not None:
        share = gpu.sms / like.sms
        gpu = replace(gpu, bandwidth=like.bandwidth * share, peak={kind: rate * share for kind, rate in like.peak.items()})
    specialist = kernel.unavailable(problem.with_(tokens=MANY_TOKENS), gpu) is not None
    tile = getattr(getattr(config, "tile", config), "block_t", 1)
    rounded = problem.with_(tokens=-(-problem.tokens // tile) * tile)
    narrow = 1.0 if specialist or tile <= 1 else min(1.0, tile / WHOLE_TILE)
    arithmetic = sum(_seconds(name, rounded, gpu, specialist) for name in instructions) / len(instructions) / narrow
    lifted = any(".SP" in name for name in instructions) and problem.sparsity.lifted
    memory = _bytes(problem, lifted) / gpu.bandwidth / (STREAMED_BY_SPECIALISTS if specialist else STREAMED)
    wall = "arithmetic" if arithmetic > memory else "memory"
    start = SPECIALISTS_START_US if specialist else START_US
    return Estimate(kernel, config, start + 1e6 * max(arithmetic, memory), wall, instructions, specialist, like.name if like else "")


def _instructions(kernel: Kernel, problem: Problem, gpu: Gpu, config: Config) -> tuple[str, ...]:
    """The expected matrix instruction of each product, a library's where no function of the kernel makes it."""
    found = []
    for unit in kernel.compile_units(problem, config):
        known = [since for since in unit.expects if since <= gpu.capability]
        found += [unit.expects[max(known)]] if known else []
    products = 3 if problem.op == "step" else 1
    return (*found, *("library",) * (products - len(found)))


def _seconds(instruction: str, problem: Problem, gpu: Gpu, specialist: bool) -> float:
    sparse = ".SP" in instruction
    name = instruction.removeprefix("UTC")
    kind = "bf16" if instruction == "library" or name.startswith("H") else "fp8" if name.startswith("Q") else "int8"
    known, unknown = (SPECIALISTS, SPECIALISTS_ELSEWHERE) if specialist else (SHARES, ELSEWHERE)
    share = LIBRARY if instruction == "library" else known.get((instruction, gpu.capability), unknown)
    rate = gpu.peak.get(kind, 0.0) * (2 if sparse else 1) * share
    executed = problem.operations * (_expansion(problem) if sparse else 1.0)
    return executed / rate if rate else 0.0


def _expansion(problem: Problem) -> float:
    m = problem.sparsity.m
    return 2 * (m - 2) / m if problem.sparsity.lifted else 1.0


def _bytes(problem: Problem, lifted: bool) -> float:
    """Weight at 2 bits, activations once, outputs once; the weight lifted where the kernel stores it so."""
    weight = problem.out_features * problem.in_features / 4 * (_expansion(problem) if lifted else 1.0)
    return weight + problem.tokens * (problem.in_features * (1 if problem.op == "gemm" else 2) + 2 * problem.out_features)
