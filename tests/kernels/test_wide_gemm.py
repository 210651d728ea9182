"""The bf16 GEMM on sparse tensor cores: its layout, its PTX in the emulator, what the compiler makes of it, and its numbers on a device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from autotune.compile import Compiled, compile_unit
from kernels.errors import ShapeError
from kernels.fragments import pack_fragments
from kernels.gpu import by_name, detect
from kernels.problem import Problem, Sparsity
from kernels.sparse_backward import wide_gemm
from kernels.sparse_backward.wide_fragments import launch_widen, unpack_wide, wide_shape
from kernels.ternary_gemm import sparse_wgmma
from kernels.ternary_gemm.sparse_wgmma import multiprocessors
from kernels.ternary_gemm.sparse_wgmma_config import SparseConfig, most_stages
from reference.sparsity import nm_mask
from tests.kernels import launch_emulator
from tests.kernels.launch_emulator import Emulated
from tests.kernels.ptx_emulator import Array
from tests.kernels.wgmma_emulator import ROW, THREAD, Threads

H200 = by_name("h200")
HALF = Sparsity(2, 4)
TILES = ((1, 256), (3, 128), (2, 128), (1, 64))


def _weight(rows: int, columns: int, device: str = "cpu") -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(rows + columns)
    ternary = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8, device=device)
    return ternary * nm_mask(torch.randn(rows, columns, generator=generator, device=device), 2, 4)


def _scaled(ternary: torch.Tensor, splits: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scales, bounds, and the weight in bf16 with them along its columns."""
    scale = torch.linspace(0.013, 0.9, len(splits), device=ternary.device)
    bounds = torch.tensor([0, *splits], device=ternary.device).cumsum(0)
    return scale, bounds, ternary * scale.bfloat16().float().repeat_interleave(torch.tensor(splits, device=ternary.device))


def _blocks_by_hand(weight: torch.Tensor) -> torch.Tensor:
    """Blocks of a float32 weight as the layout says, by plain steps, for the emulator."""
    rows, columns = weight.shape
    shape = wide_shape(rows, columns)
    padded = torch.zeros(shape[0] * 64, shape[1] * 64)
    padded[:rows, :columns] = weight
    words = torch.zeros((*shape[:2], 128, 2, 2), dtype=torch.int64)
    for thread in range(128):
        w, g, q = thread // 32, thread % 32 // 4, thread % 4
        for step in range(2):
            part = padded.view(shape[0], 64, shape[1], 64)[:, :, :, 32 * step : 32 * step + 32]
            scale = part.abs().amax((1, 3)).bfloat16().view(torch.int16).long() & 0xFFFF
            words[:, :, thread, step, 0] |= (scale & 0xFF) | (scale & 0xFF00) << 8
            for below in range(2):
                groups = part[:, 16 * w + g + 8 * below].reshape(*shape[:2], 8, 4)
                place = ((groups == 0).long() * 4 + torch.arange(4)).argsort(-1)[..., :2].sort(-1).values
                kept = groups.gather(-1, place).sign().long().flatten(-2) & 3
                nibbles = place[..., 0] | place[..., 1] << 2
                for i in range(4):
                    words[:, :, thread, step, 1] |= nibbles[..., 4 * (q & 1) + i] << (4 * i + 16 * below)
                for h in range(2):
                    for e in range(2):
                        words[:, :, thread, step, 0] |= kept[..., 2 * q + e + 8 * h] << (16 * e + 14 - 2 * (below + 2 * h))
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int().view(shape)


@pytest.mark.interpreter
@pytest.mark.parametrize(("rows", "columns", "splits"), [(64, 128, (128,)), (130, 320, (64, 256)), (70, 96, (32, 32, 32))])
def test_interpreted_layout(rows: int, columns: int, splits: tuple[int, ...]) -> None:
    ternary = _weight(rows, columns)
    scale, bounds, expected = _scaled(ternary, splits)
    wide = torch.full(wide_shape(rows, columns), -1, dtype=torch.int32)
    launch_widen(pack_fragments(ternary), wide, scale, bounds)
    assert torch.equal(unpack_wide(wide, rows, columns), expected)
    with pytest.raises(ShapeError, match="is needed"):
        launch_widen(wide, wide, scale, bounds)


def test_the_layout_by_hand_is_the_same() -> None:
    ternary = _weight(130, 320)
    expected = _scaled(ternary, (64, 256))[2]
    assert torch.equal(unpack_wide(_blocks_by_hand(expected), 130, 320), expected)


def _floats(halves: Array) -> Array:
    return (halves.astype(np.uint32) << 16).view(np.float32)


