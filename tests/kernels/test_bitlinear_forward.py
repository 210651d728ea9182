"""How BitLinear launches the kernels that are written for their own `prepare`: the same machine code, sizes and memory."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels.bitlinear import forward
from kernels.bitlinear.forward import FORWARD, Call
from kernels.fragments import block_shape
from kernels.gpu import Gpu, by_name
from kernels.problem import Problem, Sparsity
from kernels.ternary_gemm import decode, decode_config, decode_estimate, sparse_mma, sparse_mma_config
from kernels.ternary_gemm.sparse_wgmma import ROW_PADDING, FragmentWeight

A100, H200 = by_name("a100"), by_name("h200")


class Recorded:
    """Stands for a Triton function; keeps what it is launched with."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launched(*arguments: Any, **constants: Any) -> None:
            told = [(one.dtype, one.data_ptr()) if isinstance(one, torch.Tensor) else one for one in arguments]
            self.launches.append((grid, told, constants))

        return launched


def call(problem: Problem, gpu: Gpu, bias: bool) -> Call:
    rows, columns = problem.out_features, problem.in_features
    kind = forward.layout_of(problem.sparsity)
    scale = torch.ones(-(-rows // ROW_PADDING) * ROW_PADDING)
    blocks = torch.zeros(block_shape(rows, columns), dtype=torch.int32)
    weight = FragmentWeight(blocks, scale, rows, columns, columns, sparse=kind == "sparse")
    pack = SimpleNamespace(fragments={kind: weight}, no_bias=torch.zeros_like(scale), flags=torch.zeros(2, dtype=torch.int32))
    x_q, x_scale = forward.allocate_quantized(problem.tokens, columns, torch.device("cpu"))
    return Call(problem, gpu, None, x_q[:, :columns], x_scale, pack, torch.ones_like(scale) if bias else None)  # type: ignore[arg-type] # what is read of it


@pytest.fixture(params=[A100, H200], ids=lambda gpu: gpu.name)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    monkeypatch.setattr(forward, "gpu_of", lambda index: request.param)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=request.param.sms))
    for cached in (forward._decode, forward._mma):
        cached.cache_clear()
    assert isinstance(request.param, Gpu)
    return request.param


SIZES = [(24, 48, 1), (136, 264, 7), (2560, 6912, 1), (256, 16384, 64), (384, 2560, 33)]


@pytest.mark.parametrize("sparsity", ["2:4", "6:8", "dense"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_decode(size: tuple[int, int, int], sparsity: str, bias: bool, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns, tokens = size
    problem = Problem("layer", rows, columns, tokens, Sparsity.parse(sparsity))
    ours, own = Recorded(), Recorded()
    monkeypatch.setattr(forward, "decode_gemm", ours)
    monkeypatch.setattr(decode, "decode_gemm", own)
    given = call(problem, gpu, bias)
    y = FORWARD["decode"].run(given)
    weight = given.pack.fragments[forward.layout_of(problem.sparsity)]
    gemm = problem.with_(op="gemm")
    config = decode_estimate.default_config(gemm if sparsity == "2:4" else gemm.with_(sparsity=Sparsity(1, 1)), gpu)
    found = decode_config.plan(rows, columns, tokens, config)
    split = found.splits > 1 and not config.clustered
    bound = decode.Decode(decode.DecodeWeight(weight.blocks, weight.row_scale[:rows], columns, weight.sparse),
                          None if given.bias is None else given.bias, y, config, torch.zeros(4, dtype=torch.int32),
                          torch.zeros(4, dtype=torch.int32), gpu.capability >= 90)  # fmt: skip
    bound.launch(given.x_q, given.x_scale)
    (grid, told, constants), (their_grid, theirs, their_constants) = ours.launches[0], own.launches[0]
    assert (grid, constants) == (their_grid, their_constants)
    sums = slice(6, 8)
    assert [*told[:6], *told[8:]] == [*theirs[:6], *theirs[8:]]
    assert [kind for kind, _ in told[sums]] == [torch.int32, torch.int32]
    assert (told[sums] == [(torch.int32, weight.blocks.data_ptr())] * 2) != split


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [*SIZES, (512, 8192, 200)], ids=str)
def test_sparse_mma(size: tuple[int, int, int], bias: bool, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns, tokens = size
    problem = Problem("layer", rows, columns, tokens, Sparsity(2, 4))
    ours, own = Recorded(), Recorded()
    monkeypatch.setattr(forward, "sparse_mma_gemm", ours)
    monkeypatch.setattr(sparse_mma, "sparse_mma_gemm", own)
    given = call(problem, gpu, bias)
    y = FORWARD["sparse-mma"].run(given)
    weight, config = given.pack.fragments["sparse"], sparse_mma_config.default_config(problem.with_(op="gemm"), gpu)
    spare = torch.zeros(4, dtype=torch.int32)
    bound = sparse_mma.MmaGemm(weight, given.x_q, given.x_scale, given.pack.no_bias if given.bias is None else given.bias, y, spare, spare,
                               config, gpu.sms * config.per_sm)  # fmt: skip
    bound.launch()
    (grid, told, constants), (their_grid, theirs, their_constants) = ours.launches[0], own.launches[0]
    assert (grid, constants) == (their_grid, their_constants)
    assert [*told[:6], *told[8:]] == [*theirs[:6], *theirs[8:]]
    assert [kind for kind, _ in told[6:8]] == [torch.int32, torch.int32]


def test_workspaces_are_large_enough_and_begin_as_zeros(gpu: Gpu) -> None:
    spare = torch.ones(4, dtype=torch.int32)
    for zeroed in (True, False):
        meeting = forward._Meeting(SimpleNamespace(), 7, 5, zeroed)  # type: ignore[arg-type] # not launched here
        sums, counters = meeting.workspace(spare)
        assert counters.tolist() == [0] * 5
        assert sums.numel() >= 7
        assert not (counters.data_ptr() - sums.data_ptr()) % 16
        assert not zeroed or sums[:7].tolist() == [0] * 7
        assert replace(meeting, sums=0, counters=0).workspace(spare) == (spare, spare)


@pytest.mark.parametrize("name", ["decode", "sparse-mma"])
def test_no_tokens_launch_nothing(name: str, gpu: Gpu) -> None:
    assert FORWARD[name].run(call(Problem("layer", 24, 48, 0, Sparsity(2, 4)), gpu, True)).shape == (0, 24)
