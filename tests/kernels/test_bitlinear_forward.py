"""How BitLinear launches the kernels that are written for their own `prepare`: the same machine code, sizes and memory."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels.bitlinear import forward
from kernels.bitlinear.pack import KernelPack
from kernels.bitlinear.quantized import Quantizer, allocate_quantized
from kernels.fragments import block_shape
from kernels.gpu import Gpu, by_name
from kernels.inputs import DTYPES
from kernels.mask_quantize import activation
from kernels.mask_quantize.activation import activation_config
from kernels.problem import DENSE, DType, Problem, Sparsity
from kernels.ternary_gemm import decode, decode_config, decode_estimate, sparse_mma, sparse_mma_config
from kernels.ternary_gemm.sparse_wgmma import ROW_PADDING, FragmentWeight

CPU = torch.device("cpu")
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


def pack_of(problem: Problem) -> KernelPack:
    """What is read of one."""
    rows, columns = problem.out_features, problem.in_features
    kind = forward.layout_of(problem.sparsity)
    scale = torch.ones(-(-rows // ROW_PADDING) * ROW_PADDING)
    blocks = torch.zeros(block_shape(rows, columns), dtype=torch.int32)
    weight = FragmentWeight(blocks, scale, rows, columns, columns, sparse=kind == "sparse")
    flags = torch.zeros(2, dtype=torch.int32)
    made = SimpleNamespace(fragments={kind: weight}, no_bias=torch.zeros_like(scale), flags=flags, _addresses={})
    made.addresses = partial(KernelPack.addresses, made)  # type: ignore[arg-type]
    return made  # type: ignore[return-value]


@pytest.fixture(params=[A100, H200], ids=lambda gpu: gpu.name)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=request.param.sms))
    monkeypatch.setattr(activation, "dependence", lambda device: {"DEPENDENT": False})
    monkeypatch.setattr(forward, "lookup", lambda kernel, problem, gpu: (kernel.default_config(problem, gpu), "default"))
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
    pack, rows_of_bias = pack_of(problem), torch.ones(-(-rows // ROW_PADDING) * ROW_PADDING) if bias else None
    x_q, x_scale = allocate_quantized(tokens, columns, CPU)
    y = forward.bind("decode", problem, gpu, CPU, bias)(None, x_q, x_scale, pack, rows_of_bias)
    weight = pack.fragments[forward.layout_of(problem.sparsity)]
    config = decode_estimate.default_config(problem, gpu)
    found = decode_config.plan(rows, columns, tokens, config)
    split = found.splits > 1 and not config.clustered
    spare = torch.zeros(4, dtype=torch.int32)
    own_weight = decode.DecodeWeight(weight.blocks, weight.row_scale[:rows], columns, weight.sparse)
    bound = decode.Decode(own_weight, rows_of_bias, y, config, spare, spare, gpu.capability >= 90)
    bound.launch(x_q[:, :columns], x_scale)
    (grid, told, constants), (their_grid, theirs, their_constants) = ours.launches[0], own.launches[0]
    assert (grid, constants) == (their_grid, their_constants)
    sums = slice(6, 8)
    assert [*told[:6], *told[8:]] == [*theirs[:6], *theirs[8:]]
    assert [kind for kind, _ in told[sums]] == [torch.int32, torch.int32]
    assert (told[sums] == [(torch.int32, weight.blocks.data_ptr())] * 2) != split


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_lean_way_launches_the_same(size: tuple[int, int, int], bias: bool, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns, tokens = size
    problem, recorded = Problem("layer", rows, columns, tokens, Sparsity(2, 4)), Recorded()
    monkeypatch.setattr(forward, "decode_gemm", recorded)
    monkeypatch.setattr(activation, "activation_words_kernel", recorded)
    activation.activation_launch.cache_clear()
    run = forward.Decode(problem, gpu, CPU, bias)
    assert run.able
    pack, rows_of_bias = pack_of(problem), torch.ones(-(-rows // ROW_PADDING) * ROW_PADDING) if bias else None
    x, (x_q, x_scale) = torch.zeros(tokens, columns, dtype=torch.bfloat16), allocate_quantized(tokens, columns, CPU)
    assert run(x, x_q, x_scale, pack, rows_of_bias).shape == (tokens, rows)
    y = run.lean(x.view(1, tokens, columns), pack, rows_of_bias, (1, tokens, rows))
    assert (y.shape, y.dtype) == ((1, tokens, rows), torch.bfloat16)
    activation.activation_launch.cache_clear()
    (quantized, multiplied), lean = recorded.launches[:2], recorded.launches[2:]
    own = {quantized[1][1]: lean[0][1][1], quantized[1][2]: lean[0][1][2], multiplied[1][5]: (y.dtype, y.data_ptr())}
    blocks = (torch.int32, pack.fragments["sparse"].blocks.data_ptr())
    if multiplied[1][6] != blocks:
        assert gpu is A100, "programs that meet in memory have a workspace for each launch"
        own |= dict(zip(multiplied[1][6:8], lean[1][1][6:8], strict=True))
    for launch, other in zip((quantized, multiplied), lean, strict=True):
        assert (launch[0], [own.get(one, one) for one in launch[1]], launch[2]) == other, "but for codes, scales, y and workspaces"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [*SIZES, (512, 8192, 200)], ids=str)
def test_sparse_mma(size: tuple[int, int, int], bias: bool, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns, tokens = size
    problem = Problem("layer", rows, columns, tokens, Sparsity(2, 4))
    ours, own = Recorded(), Recorded()
    monkeypatch.setattr(forward, "sparse_mma_gemm", ours)
    monkeypatch.setattr(sparse_mma, "sparse_mma_gemm", own)
    pack, rows_of_bias = pack_of(problem), torch.ones(-(-rows // ROW_PADDING) * ROW_PADDING) if bias else None
    x_q, x_scale = allocate_quantized(tokens, columns, CPU)
    y = forward.bind("sparse-mma", problem, gpu, CPU, bias)(None, x_q, x_scale, pack, rows_of_bias)
    weight, config = pack.fragments["sparse"], sparse_mma_config.default_config(problem, gpu)
    spare = torch.zeros(4, dtype=torch.int32)
    bound = sparse_mma.MmaGemm(weight, x_q[:, :columns], x_scale, pack.no_bias if rows_of_bias is None else rows_of_bias, y, spare, spare,
                               config, gpu.sms * config.per_sm)  # fmt: skip
    bound.launch()
    (grid, told, constants), (their_grid, theirs, their_constants) = ours.launches[0], own.launches[0]
    assert (grid, constants) == (their_grid, their_constants)
    assert [*told[:6], *told[8:]] == [*theirs[:6], *theirs[8:]]
    assert [kind for kind, _ in told[6:8]] == [torch.int32, torch.int32]


def test_workspaces_are_large_enough_and_begin_as_zeros() -> None:
    spare = torch.ones(4, dtype=torch.int32)
    for zeroed in (True, False):
        sums, counters = forward._meeting(7, 5, zeroed)(spare)
        assert counters.tolist() == [0] * 5
        assert sums.numel() >= 7
        assert not zeroed or sums[:7].tolist() == [0] * 7
        assert not (counters.data_ptr() - sums.data_ptr()) % 16
        assert forward._meeting(7, 0, zeroed)(spare) == (spare, spare)


@pytest.mark.parametrize("name", forward.FORWARD)
def test_no_tokens_launch_nothing(name: str) -> None:
    problem = Problem("layer", 24, 48, 0, Sparsity(2, 4))
    x_q, x_scale = allocate_quantized(0, 48, CPU)
    assert forward.bind(name, problem, H200, CPU, False)(torch.empty(0, 48), x_q, x_scale, pack_of(problem), None).shape == (0, 24)


@pytest.mark.parametrize(("dtype", "columns"), [("bf16", 2560), ("bf16", 264), ("fp32", 2560), ("bf16", 48)])
def test_rows_that_lie_as_usual(dtype: DType, columns: int, monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """They are quantized by a launch known beforehand, with the arguments of `start_activation`, which takes what lies otherwise."""
    told: list[tuple[Any, ...]] = []
    for name in ("activation_kernel", "activation_words_kernel"):
        recorded = Recorded()
        recorded.launches = told
        monkeypatch.setattr(activation, name, recorded)
    activation.activation_launch.cache_clear()
    kind = DTYPES[dtype]
    for tokens in (1, 5):
        quantize = Quantizer(Problem("layer", 24, columns, tokens, DENSE, dtype=dtype), CPU)
        x_q, x_scale = allocate_quantized(tokens, columns, CPU)
        x, flags = torch.zeros(tokens, columns, dtype=kind), torch.zeros(2, dtype=torch.int32)
        quantize(x, x_q, x_scale, flags)
        activation.start_activation(x, x_q[:, :columns], x_scale, None, activation_config(columns, tokens), flags=flags)
        assert told[-1] == told[-2]
        quantize(torch.zeros(tokens, columns + 16, dtype=kind)[:, :columns], x_q, x_scale, flags)
        assert (columns + 16 in told[-1][1]) == (tokens == 5), "of one row the stride is of no importance"
    activation.activation_launch.cache_clear()