class WideThreads(Threads):
    """Threads that know m64nNk32 on bf16: operand A and metadata from registers, float32 accumulators."""

    def _product(self, operands: list[str], sparse: bool) -> Callable[[], None]:
        assert sparse
        assert operands[-3:] == ["1", "1", "0"], "neither operand negated, B as it lies"
        accumulators, fragments = (operand.strip("{}").replace(" ", "").split(",") for operand in operands[:2])
        descriptor, keep = self.registers[operands[2]], self.registers[operands[5]].astype(bool)
        assert operands[4] == "0", "metadata from the first two threads of every four"

        def run() -> None:
            kept = np.zeros((2, 64, 16), np.float32)
            for j, name in enumerate(fragments):
                word = self.registers[name].astype(np.uint32).reshape(2, 128)
                for e in range(2):
                    kept[:, ROW + 8 * (j & 1), 2 * (THREAD % 4) + e + 8 * (j >> 1)] = _floats(word >> np.uint32(16 * e) & np.uint32(0xFFFF))
            a, meta = np.zeros((2, 64, 32), np.float32), self.registers[operands[3]].reshape(2, 128)
            for thread in np.flatnonzero(THREAD % 4 < 2):
                for below in range(2):
                    at, before = ROW[thread] + 8 * below, np.zeros(2, np.int64)
                    for index in range(8):
                        place = (meta[:, thread] >> np.uint64(16 * below + 2 * index) & np.uint64(3)).astype(np.int64)
                        assert not index % 2 or (place > before).all(), "metadata that the instruction does not allow"
                        before, value = place, 8 * (thread % 4) + index
                        a[np.arange(2), at, 4 * (value // 2) + place] = kept[:, at, value]
            tokens = 2 * len(accumulators)
            row, column = np.divmod(np.arange(tokens * 64), 64)
            at = ((int(descriptor[0]) & 0x3FFF) << 4) + row // 8 * 1024 + row % 8 * 128 + column
            b = _floats(self.block.shared[at ^ (at >> 7 & 7) << 4].view(np.uint16)).reshape(tokens, 32)
            product = a.astype(np.float64) @ b.T.astype(np.float64)
            for index, name in enumerate(accumulators):
                part = product[:, ROW + 8 * (index >> 1 & 1), 8 * (index // 4) + 2 * (THREAD % 4) + (index & 1)].flatten()
                old = self.registers[name].astype(np.uint32).view(np.float32)
                total = (np.where(keep, old, 0) + part).astype(np.float32)
                self._set(name, total.view(np.uint32).astype(np.uint64), np.ones(self.threads, bool))

        return run


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize(("config", "rows", "width", "tokens"), [
    (SparseConfig(1, 64, 3), 392, 264, 70),  # eight tiles on three programs
    (SparseConfig(3, 128, 3), 136, 160, 31),
    (SparseConfig(1, 256, 3), 72, 64, 40),
    (SparseConfig(1, 128, 3, pair=2), 200, 192, 130),
], ids=str)
def test_emulated_launches_give_the_product(
    config: SparseConfig, rows: int, width: int, tokens: int, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_emulator, "Threads", WideThreads)
    monkeypatch.setattr(sparse_wgmma, "sparse_gemm", Emulated(late))
    weight = _scaled(_weight(rows, width), (32, width - 32))[2]
    dy = torch.randn(tokens, width, generator=torch.Generator().manual_seed(tokens)).bfloat16()
    gemm = wide_gemm.bind(dy, _blocks_by_hand(weight), rows, config, 4 if config.pair > 1 else 3)
    gemm.out.fill_(float("nan"))
    gemm.launch()
    expected = dy.double() @ weight.double().t()
    assert ((gemm.out.double() - expected).abs() <= 2.0**-8 * expected.abs() + 1e-5).all()


def test_what_is_refused() -> None:
    case = Problem("step", 64, 64, 64, HALF)
    assert wide_gemm.unavailable(case, H200) is None
    assert "sm_90" in (wide_gemm.unavailable(case, by_name("a100")) or "")
    assert "multiples of 8" in (wide_gemm.unavailable(case.with_(out_features=68, splits=(68,)), H200) or "")
    assert "splits" in (wide_gemm.unavailable(case.with_(splits=(24, 40)), H200) or "")
    blocks = torch.zeros(wide_shape(64, 64), dtype=torch.int32)
    for dy in (torch.zeros(3, 64), torch.zeros(3, 128, dtype=torch.int8), torch.zeros(3, 68, dtype=torch.bfloat16)[:, :60]):
        with pytest.raises(ShapeError, match="16 bytes"):
            wide_gemm.bind(dy, blocks, 64, SparseConfig(1, 64, 3), 3)


@pytest.mark.compile
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_products_stay_in_flight_without_spills(tile: tuple[int, int]) -> None:
    config = SparseConfig(*tile, most_stages(*tile, 1, H200.shared_bytes))
    (unit,) = wide_gemm.compile_units(Problem("step", 2048, 11008, 16384, HALF), config)
    found = compile_unit(unit, H200)
    assert isinstance(found, Compiled), found
    assert found.spills == 0
    assert found.instructions["HGMMA.SP"] >= 2 * config.tiles


@pytest.mark.gpu
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_on_a_gpu(tile: tuple[int, int]) -> None:
    gpu = detect()
    assert gpu is not None
    if gpu.capability != 90:
        pytest.skip("needs sm_90")
    cases = ((896, 1152, 1000, (896, 128, 128)), (136, 64, 7, (64,)), (2048, 2056, 300, (2056,)), (8, 32, 1, (32,)))
    for rows, columns, tokens, splits in cases:
        ternary = _weight(rows, columns, "cuda")
        scale, bounds, weight = _scaled(ternary, splits)
        wide = torch.full(wide_shape(rows, columns), -1, dtype=torch.int32, device="cuda")
        launch_widen(pack_fragments(ternary), wide, scale, bounds)
        assert torch.equal(unpack_wide(wide, rows, columns), weight)
        dy = torch.randn(tokens, columns, device="cuda").bfloat16()
        gemm = wide_gemm.bind(dy, wide, rows, SparseConfig(*tile, most_stages(*tile, 1, gpu.shared_bytes)), multiprocessors(dy.device))
        gemm.out.fill_(float("nan"))
        gemm.launch()
        expected = dy.double() @ weight.double().t()
        slack = 2.0**-20 * (dy.double().abs() @ weight.double().abs().t())
        assert ((gemm.out.double() - expected).abs() <= 2.0**-8 * expected.abs() + slack).all()
        again = gemm.out.clone()
        gemm.launch()
        assert torch.equal(gemm.out, again)
