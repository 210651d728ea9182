"""How many blocks of a kernel a multiprocessor holds at once, from what its machine code asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kernels.gpu import Gpu

REGISTERS = 65536
"""32-bit registers of a multiprocessor."""
_WARP_REGISTERS, _WARP_STEP, _SHARED_STEP, _RESERVED = 256, 4, 128, 1024
"""Registers are dealt to warps by 256, warps that they suffice for count by 4 (a scheduler each), shared memory comes by 128 bytes, and a
block's has 1 KB of the system's beside it."""


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor holds at most: warps, blocks, bytes of shared memory."""

    warps: int
    blocks: int
    shared_bytes: int


# "Technical specifications per compute capability", NVIDIA CUDA C++ Programming Guide.
LIMITS: Mapping[int, Limits] = {
    80: Limits(64, 32, 164 * 1024), 86: Limits(48, 16, 100 * 1024), 89: Limits(48, 24, 100 * 1024), 90: Limits(64, 32, 228 * 1024),
    100: Limits(64, 32, 228 * 1024),
}


@dataclass(frozen=True)
class Occupancy:
    """blocks, warps: resident on a multiprocessor. most_warps: that it could hold. limit: what a further block lacks."""

    blocks: int
    warps: int
    most_warps: int
    limit: str

    def __str__(self) -> str:
        return f"{self.warps} of {self.most_warps} warps, by {self.limit}"


def occupancy(gpu: Gpu, warps: int, registers: int, shared_bytes: int) -> Occupancy | None:
    """The occupancy of blocks of so many warps, registers a thread and bytes of shared memory.

    A block that does not fit at all gives 0 blocks; an architecture whose limits are not known here None.
    """
    limits = LIMITS.get(gpu.capability)
    if limits is None:
        return None
    per_warp = -(-registers * 32 // _WARP_REGISTERS) * _WARP_REGISTERS
    resident = REGISTERS // per_warp // _WARP_STEP * _WARP_STEP if per_warp else limits.warps
    shared = -(-(shared_bytes + _RESERVED) // _SHARED_STEP) * _SHARED_STEP
    by = {"registers": resident // warps, "shared memory": limits.shared_bytes // shared, "warps": limits.warps // warps,
          "blocks": limits.blocks}
    limit = min(by, key=lambda name: by[name])
    return Occupancy(by[limit], by[limit] * warps, limits.warps, limit)
