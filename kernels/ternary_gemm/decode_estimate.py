"""Which config of the decode GEMM for which problem: an estimate of its time, and the space in which a tuner looks for better ones."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, exp

from kernels.gpu import Gpu
from kernels.problem import Problem
from kernels.space import ConfigSpace
from kernels.ternary_gemm.decode_config import REGISTERS, DecodeConfig, Plan, is_sparse, plan, registers, reject
from kernels.ternary_gemm.decode_ptx import COLUMNS

TRIED = 40
"""Configs that a tuner tries for a problem, by estimated time."""

AXES = {
    "tiles": (1, 2, 4), "warps_m": (1, 2, 4, 8), "warps_k": (1, 2, 4, 8, 16), "depth": (1, 2, 4), "splits": (1, 2, 3, 4, 7, 8),
    "x_kib": (32, 96),
}


def _worth(problem: Problem, gpu: Gpu, config: DecodeConfig) -> str | None:
    """`reject`, and configs that the estimate does not put among the best: a tuner has better things to do."""
    reason = reject(problem, gpu, config)
    if reason is not None:
        return reason
    worth = _estimated(_Case.of(problem, gpu))[:TRIED]
    if any(config == other for _, other in worth):
        return None
    return f"estimated at {estimate(problem, gpu, config):.1f} us, not among the {TRIED} best ({worth[-1][0]:.1f} us)"


@dataclass(frozen=True)
class _Case:
    """What a choice depends on, hashable."""

    problem: Problem
    gpu: str
    capability: int
    sms: int
    shared_bytes: int
    bandwidth: float

    @classmethod
    def of(cls, problem: Problem, gpu: Gpu) -> _Case:
        return cls(problem, gpu.name, gpu.capability, gpu.sms, gpu.shared_bytes, gpu.bandwidth)

    def device(self) -> Gpu:
        return Gpu(self.gpu, "", self.capability, self.sms, 0, self.shared_bytes, 0, self.bandwidth)


def _candidates() -> Iterator[DecodeConfig]:
    for found in ConfigSpace(DecodeConfig, AXES).candidates():
        if found.warps in (4, 8, 16) and found.depth * found.tiles <= 8:
            yield found


@functools.lru_cache(maxsize=256)
def _estimated(case: _Case) -> list[tuple[float, DecodeConfig]]:
    """Allowed configs by estimated time."""
    gpu = case.device()
    sizes = (case.problem.out_features, case.problem.in_features, case.problem.tokens)
    distinct: dict[tuple[Plan, DecodeConfig], DecodeConfig] = {}
    for config in _candidates():
        if reject(case.problem, gpu, config) is None:  # where all activations fit, more room for them changes nothing
            distinct.setdefault((plan(*sizes, config), replace(config, x_kib=0)), config)
    return sorted(((estimate(case.problem, gpu, config), config) for config in distinct.values()), key=lambda entry: entry[0])


CLOCK, PORT, FLYING = 1.75e9, 40.0, 26_000.0
"""Hz; bytes that a multiprocessor takes from the L2 per clock; bytes on their way per multiprocessor at which 1 − 1/e of the memory's rate
is reached. Most constants of `estimate` are guesses: it ranks, no more."""


def estimate(problem: Problem, gpu: Gpu, config: DecodeConfig) -> float:
    """Microseconds, roughly: launch, then memory, L2 port, issue and tensor cores, of which the slowest counts most, then the sums."""
    found = plan(problem.out_features, problem.in_features, problem.tokens, config)
    sparse, tokens, sms = is_sparse(problem), max(1, problem.tokens), max(1, gpu.sms)
    tokens8, parts, steps = ceil(tokens / 8), 1 if sparse else 2, found.chunks * found.steps
    by_registers = REGISTERS // (32 * config.warps * registers(config, tokens, sparse))
    per_sm = max(1, min(220 // found.shared_kib, by_registers, 48 // config.warps))
    weights, activations = config.rows * found.share * 32, tokens * steps * config.warps_k * COLUMNS
    ring = config.warps * config.tiles * 512 * min(config.depth, steps)

    def stream(programs: int) -> float:
        return programs * weights / (min(gpu.bandwidth, 1e13) * 0.95 * (1 - exp(-programs * ring / sms / FLYING))) if programs else 0.0

    waves, rest = divmod(found.programs, sms * per_sm)
    # Measured: a long launch that leaves places free crowds on some multiprocessors, by up to 1.4 times the time.
    long = min(1.0, max(0.0, steps / config.depth - 2) / 4)
    uneven = 0.0 if waves else 0.8 * long * (1 - rest / (sms * per_sm)) * min(1.0, found.programs / sms)
    memory = waves * stream(sms * per_sm) + stream(rest) * (1 + uneven)
    busiest = ceil(found.programs / sms)
    port = busiest * (weights + activations) / PORT
    tensor = busiest * config.warps * steps * config.tiles * tokens8 * parts * 4.6
    issue = busiest * config.warps * steps * (26 + config.tiles * (17 + 14 * (parts - 1) + 2 * parts * tokens8) + 3 * tokens8) / 3
    busy = sum(part**4 for part in (memory, port / CLOCK, tensor / CLOCK, issue / CLOCK)) ** 0.25
    sums = busiest * tokens8 * (config.rows * 8 * (2 * config.warps_k + 12) / 128 + 150) / CLOCK
    split = 1.2e-6 + found.programs * config.rows * tokens / 1e12 if found.splits > 1 else 0.0
    chunk = (found.chunks - 1) * (0.15e-6 + 0.5e-6 * (1 - (found.pending + 1) / config.depth))
    begin = 1.6e-6 + 0.3e-6 * min(waves, 4) + activations / found.chunks / PORT / CLOCK
    return 1e6 * float(begin + busy + chunk + sums + split)


def default_config(problem: Problem, gpu: Gpu) -> DecodeConfig:
    """The config of the least estimated time."""
    return _estimated(_Case.of(problem, gpu))[0][1]


space = ConfigSpace(DecodeConfig, AXES, _worth)
