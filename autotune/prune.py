"""What need not be timed: candidates whose machine code, or whose tiles at the device's peak rates, speak against them."""

from __future__ import annotations

from math import ceil

from autotune.compile import WAIT_FOR_ALL, Compiled
from autotune.search import Point
from kernels.errors import Failure
from kernels.gpu import Gpu
from kernels.kernel import CompileUnit
from kernels.problem import Problem

SPILL_BYTES = 64
"""More local memory per thread than this is spilled inside the loop; less is now and then spilled around it, at no cost to speak of."""
REGISTERS = 65_536
"""32-bit registers of a multiprocessor, sm_80 and up."""
BOOST = 1.1
"""How far above the datasheet's rates short turns may run."""
_GMMA = ("HGMMA", "IGMMA", "QGMMA")


def against(unit: CompileUnit, compiled: Compiled, gpu: Gpu) -> Failure | None:
    """Why the machine code makes timing pointless, or None.

    Spilled registers, a block that no multiprocessor can hold, the expected tensor-core instruction missing, or wgmma that the assembler
    serialized: it then waits for each product before it issues the next.
    """
    code = compiled.instructions
    if compiled.spills > SPILL_BYTES:
        return _pruned(f"{compiled.spills} bytes a thread are spilled")
    threads = 32 * (compiled.warps or int(unit.options.get("num_warps", 4)))
    if threads * 8 * ceil(compiled.registers / 8) > REGISTERS:
        return _pruned(f"{threads} threads of {compiled.registers} registers do not fit a multiprocessor")
    if compiled.shared_bytes > gpu.shared_bytes:
        return _pruned(f"{compiled.shared_bytes} bytes of shared memory, {gpu.shared_bytes} are there")
    known = [since for since in unit.expects if since <= gpu.capability]
    wanted = unit.expects[max(known)] if known else None
    if wanted is not None and not code.get(wanted):
        return _pruned(f"no {wanted} in the machine code for {gpu.architecture}")
    products = sum(code.get(name, 0) for name in _GMMA)
    if products >= 4 and code.get(WAIT_FOR_ALL, 0) >= products:
        return _pruned("its wgmma instructions are serialized")
    return None


def too_slow(bound_us: float, best_us: float) -> Failure | None:
    """Why a candidate that cannot be faster than the bound need not be timed, once that much was reached."""
    if bound_us <= best_us:
        return None
    return _pruned("its tiles cannot be faster than what is reached already")


def bound_us(problem: Problem, gpu: Gpu, point: Point) -> float:
    """Microseconds below which this config cannot run a GEMM; 0 where nothing is known of the config's tiles or the GPU's rates.

    A tile is computed whole, by one multiprocessor: the busiest one does ceil(tiles / multiprocessors) of them. Where tiles share their
    in_features (split_k) only the sum of the work counts.
    """
    block_n, block_t, rate = point.get("block_n"), point.get("block_t"), max(gpu.peak.values(), default=0.0)
    gemm = problem.op in ("gemm", "layer", "forward")
    if not gemm or not gpu.sms or not rate or not isinstance(block_n, int) or not isinstance(block_t, int):
        return 0.0
    rate *= BOOST * (2.0 if problem.sparsity.m > 1 else 1.0)
    tiles = ceil(problem.out_features / block_n) * ceil(problem.tokens / block_t)
    shared = point.get("split_k", 1) != 1
    rounds = tiles / gpu.sms if shared else ceil(tiles / gpu.sms)
    return rounds * 2.0 * block_n * block_t * problem.in_features / (rate / gpu.sms) * 1e6


def _pruned(reason: str) -> Failure:
    return Failure("refused", f"pruned: {reason}")
