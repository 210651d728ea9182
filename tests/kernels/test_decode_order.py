"""Threads of a decode program that use shared memory without an order, seen by the emulator: what a checker on a device should see, and
the reads of the tensor cores and the compiler's own stores besides. One program at a time: what a cluster's programs do is not seen.
"""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest

from kernels.problem import DENSE, Problem, Sparsity
from kernels.ternary_gemm.decode import compile_units
from kernels.ternary_gemm.decode_config import DecodeConfig
from kernels.ternary_gemm.decode_ptx import HEADER
from kernels.ternary_gemm.decode_sums import SCALES
from tests.kernels.decode_emulator import WIDTH, Array, Program
from tests.kernels.ptx_emulator import statements
from tests.kernels.test_decode_text import TWO_FOUR, Launch, assert_right

NOBODY, SEVERAL, COMPILER, ATOMIC = -1, -2, -3, -4


class Watched(Program):
    """Who wrote and who read each byte of shared memory since all threads met: one thread, or several in a way that is not one's own.

    An asynchronous copy writes from where it is issued to the meeting behind its thread's wait. without: number of a meeting left out.
    """

    def __init__(self, memory: Array, threads: int, member: int = 0, *, shared: int, without: int | None) -> None:
        super().__init__(memory, threads, member)
        self.shared, self.left_out, self.meetings = shared, without, 0
        self.writer, self.reader = np.full((2, shared), NOBODY)
        self.flying: list[list[tuple[Array, Array]]] = [[]]

    def meet(self) -> None:
        self.meetings += 1
        if self.meetings - 1 == self.left_out:
            return
        self.writer[:], self.reader[:] = NOBODY, NOBODY
        for copies in self.flying:
            for at, who in copies:
                self.wrote(at, 16, who)

    def wrote(self, at: Array, size: int, who: Array | int) -> None:
        for one in (at + byte for byte in range(size)):
            assert (one < self.shared).all(), "behind shared memory"
            for before in (self.writer, self.reader):
                free = (before[one] == NOBODY) | (before[one] == who)
                assert free.all(), f"written while another thread uses it: {one[~free][0]}"
            self.writer[one] = who

    def read(self, at: Array, size: int, who: Array | int) -> None:
        for one in (at + byte for byte in range(size)):
            free = (self.writer[one] == NOBODY) | (self.writer[one] == who)
            assert free.all(), f"read while another thread writes it: {one[~free][0]}"
            self.reader[one] = np.where((self.reader[one] == NOBODY) | (self.reader[one] == who), who, SEVERAL)
            if not isinstance(who, int) and len(np.unique(one)) < len(one):
                where, count = np.unique(one, return_counts=True)
                self.reader[where[count > 1]] = SEVERAL

    def zero(self, size: int) -> None:
        self.wrote(np.arange(size), 1, COMPILER)
        super().zero(size)

    def fetch(self, at: Array, warps: Array) -> Array:
        self.read(at[warps].flatten(), 1, SEVERAL)
        return super().fetch(at, warps)

    def _load(self, kind: list[str], operands: list[str], guard: Array) -> None:
        if kind[1] == "shared":
            self.read(self._address(operands[1])[guard], WIDTH[kind[-1]] * (operands[0].count(",") + 1), np.flatnonzero(guard))
        super()._load(kind, operands, guard)

    def _store(self, kind: list[str], operands: list[str], guard: Array) -> None:
        if kind[1] == "shared":
            at, size = self._address(operands[0])[guard], WIDTH[kind[-1]] * (operands[1].count(",") + 1)
            assert len(np.unique(at)) == len(at), "two threads write one place"
            self.wrote(at, size, np.flatnonzero(guard))
        super()._store(kind, operands, guard)

    def _reduce(self, kind: list[str], operands: list[str], guard: Array) -> None:
        if "shared" in kind:
            self.wrote(self._address(operands[0])[guard], 4, ATOMIC)
        super()._reduce(kind, operands, guard)

    def _matrices(self, kind: list[str], operands: list[str], guard: Array) -> None:
        self.read(self._address(operands[1])[guard], 16, SEVERAL)
        super()._matrices(kind, operands, guard)

    def _copy(self, kind: list[str], operands: list[str], guard: Array) -> None:
        if kind[2] == "commit_group":
            self.flying.append([])
        elif kind[2] == "wait_group":
            self.flying = self.flying[max(0, len(self.flying) - 1 - int(operands[0])) :]
        else:
            at, who = self._address(operands[0])[guard], np.flatnonzero(guard)
            self.wrote(at, 16, who)
            self.flying[-1].append((at, who))
        super()._copy(kind, operands, guard)


def watched(case: Sizes, fused: bool = False, without: int | None = None) -> Launch:
    launch = Launch(*case, "bf16", "bf16" if fused else None)
    launch.Machine = partial(Watched, shared=launch.shared, without=without)
    return launch


