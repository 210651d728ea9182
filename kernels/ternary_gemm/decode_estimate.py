"""Which config of the decode GEMM for which problem: an estimate of its time, and the space in which a tuner looks for better ones."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from math import ceil

from kernels.gpu import Gpu
from kernels.problem import Problem
from kernels.space import ConfigSpace
from kernels.ternary_gemm.decode_config import CLUSTERS, REGISTERS, DecodeConfig, Plan, is_sparse, plan, quantizes, registers, reject
from kernels.ternary_gemm.decode_ptx import COLUMNS

TRIED = 40
"""Configs that a tuner tries for a problem, by estimated time."""

AXES = {
    "tiles": (1, 2, 4), "warps_m": (1, 2, 4, 8), "warps_k": (16, 8, 4, 2, 1), "depth": (8, 4, 3, 2), "splits": (1, 2, 3, 4, 8),
    "x_kib": (96, 136), "group": (16, 32, 64), "rounds": (1, 2, 3, 7), "clustered": (False, True), "wgmma": (False, True),
}
NARROW_AXES = {**AXES, "tiles": (4,), "rounds": (1,), "wgmma": (False,), "narrow": (True,)}
NARROW_SHAPES = frozenset({
    (4, 1, 4, 4), (4, 1, 8, 3), (4, 1, 8, 4), (4, 1, 16, 4), (4, 2, 8, 3), (4, 2, 8, 4), (4, 4, 4, 3), (4, 8, 2, 3), (4, 8, 2, 4),
})
"""As `SHAPES`, at 1.5 bits a weight: of 70 times."""


@dataclass(frozen=True)
class _Case:
    """What a choice depends on, hashable."""

    problem: Problem
    gpu: str
    capability: int
    sms: int
    shared_bytes: int
    bandwidth: float
    narrow: bool

    @classmethod
    def of(cls, problem: Problem, gpu: Gpu, narrow: bool = False) -> _Case:
        return cls(problem, gpu.name, gpu.capability, gpu.sms, gpu.shared_bytes, gpu.bandwidth, narrow)

    def device(self) -> Gpu:
        return Gpu(self.gpu, "", self.capability, self.sms, 0, self.shared_bytes, 0, self.bandwidth)


SHAPES = frozenset({
    (1, 1, 4, 4), (1, 1, 8, 4), (1, 1, 16, 8), (2, 1, 4, 2), (2, 1, 4, 4), (2, 1, 8, 4), (2, 1, 16, 2), (2, 1, 16, 4), (2, 4, 2, 4),
    (2, 4, 4, 8), (2, 8, 1, 4), (2, 8, 1, 8), (2, 8, 2, 8), (4, 1, 4, 2), (4, 1, 4, 4), (4, 1, 8, 2), (4, 1, 8, 3), (4, 1, 8, 4),
    (4, 1, 16, 4), (4, 2, 2, 4), (4, 2, 4, 2), (4, 2, 4, 4), (4, 2, 8, 2), (4, 2, 8, 3), (4, 4, 2, 3), (4, 4, 2, 4), (4, 4, 4, 2),
    (4, 4, 4, 3), (4, 8, 1, 3), (4, 8, 1, 4), (4, 8, 2, 2), (4, 8, 2, 4),
})
GROUP_SHAPES = frozenset({
    (1, 4, 2, 8), (2, 4, 2, 4), (2, 4, 4, 8), (2, 8, 1, 4), (2, 8, 1, 8), (2, 8, 2, 8), (4, 4, 2, 4), (4, 8, 1, 4), (4, 8, 2, 4),
})
"""tiles, warps_m, warps_k, depth of programs that came first or second somewhere among 953 times on an H200, by `mma.sp` and by warpgroups:
what else fits an estimate that is 14 % off is more likely wrong than good."""
MANY = 32
MANY_SHAPES = GROUP_SHAPES | {(1, 4, 4, 8), (1, 4, 8, 2), (2, 4, 4, 4), (2, 8, 2, 4)}
"""The same for more tokens than these, with shapes of a further 244 times at 64 (2560×2560: 3.29 µs by 1, 4, 4, 8 in place of 3.48)."""
GROUP_TOKENS = 2
"""Fewest tokens for which warpgroups are tried: for one they came first nowhere."""
SMALLEST = DecodeConfig(1, 4, 1, 4, x_kib=48)
"""Where none of `SHAPES` is allowed: up to 128 rows of up to 128 in_features (one block, for one warp), or long rows where shared memory is
99 KiB."""


def _shape(config: DecodeConfig) -> tuple[int, int, int, int]:
    return config.tiles, config.warps_m, config.warps_k, config.depth


@functools.cache
def _candidates(narrow: bool = False) -> tuple[DecodeConfig, ...]:
    """What of the axes can be any good anywhere: the rest is not looked at again for every problem."""
    def good(found: DecodeConfig) -> bool:
        rounds = found.rounds == 1 or (found.tiles == 4 and found.warps_m == 1 and found.splits == 1)
        fast = not found.wgmma or found.rounds == 1
        meets = found.splits in CLUSTERS if found.clustered else found.splits <= 4
        return _shape(found) in (MANY_SHAPES if found.wgmma else NARROW_SHAPES if found.narrow else SHAPES) and rounds and meets and fast

    return tuple(filter(good, ConfigSpace(DecodeConfig, NARROW_AXES if narrow else AXES).candidates()))


@functools.lru_cache(maxsize=16)
def _estimated(case: _Case) -> dict[DecodeConfig, float]:
    """Allowed configs with their estimated times, best first; of those that come to the same the first."""
    gpu = case.device()
    sizes = (case.problem.out_features, case.problem.in_features, case.problem.tokens)
    distinct: dict[tuple[Plan, DecodeConfig], DecodeConfig] = {}
    for config in _candidates(case.narrow):
        useful = config.group == 64 or config.group < sizes[2]
        if config.wgmma:
            useful &= sizes[2] >= GROUP_TOKENS and (sizes[2] > MANY or _shape(config) in GROUP_SHAPES)
        if useful and reject(case.problem, gpu, config) is None:
            distinct.setdefault((plan(*sizes, config), replace(config, x_kib=0)), config)
    allowed = distinct.values() or (replace(SMALLEST, tiles=4, warps_m=1, narrow=True) if case.narrow else SMALLEST,)
    return dict(sorted(((config, estimate(case.problem, gpu, config)) for config in allowed), key=lambda entry: entry[1]))


CLOCK, PORT = 1.75e9, 38.8
"""Hz; bytes that a multiprocessor takes from the L2 per clock, weights and activations alike. The constants of `estimate` are fitted to 953
times on an H200 (2026-11-22): root mean square error 14 % where the best weigh most."""
UNPACK, PRODUCTS = 14.2, 4.1
"""Clocks of a multiprocessor for a warp's 16 rows of a block of 128 columns, and for the two products of each of their eights of tokens
(`mma.sp`; dense ones are four). Weights at 1.5 bits are fitted no better by a constant of their own."""
GROUP_PRODUCT, GROUP_STEP, GROUP_LATENCY = 26, 203, 8.5
"""Clocks of a multiprocessor for a warpgroup's product; of the warpgroup for a step, and there for each eight tokens of each product."""
CROWDED, CALM = 1.44, 0.3
"""Measured: a long launch that leaves places free crowds on some multiprocessors, as the one before it leaves them: by so many programs for
every place left free, and by what share of that where the next launch begins behind its last steps."""
WAVE, CLUSTER_WAVE, LAST_WAVE = 2.8, 2.9, 0.36
"""Microseconds before each further wave of programs, of clusters, and the power of its share of the places by which the last one takes."""
BEGIN, SUMS, ONE, CHUNK = 1.58, 0.41, 0.19, 0.59
"""Microseconds of a launch; of the sums of eight tokens over warps (those of warpgroups do not show), and the share of that for a single
token; of each further chunk."""
CLUSTER, LARGER, CLUSTER_SUM, MEMORY, MEMORY_SUMS = 0.95, 0.55, 2.9e-4, 1.2, 1.41e5
"""Microseconds of a meeting in clusters of four, the power of their size by which others take, and of each of a program's sums there; of a
meeting in memory, and sums of all programs a microsecond there."""
QUANTIZE, ACTIVATION, LAUNCH = 0.55, 0.017, 1.3
"""Microseconds of a layer's own quantization, of each activation a thread; of `activation` before it (1.0 to 1.5 were measured)."""
AHEAD, ALONE, LATENCY, EXPOSED = 0.6, 0.4, 1.2, 0.8
"""Of launches of warpgroups: what shows of memory and L2 where all weights are asked for before the wait for the launch ahead; programs a
multiprocessor from which activations come slower; microseconds of a copy that refills the ring, and how much shows of what the steps before
do not hide. Fitted to 393 times at more than 32 tokens, and counted there."""
USABLE = {1: 1.0, 2: 1.0, 4: 0.96, 8: 0.91}
"""Of the multiprocessors, by programs of a cluster: they have to be neighbours. 32 clusters of 4, or 16 of 8, one program a multiprocessor,
did not run at once on 132."""


