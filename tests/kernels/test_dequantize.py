"""int8 activations back to bf16 and fp16: every code, awkward widths and strides, in the interpreter and on a GPU."""

from __future__ import annotations

import pytest
import torch

from kernels.sparse_backward.dequantize import launch_dequantize


def _expected(x_q: torch.Tensor, x_scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (x_q.float() * x_scale[:, None]).to(dtype)


def _codes(tokens: int, columns: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(tokens + columns)
    x_q = torch.randint(-127, 128, (tokens, columns), generator=generator, dtype=torch.int8, device=device)
    return x_q, torch.rand(tokens, generator=generator, device=device) + 0.5


@pytest.mark.interpreter
def test_interpreted_every_code() -> None:
    x_q = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).repeat(2, 1)
    out = torch.full((2, 256), float("nan"), dtype=torch.float16)
    launch_dequantize(x_q, torch.tensor([1.0, 0.25]), out)
    assert torch.equal(out, _expected(x_q, torch.tensor([1.0, 0.25]), torch.float16))


@pytest.mark.interpreter
@pytest.mark.parametrize(("tokens", "columns", "padding"), [(1, 4, 0), (9, 1028, 4), (7, 30, 2), (3, 33, 95), (0, 64, 0), (17, 8, 3)])
def test_interpreted_awkward_shapes(tokens: int, columns: int, padding: int) -> None:
    wide, x_scale = _codes(tokens, columns + padding)
    out = torch.full((tokens, columns + 8), 7.0, dtype=torch.float16)
    launch_dequantize(wide[:, :columns], x_scale, out[:, :columns])
    assert torch.equal(out[:, :columns], _expected(wide[:, :columns], x_scale, torch.float16))
    assert (out[:, columns:] == 7).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "columns", "padding"), [(1, 896, 0), (1000, 2560, 0), (63, 11008, 128), (7, 301, 83), (33, 4, 0)])
def test_on_a_gpu(tokens: int, columns: int, padding: int, dtype: torch.dtype) -> None:
    wide, x_scale = _codes(tokens, columns + padding, "cuda")
    out = torch.full((tokens, columns), float("nan"), dtype=dtype, device="cuda")
    launch_dequantize(wide[:, :columns], x_scale, out)
    assert torch.equal(out, _expected(wide[:, :columns], x_scale, dtype))


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements_on_a_gpu() -> None:
    tokens, columns = (1 << 31) // 8192 + 3, 8192
    x_q, out = (torch.zeros((tokens, columns), dtype=dtype, device="cuda") for dtype in (torch.int8, torch.bfloat16))
    x_q[-1] = torch.arange(columns, device="cuda").remainder(255).sub(127)
    x_scale = torch.full((tokens,), 0.5, device="cuda")
    launch_dequantize(x_q, x_scale, out)
    assert torch.equal(out[-2:], _expected(x_q[-2:], x_scale[-2:], torch.bfloat16))
