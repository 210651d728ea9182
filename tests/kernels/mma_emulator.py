"""The emulator's Ampere half: `mma.sp`, `ldmatrix`, `movmatrix` and `cp.async`, for programs of any number of warps.

Asynchronous copies happen either at once, as early as hardware may do them, or at the last wait that allows it (`late`).
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels import ptx_emulator
from tests.kernels.ptx_emulator import MASK32, Array, Machine, signed, split_operands

LANE = np.arange(32)
G, Q = LANE // 4, LANE % 4


class WarpMachine(Machine):
    """One program of `threads` threads; `patch` sets that number where the emulator keeps it."""

    def __init__(self, memory: Array, threads: int, late: bool, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(ptx_emulator, "THREADS", threads)
        super().__init__(memory)
        self.threads, self.late = threads, late
        self.groups: list[list[tuple[Array, Array, Array]]] = [[]]

    def _execute(self, line: str) -> None:
        guard = np.ones(self.threads, bool)
        if line.startswith("@"):
            predicate, rest = line[1:].split(None, 1)
            guard = ~self.registers[predicate[1:]] if predicate.startswith("!") else self.registers[predicate]
        else:
            rest = line
        opcode, _, text = rest.partition(" ")
        operands = split_operands(text)
        if opcode.startswith(("bar.warp.sync", "mbarrier", "bra")):
            return
        if opcode.startswith("cp.async.cg"):
            self._copy(operands, guard)
        elif opcode.startswith("cp.async.commit"):
            self.groups.append([])
        elif opcode.startswith("cp.async.wait_group"):
            self._arrive(int(operands[0]))
        elif opcode.startswith("ldmatrix"):
            self._load_matrices(operands)
        elif opcode.startswith("movmatrix"):
            self._transpose(operands)
        elif opcode.startswith("mma.sp"):
            self._sparse_product(operands)
        elif opcode.startswith("atom.add"):
            self._count(operands, guard)
        elif opcode.startswith("selp"):
            a, b = (self.value(operand) for operand in operands[1:3])
            self.registers[operands[0]] = np.where(self.registers[operands[3]], a, b)
        elif opcode.startswith(("div", "rem")):
            a, b = (self.value(operand) for operand in operands[1:])
            self.registers[operands[0]] = a // b if opcode.startswith("div") else a % b
        else:
            super()._execute(line)

    def _count(self, operands: list[str], guard: Array) -> None:
        (thread,) = np.flatnonzero(guard)
        start = self._address(operands[1])[thread]
        word = self.memory[start : start + 4].view(np.uint32)
        self.registers[operands[0]] = np.full(self.threads, word[0], np.uint64)
        word += np.uint32(int(operands[2]))

    def _copy(self, operands: list[str], guard: Array) -> None:
        size = self.value(operands[3]) if len(operands) > 3 else np.full(self.threads, 16, np.uint64)
        copy = (self._address(operands[0])[guard], self._address(operands[1])[guard], size[guard])
        if self.late:
            self.groups[-1].append(copy)
        else:
            self._perform(copy)

    def _perform(self, copy: tuple[Array, Array, Array]) -> None:
        for to, start, size in zip(*copy, strict=True):
            self.memory[to : to + 16] = 0
            self.memory[to : to + int(size)] = self.memory[start : start + int(size)]

    def _arrive(self, pending: int) -> None:
        """All groups but the newest `pending` are there; the last list is the group that is still open."""
        while len(self.groups) > pending + 1:
            for copy in self.groups.pop(0):
                self._perform(copy)

    def _warps(self, name: str) -> Array:
        return self.registers[name].astype(np.uint32).reshape(-1, 32)

    def _load_matrices(self, operands: list[str]) -> None:
        rows = self._address(operands[1]).reshape(-1, 32)
        for index, name in enumerate(operands[0].strip("{}").replace(" ", "").split(",")):
            at = rows[:, 8 * index + G] + 4 * Q
            words = self.memory[at[..., None] + np.arange(4)].view(np.uint32)
            self.registers[name] = words.reshape(-1).astype(np.uint64)

    def _transpose(self, operands: list[str]) -> None:
        halves = self._warps(operands[1]).view(np.uint16).reshape(-1, 8, 8).transpose(0, 2, 1)
        self.registers[operands[0]] = np.ascontiguousarray(halves).view(np.uint32).reshape(-1).astype(np.uint64)

    def _sparse_product(self, operands: list[str]) -> None:
        """mma.sp m16n8k64 on signed bytes, ordered metadata, selector 0: the fragments of the PTX ISA, all warps at once."""
        d, a, b = ([name.strip() for name in operand.strip("{}").split(",")] for operand in operands[:3])
        warps = self.threads // 32
        kept = np.zeros((warps, 16, 32), np.int64)
        for j, name in enumerate(a):
            values = self._warps(name).view(np.int8).reshape(warps, 32, 4)
            for byte in range(4):
                kept[:, G + 8 * (j & 1), 4 * Q + byte + 16 * (j >> 1)] = values[:, :, byte]
        metadata = self._warps(operands[4])
        wide = np.zeros((warps, 16, 64), np.int64)
        warp = np.arange(warps)[:, None]
        for index in range(16):
            row, value = (G + 8 * (Q & 1))[None], (16 * (Q >> 1) + index)[None]
            column = 4 * (value // 2) + (metadata >> np.uint32(2 * index) & np.uint32(3)).astype(np.int64)
            np.add.at(wide, (warp, row, column), kept[warp, row, value])
        tokens = np.zeros((warps, 64, 8), np.int64)
        for i, name in enumerate(b):
            values = self._warps(name).view(np.int8).reshape(warps, 32, 4)
            for byte in range(4):
                tokens[:, 16 * i + 4 * Q + byte, G] = values[:, :, byte]
        product = wide @ tokens
        for i, name in enumerate(d):
            found = signed(self.registers[name]) + product[:, G + 8 * (i >> 1), 2 * Q + (i & 1)].reshape(-1)
            self.registers[name] = (found & MASK32).astype(np.uint64)