def residents(found: Plan, config: DecodeConfig, sparse: bool) -> int:
    """Programs that fit a multiprocessor at once."""
    by_registers = REGISTERS // (32 * config.warps * (registers(config, found.group, sparse) + 7 & ~7))
    return max(1, min(228 // (found.shared_kib + 1), by_registers, 64 // config.warps))


def _busy(found: Plan, config: DecodeConfig, places: int, programs: int, gpu: Gpu, sparse: bool, ahead: bool) -> float:
    """Microseconds that so many programs, at most `places` a multiprocessor, take: memory, L2 port, products; the slowest counts most.
    ahead: all weights were asked for before."""
    sms, tokens8, products = max(1, gpu.sms), found.tokens8, 2 if sparse else 4
    steps = found.chunks * found.steps * found.rounds
    weights, activations = config.rows * found.share * (24 if config.narrow else 32) * found.rounds, found.group * found.share * COLUMNS
    fair = ceil(programs / sms)
    long = min(1.0, max(0.0, steps / config.depth - 2) / 4) * (1.0 if config.eager else CALM)
    busiest = fair + CROWDED * long * max(0, min(places, programs) - fair)
    memory = programs * weights / found.groups / min(gpu.bandwidth, 1e13)
    port = busiest * (weights + activations) / (PORT * CLOCK)
    if config.wgmma:
        issued = busiest * config.warps / 4 * steps * config.tiles * products * GROUP_PRODUCT
        latency = steps * (GROUP_STEP + config.tiles * products * tokens8 * GROUP_LATENCY)
    else:
        issued, latency = busiest * config.warps * steps * config.tiles * (UNPACK + PRODUCTS * products / 2 * tokens8), 0.0
    if ahead:
        memory, port = AHEAD * memory, AHEAD * port
    return 1e6 * float(sum(part**4 for part in (memory, port, issued / CLOCK, latency / CLOCK)) ** 0.25)


def estimate(problem: Problem, gpu: Gpu, config: DecodeConfig) -> float:
    """Microseconds, roughly: launch, activations, waves of programs, sums, the meeting of shares, chunks."""
    found = plan(problem.out_features, problem.in_features, problem.tokens, config)
    sparse, sms = is_sparse(problem), max(1, gpu.sms)
    places = residents(found, config, sparse)
    capacity = max(1, int(sms * places * USABLE[found.cluster]) // found.cluster * found.cluster)
    waves, rest = divmod(found.programs, capacity)
    many = config.wgmma and problem.tokens > MANY
    # As `decode_kernel.early` has it.
    ahead = many and not waves and found.chunks * found.steps <= config.depth - config.depth // 3
    whole = _busy(found, config, places, capacity if waves else rest, gpu, sparse, ahead)
    if config.narrow and found.group == 1:  # programs of several on a multiprocessor begin while others multiply
        whole = whole * max(1.0, found.programs / capacity) + WAVE / places * waves
    else:
        whole *= waves + (rest / capacity) ** LAST_WAVE if waves else 1
        whole += (WAVE if found.cluster == 1 else CLUSTER_WAVE) * min(waves, 4)
    activations = found.group * found.share * COLUMNS / found.chunks
    alone = ALONE if many else 1.0
    begin = BEGIN + 1e6 * activations * min(places, max(alone, found.programs / sms)) / (PORT * CLOCK)
    sums = meet = 0.0
    if not config.wgmma:
        # Weights arrive on behind the sums of all row tiles but the last, where there are enough of them.
        exposed = found.rounds - (found.rounds - 1) / 2 * min(1.0, found.steps / 4)
        sums = SUMS * (found.tokens8 if found.group > 1 else ONE) * exposed * max(1.0, config.rows * 8 * (2 * config.warps_k + 12) / 19200)
    if config.splits > 1:
        each = config.rows * found.group
        meet = MEMORY + found.programs * each / MEMORY_SUMS
        if config.clustered:
            meet = CLUSTER * (config.splits / 4) ** LARGER + CLUSTER_SUM * each
    if problem.op == "layer":
        fused = quantizes(found, problem.in_features, config)
        begin += QUANTIZE + ACTIVATION * problem.in_features / (32 * config.warps) if fused else LAUNCH
    time = begin + whole + sums + meet + (found.chunks - 1) * CHUNK
    if many:
        time += _refills(found, config, time, min(places, max(1.0, found.programs / sms)))
    return float(time)


def _refills(found: Plan, config: DecodeConfig, time: float, together: float) -> float:
    """Microseconds that a program waits for steps that its ring does not hold from the start, in a launch that else takes `time`."""
    steps = found.chunks * found.steps
    hidden = config.depth * max(0.3, time - 2.5) / steps
    return EXPOSED * max(0.0, LATENCY - hidden) * ceil(max(0, steps - config.depth) / config.depth) / together


def default_config(problem: Problem, gpu: Gpu) -> DecodeConfig:
    """A config of the least estimated time, at 2 bits a weight: 10 to 60 ms for a problem that was not asked before."""
    return _default(_Case.of(problem, gpu))


def narrow_config(problem: Problem, gpu: Gpu) -> DecodeConfig:
    """The same at 1.5 bits a weight."""
    return _default(_Case.of(problem, gpu, True))


@functools.lru_cache(maxsize=4096)
def _default(case: _Case) -> DecodeConfig:
    """Of the best and what comes within 0.1 % of it: two steps a warp at least, then most warps along in_features, then most warps, then
    the shortest ring (for one token 1.8 % above the best that was timed in the mean of 19 problems)."""
    estimated, problem = _estimated(case), case.problem
    least = next(iter(estimated.values()))

    def merit(config: DecodeConfig) -> tuple[bool, int, int, int]:
        found = plan(problem.out_features, problem.in_features, problem.tokens, config)
        return found.chunks * found.steps * found.rounds >= 2, config.warps_k, config.warps, -config.depth

    return max((config for config, time in estimated.items() if time <= 1.001 * least), key=merit)


def _worth(problem: Problem, gpu: Gpu, config: DecodeConfig) -> str | None:
    """`reject`, and configs that the estimate does not put among the best: a tuner has better things to do."""
    worth = _best(_Case.of(problem, gpu, config.narrow))
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
narrow_space = ConfigSpace(DecodeConfig, NARROW_AXES, _worth, functools.partial(_candidates, True))
"""The same at 1.5 bits a weight."""
