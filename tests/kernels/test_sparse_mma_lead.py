"""The `mma.sp` GEMM's barrier: half of its warps run as far ahead of the others as it lets them, and the numbers stay right.

The emulator runs all of a machine's threads together, so a race cannot show there. Here two machines of half the warps share one memory.
The leader passes a stage's wait as soon as the follower has arrived for it, and not before; the follower goes on only when the leader must
wait. Copies happen at once, as early as they may, or at the last wait that needs them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kernels.problem import Sparsity
from kernels.ternary_gemm.sparse_mma_epilogue import epilogue
from kernels.ternary_gemm.sparse_mma_ptx import declare, fill, prime, stage, zero
from kernels.ternary_gemm.sparse_mma_tile import Tile
from tests.kernels.mma_emulator import WarpMachine
from tests.kernels.ptx_emulator import Array
from tests.kernels.test_sparse_mma_text import Run

Piece = tuple[str, list[int]]


class HalfMachine(WarpMachine):
    """Half of a program's threads, from `first` on."""

    def __init__(self, memory: Array, threads: int, first: int, late: bool, patch: pytest.MonkeyPatch) -> None:
        super().__init__(memory, threads, late, patch)
        self.memory, self.first = memory, first

    def value(self, name: str, bits: int = 32) -> Array:
        """As the whole machine's, with its own threads' numbers."""
        found = super().value(name, bits)
        return found + np.uint64(self.first) if name == "%tid.x" else found


class Recorder:
    """Takes the place of a machine and keeps what it is told to run."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def run(self, text: str, operands: list[int]) -> None:
        """Keep a block."""
        self.pieces.append((text, operands))


def recorded(run: Run, y: int) -> Iterator[list[Piece]]:
    """What a warp executes, cut at block-wide barriers, then behind each arrival and in front of each stage's wait, in turn."""
    machine = Recorder()
    run.machine = machine  # type: ignore[assignment]  # only `run` is called
    machine.run(declare(run.tile), [run.steps])
    run._point()
    for slot in range(run.stages - 1):
        machine.run(fill(run.tile), [slot, *run._advance()])
    parts = prime(run.tile, run.stages).split("bar.sync 0;")
    assert len(parts) == 3
    for text in parts:
        machine.run(text, [run.steps])
        yield machine.pieces
        machine.pieces = []
    at, before = 0, run.stages - 1
    for work in range(run.works):
        for _ in range(run.steps):
            following = (at + 1) % run.stages
            operands = [at, following, before, *run._advance()]
            head, tail = stage(run.tile, run.stages).split("mbarrier.test_wait", 1)
            machine.run(head, operands)
            yield machine.pieces
            machine.pieces = []
            machine.run(tail.split(";", 1)[1], operands)
            yield machine.pieces
            machine.pieces = []
            before, at = at, following
        token, row = (index * size for index, size in zip(divmod(work, run.row_tiles), (run.tile.block_t, run.tile.block_n), strict=True))
        places = [run.at["x_scale"], run.at["row_scale"], run.at["bias"], y]
        machine.run(epilogue(run.tile, "bf16", run.stages), [row, token, run.tokens, run.rows, *places])
        machine.run(zero(run.tile), [])
    yield machine.pieces


SLACK = 1
"""Pieces that the other half may be behind where a stage's wait is passed."""
TILES = [(Tile(4, 2, 5, 1), 3, 136), (Tile(2, 2, 8, 1), 4, 264), (Tile(4, 2, 1, 1), 3, 72), (Tile(2, 2, 2, 6), 6, 72)]


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("leader", [0, 1], ids=["first-half", "second-half"])
@pytest.mark.parametrize(("tile", "stages", "rows"), TILES, ids=["320x16", "256x16", "64x16", "64x96"])
def test_a_leading_half_reads_and_overwrites_nothing_too_soon(
    tile: Tile, stages: int, rows: int, leader: int, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tile, stages, late, monkeypatch, rows, 640, tile.block_t + 3, Sparsity(2, 4))
    out = torch.full((run.tokens, rows), 3, dtype=torch.bfloat16)
    y = run.memory.add(out)
    pieces = list(recorded(run, y))
    memory = np.concatenate(run.memory.parts)
    halves = [HalfMachine(memory, tile.threads // 2, first, late, monkeypatch) for first in (0, tile.threads // 2)]
    done = [0, 0]

    def play(half: int) -> None:
        for text, operands in pieces[done[half]]:
            halves[half].run(text, operands)
        done[half] += 1

    for _ in range(2):  # block-wide barriers
        play(0), play(1)
    # Then even pieces end with an arrival; from the fourth on they begin behind a wait, for the other half's arrival two pieces before.
    while min(done) < len(pieces):
        mine, other = done[leader], done[1 - leader]
        ahead = mine < len(pieces) and (mine % 2 == 1 or other >= mine - SLACK)
        play(leader if ahead else 1 - leader)
    found = torch.from_numpy(memory[y : y + 2 * out.numel()].copy()).view(torch.bfloat16).view(out.shape)
    assert ((found.double() - run.expected).abs() <= 2**-8 * run.expected.abs() + 1e-6).all()
