"""What a program of `sparse-mma` computes at a time, and what follows from that: threads, shared memory, accumulators, copies."""

from __future__ import annotations

import math
from dataclasses import dataclass

STAGE_COLUMNS = 128
"""Columns of a stage."""
EXCHANGED_ROWS = 80
"""Weight rows of a warp that the epilogue exchanges at once, at most."""


@dataclass(frozen=True)
class Tile:
    """What a program computes at a time: warps_n × warps_t warps, each 16 · tiles_n weight rows × 8 · tiles_t tokens."""

    warps_n: int
    warps_t: int
    tiles_n: int
    tiles_t: int

    @property
    def threads(self) -> int:
        """Threads of a program."""
        return 32 * self.warps_n * self.warps_t

    @property
    def block_n(self) -> int:
        """Weight rows."""
        return 16 * self.warps_n * self.tiles_n

    @property
    def block_t(self) -> int:
        """Tokens."""
        return 8 * self.warps_t * self.tiles_t

    @property
    def exchange_tiles(self) -> int:
        """Row tiles of a warp that the epilogue exchanges at once."""
        return max(count for count in range(1, EXCHANGED_ROWS // 16 + 1) if self.tiles_n % count == 0)

    @property
    def exchange_pitch(self) -> int:
        """Bytes from token to token where the epilogue exchanges: 16 more than the rows take, so that eight tokens meet in no bank."""
        return 32 * self.exchange_tiles + 16

    @property
    def stage_bytes(self) -> int:
        """Shared memory of a stage."""
        return STAGE_COLUMNS * self.block_t + 32 * self.block_n

    @property
    def exchange_bytes(self) -> int:
        """Shared memory in which the epilogue exchanges eight tokens of every warp's rows, in whole lines of 64 bytes."""
        return math.ceil(self.threads // 4 * self.exchange_pitch / 64) * 64

    @property
    def accumulators(self) -> int:
        """Per thread."""
        return 4 * self.tiles_n * self.tiles_t

    @property
    def token_copies(self) -> int:
        """16-byte chunks of activations that a thread copies for a stage, at most."""
        return math.ceil(8 * self.block_t / self.threads)

    @property
    def word_copies(self) -> int:
        """16-byte chunks of packed words that a thread copies for a stage, at most."""
        return math.ceil(2 * self.block_n / self.threads)
