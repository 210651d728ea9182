"""What layout narrow24 builds on: `mma.sp` takes every metadata nibble as two selections, in any order, of the same position twice too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from autotune.compile import Compiled, compile_unit
from kernels.gpu import by_name
from kernels.kernel import CompileUnit

CASES = 512


@gluon.constexpr_function
def product(name: Any) -> Any:
    """One `mma.sp.m16n8k64` of a warp: $1 left, $2 right side, $3 metadata, $4 sums, 16 (metadata 4) bytes a lane, $5 which of them."""
    text = "{\n.reg .b32 a<4>, b<4>, c<4>, e, lane;\n.reg .b64 at;\nmov.u32 lane, %tid.x;\nmad.lo.u32 lane, $5, 32, lane;"
    for i, v in ((1, "a"), (2, "b")):
        text += f"\nmad.wide.u32 at, lane, 16, ${i};\nld.global.v4.b32 {{{v}0, {v}1, {v}2, {v}3}}, [at];"
    text += "\nmad.wide.u32 at, lane, 4, $3;\nld.global.b32 e, [at];" + "".join(f"\nmov.b32 c{i}, 0;" for i in range(4))
    text += f"\n{name}.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 {{c0, c1, c2, c3}}, {{a0, a1, a2, a3}}, {{b0, b1, b2, b3}}, "
    return text + "{c0, c1, c2, c3}, e, 0;\nmad.wide.u32 at, lane, 16, $4;\nst.global.v4.b32 [at], {c0, c1, c2, c3};\nmov.b32 $0, 0;\n}"


@gluon.jit
def multiply(a_ptr, b_ptr, e_ptr, c_ptr, NAME: gl.constexpr):
    a, b = a_ptr.to(gl.int64, bitcast=True), b_ptr.to(gl.int64, bitcast=True)
    e, c = e_ptr.to(gl.int64, bitcast=True), c_ptr.to(gl.int64, bitcast=True)
    gl.inline_asm_elementwise(
        product(NAME), "=r,l,l,l,l,r,~{memory}", [a, b, e, c, gl.program_id(0)], dtype=gl.int32, is_pure=False, pack=1
    )


def words(parts: list[torch.Tensor]) -> torch.Tensor:
    """int32 of four bytes, lowest first."""
    found = torch.stack(parts).mul(torch.tensor([1 << 8 * i for i in range(len(parts))], device=parts[0].device).view(-1, 1, 1)).sum(0)
    return torch.where(found >= 1 << 31, found - (1 << 32), found).to(torch.int32)


NAMES = ["mma.sp", "mma.sp::ordered_metadata"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nibble", [None, *range(16)])
def test_every_nibble_is_two_selections(nibble: int | None, name: str) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the layout is read on sm_90 only")
    torch.manual_seed(0)
    left, right = torch.randint(-128, 128, (CASES, 16, 32), device="cuda"), torch.randint(-128, 128, (CASES, 64, 8), device="cuda")
    meta = torch.randint(0, 16, (CASES, 16, 16), device="cuda") if nibble is None else left.new_full((CASES, 16, 16), nibble)
    lane = torch.arange(32, device="cuda")
    g, q = lane // 4, lane % 4
    registers = [words([left[:, g + 8 * (j & 1), 4 * q + b + 16 * (j >> 1)] & 255 for b in range(4)]) for j in range(4)]
    a = torch.stack(registers, -1).contiguous()
    b = torch.stack([words([right[:, 16 * i + 4 * q + y, g] & 255 for y in range(4)]) for i in range(4)], -1).contiguous()
    pairs = [meta[:, g + 8 * (q & 1), 8 * (q >> 1) + 2 * i] | meta[:, g + 8 * (q & 1), 8 * (q >> 1) + 2 * i + 1] << 4 for i in range(4)]
    e, c = words(pairs).contiguous(), torch.zeros((CASES, 32, 4), dtype=torch.int32, device="cuda")
    multiply[(CASES,)](a, b, e, c, name, num_warps=1)
    dense, kept = torch.zeros((CASES, 16, 16, 4), dtype=torch.float64, device="cuda"), left.view(CASES, 16, 16, 2).double()
    for slot, position in enumerate((meta & 3, meta >> 2)):
        dense.scatter_add_(3, position[..., None], kept[..., slot : slot + 1])
    expected, found = dense.view(CASES, 16, 64) @ right.double(), torch.empty((CASES, 16, 8), device="cuda", dtype=torch.float64)
    for i in range(4):
        found[:, g + 8 * (i >> 1), 2 * q + (i & 1)] = c[:, :, i].double()
    assert torch.equal(found, expected)


@pytest.mark.compile
def test_both_forms_are_the_same_instruction() -> None:
    pointers = {"a_ptr": "*i64", "b_ptr": "*i64", "e_ptr": "*i64", "c_ptr": "*i64"}
    found = []
    for name in NAMES:
        unit = CompileUnit(multiply, {**pointers, "NAME": "constexpr"}, {"NAME": name}, tuple(pointers), {"num_warps": 1}, {80: "IMMA.SP"})
        made = compile_unit(unit, by_name("h200"))
        assert isinstance(made, Compiled), made
        found.append(dict(made.instructions))
    assert found[0] == found[1]
    assert found[0]["IMMA.SP"] == 1
