"""The `mma.sp` GEMM's own PTX, run by an emulator over whole tiles: addresses, copies, waits, unpacking, operands, scales, stores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from kernels.problem import Sparsity
from kernels.ternary_gemm.sparse_mma_epilogue import epilogue, plain_epilogue
from kernels.ternary_gemm.sparse_mma_parts import collect, deposit
from kernels.ternary_gemm.sparse_mma_ptx import declare, fill, point, prime, shared_bytes, stage, zero
from kernels.ternary_gemm.sparse_mma_tile import Tile
from kernels.ternary_gemm.sparse_wgmma import fragment_weight, padded_rows
from reference.lifting import lift_activation
from reference.linear import accumulate, linear
from reference.sparsity import nm_mask
from tests.kernels.mma_emulator import WarpMachine

TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "s32": torch.int32}


class Memory:
    """One address space: shared memory from 0, then tensors with a gap behind each."""

    def __init__(self, shared_bytes: int) -> None:
        self.parts, self.end = [np.full(shared_bytes, 0x5A, np.uint8)], shared_bytes

    def add(self, tensor: torch.Tensor) -> int:
        at = self.end
        raw = tensor.contiguous().view(torch.uint8).flatten().numpy()
        self.parts.append(np.concatenate([raw, np.full(-len(raw) % 256 + 256, 0x7F, np.uint8)]))
        self.end += len(self.parts[-1])
        return at


class Run:
    """The kernel's control flow for one program that computes every tile, over blocks of its own text."""

    def __init__(self, tile: Tile, stages: int, late: bool, patch: pytest.MonkeyPatch, rows: int, width: int, tokens: int,
                 sparsity: Sparsity, splits: int = 1) -> None:
        generator = torch.Generator().manual_seed(rows + tokens)
        self.tile, self.stages, self.rows, self.tokens = tile, stages, rows, tokens
        self.w = torch.randint(-1, 2, (rows, width), generator=generator, dtype=torch.int8)
        self.w *= nm_mask(torch.randn(rows, width, generator=generator), sparsity.n, sparsity.m)
        self.x = torch.randint(-127, 128, (tokens, width), generator=generator, dtype=torch.int8)
        self.x_scale, self.w_scale, self.bias = (torch.rand(size, generator=generator) + 0.5 for size in (tokens, 2, rows))
        self.splits = (rows - rows // 3, rows // 3)
        self.weight = fragment_weight(self.w, self.w_scale, self.splits, sparsity)
        x = lift_activation(self.x, sparsity.m) if sparsity.lifted else self.x
        self.width = -(-x.shape[1] // 16) * 16
        x = torch.nn.functional.pad(x, (0, self.width - x.shape[1]), value=77)
        self.memory = Memory(shared_bytes(tile, stages) + 64)
        self.at = {"x": self.memory.add(x), "w": self.memory.add(self.weight.blocks), "x_scale": self.memory.add(self.x_scale),
                   "row_scale": self.memory.add(self.weight.row_scale), "bias": self.memory.add(padded_rows(self.bias, rows))}
        self.late, self.patch = late, patch
        self.steps, self.row_tiles = self.weight.blocks.shape[1], math.ceil(rows / tile.block_n)
        self.parts, tiles = splits, self.row_tiles * math.ceil(tokens / tile.block_t)
        self.works = tiles * splits
        self.at["sums"] = self.memory.add(torch.zeros(self.works * tile.block_n * tile.block_t, dtype=torch.int32))
        self.at["counts"] = self.memory.add(torch.zeros(tiles, dtype=torch.int32))
        self.ahead = 0
        self.ahead_step, self.ahead_end = self._steps(0)

    def _steps(self, work: int) -> tuple[int, int]:
        part = work % self.parts
        return part * self.steps // self.parts, (part + 1) * self.steps // self.parts

    def _point(self) -> None:
        tile = self.ahead // self.parts
        token, block = tile // self.row_tiles * self.tile.block_t, tile % self.row_tiles * self.tile.block_n // 64
        self.machine.run(point(self.tile), [self.at["x"], self.width, token, self.tokens, self.at["w"], block,
                                            self.weight.blocks.shape[0], self.steps, self.ahead_step])

    def _advance(self) -> list[int]:
        if self.ahead_step == self.ahead_end:
            self.ahead += 1
            self.ahead_step, self.ahead_end = self._steps(self.ahead)
            self._point()
        self.ahead_step += 1
        return [int(self.ahead < self.works), self.width - (self.ahead_step - 1) * 128]

    def _meet(self, work: int) -> bool:
        tile, places = work // self.parts, [self.at["sums"], self.at["counts"]]
        self.machine.run(deposit(self.tile, self.stages), [work, tile, *places])
        if self.machine.registers["$0"][0] != self.parts - 1:
            return False
        self.machine.run(zero(self.tile), [])
        for part in range(self.parts):
            self.machine.run(collect(self.tile), [tile * self.parts + part, tile, *places])
        return True

    def output(self, kind: str, wide: bool) -> torch.Tensor:
        out = torch.full((self.tokens, self.rows), 3, dtype=TYPES[kind])
        y = self.memory.add(out)
        self.machine = WarpMachine(np.concatenate(self.memory.parts), self.tile.threads, self.late, self.patch)
        untouched = self.machine.memory.copy()
        self.machine.run(declare(self.tile), [self.steps])
        self._point()
        for slot in range(self.stages - 1):
            self.machine.run(fill(self.tile), [slot, *self._advance()])
        self.machine.run(prime(self.tile, self.stages), [self.steps])
        at, before = 0, self.stages - 1
        for work in range(self.works):
            first, behind = self._steps(work)
            for _ in range(first, behind):
                following = (at + 1) % self.stages
                self.machine.run(stage(self.tile, self.stages), [at, following, before, *self._advance()])
                before, at = at, following
            if self.parts == 1 or self._meet(work):
                text = epilogue(self.tile, kind, self.stages) if wide else plain_epilogue(self.tile, kind)
                token, row = (index * size for index, size in zip(divmod(work // self.parts, self.row_tiles),
                                                                  (self.tile.block_t, self.tile.block_n), strict=True))
                self.machine.run(text, [row, token, self.tokens, self.rows, self.at["x_scale"], self.at["row_scale"], self.at["bias"], y])
            self.machine.run(zero(self.tile), [])
        end = y + out.numel() * out.element_size()
        line = shared_bytes(self.tile, self.stages) + 64
        for first, behind in ((line, self.at["sums"]), (self.at["counts"], y)):
            assert np.array_equal(self.machine.memory[first:behind], untouched[first:behind]), "an input was overwritten, or a count left"
        assert np.array_equal(self.machine.memory[end:], untouched[end:]), "something was written behind the output"
        return torch.from_numpy(self.machine.memory[y:end].copy()).view(out.dtype).view(self.tokens, self.rows)

    @property
    def expected(self) -> torch.Tensor:
        return linear(self.x, self.x_scale, self.w, self.w_scale, self.splits, self.bias)


# Tile, stages, rows, width, tokens, sparsity, parts: several tiles a program, ends of rows, columns and tokens, every way to copy.
CASES = [
    (Tile(2, 4, 8, 4), 4, 264, 132, 130, Sparsity(2, 4)),
    (Tile(2, 2, 4, 2), 3, 130, 520, 35, Sparsity(2, 4)),
    (Tile(4, 1, 1, 1), 6, 70, 96, 9, Sparsity(6, 8)),
    (Tile(4, 1, 1, 1), 3, 70, 612, 9, Sparsity(2, 4), 3),
    (Tile(4, 2, 2, 1), 3, 128, 60, 17, Sparsity(4, 6)),
    (Tile(4, 2, 5, 3), 4, 336, 264, 50, Sparsity(2, 4)),
]
IDS = ["256x128", "128x32", "64x8", "64x8-3-parts", "128x16", "320x48"]


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_raw_accumulators_are_exact(case: tuple[Any, ...], late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(*case[:2], late, monkeypatch, *case[2:])
    assert torch.equal(run.output("s32", wide=False).long(), accumulate(run.x, run.w))


WIDE = [(Tile(2, 4, 8, 1), 136), (Tile(4, 1, 6, 2), 400), (Tile(4, 1, 5, 5), 328), (Tile(4, 1, 2, 2), 200), (Tile(4, 1, 1, 1), 72),
        (Tile(1, 4, 4, 1), 64)]


@pytest.mark.parametrize(("tile", "rows"), WIDE, ids=["256x32", "384x16", "320x40", "128x16", "64x8", "64x32"])
def test_wide_stores_give_the_reference(tile: Tile, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tile, 3, True, monkeypatch, rows, 192, tile.block_t + 3, Sparsity(2, 4))
    found = run.output("bf16", wide=True)
    assert ((found.double() - run.expected).abs() <= 2**-8 * run.expected.abs() + 1e-6).all()


@pytest.mark.parametrize("kind", ["bf16", "f16", "f32"])
def test_plain_stores_give_the_reference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Tile(4, 1, 2, 1), 3, True, monkeypatch, 67, 128, 11, Sparsity(2, 4))
    share = {"bf16": 2**-8, "f16": 2**-10, "f32": 2**-22}[kind]
    assert ((run.output(kind, wide=False).double() - run.expected).abs() <= share * (run.expected.abs() + 60)).all()
