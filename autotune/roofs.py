"""Roofs: what the device at hand was measured to reach in copying, reading and dense matrix products."""

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
_BLOCK, _STEPS = 2048, 8


@dataclass(frozen=True)
class Roof:
    """A measured ceiling: the best of its samples, in B/s or op/s. samples: the rate of each turn."""

    name: str
    value: float
    unit: str
    samples: tuple[float, ...]


def measure_roofs(clock: Clock) -> list[Roof]:
    """copy and read bandwidth, and the best dense-bf16, dense-int8 and dense-fp8 product of `SHAPES`, on the current device; seconds.

    Copy counts bytes read and written. fp8 needs capability 8.9. Without a device there are none. RuntimeError on a device fault.
    """
    if not torch.cuda.is_available():
        return []
    roofs = [_bandwidth(clock, name) for name in ("copy", "read")]
    kinds = [kind for kind in _PRODUCTS if kind != "fp8" or torch.cuda.get_device_capability() >= (8, 9)]
    return roofs + [_product(clock, kind) for kind in kinds]


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
