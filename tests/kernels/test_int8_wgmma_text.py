"""The int8 × int8 Hopper GEMM's own Python and PTX, in an emulator over whole launches."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from kernels.ternary_gemm import int8_wgmma
from kernels.ternary_gemm import int8_wgmma_kernel as kernel
from kernels.ternary_gemm.int8_wgmma import bind
from kernels.ternary_gemm.int8_wgmma_config import Int8Config
from kernels.ternary_gemm.int8_wgmma_ptx import LEFT_DESCRIPTOR, OUT_DESCRIPTOR, RIGHT_DESCRIPTOR, ring_offsets
from kernels.ternary_gemm.sparse_wgmma_ptx import DESCRIPTOR, Y_DESCRIPTOR
from tests.kernels import launch_emulator, wgmma_emulator
from tests.kernels.cluster_emulator import WINDOW
from tests.kernels.launch_emulator import CONSUMER, Launch
from tests.kernels.ptx_emulator import Array, signed
from tests.kernels.test_int8_wgmma import expected, operands
from tests.kernels.wgmma_emulator import ROW, THREAD, Threads, swizzled

MAPS = {LEFT_DESCRIPTOR: 1 << 41, RIGHT_DESCRIPTOR: 1 << 42, OUT_DESCRIPTOR: 1 << 43}
"""Addresses of the TMA descriptors among the parameters."""


class SharedThreads(Threads):
    """Threads whose products have both operands in shared memory, and who write into that of other programs of their cluster."""

    def check_nothing_left(self) -> None:
        # Programs whose cluster has nothing to meet for do not meet.
        self.met = self.met is not False
        super().check_nothing_left()

    def _boxes(self, kind: list[str], operands: list[str], guard: Array) -> None:
        if kind[5] == "global":
            super()._boxes(kind, operands, guard)
            return
        assert self.begun.all(), "device memory before the launches before this one have ended"
        column, row = (signed(self.value(name)) for name in re.findall(r"[\w$]+", operands[2]))
        (source,) = set(self._address(operands[1])[guard]) or {None}
        multicast = "multicast::cluster" in kind[-1]
        assert multicast == (len(operands) > 4)
        assert not multicast or self.met, "shared memory of a program that may not have begun"
        ranks = [rank for rank in range(8) if int(operands[4]) >> rank & 1] if multicast else [self.block.rank]
        for thread, rank in itertools.product(np.flatnonzero(guard), ranks):
            place, bar = (int(self._address(operands[index])[thread]) for index in (0, 3))
            self._bring(self.block.peer(rank), str(source), int(row[thread]), int(column[thread]), place, bar)

    def _bring(self, block: Any, source: str, row: int, column: int, at: int, bar: int) -> None:
        """A box of an operand, zeros behind the edges, in the 128-byte swizzle."""
        (name,) = (name for name, address in MAPS.items() if str(address) == source)
        described = block.launch.descriptors[name]
        box = np.zeros(described.block_shape, np.int8)
        assert at % 1024 == 0
        assert at + box.nbytes <= ring_offsets(*block.launch.ring)[0]

        def copy() -> None:
            part = described.base.numpy()[row : row + box.shape[0], column : column + box.shape[1]]
            box[: part.shape[0], : part.shape[1]] = part
            block.shared[swizzled(at, box.nbytes)] = box.view(np.uint8).flatten()

        block.barriers[bar].send(copy, box.nbytes)

    def _place(self, at: Array) -> Array:
        far = at // WINDOW
        if not (far.any() and (far < 16).all()):
            return super()._place(at)
        assert self.met, "shared memory of a program that may not be ready"
        return np.array([self.block.peer(int(one // WINDOW) - 1).number * launch_emulator.SHARED + int(one % WINDOW) for one in at])

    def _product(self, operands: list[str], sparse: bool) -> Callable[[], None]:
        """wgmma.mma_async m64nNk32 on int8, both operands in 128-byte-swizzled shared memory; descriptors are taken now."""
        assert not sparse
        accumulators = operands[0].strip("{}").replace(" ", "").split(",")
        left, right = self.registers[operands[1]].copy(), self.registers[operands[2]].copy()
        keep = self.registers[operands[3]].astype(bool).copy()
        for described in (left, right):
            assert (described >> np.uint64(16) == DESCRIPTOR >> 16).all()
            assert (described.reshape(2, 128) == described.reshape(2, 128)[:, :1]).all()

        def matrix(descriptor: int, rows: int) -> Array:
            row, column = np.divmod(np.arange(rows * 32), 32)
            at = ((descriptor & 0x3FFF) << 4) + row // 8 * 1024 + row % 8 * 128 + column
            return self.block.shared[at ^ (at >> 7 & 7) << 4].view(np.int8).reshape(rows, 32).astype(np.float64)

        def run() -> None:
            index = np.arange(len(accumulators))[:, None]
            sums = []
            for group in (0, 128):
                product = (matrix(int(left[group]), 64) @ matrix(int(right[group]), 2 * len(accumulators)).T).astype(np.int64)
                sums.append(product[ROW + 8 * (index >> 1 & 1), 8 * (index // 4) + 2 * (THREAD % 4) + (index & 1)])
            for name, part in zip(accumulators, np.concatenate(sums, 1), strict=True):
                self.registers[name] = (np.where(keep, self.registers[name], 0) + part.astype(np.uint64)) & np.uint64(0xFFFFFFFF)

        return run


def launched(clusters: int, late: bool, left: Any, right: Any, out: Any, *arguments: Any, num_warps: int, num_ctas: int,
             launch_pdl: bool, **constants: Any) -> None:
    """`int8_gemm` on tensors in the CPU's memory."""
    assert (num_warps, num_ctas, launch_pdl) == (CONSUMER // 32, max(constants["SPLITS"], constants["PAIR"]), True)
    launch: Any = Launch(clusters * num_ctas, num_ctas, late, {LEFT_DESCRIPTOR: left, RIGHT_DESCRIPTOR: right, Y_DESCRIPTOR: out})
    launch.ring = constants["TILES"], constants["BLOCK_N"], constants["STAGES"]
    passed = [launch.add(argument) if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    launch.memory = np.concatenate(launch.parts)
    for block in launch.blocks:
        block.names(SharedThreads(block, CONSUMER, 0))["int8_gemm"](left, right, out, *passed, **constants)
    launch.run()


@pytest.fixture(params=[False, True], ids=["early", "late"])
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, address in MAPS.items():
        monkeypatch.setitem(wgmma_emulator.MAPS, name, address)
    monkeypatch.setitem(wgmma_emulator.MAPS, Y_DESCRIPTOR, MAPS[OUT_DESCRIPTOR])
    monkeypatch.setattr(launch_emulator, "kernel", kernel)
    monkeypatch.setattr(launch_emulator, "Threads", SharedThreads)

    class Emulated:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            return partial(launched, grid[0], request.param)

    monkeypatch.setattr(int8_wgmma, "int8_gemm", Emulated())


PROCESSORS = {1: 3, 2: 4, 4: 20, 8: 28}
"""By programs of a cluster, multiprocessors that three programs run on, or two clusters."""


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("config", "rows", "columns", "summed", "dtype"), [
    (Int8Config(1, 128, 3), 300, 520, 300, torch.bfloat16),  # fifteen tiles on three programs
    (Int8Config(1, 256, 3, group=1), 300, 136, 1000, torch.float16),
    (Int8Config(2, 128, 3), 130, 264, 128, torch.bfloat16),
    (Int8Config(1, 224, 3, group=2), 700, 136, 130, torch.bfloat16),
    (Int8Config(1, 192, 3), 193, 77, 16, torch.float32),
    (Int8Config(1, 128, 3, pair=2), 300, 400, 700, torch.bfloat16),  # twelve tiles, one of them behind the last column
    (Int8Config(1, 192, 3, pair=2), 200, 256, 300, torch.bfloat16),
    (Int8Config(1, 128, 3, splits=2), 300, 256, 900, torch.bfloat16),  # a whole tile each, then two in halves of four steps
    (Int8Config(1, 128, 3, splits=2, pair=2), 380, 250, 900, torch.bfloat16),
    (Int8Config(2, 128, 3, splits=2, pair=2), 120, 250, 500, torch.float32),
    (Int8Config(1, 224, 3, splits=4), 230, 100, 1100, torch.bfloat16),  # seven slices for four parts
    (Int8Config(1, 128, 4, splits=8), 60, 120, 1100, torch.bfloat16),
], ids=str)  # fmt: skip
def test_emulated_launches_give_the_bits(config: Int8Config, rows: int, columns: int, summed: int, dtype: torch.dtype) -> None:
    left, scale, right = operands(rows, columns, summed)
    gemm = bind(left, scale, right, dtype, config, PROCESSORS[config.cluster])
    gemm.out.view(torch.uint8).fill_(0xA5)
    gemm.launch()
    assert torch.equal(gemm.out, expected(left, scale, right, dtype))
