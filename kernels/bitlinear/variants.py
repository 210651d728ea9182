"""Which kernels a layer runs, and how each is called: the one place where a variant is chosen (`choose`) and added (the tables below)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import TypeAlias

import torch
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.bitlinear.packs import Fragments, KernelPack
from kernels.catalogue import find, kernels_for
from kernels.choose import rank
from kernels.errors import UsageError
from kernels.fragments import block_shape
from kernels.gpu import Gpu, by_name, detect
from kernels.inputs import DTYPES, ROW_ALIGNMENT
from kernels.launch import Launch
from kernels.mask_quantize.activation import activation_config, start_activation
from kernels.packed import PackedTernary
from kernels.problem import DENSE, DType, Problem, Sparsity
from kernels.sparse_backward import eight_bit_layer, input_grad, weight_grad
from kernels.sparse_backward.dequantize import launch_dequantize
from kernels.ternary_gemm import sparse_wgmma, sparse_wgmma_config
from kernels.ternary_gemm.dense_config import default_config
from kernels.ternary_gemm.dense_triton import Gemm, aligned_rows, check, refusal, workspace
from kernels.ternary_gemm.sparse_wgmma_kernel import sparse_gemm
from kernels.ternary_gemm.sparse_wgmma_ptx import STAGE_COLUMNS


@functools.cache
def gpu_of(index: int | None) -> Gpu:
    """The GPU with this index; without one (Triton's interpreter) the portable choices of an A100."""
    return (None if index is None else detect(index)) or by_name("a100")


@dataclass(frozen=True)
class Choice:
    """The kernels of a layer by name, as in the catalogue; in text joined by "+"."""

    forward: str
    input_grad: str
    weight_grad: str

    def __post_init__(self) -> None:
        tables = {"forward": FORWARD, "input-grad": INPUT_GRAD, "weight-grad": WEIGHT_GRAD}
        for name, (part, table) in zip(astuple(self), tables.items(), strict=True):
            if name not in table:
                raise UsageError(f"unknown {part} kernel {name!r} of a BitLinear; allowed: {', '.join(table)}")

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Read `forward+input-grad+weight-grad`; UsageError lists what is allowed."""
        names = text.split("+")
        if len(names) != 3:
            raise UsageError(f"variants {text!r}: three names joined by + are needed, as dense-triton+unpack-cublas+dequantize-cublas")
        return cls(*names)

    def __str__(self) -> str:
        return "+".join(astuple(self))


def choose(problem: Problem, gpu: Gpu) -> Choice:
    """The exact variants that are expected to take the least time: the forward GEMM by `kernels.choose` among those of the catalogue that a
    layer can call, both gradients through workspaces (the faster ones on an H200: docs/kernels-backward.md).

    problem: a `step` or `layer`; its dtype is that of the activations.
    """
    gemm = problem.with_(op="gemm")
    able = [kernel for kernel in kernels_for("gemm") if kernel.name in FORWARD and not FORWARD[kernel.name].refusal(gemm, gpu)]
    return Choice(rank(able, gemm, gpu)[0].kernel.name, "unpack-cublas", "dequantize-cublas")


@dataclass(frozen=True)
class Call:
    """One forward pass on the device. x: [T, K], None where x_q and x_scale hold it already; x_q int8 [T, K], rows padded to 128; x_scale
    float32 [T]; bias float32 [N]."""

    problem: Problem
    gpu: Gpu
    x: torch.Tensor | None
    x_q: torch.Tensor
    x_scale: torch.Tensor
    pack: KernelPack
    bias: torch.Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The type of x and y."""
        return DTYPES[self.problem.dtype]


@dataclass(frozen=True)
class Forward:
    """A forward kernel. run: fills x_q and x_scale from x and returns y [T, N] in x's type, on the current stream without synchronizing.
    refusal(gemm problem, gpu): why it cannot, or None. fragments: the layout of these that it reads."""

    run: Callable[[Call], torch.Tensor]
    refusal: Callable[[Problem, Gpu], str | None]
    fragments: Fragments | None = None


InputGrad: TypeAlias = Callable[[Problem, Gpu, torch.Tensor, PackedTernary], torch.Tensor]
"""dx [T, K] in dy's type from dy [T, N]."""

WeightGrad: TypeAlias = Callable[[Problem, Gpu, torch.Tensor, torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor]
"""dw [N, K] in the given type from dy [T, N], x_q int8 [T, K] and x_scale [T]."""


def allocate_quantized(tokens: int, in_features: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """x_q int8 [T, K padded to 128], zero behind K, contiguous, and x_scale float32 [T]: all that the backward pass keeps of x."""
    padded = -(-in_features // ROW_ALIGNMENT) * ROW_ALIGNMENT
    allocate = torch.empty if padded == in_features else torch.zeros
    return allocate((tokens, padded), dtype=torch.int8, device=device), torch.empty(tokens, dtype=torch.float32, device=device)


def _quantize(call: Call) -> None:
    if call.x is not None and call.problem.tokens:
        start_activation(call.x, call.x_q, call.x_scale, None, activation_config(call.problem.in_features, call.problem.tokens))


def _dense_triton(call: Call) -> torch.Tensor:
    _quantize(call)
    problem, packed = call.problem, call.pack.packed
    check(call.x_q, call.x_scale, packed, call.bias, call.dtype)
    y = call.x_q.new_empty((problem.tokens, problem.out_features), dtype=call.dtype)
    config = default_config(problem, call.gpu)
    Gemm(packed, call.x_scale, call.bias, y, config, workspace(config, y)).launch(call.x_q)
    return y


@dataclass(frozen=True)
class _Wgmma:
    """A launch of the Hopper GEMM. block: of the descriptor of x; wide: whether TMA stores y."""

    launch: Launch
    block: list[int]
    wide: bool


@functools.lru_cache(maxsize=4096)
def _wgmma(tokens: int, out_features: int, in_features: int, dtype: DType, kind: Fragments, device: torch.device) -> _Wgmma:
    """What `sparse_wgmma.bind` finds for 2:4 weights, or dense ones: choosing a config takes the host 140 µs, as long as many a GEMM."""
    problem = Problem("gemm", out_features, in_features, tokens, Sparsity(2, 4) if kind == "sparse" else DENSE, (), dtype)
    processors = sparse_wgmma.multiprocessors(device)
    config = sparse_wgmma_config.default_config(problem, gpu_of(device.index))
    plan = sparse_wgmma_config.schedule(config, tokens, out_features, processors)
    row_blocks, steps, *_ = block_shape(out_features, in_features)
    integers = (steps, plan.rounds, plan.row_tiles, plan.token_tiles, row_blocks, tokens, out_features)
    constants = {**sparse_wgmma.constants(config, DTYPES[dtype], out_features, kind), **sparse_wgmma.options(config)}
    wide = sparse_wgmma_config.is_wide(DTYPES[dtype], out_features)
    return _Wgmma(Launch(sparse_gemm, (plan.programs,), integers, **constants), [config.block_t // config.pair, STAGE_COLUMNS], wide)


def _run_wgmma(kind: Fragments, call: Call) -> torch.Tensor:
    tokens, rows, columns = call.problem.tokens, call.problem.out_features, call.problem.in_features
    out = call.x_q.new_empty((tokens, rows), dtype=call.dtype)
    if not tokens:
        return out
    _quantize(call)
    x_q = call.x_q if call.x_q.data_ptr() % 16 == 0 else aligned_rows(call.x_q)
    how, weight = _wgmma(tokens, rows, columns, call.problem.dtype, kind, x_q.device), call.pack.fragments[kind]
    bias = call.pack.no_bias if call.bias is None else sparse_wgmma.padded_rows(call.bias, rows)
    x = TensorDescriptor(x_q, [tokens, columns], [x_q.stride(0), 1], how.block, sparse_wgmma.LAYOUT)
    y = sparse_wgmma.out_descriptor(out) if how.wide else x
    how.launch((weight.blocks, call.x_scale, weight.row_scale, bias, out), (x, y))
    return out


def _sparse_refusal(problem: Problem, gpu: Gpu) -> str | None:
    if str(problem.sparsity) != "2:4":
        return f"fragments are packed of 2:4 weights, not of {problem.sparsity}"
    return sparse_wgmma_config.unavailable(problem, gpu)


def _unpack_cublas(problem: Problem, gpu: Gpu, dy: torch.Tensor, packed: PackedTernary) -> torch.Tensor:
    weight = torch.empty((problem.out_features, problem.in_features), dtype=dy.dtype, device=dy.device)
    input_grad.launch_unpack(packed, weight)
    return torch.mm(dy, weight)


def _unpack_dot(problem: Problem, gpu: Gpu, dy: torch.Tensor, packed: PackedTernary) -> torch.Tensor:
    dx = torch.empty((problem.tokens, problem.in_features), dtype=dy.dtype, device=dy.device)
    input_grad.launch_input_grad(dy, packed, dx, input_grad.default_config(problem, gpu))
    return dx


def _dequantize_cublas(problem: Problem, gpu: Gpu, dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor,
                       dtype: torch.dtype) -> torch.Tensor:
    x = torch.empty(x_q.shape, dtype=dy.dtype, device=dy.device)
    launch_dequantize(x_q, x_scale, x)
    if dtype == torch.float32 and dy.dtype != dtype and dy.is_cuda:
        return torch.mm(dy.t(), x, out_dtype=dtype)  # not rounded to dy's type on its way into a float32 gradient
    return torch.mm(dy.t(), x).to(dtype)


def _convert_dot(problem: Problem, gpu: Gpu, dy: torch.Tensor, x_q: torch.Tensor, x_scale: torch.Tensor,
                 dtype: torch.dtype) -> torch.Tensor:
    dw = torch.empty((problem.out_features, problem.in_features), dtype=dtype, device=dy.device)
    config = weight_grad.default_config(problem, gpu)
    parts = weight_grad.workspace(problem.out_features, problem.in_features, config, dy.device)
    weight_grad.launch_weight_grad(dy, x_q, x_scale, dw, parts, config)
    return dw


FORWARD: Mapping[str, Forward] = {
    "dense-triton": Forward(_dense_triton, refusal),
    "dense-wgmma": Forward(functools.partial(_run_wgmma, "dense"), find("dense-wgmma", "gemm").unavailable, "dense"),
    "sparse-wgmma": Forward(functools.partial(_run_wgmma, "sparse"), _sparse_refusal, "sparse"),
}
INPUT_GRAD: Mapping[str, InputGrad] = {
    "unpack-cublas": _unpack_cublas, "unpack-dot": _unpack_dot, "int8-wgmma": eight_bit_layer.layer_input_grad,
}  # fmt: skip
WEIGHT_GRAD: Mapping[str, WeightGrad] = {
    "dequantize-cublas": _dequantize_cublas, "convert-dot": _convert_dot, "int8-triton": eight_bit_layer.layer_weight_grad,
}  # fmt: skip
"""The 8-bit ones are not exact: never chosen, only named."""

