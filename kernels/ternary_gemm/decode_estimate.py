"""Which config of the decode GEMM for which problem: an estimate of its time, and the space in which a tuner looks for better ones."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from math import ceil, exp

from kernels.gpu import Gpu
from kernels.problem import Problem
from kernels.space import ConfigSpace
from kernels.ternary_gemm.decode_config import CLUSTERS, REGISTERS, DecodeConfig, Plan, is_sparse, plan, quantizes, registers, reject
from kernels.ternary_gemm.decode_ptx import COLUMNS

TRIED = 40
"""Configs that a tuner tries for a problem, by estimated time."""

AXES = {
    "tiles": (1, 2, 4), "warps_m": (1, 2, 4, 8), "warps_k": (1, 2, 4, 8, 16), "depth": (2, 3, 4, 8), "splits": (1, 2, 3, 4, 8),
    "x_kib": (96, 136), "group": (16, 32, 64), "rounds": (1, 2, 3, 7), "clustered": (False, True), "wgmma": (False,),
}
"""Warpgroups have not run on a device yet: they are tuned for when they have."""


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


SHAPES = frozenset({
    (1, 1, 4, 4), (1, 1, 8, 4), (1, 1, 16, 8), (1, 4, 2, 8), (2, 1, 4, 2), (2, 1, 4, 4), (2, 1, 8, 4), (2, 1, 16, 2), (2, 1, 16, 4),
    (2, 4, 2, 4), (2, 4, 4, 8), (2, 8, 1, 4), (2, 8, 1, 8), (2, 8, 2, 8), (4, 1, 4, 2), (4, 1, 4, 4), (4, 1, 8, 2), (4, 1, 8, 3),
    (4, 1, 8, 4), (4, 1, 16, 4), (4, 2, 2, 4), (4, 2, 4, 2), (4, 2, 4, 4), (4, 2, 8, 2), (4, 2, 8, 3), (4, 4, 2, 3), (4, 4, 2, 4),
    (4, 4, 4, 2), (4, 4, 4, 3), (4, 8, 1, 3), (4, 8, 1, 4), (4, 8, 2, 2), (4, 8, 2, 4),
})
"""tiles, warps_m, warps_k, depth of the programs that came first or second somewhere among 318 times on an H200: what else fits an estimate
that is 14 % off is more likely wrong than good."""


SMALLEST = DecodeConfig(1, 4, 1, 4, x_kib=48)
"""Where none of `SHAPES` is allowed: up to 128 rows of up to 128 in_features (one block, for one warp), or long rows where shared memory is
99 KiB."""


@functools.cache
def _candidates() -> tuple[DecodeConfig, ...]:
    """What of the axes can be any good anywhere: the rest is not looked at again for every problem."""
    def good(found: DecodeConfig) -> bool:
        rounds = found.rounds == 1 or (found.tiles == 4 and found.warps_m == 1 and found.splits == 1)
        fast = not found.wgmma or (found.warps_m % 4 == 0 and found.rounds == 1)
        meets = found.splits in CLUSTERS if found.clustered else found.splits <= 4
        return (found.tiles, found.warps_m, found.warps_k, found.depth) in SHAPES and rounds and meets and fast

    return tuple(filter(good, ConfigSpace(DecodeConfig, AXES).candidates()))


@functools.lru_cache(maxsize=256)
def _estimated(case: _Case) -> dict[DecodeConfig, float]:
    """Allowed configs with their estimated times, best first; of those that come to the same the first."""
    gpu = case.device()
    sizes = (case.problem.out_features, case.problem.in_features, case.problem.tokens)
    distinct: dict[tuple[Plan, DecodeConfig], DecodeConfig] = {}
    for config in _candidates():
        if (config.group == 64 or config.group < sizes[2]) and reject(case.problem, gpu, config) is None:
            distinct.setdefault((plan(*sizes, config), replace(config, x_kib=0)), config)
    allowed = distinct.values() or (SMALLEST,)
    return dict(sorted(((config, estimate(case.problem, gpu, config)) for config in allowed), key=lambda entry: entry[1]))


CLOCK, PORT, FLYING, ALL_PORTS = 1.75e9, 27.5, 8_000.0, 7.5e12
"""Hz; bytes that a multiprocessor takes from the L2 per clock, weights and activations alike; bytes on their way per multiprocessor at
which 1 − 1/e of the memory's rate is reached; bytes per second that the L2 gives to all. Constants of `estimate` are fitted to 318 times
on an H200 (2026-11-22, root mean square error 14 % where the best weigh most); those of warpgroups are guesses."""
USABLE = {1: 1.0, 2: 1.0, 4: 0.96, 8: 0.91}
"""Of the multiprocessors, by programs of a cluster: they have to be neighbours. 32 clusters of 4, or 16 of 8, one program a multiprocessor,
did not run at once on 132."""


def residents(found: Plan, config: DecodeConfig, sparse: bool) -> int:
    """Programs that fit a multiprocessor at once."""
    by_registers = REGISTERS // (32 * config.warps * (registers(config, found.group, sparse) + 7 & ~7))
    return max(1, min(227 // (found.shared_kib + 1), by_registers, 64 // config.warps))


def estimate(problem: Problem, gpu: Gpu, config: DecodeConfig) -> float:
    """Microseconds, roughly: launch, activations, then memory, L2 port, issue and tensor cores, of which the slowest counts most, sums."""
    found = plan(problem.out_features, problem.in_features, problem.tokens, config)
    sparse, sms = is_sparse(problem), max(1, gpu.sms)
    tokens8, parts, steps = found.tokens8, 1 if sparse else 2, found.chunks * found.steps * found.rounds
    places, bandwidth = residents(found, config, sparse), min(gpu.bandwidth, 1e13)
    weights, activations = config.rows * found.share * 32 * found.rounds, found.group * found.share * COLUMNS
    ring = config.warps * config.tiles * 512 * min(config.depth, steps)

    def busy(programs: int) -> float:
        fair = ceil(programs / sms)
        # Measured: a long launch that leaves places free crowds on some multiprocessors, as the one before it leaves them.
        long = min(1.0, max(0.0, steps / config.depth - 2) / 4) * (1.0 if config.eager else 0.3)
        busiest = fair + 0.7 * long * max(0, min(places, programs) - fair)
        flying = min(places, programs / sms) * ring
        memory = programs * weights / found.groups / (bandwidth * (1 - exp(-flying / FLYING))) if programs else 0.0
        ports = max(programs * (weights + activations) / ALL_PORTS, busiest * (weights + activations) / (PORT * CLOCK))
        if config.wgmma:
            tensor = busiest * config.warps / 4 * steps * config.tiles * 2 * parts * max(16, 4 * tokens8)
            issue = busiest * config.warps * steps * (35 + config.tiles * 25 * parts) * 0.3
            latency = steps * (250 + 8 * config.tiles * parts * tokens8)
        else:
            tensor = busiest * config.warps * steps * tokens8 * (9.0 * config.tiles * parts + 0.8)  # last: ldmatrix
            words = 17 + 14 * (parts - 1) + 2 * parts * tokens8
            issue = busiest * config.warps * steps * (26 + config.tiles * words + 3 * tokens8) * 0.23
            latency = steps * (85 + 35 * tokens8)
        return float(sum(part**4 for part in (memory, ports, tensor / CLOCK, issue / CLOCK, latency / CLOCK)) ** 0.25)

    capacity = max(1, int(sms * places * USABLE[found.cluster]) // found.cluster * found.cluster)
    waves, rest = divmod(found.programs, capacity)
    whole = busy(capacity) * (waves + (rest / capacity) ** 0.52) if waves else busy(rest)
    whole += (1.1e-6 if found.cluster == 1 else 3.2e-6) * min(waves, 4)
    together = min(places, max(1.0, found.programs / sms))
    first = 0.3e-6 + activations / found.chunks * together / (PORT * CLOCK)
    begin = 1.3e-6 + max(0.0, first - 0.13 * min(whole, ring * together * sms / bandwidth))
    # Weights arrive on behind the sums of all row tiles but the last, where there are enough of them.
    exposed = found.rounds - (found.rounds - 1) / 2 * min(1.0, found.steps / 4)
    sums = tokens8 * exposed * (0.08e-6 + 0.22e-6 * max(1.0, config.rows * 8 * (2 * config.warps_k + 12) / 19200))
    meet = 0.0 if config.splits == 1 else 1.1e-6 if config.clustered else 2.9e-6 + found.programs * config.rows * found.group / 4e12
    if problem.op == "layer":
        itemsize = 4 if problem.dtype == "fp32" else 2
        each = problem.in_features * found.group / (32 * config.warps)
        begin += 0.8e-6 + 0.026e-6 * each if quantizes(found, problem.in_features, itemsize, config) else 2.7e-6
    chunk = (found.chunks - 1) * (0.26e-6 + 0.5e-6 * (1 - (found.pending + 1) / config.depth))
    return 1e6 * float(begin + whole + sums + meet + chunk)


def default_config(problem: Problem, gpu: Gpu) -> DecodeConfig:
    """The config of the least estimated time."""
    return next(iter(_estimated(_Case.of(problem, gpu))))


def _worth(problem: Problem, gpu: Gpu, config: DecodeConfig) -> str | None:
    """`reject`, and configs that the estimate does not put among the best: a tuner has better things to do."""
    worth = _best(_Case.of(problem, gpu))
    if config in worth:
        return None
    reason = reject(problem, gpu, config)
    if reason is not None:
        return reason
    return f"estimated at {estimate(problem, gpu, config):.1f} us, not among the {TRIED} best (up to {max(worth.values()):.1f} us)"


@functools.lru_cache(maxsize=256)
def _best(case: _Case) -> dict[DecodeConfig, float]:
    """What a tuner tries for a problem."""
    return dict(itertools.islice(_estimated(case).items(), TRIED))


space = ConfigSpace(DecodeConfig, AXES, _worth, _candidates)
