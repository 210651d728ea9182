"""The decode kernel's own PTX, run by an emulator over whole problems in the order in which the kernel issues it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from kernels.problem import DENSE, Sparsity
from kernels.ternary_gemm import decode_ptx as mma
from kernels.ternary_gemm import decode_wgmma as wgmma
from kernels.ternary_gemm.decode import KINDS, decode_weight
from kernels.ternary_gemm.decode_cluster import gather, keep, meet, rank, turns
from kernels.ternary_gemm.decode_config import DecodeConfig, breaks_rounds, plan, tokens_at_once
from kernels.ternary_gemm.decode_estimate import SMALLEST
from kernels.ternary_gemm.decode_kernel import early, places
from kernels.ternary_gemm.decode_ptx import barrier, clear, close, copy_columns, declare
from kernels.ternary_gemm.decode_quantize import absmax, publish, quantize, scales, turn_columns
from kernels.ternary_gemm.decode_sums import SCALES, arrive, bring_scales, classes, collect, combine, elements, row_constants, spill
from reference.linear import accumulate, linear
from reference.quantize import quantize_activation
from tests.kernels.decode_emulator import Program

UNROLL = 4
TWO_FOUR = Sparsity(2, 4)


class Launch:
    """Global memory behind one program's shared memory, and the arguments of a launch. Machine: what executes a program. zeroed: bytes from
    0 on that the kernel clears without a barrier behind it: here as late as the next barrier allows."""

    Machine: ClassVar[type[Program]] = Program
    zeroed: ClassVar[int] = SCALES

    def __init__(self, config: DecodeConfig, sparsity: Sparsity, rows: int, width: int, tokens: int, kind: str, fused: str | None) -> None:
        generator = torch.Generator().manual_seed(rows + width + tokens)
        self.w = torch.randint(-1, 2, (rows, width), generator=generator, dtype=torch.int8)
        if sparsity == TWO_FOUR:
            self.w.view(rows, -1, 4)[..., torch.randperm(4, generator=generator)[:2]] = 0
        self.splits = (rows - rows // 3, rows // 3)
        self.w_scale, self.bias = torch.rand(2, generator=generator) + 0.5, torch.randn(rows, generator=generator)
        float_type = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}.get(fused or "bf16", torch.bfloat16)
        self.x = (torch.randn(tokens, width, generator=generator) * 3).to(float_type)
        self.x_q, self.x_scale = quantize_activation(self.x)
        self.weight = decode_weight(self.w, self.w_scale, self.splits, sparsity, config.narrow)
        self.config, self.tokens, self.rows, self.width, self.kind, self.fused = config, tokens, rows, width, kind, fused
        self.plan = plan(rows, width, tokens, config)
        self.shared = self.plan.shared_kib * 1024
        self.end, self.parts = self.shared, [np.full(self.shared, 0xAB, np.uint8)]
        padded = torch.full((tokens, -(-width // 16) * 16), 77, dtype=torch.int8)
        padded[:, :width] = self.x_q
        self.stride = width if fused else padded.shape[1]
        self.out = torch.full((tokens, rows), 3, dtype={text: dtype for dtype, text in KINDS.items()}[kind])
        self.x_at, self.xs_at = self.add(self.x if fused else padded), self.add(self.x_scale)
        self.w_at, self.rs_at, self.bias_at = self.add(self.weight.blocks), self.add(self.weight.row_scale), self.add(self.bias)
        self.y_at, self.sums_at = self.add(self.out), self.add(torch.zeros(tokens, rows, dtype=torch.int32))
        self.counter_at = self.add(torch.zeros(self.plan.row_tiles * self.plan.groups, dtype=torch.int32))
        self.memory = np.concatenate(self.parts)

    def add(self, tensor: torch.Tensor) -> int:
        at, data = self.end, tensor.contiguous().view(torch.uint8).flatten().numpy()
        self.parts.append(np.concatenate([data, np.full(-len(data) % 256 + 256, 0xCD, np.uint8)]))
        self.end += len(self.parts[-1])
        return at

    def run(self, order: Iterable[tuple[int, int]] | None = None) -> torch.Tensor:
        """All programs; y."""
        across, shares = self.plan.grid
        for place, share in order or itertools.product(range(across), range(shares)):
            if self.config.clustered:
                self.cluster(place)
            else:
                self.memory[: self.shared] = 0xAB
                self.program(self.Machine(self.memory, 32 * self.config.warps), place, share)
        size = self.out.numel() * self.out.element_size()
        assert (self.memory[self.y_at + size : self.y_at + size + 256] == 0xCD).all(), "something was written behind the output"
        sums = self.memory[self.sums_at : self.sums_at + 4 * self.tokens * self.rows]
        assert not sums.any(), "the workspace is not zero again"
        assert not self.memory[self.counter_at : self.counter_at + 4 * self.plan.row_tiles * self.plan.groups].any()
        return torch.from_numpy(self.memory[self.y_at : self.y_at + size].copy()).view(self.out.dtype).view(self.tokens, self.rows)

    def cluster(self, place: int) -> None:
        """Every program of a cluster to where they meet, then every one on from there."""
        c, machines = self.config, [self.Machine(self.memory, 32 * self.config.warps, member) for member in range(self.plan.cluster)]
        left: list[np.ndarray[Any, Any]] = []
        for machine in machines:
            self.memory[: self.shared] = 0xAB
            self.program(machine, place, machine.run(rank(), [0]))
            left.append(self.memory[: self.shared].copy())
        for machine in machines:
            self.memory[: self.shared] = left[machine.rank]
            machine.cluster = left
            row_tile, token, tokens = self.part(place)
            tokens8 = self.plan.tokens8
            machine.run(meet(), [0])
            _, at = places(c.tiles, tokens8, c.warps_m, c.warps_k, c.depth, c.rounds, c.narrow)
            for i in range(turns(c.splits, c.tiles, c.warps_m, c.warps_k, 1 if self.plan.group == 1 else 8 * tokens8)):
                machine.run(gather(i, c.splits, c.tiles, tokens8, c.warps_m, c.warps_k, self.kind, True, at),
                            [row_tile, tokens, self.rows, self.y_at + token * self.rows * self.out.element_size(), machine.rank])

    def part(self, place: int) -> tuple[int, int, int]:
        """First row tile, first token and tokens of a program at that place of the grid."""
        token = place % self.plan.groups * self.plan.group
        return place // self.plan.groups * self.plan.rounds, token, min(self.plan.group, self.tokens - token)

    def program(self, machine: Program, place: int, share: int) -> None:
        c, found, threads = self.config, self.plan, machine.threads
        tokens8, sparse = found.tokens8, self.weight.sparse
        row_tile, token, tokens = self.part(place)
        rounds = min(found.rounds, found.row_tiles - row_tile)
        row_blocks, blocks = self.weight.blocks.shape[:2]
        first = share * found.share
        end = min(first + found.share, blocks)
        base, at = places(c.tiles, tokens8, c.warps_m, c.warps_k, c.depth, c.rounds, c.narrow)
        copied, at_once = tokens_at_once(found.group, c), 1 if found.group == 1 else c.warps
        columns = found.steps * c.warps_k * 128
        row_bytes, limit = columns + 16, min(end * 128, -(-self.width // 16) * 16)
        x_at = self.x_at + token * self.stride * (self.x.element_size() if self.fused else 1)
        machine.run(declare(c.tiles, tokens8, classes(c.tiles, c.warps_m, c.warps_k)), [0])
        page, packed = (wgmma, ()) if c.wgmma else (mma, (c.narrow,))
        machine.run(page.prime(c.tiles, c.depth, c.warps_m, c.warps_k, *packed),
                    [self.w_at, row_tile, row_blocks, blocks, first, end + (rounds - 1) * found.share])
        machine.run(page.preload(0, early(c.depth), c.tiles, c.warps_k, *packed), [0])

        def copy(buffer: int, chunk: int) -> None:
            start, turn = first * 128 + chunk * columns, copy_columns(UNROLL, threads, copied)
            wanted = min(columns, limit - start)
            for r, piece in itertools.product(range(-(-tokens // copied)), range(-(-wanted // turn))):
                if c.wgmma:
                    machine.run(wgmma.copy_in(UNROLL, threads, copied, base, tokens8),
                                [x_at, self.stride, tokens, r, piece, buffer, start, wanted])
                else:
                    machine.run(mma.copy_in(UNROLL, threads, copied, base),
                                [x_at, self.stride, tokens, r, piece, buffer, row_bytes, start, wanted])

        if self.fused:
            machine.run(page.preload(early(c.depth), c.depth, c.tiles, c.warps_k, *packed), [0])
            machine.zero(self.zeroed)
            machine.run(barrier(), [0])
            self.quantize(machine, x_at, tokens, at_once, base, row_bytes, first * 128, limit, columns)
            machine.run(barrier(), [0])
        else:
            copy(0, 0)
            machine.run(close(), [0])
            machine.run(page.preload(early(c.depth), c.depth, c.tiles, c.warps_k, *packed), [0])
            machine.run(bring_scales(), [self.xs_at + 4 * token, tokens])
            machine.zero(self.zeroed)
            machine.run(page.arrived(c.depth - early(c.depth)), [0])
        for turn in range(rounds):
            if self.kind != "s32":
                machine.run(row_constants(c.tiles, c.warps_m, c.warps_k, True, c.clustered),
                            [row_tile + turn, self.rows, self.rs_at, self.bias_at, machine.rank])
            machine.run(clear(c.tiles, tokens8), [0])
            for chunk in range(found.chunks):
                size = columns * 8 * tokens8 if c.wgmma else tokens * row_bytes
                buffer = (chunk & 1) * size
                if chunk > 0:
                    machine.run(page.arrived(found.pending), [0])
                if chunk + 1 < found.chunks:
                    copy(size - buffer, chunk + 1)
                machine.run(page.aim(tokens8, c.warps_m, base), [buffer] if c.wgmma else [tokens, row_bytes, buffer])
                for _ in range(found.steps):
                    machine.run(page.step(c.tiles, tokens8, c.depth, c.warps_k, sparse, *packed), [0])
            self.finish(machine, place, row_tile + turn, tokens8, at)

    def quantize(self, machine: Program, x_at: int, tokens: int, at_once: int, base: int, row_bytes: int, first: int, limit: int,
                 columns: int) -> None:
        threads = machine.threads
        pieces, turns, kind = min(4, -(-self.width * at_once // (8 * threads))), range(-(-tokens // at_once)), self.fused
        turn = turn_columns(pieces, threads, at_once)
        for r in turns:
            for piece in range(-(-self.width // turn)):
                machine.run(absmax(pieces, threads, at_once, kind), [x_at, self.stride, tokens, r, piece, self.width])
            machine.run(publish(threads, at_once), [tokens, r])
        for text in (barrier(), scales(), barrier()):
            machine.run(text, [tokens])
        for r, piece in itertools.product(turns, range(-(-columns // turn))):
            machine.run(quantize(pieces, threads, at_once, kind, base),
                        [x_at, self.stride, tokens, r, piece, row_bytes, first, limit, columns])

    def finish(self, machine: Program, place: int, row_tile: int, tokens8: int, at: int) -> None:
        c, splits, threads = self.config, self.plan.splits, machine.threads
        _, token, tokens = self.part(place)
        y_at, sums_at = self.y_at + token * self.rows * self.out.element_size(), self.sums_at + 4 * token * self.rows
        outputs = [row_tile, tokens, self.rows, y_at, sums_at]
        machine.run(barrier(), [0])
        for j in range(tokens8):
            machine.run(spill(j, c.tiles, tokens8, c.warps_m, c.warps_k, at, c.wgmma), [0])
            machine.run(barrier(), [0])
            for e in range(-(-(1 if self.plan.group == 1 else 8) * c.rows // threads)):
                if c.clustered:
                    machine.run(keep(j, e, c.tiles, tokens8, c.warps_m, c.warps_k, at), [0])
                else:
                    machine.run(combine(j, e, c.tiles, c.warps_m, c.warps_k, self.kind, True, splits > 1, at), outputs)
        if splits > 1 and not c.clustered:
            counter = self.counter_at + 4 * (place % self.plan.groups) * self.plan.row_tiles
            count = machine.run(arrive(splits), [counter, row_tile, tokens * c.rows])
            turn = elements(c.rows, 1 if self.plan.group == 1 else 8 * tokens8, threads)
            for start in range(0, count, turn * threads):
                machine.run(collect(turn, c.tiles, c.warps_m, c.warps_k, self.kind, True), [*outputs, start])

    @property
    def expected(self) -> torch.Tensor:
        if self.kind == "s32":
            return accumulate(self.x_q, self.w).int()
        return linear(self.x_q, self.x_scale, self.w, self.w_scale, self.splits, self.bias)


def assert_right(launch: Launch, order: Iterable[tuple[int, int]] | None = None) -> None:
    found, expected = launch.run(order), launch.expected
    if launch.kind == "s32":
        assert torch.equal(found, expected)
    else:
        share = {"bf16": 2**-8, "f16": 2**-10, "f32": 2**-22}[launch.kind]
        assert ((found.double() - expected).abs() <= share * (expected.abs() + launch.bias.abs() + 1)).all()


FINISHED = [(DecodeConfig(4, 4, 1, 2), 200, 300, 3, 1), (DecodeConfig(4, 4, 1, 2, splits=2), 130, 300, 1, 2),
            (DecodeConfig(4, 4, 1, 2, splits=2), 130, 300, 9, 2), (DecodeConfig(4, 4, 1, 2, splits=2, clustered=True), 300, 300, 9, 2),
            (DecodeConfig(2, 4, 1, 2, splits=4, clustered=True, wgmma=True), 300, 500, 19, 4)]

CASES = [
    (DecodeConfig(4, 1, 8, 3), TWO_FOUR, 70, 1540, 1),
    (DecodeConfig(4, 4, 2, 3), TWO_FOUR, 130, 1100, 3),
    (DecodeConfig(1, 1, 4, 2), TWO_FOUR, 40, 900, 9),
    (DecodeConfig(2, 2, 2, 3), TWO_FOUR, 64, 900, 17),
    (DecodeConfig(4, 2, 2, 3, x_kib=32), TWO_FOUR, 100, 2048, 20),
    (DecodeConfig(1, 1, 4, 4, x_kib=32), TWO_FOUR, 16, 3584, 17),
    (DecodeConfig(4, 1, 4, 2), DENSE, 64, 777, 2),
    (DecodeConfig(2, 2, 2, 2, x_kib=32), DENSE, 64, 512, 59),
    (DecodeConfig(1, 1, 4, 2, group=16), TWO_FOUR, 40, 900, 41),
    (DecodeConfig(2, 1, 4, 2, 2, group=8), TWO_FOUR, 40, 900, 19),
    (DecodeConfig(4, 1, 2, 3, rounds=3), TWO_FOUR, 300, 1024, 1),
    (DecodeConfig(4, 1, 4, 3, rounds=2, group=16), TWO_FOUR, 130, 1536, 18),
    (DecodeConfig(4, 1, 4, 2, splits=2, clustered=True), TWO_FOUR, 130, 1500, 1),
    (DecodeConfig(2, 2, 2, 2, splits=4, clustered=True, group=16), DENSE, 70, 1300, 21),
    (DecodeConfig(1, 1, 4, 2, splits=8, clustered=True), TWO_FOUR, 20, 2048, 9),
    (SMALLEST, TWO_FOUR, 100, 96, 11),
    (SMALLEST, DENSE, 5, 33, 1),
    (DecodeConfig(1, 4, 2, 2, wgmma=True), TWO_FOUR, 70, 1100, 9),
    (DecodeConfig(2, 4, 1, 3, x_kib=32, wgmma=True), TWO_FOUR, 130, 2048, 35),
    (DecodeConfig(2, 8, 1, 2, splits=2, clustered=True, group=24, wgmma=True), TWO_FOUR, 300, 700, 41),
    (DecodeConfig(1, 4, 2, 3, wgmma=True), DENSE, 64, 777, 18),
    (DecodeConfig(1, 4, 2, 4, splits=2, group=16, wgmma=True), TWO_FOUR, 70, 1100, 33),
    (DecodeConfig(4, 1, 8, 3, narrow=True), TWO_FOUR, 70, 1540, 1),
    (DecodeConfig(4, 2, 2, 3, x_kib=32, narrow=True), TWO_FOUR, 200, 2048, 20),
    (DecodeConfig(4, 1, 4, 3, rounds=2, group=16, narrow=True), TWO_FOUR, 130, 1536, 18),
    (DecodeConfig(4, 2, 2, 2, splits=2, clustered=True, narrow=True), TWO_FOUR, 130, 1500, 5),
]


@pytest.mark.parametrize(("config", "sparsity", "rows", "width", "tokens"), CASES, ids=str)
def test_raw_accumulators_are_exact(config: DecodeConfig, sparsity: Sparsity, rows: int, width: int, tokens: int) -> None:
    assert_right(Launch(config, sparsity, rows, width, tokens, "s32", None))


@pytest.mark.parametrize(("config", "rows", "width", "tokens", "splits"), FINISHED, ids=str)
def test_threads_that_finish_two_rows_know_both(config: DecodeConfig, rows: int, width: int, tokens: int, splits: int) -> None:
    launch = Launch(config, TWO_FOUR, rows, width, tokens, "f32", None)
    assert launch.plan.splits == splits
    assert_right(launch)


@pytest.mark.parametrize("order", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["bf16"])
def test_shares_meet_in_any_order_and_leave_zeros(kind: str, order: str) -> None:
    launch = Launch(DecodeConfig(2, 2, 2, 2, splits=3), TWO_FOUR, 70, 1300, 5, kind, None)
    assert launch.plan.splits == 3
    programs = list(itertools.product(range(launch.plan.row_tiles), range(3)))
    for _ in range(2):
        assert_right(launch, programs if order == "forward" else programs[::-1])


@pytest.mark.parametrize("kind", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(("tokens", "changes"), [(1, {}), (5, {"splits": 2}), (11, {"group": 8}), (3, {"splits": 2, "clustered": True}),
                                                 (1, {"tiles": 4, "rounds": 2, "warps_k": 2}), (1, {"tiles": 4, "narrow": True})], ids=str)
def test_a_layer_quantizes_for_itself(kind: str, tokens: int, changes: dict[str, Any]) -> None:
    config = replace(DecodeConfig(2, 1, 4, 3), **changes)
    rows, width = (100, 1280) if config.rounds > 1 else (40, 1096)
    assert breaks_rounds(plan(rows, width, tokens, config), config) is None
    assert_right(Launch(config, TWO_FOUR, rows, width, tokens, kind, kind))
