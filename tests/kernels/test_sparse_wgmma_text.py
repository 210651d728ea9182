"""The sparse GEMM's own PTX, run by an emulator over whole tiles: addresses, unpacking, order of operands, scales, stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.problem import Sparsity
from kernels.ternary_gemm.sparse_wgmma import dense_fragment_weight, fragment_weight, padded_rows
from kernels.ternary_gemm.sparse_wgmma_epilogue import epilogue, plain_epilogue
from kernels.ternary_gemm.sparse_wgmma_ptx import point, prime, shared_offsets, stage
from reference.linear import accumulate, linear
from tests.kernels.ptx_emulator import Machine

STAGES = 3
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "s32": torch.int32}


class Memory:
    """One address space: shared memory from 0, then tensors."""

    def __init__(self, shared_bytes: int) -> None:
        self.parts, self.end = [np.zeros(shared_bytes + 4096, np.uint8)], shared_bytes + 4096

    def add(self, tensor: torch.Tensor) -> int:
        at = self.end
        raw = tensor.contiguous().view(torch.uint8).flatten().numpy()
        self.parts.append(np.concatenate([raw, np.zeros(-len(raw) % 1024 + 1024, np.uint8)]))
        self.end += len(self.parts[-1])
        return at


def fill_stage(memory: np.ndarray, at: int, x: np.ndarray, token: int, step: int, block_t: int) -> None:
    """What TMA does: a box of activations, zeros behind the edges, in the 128-byte swizzle."""
    box = np.zeros((block_t, 128), np.int8)
    part = x[token : token + block_t, 128 * step : 128 * step + 128]
    box[: part.shape[0], : part.shape[1]] = part
    address = at + np.arange(block_t * 128)
    memory[address ^ (address >> 7 & 7) << 4] = box.view(np.uint8).flatten()


def run(
    tiles: int, block_t: int, rows: int, width: int, tokens: int, kind: str, wide: bool, sparse: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The kernel's consumer loop with every tile on one program: output, raw accumulators expected, scaled values expected."""
    generator = torch.Generator().manual_seed(rows)
    w = torch.randint(-1, 2, (rows, width), generator=generator, dtype=torch.int8)
    if sparse:
        w.view(rows, -1, 4)[..., torch.randperm(4, generator=generator)[:2]] = 0
    x = torch.randint(-127, 128, (tokens, width), generator=generator, dtype=torch.int8)
    x_scale, w_scale, bias = (torch.rand(size, generator=generator) + 0.5 for size in (tokens, 2, rows))
    splits = (rows - rows // 3, rows // 3)
    weight = fragment_weight(w, w_scale, splits, Sparsity(2, 4)) if sparse else dense_fragment_weight(w, w_scale, splits)
    out = torch.full((tokens, rows), 3, dtype=TYPES[kind])
    staging, full, empty, end = shared_offsets(block_t, STAGES)
    memory = Memory(end)
    w_at, xs_at, rs_at = memory.add(weight.blocks), memory.add(x_scale), memory.add(weight.row_scale)
    bias_at, y_at = memory.add(padded_rows(bias, rows)), memory.add(out)
    machine = Machine(np.concatenate(memory.parts))
    steps, row_tiles = weight.blocks.shape[1], -(-rows // (128 * tiles))
    count, at, before = row_tiles * -(-tokens // block_t), 0, -1
    machine.run(point(tiles), [w_at, 0, weight.blocks.shape[0], steps])
    machine.run(prime(tiles, block_t), [steps])
    for tile in range(count):
        row_tile, token = tile % row_tiles, tile // row_tiles * block_t
        for step in range(steps):
            if step == steps - 1:
                following = min(tile + 1, count - 1) % row_tiles
                machine.run(point(tiles), [w_at, following * 2 * tiles, weight.blocks.shape[0], steps])
            fill_stage(machine.memory, at * block_t * 128, x.numpy(), token, step, block_t)
            machine.run(stage(tiles, block_t, full, empty, sparse), [at, 0, before, step])
            before, at = at, (at + 1) % STAGES
        for m in range(tiles):
            text = epilogue(m, tiles, block_t, staging, kind) if wide else plain_epilogue(m, tiles, block_t, kind)
            machine.run(text, [row_tile * 128 * tiles, token, tokens, rows, xs_at, rs_at, bias_at, y_at])
    raw = machine.memory[y_at : y_at + out.numel() * out.element_size()].copy()
    found = torch.from_numpy(raw).view(out.dtype).view(tokens, rows)
    untouched = machine.memory[y_at + out.numel() * out.element_size() : y_at + out.numel() * out.element_size() + 512]
    assert not untouched.any(), "something was written behind the output"
    return found, accumulate(x, w), linear(x, x_scale, w, w_scale, splits, bias)


WIDE = [(1, 64, 136, 256, 70), (2, 64, 200, 384, 30), (3, 128, 136, 128, 131)]


@pytest.mark.parametrize(("tiles", "block_t", "rows", "width", "tokens"), WIDE)
def test_wide_stores_give_the_reference(tiles: int, block_t: int, rows: int, width: int, tokens: int) -> None:
    found, _, expected = run(tiles, block_t, rows, width, tokens, "bf16", wide=True)
    assert ((found.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-6).all()


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize(("tiles", "block_t", "rows", "width", "tokens"), [(1, 64, 130, 64, 66), (2, 64, 77, 320, 9)])
def test_raw_accumulators_are_exact(tiles: int, block_t: int, rows: int, width: int, tokens: int, sparse: bool) -> None:
    found, expected, _ = run(tiles, block_t, rows, width, tokens, "s32", wide=False, sparse=sparse)
    assert torch.equal(found.long(), expected)


@pytest.mark.parametrize("kind", ["bf16", "f16", "f32"])
def test_plain_stores_give_the_reference(kind: str) -> None:
    found, _, expected = run(1, 64, 67, 128, 19, kind, wide=False)
    share = {"bf16": 2**-8, "f16": 2**-10, "f32": 2**-22}[kind]
    assert ((found.double() - expected).abs() <= share * (expected.abs() + 60)).all()