Sizes = tuple[DecodeConfig, Sparsity, int, int, int]
IN_CHUNKS: Sizes = (DecodeConfig(1, 4, 2, 4, 2, 8, 16, clustered=True, wgmma=True), DENSE, 70, 2304, 17)
CASES: list[Sizes] = [
    IN_CHUNKS,
    (DecodeConfig(2, 4, 1, 3, x_kib=32, wgmma=True), TWO_FOUR, 130, 2048, 35),
    (DecodeConfig(1, 4, 2, 3, wgmma=True), DENSE, 64, 777, 18),
    (DecodeConfig(4, 2, 2, 3, x_kib=32), TWO_FOUR, 100, 2048, 20),
    (DecodeConfig(2, 2, 2, 2, splits=4, clustered=True, group=16), DENSE, 70, 1300, 21),
    (DecodeConfig(4, 1, 2, 3, rounds=3), TWO_FOUR, 300, 1024, 9),
    (DecodeConfig(2, 2, 2, 2, splits=3), TWO_FOUR, 70, 1300, 5),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_threads_use_shared_memory_in_an_order(case: Sizes) -> None:
    assert_right(watched(case))


@pytest.mark.parametrize("tokens", [1, 5])
def test_so_they_do_where_they_quantize(tokens: int) -> None:
    assert_right(watched((DecodeConfig(2, 1, 4, 3), TWO_FOUR, 40, 1096, tokens), fused=True))


@pytest.mark.parametrize("number", range(8))
def test_no_barrier_can_be_left_out(number: int) -> None:
    launch = watched(IN_CHUNKS, without=number)
    assert launch.plan.chunks == 5
    with pytest.raises(AssertionError, match="while another thread"):
        launch.run()


def test_zeros_over_the_scales_are_seen_and_leave_the_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Launch, "zeroed", HEADER)
    with pytest.raises(AssertionError, match=f"written while another thread uses it: {SCALES}"):
        watched(IN_CHUNKS).run()
    launch = Launch(*IN_CHUNKS, "bf16", None)
    assert (launch.run() == launch.bias.bfloat16()).all()


def compiled(case: Problem, config: DecodeConfig) -> str:
    """The kernel's PTX for sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    (unit,) = compile_units(case, config)
    names = list(unit.function.arg_names)
    constants = {(names.index(name),): value for name, value in unit.constexprs.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in unit.divisible}
    source = GluonASTSource(unit.function, {name: unit.signature[name] for name in names}, constants, attributes)
    return str(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(unit.options)).asm["ptx"])


def history(name: str, made: dict[str, str]) -> list[str]:
    """Instructions that make a register, in order."""
    sources = re.findall(r"%r\d+", made[name].partition(",")[2])
    return [line for source in sources for line in history(source, made)] + [made[name]]


def stored(line: str, made: dict[str, str], threads: int) -> set[int]:
    """Bytes of shared memory that a store outside of inline text writes."""
    opcode, _, operands = line.partition(" ")
    (address,) = re.findall(r"%r\d+", operands.split("]")[0])
    machine = Program(np.zeros(0, np.uint8), threads)
    machine.run(";".join([*history(address, made), "mov.b32 $0, 0"]), [])
    at = (machine.value(address).astype(np.int64) + int((re.findall(r"\+(\d+)\]", operands) or [0])[0])).reshape(-1, 32)
    if opcode.startswith("stmatrix"):
        at, size = at[:, : 8 * int(opcode.split(".x")[1][0])], 16
    else:
        size = WIDTH[opcode.split(".")[-1]] * (operands.count(",") if "{" not in operands else operands.count(",", operands.index("{")) + 1)
    return {int(one) + byte for one in at.flatten() for byte in range(size)}


@pytest.mark.compile
@pytest.mark.parametrize("config", [DecodeConfig(1, 1, 1, 4), DecodeConfig(4, 1, 4, 3), IN_CHUNKS[0], DecodeConfig(1, 1, 16, 2)], ids=str)
def test_the_compiler_clears_the_header_to_the_scales_and_no_further(config: DecodeConfig) -> None:
    ptx = compiled(Problem("gemm", 136, 2304, 33, DENSE, bias=True), config)
    own = re.sub(r"// begin inline asm.*?// end inline asm", "", ptx[ptx.index("\n{") + 2 :], flags=re.DOTALL)
    lines = [line.split("//")[0] for line in own.splitlines() if not line.strip().startswith((".", "$"))]
    made: dict[str, str] = {}
    found: set[int] = set()
    for line in statements("\n".join(lines)):
        if line.startswith(("stmatrix", "st.shared")):
            found |= stored(line, made, 32 * config.warps)
        else:
            assert ".shared" not in line, line
            made[line.partition(" ")[2].split(",")[0]] = line
    assert found == set(range(SCALES))
