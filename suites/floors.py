"""What any kernel must at least do: compulsory bytes, the time they take, and results too good to be true. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from kernels.gpu import Gpu
from kernels.problem import Problem, Sparsity
from suites.record import CaseRecord, Result
from suites.statistics import time_us

SPARSE_MMA = "sparse-int8-mma"
"""The roof that `autotune.roofs` measures of `mma.sp`: of kernels that use it, not of a case."""
FLOAT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "int32": 4}
ROOF_TOLERANCE = 1.05
"""How far above its roof a result must be to be called impossible: clocks boost above the datasheet's, roofs are measured with noise."""


def compulsory_bytes(problem: Problem) -> int:
    """Bytes that any kernel moves: each input once at its natural packed size, each output once. Per op:

    gemm: int8 x and its scales, 2-bit weight, y · layer: float x, 2-bit weight, bias, y · prepare: master weight, 2-bit weight ·
    activation: x, int8 x (lifted width) and its scales · forward: x, 2-bit weight, y · input-grad: dy, 2-bit weight, dx ·
    weight-grad: dy, int8 x and its scales, dw · step: x, master weight, dy, y, dx, dw.
    """
    tokens, rows, width = problem.tokens, problem.out_features, problem.in_features
    size = FLOAT_BYTES[problem.dtype]
    x, y, dy = tokens * width * size, tokens * rows * size, tokens * rows * size
    x_q = tokens * width + 4 * tokens
    master, packed = rows * width * size, rows * width // 4 + 4 * len(problem.splits)
    bias = 4 * rows if problem.bias else 0
    lifted = int(tokens * width * expansion(problem.sparsity)) + 4 * tokens
    by_op = {
        "gemm": x_q + packed + y, "layer": x + packed + y, "prepare": master + packed, "activation": x + lifted,
        "forward": x + packed + y, "input-grad": dy + packed + x, "weight-grad": dy + x_q + master,
        "step": x + master + dy + y + x + master,
    }
    return by_op[problem.op] + bias


def expansion(sparsity: Sparsity) -> float:
    """How much wider the activations of a lifted sparsity become: 1.5 for 6:8, 1 for everything else."""
    return 2 * (sparsity.m - 2) / sparsity.m if sparsity.lifted else 1.0


def sparse_speed(sparsity: Sparsity) -> float:
    """The most that sparse tensor cores gain over dense ones: 2 for n:m of at most half, 4/3 for 6:8, 1 where they do not apply."""
    return max(1.0, 2 / expansion(sparsity)) if sparsity.lifted else (2.0 if 2 * sparsity.n <= sparsity.m else 1.0)


def floor_us(problem: Problem, gpu: Gpu, kind: str = "int8") -> float:
    """Microseconds below which no kernel gets at the datasheet's rates of that type, sparse tensor cores and device memory counted."""
    return gpu.floor_seconds(problem.operations / sparse_speed(problem.sparsity), compulsory_bytes(problem), kind) * 1e6


def impossible(case: CaseRecord, result: Result, gpu: Gpu, roofs: Mapping[str, float]) -> str | None:
    """Why a result cannot be true, or None.

    It cannot be above the device's arithmetic roof, nor above its memory roof where it had to use the memory.

    roofs: measured ones by name. Of the arithmetic ones the larger of the datasheet's and the measured counts (short turns run above
    what a busy device sustains), of the memory's the measured one where there is one. Memory counts for cold cases and where the
    compulsory bytes exceed twice the L2; a weight counts as it was stored, where that is less than 2 bits.
    """
    time = time_us(result)
    if time is None:
        return None
    problem = Problem.from_dict(dict(case.problem))
    rate = case.operations / time * 1e6
    ceiling = max([*gpu.peak.values(), *(value for name, value in roofs.items() if name.startswith("dense-"))], default=0.0)
    ceiling *= sparse_speed(problem.sparsity)
    if ceiling and rate > ROOF_TOLERANCE * ceiling:
        return f"{rate / 1e12:.0f} TOPS, above the arithmetic roof of {ceiling / 1e12:.0f}"
    bandwidth = max((value for name, value in roofs.items() if name in ("read", "copy")), default=gpu.bandwidth)
    spared = max(0, problem.out_features * problem.in_features // 4 - result.weight_bytes) if result.weight_bytes else 0
    moved = (case.compulsory_bytes - spared) / time * 1e6
    if (case.cache == "cold" or case.compulsory_bytes > 2 * gpu.l2_bytes) and moved > ROOF_TOLERANCE * bandwidth:
        return f"{moved / 1e12:.2f} TB/s of compulsory traffic, above the memory roof of {bandwidth / 1e12:.2f}"
    return None
