"""Which kernels a layer runs, and how each is called: the one place where a variant is chosen (`choose`) and added (the tables below)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import TypeAlias

import torch
import triton
import triton.language as tl

from kernels.bitlinear.packs import KernelPack
from kernels.catalogue import kernels_for
from kernels.choose import rank
from kernels.errors import UsageError
from kernels.gpu import Gpu, by_name, detect
from kernels.inputs import DTYPES, ROW_ALIGNMENT
from kernels.mask_quantize.activation import activation_config, launch_activation
from kernels.packed import PackedTernary
from kernels.problem import Problem
from kernels.sparse_backward import eight_bit_layer, input_grad, weight_grad
from kernels.sparse_backward.dequantize import launch_dequantize
from kernels.ternary_gemm import sparse_wgmma, sparse_wgmma_config
from kernels.ternary_gemm.dense_config import default_config
from kernels.ternary_gemm.dense_triton import Gemm, check, refusal, workspace


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
    refusal(gemm problem, gpu): why it cannot, or None. fragments: whether it reads that layout."""

    run: Callable[[Call], torch.Tensor]
    refusal: Callable[[Problem, Gpu], str | None]
    fragments: bool = False


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
    if call.x is not None:
        launch_activation(call.x, call.x_q, call.x_scale, None, activation_config(call.problem.in_features, call.problem.tokens))


def _dense_triton(call: Call) -> torch.Tensor:
    _quantize(call)
    problem, packed = call.problem, call.pack.packed
    check(call.x_q, call.x_scale, packed, call.bias, call.dtype)
    y = call.x_q.new_empty((problem.tokens, problem.out_features), dtype=call.dtype)
    config = default_config(problem, call.gpu)
    Gemm(packed, call.x_scale, call.bias, y, config, workspace(config, y)).launch(call.x_q)
    return y


def _sparse_wgmma(call: Call) -> torch.Tensor:
    if not call.problem.tokens:
        return call.x_q.new_empty((0, call.problem.out_features), dtype=call.dtype)
    _quantize(call)
    assert call.pack.fragments is not None
    config, processors = _sparse_config(call.problem, call.x_q.device)
    gemm = sparse_wgmma.bind(call.x_q, call.x_scale, call.pack.fragments, call.bias, call.dtype, config, processors)
    gemm.launch()
    return gemm.out


@functools.lru_cache(maxsize=4096)
def _sparse_config(problem: Problem, device: torch.device) -> tuple[sparse_wgmma_config.SparseConfig, int]:
    """The config of a problem and the multiprocessors of a device; choosing takes the host 140 µs, as long as many a GEMM."""
    config = sparse_wgmma_config.default_config(problem.with_(op="gemm"), gpu_of(device.index))
    return config, sparse_wgmma.multiprocessors(device)


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
    "sparse-wgmma": Forward(_sparse_wgmma, _sparse_refusal, fragments=True),
}
INPUT_GRAD: Mapping[str, InputGrad] = {
    "unpack-cublas": _unpack_cublas, "unpack-dot": _unpack_dot, "int8-wgmma": eight_bit_layer.layer_input_grad,
}  # fmt: skip
WEIGHT_GRAD: Mapping[str, WeightGrad] = {
    "dequantize-cublas": _dequantize_cublas, "convert-dot": _convert_dot, "int8-triton": eight_bit_layer.layer_weight_grad,
}  # fmt: skip
"""The 8-bit ones are not exact: never chosen, only named."""


@triton.jit  # type: ignore[untyped-decorator] # Triton has no types
def _flag_kernel(values, flag, count, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # typed by Triton's compiler
    """flag = 1 where one of `count` values, `stride` apart, is NaN or infinite; else the flag stays as it is. Programs write the same 1."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + place.to(tl.int64) * stride, mask=place < count, other=0.0).to(tl.float32)
    bad = ((value.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >= 0x7F800000).to(tl.int32)
    if tl.max(bad, axis=0) > 0:
        tl.store(flag, 1)


def launch_flag(values: torch.Tensor, flag: torch.Tensor) -> None:
    """Set flag (int32 [1]) where values [n], any float type and stride, hold a NaN or an infinity; one launch, no synchronization."""
    if values.numel():
        _flag_kernel[(triton.cdiv(values.shape[0], 512),)](values, flag, values.shape[0], values.stride(0), BLOCK=512, num_warps=4)
