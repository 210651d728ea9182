"""Roofs: what the device at hand was measured to reach in copying, reading, dense matrix products, and `mma.sp` from registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from autotune.clock import Call, Clock

BUFFER_BYTES = 4 << 30
TURNS = 10
SHAPES = ((8192, 8192, 8192), (16384, 8192, 8192), (8192, 16384, 4096))
"""M, N, K of the dense products: large enough that neither launch nor a last wave counts."""
SPARSE_MMA = "sparse-int8-mma"
"""The roof of `mma.sp`: operations count the zeros of 2:4 weights, as those of a problem do."""
_BLOCK, _STEPS = 2048, 8
_ROUNDS, _WARPS = 2048, 8


@dataclass(frozen=True)
class Roof:
    """A measured ceiling: the best of its samples, in B/s or op/s. samples: the rate of each turn."""

    name: str
    value: float
    unit: str
    samples: tuple[float, ...]


@dataclass(frozen=True)
class Ceiling:
    """A roof as a call, to be timed beside the kernels that it bounds. operations: of one call."""

    name: str
    call: Call
    operations: float


def measure_roofs(clock: Clock) -> list[Roof]:
    """copy and read bandwidth, the best dense-bf16, dense-int8 and dense-fp8 product of `SHAPES`, and `SPARSE_MMA`, on the current device;
    seconds.

    Copy counts bytes read and written. fp8 needs capability 8.9, `SPARSE_MMA` 8.0. Without a device there are none. RuntimeError on a
    device fault.
    """
    if not torch.cuda.is_available():
        return []
    roofs = [_bandwidth(clock, name) for name in ("copy", "read")]
    capability = torch.cuda.get_device_capability()
    kinds = [kind for kind in _PRODUCTS if kind != "fp8" or capability >= (8, 9)]
    sparse = [_sparse_mma(clock)] if capability >= (8, 0) else []
    return roofs + [_product(clock, kind) for kind in kinds] + sparse


def _turns(clock: Clock, call: Call) -> Iterator[float]:
    """Seconds per call of each turn."""
    timer = clock.timer([call], cold=False)
    try:
        for _ in range(TURNS):
            yield timer.sample() * 1e-6
    finally:
        timer.close()


def _best(name: str, unit: str, rates: list[float]) -> Roof:
    return Roof(name, max(rates), unit, tuple(rates))


def _bandwidth(clock: Clock, name: str) -> Roof:
    free, _ = torch.cuda.mem_get_info()
    chunk = _BLOCK * _STEPS * 4
    size = min(BUFFER_BYTES, free // 4) // chunk * chunk
    source = torch.randint(-(1 << 31), 1 << 31, (size // 4,), dtype=torch.int32, device="cuda")
    if name == "copy":
        target = torch.empty_like(source)

        def copy() -> None:
            _copy_kernel[(size // chunk,)](source, target, BLOCK=_BLOCK, STEPS=_STEPS, num_warps=4)

        return _best(name, "B/s", [2 * size / seconds for seconds in _turns(clock, copy)])
    sums = torch.empty(size // chunk, dtype=torch.int32, device="cuda")

    def read() -> None:
        _read_kernel[(sums.numel(),)](source, sums, BLOCK=_BLOCK, STEPS=_STEPS, num_warps=4)

    return _best(name, "B/s", [size / seconds for seconds in _turns(clock, read)])


@triton.jit
def _read_kernel(source, sums, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """Each program sums BLOCK · STEPS consecutive int32, all loads in flight at once, and writes one."""
    program = tl.program_id(0).to(tl.int64)
    offsets = program * BLOCK * STEPS + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.int32)
    for step in tl.static_range(STEPS):
        total += tl.load(source + offsets + step * BLOCK)
    tl.store(sums + program, tl.sum(total))


@triton.jit
def _copy_kernel(source, target, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """Each program copies BLOCK · STEPS consecutive int32. A kernel: as a node of a CUDA graph, torch's copy becomes a copy-engine
    transfer, which reached 2.7 TB/s on an H200 where this kernel reaches 4.0 (2026-11-22)."""
    program = tl.program_id(0).to(tl.int64)
    offsets = program * BLOCK * STEPS + tl.arange(0, BLOCK)
    for step in tl.static_range(STEPS):
        tl.store(target + offsets + step * BLOCK, tl.load(source + offsets + step * BLOCK))


def _bf16(x: torch.Tensor, w: torch.Tensor) -> Call:
    left, right, out = x.bfloat16(), w.bfloat16(), torch.empty(x.shape[0], w.shape[0], dtype=torch.bfloat16, device=x.device)
    return lambda: torch.matmul(left, right.t(), out=out)


def _int8(x: torch.Tensor, w: torch.Tensor) -> Call:
    left, right = ((value * 30).round().clamp(-127, 127).to(torch.int8) for value in (x, w))
    return lambda: torch._int_mm(left, right.t())


def _fp8(x: torch.Tensor, w: torch.Tensor) -> Call:
    left, right, one = x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn), torch.ones((), device=x.device)
    return lambda: torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)


_PRODUCTS: dict[str, Callable[[torch.Tensor, torch.Tensor], Call]] = {"bf16": _bf16, "int8": _int8, "fp8": _fp8}


def _product(clock: Clock, kind: str) -> Roof:
    """The best of the shapes: random activations, random weights."""
    found = []
    for m, n, k in SHAPES:
        x, w = (torch.randn(rows, k, device="cuda", dtype=torch.float32) for rows in (m, n))
        found.append(_best(f"dense-{kind}", "op/s", [2.0 * m * n * k / seconds for seconds in _turns(clock, _PRODUCTS[kind](x, w))]))
    return max(found, key=lambda roof: roof.value)


def _products_text() -> str:
    """PTX of $2 rounds of eight `mma.sp.m16n8k64` from registers: two row tiles by four of eight tokens, each sum waiting for itself only.

    Operands are noise from $1, which differs by thread: weights 64 times a ternary code, as kernels unpack them, and any int8.
    """
    lines = ["{ .reg .b32 sum<32>, code<8>, token<16>, sign<8>, noise, chosen, left; .reg .pred more;", "mov.b32 noise, $1;"]
    lines += [f"mov.b32 sum{i}, 0;" for i in range(32)]
    for name in (f"{kind}{i}" for kind, count in (("token", 16), ("code", 8), ("sign", 8)) for i in range(count)):
        lines += ["mad.lo.u32 noise, noise, 1664525, 1013904223;", f"mov.b32 {name}, noise;"]
    for i in range(8):
        lines += [f"and.b32 code{i}, code{i}, 0x40404040;", f"shl.b32 noise, code{i}, 1;", f"and.b32 noise, noise, sign{i};",
                  f"or.b32 code{i}, code{i}, noise;"]
    lines += ["mov.b32 chosen, 0x94DE8C4D;", "mov.b32 left, $2;", "AGAIN_${:uid}:"]
    for tile in range(2):
        for eight in range(4):
            sums, codes, tokens = (", ".join(f"{name}{first + i}" for i in range(4)) for name, first in (
                ("sum", 16 * tile + 4 * eight), ("code", 4 * tile), ("token", 4 * eight)))
            lines += ["mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 "
                      f"{{{sums}}}, {{{codes}}}, {{{tokens}}}, {{{sums}}}, chosen, 0x0;"]
    lines += ["sub.u32 left, left, 1;", "setp.ne.u32 more, left, 0;", "@more bra.uni AGAIN_${:uid};", "mov.b32 $0, 0;"]
    return "\n".join([*lines, *(f"xor.b32 $0, $0, sum{i};" for i in range(32)), "}"])


_PRODUCTS_TEXT = tl.constexpr(_products_text())


@triton.jit
def sparse_mma_kernel(sums, rounds, THREADS: tl.constexpr):
    """Each thread's sums of all rounds, so that none can be left out."""
    place = tl.program_id(0) * THREADS + tl.arange(0, THREADS)
    found = tl.inline_asm_elementwise(_PRODUCTS_TEXT, "=r,r,r", [place, rounds], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(sums + place, found)


def _sparse_mma(clock: Clock) -> Roof:
    ceiling = sparse_mma_ceiling()
    return _best(SPARSE_MMA, "op/s", [ceiling.operations / seconds for seconds in _turns(clock, ceiling.call)])


def sparse_mma_ceiling() -> Ceiling:
    """`mma.sp.m16n8k64` of int8 from registers on the current device, 16 warps a multiprocessor: nothing is loaded, stored or unpacked.
    Needs capability 8.0."""
    programs = 2 * torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    sums = torch.empty(programs * 32 * _WARPS, dtype=torch.int32, device="cuda")

    def products() -> None:
        sparse_mma_kernel[(programs,)](sums, _ROUNDS, THREADS=32 * _WARPS, num_warps=_WARPS)

    return Ceiling(SPARSE_MMA, products, 2.0 * 16 * 8 * 64 * 8 * _ROUNDS * _WARPS * programs)
