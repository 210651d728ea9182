"""The PTX of the decode kernel, executed for all threads of a program at once, a program after the other.

Registers are arrays of raw bits over threads. Asynchronous copies land when a wait for their group asks for them and not before, so a wait
that asks for too little is seen; products of warpgroups happen at once; barriers are skipped, because all threads run in step: a missing
one is not seen.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from kernels.ternary_gemm.sparse_wgmma_ptx import DESCRIPTOR
from tests.kernels.ptx_emulator import bf16_bits, f16_bits, signed, split_operands, statements

Array = np.ndarray[Any, Any]
SKIPPED = ("wgmma.fence", "wgmma.commit_group", "wgmma.wait_group", "bar.sync", "barrier.cluster", "fence", "griddepcontrol", "ret")
COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
WIDTH = {"b16": 2, "b32": 4, "u32": 4, "s32": 4, "f32": 4, "b64": 8}


def floats(bits: Array) -> Array:
    return bits.astype(np.uint32).view(np.float32)


def raw(values: Array) -> Array:
    return values.astype(np.float32).view(np.uint32).astype(np.uint64)


class Program:
    """memory: shared memory of this program from 0 on, global memory behind it, bytes. cluster: the shared memory of every program of its
    cluster as it was at the barrier before, and rank: which of them this one is."""

    def __init__(self, memory: Array, threads: int, rank: int = 0) -> None:
        self.memory, self.threads, self.rank = memory, threads, rank
        self.cluster: list[Array] = []
        self.registers: dict[str, Array] = {}
        self.groups: list[list[tuple[Array, Array, Array]]] = [[]]

    def run(self, text: str, operands: list[int]) -> int:
        """Execute a block with $1 … the same for every thread; the value of $0 in the first one."""
        for index in range(len(operands), 0, -1):
            text = text.replace(f"${index}", str(operands[index - 1] & (1 << 64) - 1))
        text = re.sub(r"(\w+_)\$\{:uid\}:", r"label \1;", text).replace("_${:uid}", "_")
        active, waiting = np.ones(self.threads, bool), {}
        for line in statements(text):
            if line.startswith("label"):
                active = active | waiting.pop(line.split()[1])
                continue
            guard, line = self._guard(line, active)
            if line.startswith("bra"):
                waiting[line.split()[1]], active = guard, active & ~guard
            elif line.startswith(("bar.sync", "barrier.cluster.wait")):
                self.meet()
            elif not line.startswith(SKIPPED):
                self._execute(line, guard)
        assert not waiting
        return int(self.registers["$0"][0])

    def meet(self) -> None:
        """All threads of the program are here; nothing to do where they run in step."""

    def zero(self, size: int) -> None:
        """The compiler's own code clears the first bytes of shared memory: any thread any of them."""
        self.memory[:size] = 0

    def _guard(self, line: str, active: Array) -> tuple[Array, str]:
        if not line.startswith("@"):
            return active, line
        predicate, line = line[1:].split(None, 1)
        return active & self.registers[predicate].astype(bool), line

    def value(self, name: str) -> Array:
        if name == "%tid.x":
            return np.arange(self.threads, dtype=np.uint64)
        if name == "%cluster_ctarank":
            return np.full(self.threads, self.rank, np.uint64)
        if name == "%nctaid.z":
            return np.ones(self.threads, np.uint64)
        if name == "global_smem":
            return np.zeros(self.threads, np.uint64)
        if re.fullmatch(r"-?\d+|0x[0-9A-Fa-f]+|0f[0-9A-F]{8}", name):
            number = int(name[2:], 16) if name.startswith("0f") else int(name, 0)
            return np.full(self.threads, number & (1 << 64) - 1, np.uint64)
        return self.registers[name]

    def _set(self, name: str, found: Array, guard: Array) -> None:
        before = self.registers.get(name, np.zeros(self.threads, np.uint64))
        self.registers[name] = np.where(guard, found.astype(np.uint64), before)

    def _execute(self, line: str, guard: Array) -> None:
        opcode, _, rest = line.partition(" ")
        kind, operands = opcode.split("."), split_operands(rest)
        special = {"cp": self._copy, "ld": self._load, "st": self._store, "red": self._reduce, "atom": self._atom, "setp": self._compare,
                   "redux": self._warp_max, "ldmatrix": self._matrices, "mma": self._multiply, "wgmma": self._warpgroup}.get(kind[0])
        if special is not None:
            special(kind, operands, guard)
        else:
            self._set(operands[0], self._compute(kind, [self.value(name) for name in operands[1:]]), guard)

    def _compute(self, kind: list[str], a: list[Array]) -> Array:
        name, last = kind[0], kind[-1]
        if last == "f32" and name in ("mul", "add", "fma", "div"):
            x = [floats(value) for value in a]
            if name == "fma":
                return raw((x[0].astype(np.float64) * x[1] + x[2]).astype(np.float32))
            return raw({"mul": np.multiply, "add": np.add, "div": np.divide}[name](x[0], x[1]))
        if name == "cvt":
            return self._convert(kind, a[0])
        if name == "prmt":
            both = a[0] & np.uint64(0xFFFFFFFF) | a[1] << np.uint64(32)
            nibbles = [a[2] >> np.uint64(4 * i) & np.uint64(15) for i in range(4)]
            chosen = [both >> ((n & np.uint64(7)) * np.uint64(8)) & np.uint64(255) for n in nibbles]
            signs = [(byte >> np.uint64(7)) * np.uint64(255) for byte in chosen]
            found = [np.where(n >> np.uint64(3), sign, byte) for n, sign, byte in zip(nibbles, signs, chosen, strict=True)]
            return sum(byte << np.uint64(8 * i) for i, byte in enumerate(found))
        if name == "lop3":
            kept = [index for index in range(8) if int(a[3][0]) >> index & 1]
            minterms = [(a[0] if i & 4 else ~a[0]) & (a[1] if i & 2 else ~a[1]) & (a[2] if i & 1 else ~a[2]) for i in kept]
            return np.bitwise_or.reduce(minterms) & np.uint64(0xFFFFFFFF)
        if name == "shr" and kind[1] == "s32":
            return (signed(a[0]) >> a[1].astype(np.int64)).astype(np.uint64) & np.uint64(0xFFFFFFFF)
        found = {
            "mov": lambda: a[0], "shr": lambda: a[0] >> a[1], "shl": lambda: a[0] << a[1], "and": lambda: a[0] & a[1],
            "add": lambda: a[0] + a[1], "sub": lambda: a[0] - a[1], "min": lambda: np.minimum(a[0], a[1]), "mul": lambda: a[0] * a[1],
            "xor": lambda: a[0] ^ a[1], "or": lambda: a[0] | a[1],
            "max": lambda: np.maximum(a[0], a[1]), "mad": lambda: a[0] * a[1] + a[2],
            "mapa": lambda: a[0] | a[1] << np.uint64(24),
            "selp": lambda: np.where(a[2].astype(bool), a[0], a[1]),
        }[name]()
        wide = last in ("b64", "s64", "u64") or "wide" in kind or last == "pred"
        return found if wide else found & np.uint64(0xFFFFFFFF)

    @staticmethod
    def _convert(kind: list[str], a: Array) -> Array:
        to, source = kind[-2:]
        if (to, source) == ("f32", "s32"):
            return raw(signed(a).astype(np.float32))
        if (to, source) == ("f32", "f16"):
            return raw(a.astype(np.uint16).view(np.float16).astype(np.float32))
        if source == "f32":
            return {"bf16": bf16_bits, "f16": f16_bits}[to](floats(a))
        return a & np.uint64({"u64": (1 << 64) - 1, "u16": 0xFFFF}[to])

    def _compare(self, kind: list[str], operands: list[str], guard: Array) -> None:
        a, b = (self.value(name) for name in operands[1:3])
        if kind[-1] == "s32":
            a, b = signed(a), signed(b)
        else:
            a, b = a & np.uint64(0xFFFFFFFF), b & np.uint64(0xFFFFFFFF)
        found = COMPARE[kind[1]](a, b)
        self._set(operands[0], found & self.value(operands[3]).astype(bool) if len(operands) > 3 else found, guard)

    def _address(self, operand: str) -> Array:
        base, _, offset = operand.strip("[]").partition("+")
        return (self.value(base) + np.uint64(int(offset or 0))).astype(np.int64)

    def _read(self, at: Array, size: int) -> Array:
        assert (at % size == 0).all(), "misaligned"
        found = np.zeros(len(at), np.uint64)
        for index in range(size):
            found |= self.memory[at + index].astype(np.uint64) << np.uint64(8 * index)
        return found

    def _write(self, at: Array, value: Array, size: int) -> None:
        assert (at % size == 0).all(), "misaligned"
        for index in range(size):
            self.memory[at + index] = (value >> np.uint64(8 * index)).astype(np.uint8)

    def _load(self, kind: list[str], operands: list[str], guard: Array) -> None:
        names, size = operands[0].strip("{}").replace(" ", "").split(","), WIDTH[kind[-1]]
        at = np.where(guard, self._address(operands[1]), 0)
        if kind[1] == "shared::cluster":
            found = [int.from_bytes(self.cluster[one >> 24][one & 0xFFFFFF :][:size].tobytes(), "little") for one in at]
            self._set(names[0], np.array(found, np.uint64), guard)
            return
        assert not len(names) > 1 or (at % (size * len(names)) == 0).all(), "misaligned"
        for index, name in enumerate(names):
            self._set(name, self._read(at + size * index, size), guard)

    def _store(self, kind: list[str], operands: list[str], guard: Array) -> None:
        names, size = operands[1].strip("{}").replace(" ", "").split(","), WIDTH[kind[-1]]
        at = self._address(operands[0])[guard]
        for index, name in enumerate(names):
            self._write(at + size * index, self.value(name)[guard], size)

    def _reduce(self, kind: list[str], operands: list[str], guard: Array) -> None:
        at, value = self._address(operands[0]), self.value(operands[1])
        for thread in np.flatnonzero(guard):
            one = at[thread : thread + 1]
            old, new = int(self._read(one, 4)[0]), int(value[thread])
            self._write(one, np.array([max(old, new) if "max" in kind else (old + new) & 0xFFFFFFFF], np.uint64), 4)

    def _atom(self, kind: list[str], operands: list[str], guard: Array) -> None:
        assert guard.sum() <= 1
        self._load(["ld", "b32"], operands[:2], guard)
        self._reduce(kind, operands[1:], guard)

    def _warp_max(self, kind: list[str], operands: list[str], guard: Array) -> None:
        value = self.value(operands[1]).reshape(-1, 32)
        self._set(operands[0], np.repeat(value.max(1), 32), guard)

    def _copy(self, kind: list[str], operands: list[str], guard: Array) -> None:
        if kind[2] == "commit_group":
            self.groups.append([])
        elif kind[2] == "wait_group":
            done = max(0, len(self.groups) - 1 - int(operands[0]))
            for copies in self.groups[:done]:
                for target, source, size in copies:
                    for byte in range(16):
                        self.memory[target + byte] = np.where(size > byte, self.memory[source + byte], 0)
            self.groups = self.groups[done:]
        else:
            target, source = self._address(operands[0])[guard], self._address(operands[1])[guard]
            size = self.value(operands[3])[guard] if len(operands) > 3 else np.full(len(target), 16)
            assert (target % 16 == 0).all()
            assert (source % 16 == 0).all()
            self.groups[-1].append((target, source, size))

    def _matrices(self, kind: list[str], operands: list[str], guard: Array) -> None:
        names, at = operands[0].strip("{}").replace(" ", "").split(","), self._address(operands[1]).reshape(-1, 4, 8)
        lane = np.arange(32)
        for index, name in enumerate(names):
            rows = np.where(guard.reshape(-1, 32), at[:, index, lane // 4] + 4 * (lane % 4), 0).flatten()
            self._set(name, self._read(rows, 4), guard)

    def _bytes(self, names: str) -> Array:
        """int64 [warps, lanes, registers, 4] of a fragment."""
        words = np.stack([self.value(name.strip()) for name in names.strip("{}").split(",")], 1).astype(np.uint32)
        return words.view(np.int8).reshape(-1, 32, words.shape[1], 4).astype(np.int64)

    def _multiply(self, kind: list[str], operands: list[str], guard: Array) -> None:
        """mma.m16n8k32 and mma.sp.m16n8k64 on signed bytes, every warp's."""
        b, sparse = self._bytes(operands[2]), kind[1].startswith("sp")
        g, q = np.arange(32) // 4, np.arange(32) % 4
        right = np.zeros((len(b), 64, 8), np.int64)
        for i in range(b.shape[2]):
            for byte in range(4):
                right[:, 16 * i + 4 * q + byte, g] = b[:, :, i, byte]
        self._products(operands, right, 4 if sparse else None, guard, kind[1] != "sp")

    def _warpgroup(self, kind: list[str], operands: list[str], guard: Array) -> None:
        """wgmma with its left side in registers; the right one in 128-byte rows, in the 128-byte swizzle. Every warp's 16 rows."""
        described = self.value(operands[2]).reshape(-1, 32)[:, 0]
        assert (described[guard[::32]] >> np.uint64(16) == DESCRIPTOR >> 16).all()
        tokens = int(kind[-4].split("n")[1].split("k")[0])
        n, k = np.arange(tokens), np.arange(64 if "sp" in kind else 32)[:, None]
        start = np.where(guard[::32], (described & np.uint64(0x3FFF)) << np.uint64(4), 0).astype(np.int64)
        at = start[:, None, None] + n // 8 * 1024 + n % 8 * 128 + k
        right = self.fetch(at ^ (at >> 7 & 7) << 4, guard[::32]).view(np.int8).astype(np.int64)
        self._products(operands, right, 3 if "sp" in kind else None, guard)

    def fetch(self, at: Array, warps: Array) -> Array:
        """Bytes of shared memory that the tensor cores read themselves, for these warps."""
        return self.memory[at]

    def _products(self, operands: list[str], right: Array, metadata: int | None, guard: Array, ordered: bool = True) -> None:
        """Every warp's 16 rows in registers times `right` [warps, 64, tokens]; metadata: which operand, where there is one. ordered: its
        positions have to ascend; otherwise each is taken for itself, as an H200 does with all 16 pairs."""
        a, g, q = self._bytes(operands[1]), np.arange(32) // 4, np.arange(32) % 4
        left = np.zeros((len(a), 16, 32), np.int64)
        for i in range(4):
            for byte in range(4):
                left[:, g + 8 * (i & 1), 4 * q + byte + 16 * (i >> 1)] = a[:, :, i, byte]
        if metadata is not None:
            left = self._spread(left, self.value(operands[metadata]).reshape(-1, 32), guard, ordered)
        product = left @ right[:, : left.shape[2]]
        for i, name in enumerate(operands[0].strip("{}").split(",")):
            part = product[:, g + 8 * (i >> 1 & 1), 8 * (i // 4) + 2 * q + (i & 1)].flatten().astype(np.uint64)
            self._set(name.strip(), self.value(name.strip()) + part & np.uint64(0xFFFFFFFF), guard)

    @staticmethod
    def _spread(kept: Array, metadata: Array, guard: Array, ordered: bool) -> Array:
        dense = np.zeros((len(kept), 16, 64), np.int64)
        warps = np.arange(len(kept))
        for lane in range(32):
            row, first, before = lane // 4 + 8 * (lane % 2), 16 * (lane % 4 >> 1), warps
            for index in range(first, first + 16):
                place = (metadata[:, lane] >> np.uint64(2 * (index - first)) & np.uint64(3)).astype(np.int64)
                if index % 2 and ordered:
                    assert (place > before)[guard[::32]].all(), "metadata that the instruction does not allow"
                before = place
                dense[warps, row, 4 * (index // 2) + place] += kept[:, row, index]
        return dense
