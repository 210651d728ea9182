"""What machine code takes at best on a GPU that is not there: the slowest of the walls that it runs into. Never a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.machine_code import Loop
from kernels.gpu import Gpu
from kernels.problem import Problem
from suites.floors import compulsory_bytes, expansion

ISSUED, INTEGER_WARPS, PORT_BYTES = 4, 2, 128
"""Per clock and multiprocessor, from sm_80 to sm_100 (NVIDIA CUDA C++ Programming Guide, arithmetic throughput): instructions of warps
that are issued, of them integer ones (64 lanes), and bytes through the port of shared memory."""

WARP_PRODUCTS_ON_HOPPER = 0.5
"""Share of sm_90's rate that products of single warps (mma) reach; wgmma alone reaches it all. On an H200 (2026-11-22) mma.sp int8 did
1,877 of 3,958 TOPS from registers."""


@dataclass(frozen=True)
class Prediction:
    """walls: microseconds of each, by name. us: of the slowest, `limit`, behind which the others hide at best. serial_us: of all of them.

    On an H200 (2026-11-22) the measured times of dense-triton and dense-int8-triton at 512 tokens and more stood between the two or near
    them: at 1.7 to 3.3 times us, and at 0.7 to 1.25 times serial_us (32 results; docs/gpus.md).
    """

    walls: Mapping[str, float]

    @property
    def limit(self) -> str:
        """The slowest wall."""
        return max(self.walls, key=lambda name: self.walls[name])

    @property
    def us(self) -> float:
        """Its microseconds."""
        return self.walls[self.limit]

    @property
    def serial_us(self) -> float:
        """The microseconds of all walls together."""
        return sum(self.walls.values())


def predict(problem: Problem, gpu: Gpu, loop: Loop | None, share: float = 1.0) -> Prediction | None:
    """The walls of a function with that main loop; None without a loop to count products in, or for a GPU whose clock is not known.

    share: of the problem's operations and bytes that this function has. Each wall is time at full throughput, as if nothing waited:
    tensor cores at the datasheet's rate for the loop's numbers; instructions issued, integer instructions and bytes of shared memory of
    the loop as often as the problem's products need it; and the compulsory bytes of device memory. Latency, the epilogue, padded tiles,
    the last wave and what tensor cores read from shared memory by themselves are left out: a kernel is slower than this.
    """
    if loop is None or not loop.operations or not gpu.clock_mhz:
        return None
    executed = share * problem.operations * (expansion(problem.sparsity) if loop.sparse else 1.0)
    clocks = gpu.sms * gpu.clock_mhz  # per microsecond
    passages = executed / loop.operations / clocks
    walls = {
        "tensor cores": _tensor_us(executed, gpu, loop),
        "issue": passages * loop.instructions / ISSUED,
        "integer units": passages * (loop.kinds.get("integer", 0) + loop.kinds.get("dot", 0)) / INTEGER_WARPS,
        "shared memory": passages * loop.shared_bytes / PORT_BYTES,
        "device memory": share * compulsory_bytes(problem) / gpu.bandwidth * 1e6,
    }
    return Prediction({name: us for name, us in walls.items() if us})


def _tensor_us(executed: float, gpu: Gpu, loop: Loop) -> float:
    if not loop.kinds.get("tensor"):
        return 0.0
    rate = gpu.peak.get(loop.number, 0.0) * (2 if loop.sparse else 1)
    if gpu.capability // 10 == 9 and not loop.grouped:
        rate *= WARP_PRODUCTS_ON_HOPPER
    return executed / rate * 1e6 if rate else 0.0
