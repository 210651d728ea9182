"""`decode`: the ternary GEMM and the whole layer for 1 … 64 tokens, at the speed at which the weights can be read.

Y[T, N] = X · Wᵀ · x_scale[t] · w_scale[split(n)] + bias from int8 X (gemm) or float X (layer), weights at 2 bits in fragment order
(`kernels.fragments`): 2:4 on the sparse tensor cores, any other ternary weight on the dense ones; or 2:4 at 1.5 bits
(`kernels.fragments_narrow`). See docs/kernels-decode.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from kernels.errors import NonFiniteError, PackError, ShapeError, SparsityError
from kernels.fragments import pack_dense_fragments, pack_fragments
from kernels.fragments_narrow import pack_narrow_fragments
from kernels.gpu import Gpu
from kernels.inputs import DTYPES, GemmInputs, Inputs, LayerInputs
from kernels.kernel import CompileUnit, Kernel, Outputs, Prepared
from kernels.mask_quantize.activation import activation_config, allocate_activation, launch_activation
from kernels.problem import Problem, Sparsity
from kernels.ternary_gemm.decode_config import MAX_TOKENS, DecodeConfig, Plan, breaks_rounds, is_sparse, plan, quantizes, tokens_at_once
from kernels.ternary_gemm.decode_estimate import default_config, narrow_config, narrow_space, space
from kernels.ternary_gemm.decode_kernel import decode_gemm
from kernels.ternary_gemm.dense_triton import MAX_IN_FEATURES, aligned_rows, is_aligned

KINDS = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32", torch.int32: "s32"}


@dataclass(frozen=True)
class DecodeWeight:
    """blocks: int32 as `kernels.fragments` packs them. row_scale: float32 [N], w_scale / 64. sparse: layout fragment24, else fragment.
    narrow: layout narrow24 (`kernels.fragments_narrow`), for configs that ask for it alone."""

    blocks: torch.Tensor
    row_scale: torch.Tensor
    in_features: int
    sparse: bool
    narrow: bool = False

    @property
    def out_features(self) -> int:
        """N."""
        return self.row_scale.shape[0]

    @property
    def weight_bytes(self) -> int:
        """Bytes as stored, scales included."""
        return 4 * (self.blocks.numel() + self.row_scale.numel())


def decode_weight(
    w_ternary: torch.Tensor, w_scale: torch.Tensor, splits: Sequence[int], sparsity: Sparsity, narrow: bool = False
) -> DecodeWeight:
    """Pack a masked ternary int8 weight [N, K] with float32 scales, one per split, on its device. narrow: at 1.5 bits.

    Raises SparsityError for a 2:4 weight that is none, or another that shall be narrow, ShapeError for what does not fit,
    NonFiniteError for a scale that is not finite.
    """
    if not bool(torch.isfinite(w_scale).all()):
        raise NonFiniteError("w_scale holds a NaN or an infinity")
    if sum(splits) != w_ternary.shape[0] or tuple(w_scale.shape) != (len(splits),):
        raise ShapeError(f"splits {tuple(splits)} and {len(w_scale)} scales do not fit {w_ternary.shape[0]} out_features")
    sparse = (sparsity.n, sparsity.m) == (2, 4)
    if narrow and not sparse:
        raise SparsityError(f"1.5 bits hold 2:4 weights, not {sparsity}")
    pack = pack_narrow_fragments if narrow else pack_fragments if sparse else pack_dense_fragments
    blocks = pack(w_ternary)
    scale = w_scale.float().repeat_interleave(torch.tensor(tuple(splits), device=w_scale.device)) / 64
    return DecodeWeight(blocks, scale.contiguous(), w_ternary.shape[1], sparse, narrow)


@dataclass(frozen=True)
class Decode:
    """The GEMM bound to all but its activations. sums, counters: int32 for shares of in_features, zero between launches.

    dependent: programmatic dependent launch. Weight, scales and bias are read before the launches ahead have finished: they must not be
    written there.
    """

    weight: DecodeWeight
    bias: torch.Tensor | None
    out: torch.Tensor
    config: DecodeConfig
    sums: torch.Tensor
    counters: torch.Tensor
    dependent: bool

    @cached_property
    def _plan(self) -> Plan:
        return plan(self.out.shape[1], self.weight.in_features, self.out.shape[0], self.config)

    @cached_property
    def _arguments(self) -> tuple[tuple[object, ...], tuple[int, ...]]:
        """What follows the activations and their scales, and what follows their stride."""
        weight, (tokens, out_features), found = self.weight, self.out.shape, self._plan
        bias = weight.row_scale if self.bias is None else self.bias  # an address that is not used
        pointers = (weight.blocks, weight.row_scale, bias, self.out, self.sums, self.counters)
        row_blocks, blocks = weight.blocks.shape[:2]
        sizes = (row_blocks, blocks, found.share, found.chunks, found.steps, found.row_tiles, found.group)
        return (*pointers, tokens, out_features, weight.in_features), sizes

    def launch(self, x: torch.Tensor, x_scale: torch.Tensor | None) -> None:
        """One launch on the current stream. x: int8 rows as `aligned_rows` gives them with their scales, or what `fuses` with None."""
        if not self.out.numel():
            return
        found, (pointers, sizes) = self._plan, self._arguments
        fused = None if x_scale is not None else KINDS[x.dtype]
        constants = _constants(self.config, found, self.weight.sparse, self.bias is not None, self.out.dtype, self.dependent, fused,
                               self.weight.in_features)
        with torch.cuda.device_of(self.out):
            decode_gemm[found.grid](
                x, self.weight.row_scale if x_scale is None else x_scale, *pointers, x.stride(0), *sizes, **constants,
                num_warps=self.config.warps, num_ctas=found.cluster, launch_pdl=self.dependent,
            )


def _constants(config: DecodeConfig, found: Plan, sparse: bool, bias: bool, dtype: torch.dtype, dependent: bool, fused: str | None,
               in_features: int) -> dict[str, object]:
    """What the kernel is specialized for. fused: type of activations that it quantizes."""
    tokens = found.group
    rows = tokens_at_once(tokens, config)
    return {"TILES": config.tiles, "TOKENS8": found.tokens8, "DEPTH": config.depth, "WARPS_M": config.warps_m,
            "WARPS_K": config.warps_k, "ROWS": rows, "GROUPS": found.groups, "ROUNDS": config.rounds,
            "SPLITS": 1 if config.clustered else found.splits, "CLUSTER": found.cluster, "SHARED": found.shared_kib,
            "CHUNKED": found.chunks > 1, "PENDING": found.pending if found.chunks > 1 else 0,
            "SPARSE": sparse, "BIAS": bias, "OUT": KINDS[dtype], "PDL": dependent, "EAGER": config.eager,
            "FUSED": fused, "PIECES": min(4, -(-in_features * rows // (256 * config.warps))) if fused else 0,
            "WGMMA": config.wgmma, "NARROW": config.narrow}


def bind(tokens: int, weight: DecodeWeight, bias: torch.Tensor | None, dtype: torch.dtype, config: DecodeConfig) -> Decode:
    """The GEMM with its output [tokens, N] and its workspace allocated. Raises ShapeError for what does not fit, PackError for a weight in
    another layout than the config reads."""
    rows, device = weight.out_features, weight.blocks.device
    if not 0 <= tokens <= MAX_TOKENS:
        raise ShapeError(f"{tokens} tokens; decode takes at most {MAX_TOKENS}")
    if weight.in_features > MAX_IN_FEATURES:
        raise ShapeError(f"in_features is {weight.in_features}; int32 accumulators of 64-fold weights hold at most {MAX_IN_FEATURES}")
    if dtype not in KINDS:
        raise ShapeError(f"out_dtype is {dtype}; one of {', '.join(map(str, KINDS))} is needed")
    if weight.narrow != config.narrow:
        held, read = (("2", "1.5") if config.narrow else ("1.5", "2"))
        raise PackError(f"the weight is packed at {held} bits, this config reads {read}")
    if bias is not None:
        need("bias", bias, torch.float32, (rows,), device)
    found = plan(rows, weight.in_features, tokens, config)
    refusal = breaks_rounds(found, config)
    if refusal is not None:
        raise ShapeError(f"{config.rounds} rounds: {refusal}")
    if device.type != "cuda":
        raise ShapeError(f"tensors are on {device}; a CUDA device is needed")
    dependent = torch.cuda.get_device_capability(device) >= (9, 0)
    if config.clustered and not dependent:
        raise ShapeError("a clustered config needs sm_90 or later")
    if config.wgmma and (torch.cuda.get_device_capability(device)[0] != 9 or config.warps_m % 4 or config.rounds > 1):
        raise ShapeError("a config of warpgroups needs sm_90, a multiple of four warps along out_features, and one round")
    if config.narrow and (torch.cuda.get_device_capability(device)[0] != 9 or config.tiles != 4 or config.wgmma):
        raise ShapeError("a config at 1.5 bits needs sm_90, four tiles a warp, and no warpgroups")
    split = found.splits > 1 and not config.clustered
    sums = torch.zeros((tokens, rows) if split else (1,), dtype=torch.int32, device=device)
    counters = torch.zeros(found.row_tiles * found.groups if split else 1, dtype=torch.int32, device=device)
    out = torch.empty((tokens, rows), dtype=dtype, device=device)
    return Decode(weight, None if bias is None else bias.contiguous(), out, config, sums, counters, dependent)


def need(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    """Raises ShapeError unless the tensor is of this type and shape, on this device."""
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device != device:
        raise ShapeError(f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; {dtype} {list(shape)} on {device} is needed")


def fuses(x: torch.Tensor, config: DecodeConfig, out_features: int) -> bool:
    """Whether the GEMM quantizes x [T, K] itself: `quantizes`, and rows of 16-byte pieces."""
    tokens, in_features = x.shape
    row_bytes = x.stride(0) * x.element_size()
    pieces = x.stride(1) == 1 and row_bytes % 16 == 0 and x.data_ptr() % 16 == 0
    return pieces and quantizes(plan(out_features, in_features, tokens, config), in_features, config)


def prepare(problem: Problem, inputs: Inputs, config: DecodeConfig) -> Prepared:
    """Bind a gemm; packing is outside of `run`, a copy of badly aligned activations inside."""
    if not isinstance(inputs, GemmInputs):
        raise ShapeError(f"{problem.op} takes GemmInputs, not {type(inputs).__name__}")
    x_q, device = inputs.x_q, inputs.w_ternary.device
    need("x_q", x_q, torch.int8, (problem.tokens, problem.in_features), device)
    need("x_scale", inputs.x_scale, torch.float32, (problem.tokens,), device)
    weight = decode_weight(inputs.w_ternary, inputs.w_scale, problem.splits, problem.sparsity, config.narrow)
    gemm = bind(problem.tokens, weight, inputs.bias, DTYPES[problem.dtype], config)
    aligned, x_scale = is_aligned(x_q), inputs.x_scale.contiguous()

    def run() -> Outputs:
        gemm.launch(x_q if aligned else aligned_rows(x_q), x_scale)
        return {"y": gemm.out}

    footprint = x_q.numel() + 4 * problem.tokens + weight.weight_bytes + gemm.out.nbytes
    return Prepared(run, {"y": gemm.out}, footprint, weight.weight_bytes, {"copies_x": not aligned, **_notes(gemm)})


def prepare_layer(problem: Problem, inputs: Inputs, config: DecodeConfig) -> Prepared:
    """Bind a layer: one launch where the GEMM quantizes its activations itself (`fuses`), else a launch of `activation` before it."""
    if not isinstance(inputs, LayerInputs):
        raise ShapeError(f"{problem.op} takes LayerInputs, not {type(inputs).__name__}")
    x = inputs.x
    need("x", x, DTYPES[problem.dtype], (problem.tokens, problem.in_features), inputs.w_ternary.device)
    weight = decode_weight(inputs.w_ternary, inputs.w_scale, problem.splits, problem.sparsity, config.narrow)
    gemm = bind(problem.tokens, weight, inputs.bias, DTYPES[problem.dtype], config)
    fused = fuses(x, config, problem.out_features)
    x_q, x_scale = allocate_activation(0 if fused else problem.tokens, problem.in_features, None, x.device)
    quantize = activation_config(problem.in_features, problem.tokens)

    def run() -> Outputs:
        if fused:
            gemm.launch(x, None)
        else:
            launch_activation(x, x_q, x_scale, None, quantize)
            gemm.launch(x_q, x_scale)
        return {"y": gemm.out}

    footprint = x.nbytes + x_q.numel() + weight.weight_bytes + gemm.out.nbytes
    return Prepared(run, {"y": gemm.out}, footprint, weight.weight_bytes, {"launches": 1 if fused else 2, **_notes(gemm)})


def _notes(gemm: Decode) -> dict[str, bool | int]:
    return {"sparse": gemm.weight.sparse, "dependent_launch": gemm.dependent, "shares": gemm.config.splits}


def unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """Why this kernel cannot do the problem on that GPU, or None."""
    if gpu.capability < 80:
        return f"needs sm_80 or later, {gpu.name} is {gpu.architecture}"
    if problem.tokens > MAX_TOKENS:
        return f"takes at most {MAX_TOKENS} tokens, not {problem.tokens}"
    if problem.in_features > MAX_IN_FEATURES:
        return f"in_features {problem.in_features} is above {MAX_IN_FEATURES}"
    if problem.op == "layer" and problem.dtype == "int32":
        return "a layer has no raw accumulators (int32)"
    return None


def compile_units(problem: Problem, config: DecodeConfig) -> Sequence[CompileUnit]:
    """The kernel as problem and config make it, for activations in rows of whole 16-byte pieces."""
    dtype, tokens = DTYPES[problem.dtype], max(1, problem.tokens)
    found = plan(problem.out_features, problem.in_features, tokens, config)
    kind = {"bf16": "*bf16", "f16": "*fp16", "f32": "*fp32", "s32": "*i32"}[KINDS[dtype]]
    layer = problem.op == "layer" and quantizes(found, problem.in_features, config)
    pointers = {"x_ptr": kind if layer else "*i8", "x_scale_ptr": "*fp32", "w_ptr": "*i32", "row_scale_ptr": "*fp32", "bias_ptr": "*fp32",
                "y_ptr": kind, "sums_ptr": "*i32", "counter_ptr": "*i32"}
    names = ("tokens", "out_features", "in_features", "x_stride", "row_blocks", "blocks", "share", "chunks", "steps", "row_tiles", "group")
    sparse = is_sparse(problem)
    constants = _constants(config, found, sparse, problem.bias, dtype, False, KINDS[dtype] if layer else None, problem.in_features)
    signature = {**pointers, **dict.fromkeys(names, "i32"), **dict.fromkeys(constants, "constexpr")}
    expects = {80: "IMMA.SP" if sparse else "IMMA"}
    if config.wgmma:
        expects = {90: "IGMMA.SP" if sparse else "IGMMA"}
    options = {"num_warps": config.warps, "num_ctas": found.cluster, "launch_pdl": False}
    since = {90: {"PDL": True, "launch_pdl": True}}
    return [CompileUnit(decode_gemm, signature, constants, tuple(pointers), options, expects, since)]


NARROW_TOKENS = 16
"""Most tokens for which 1.5 bits a weight are offered. An H200 took 0.78 of the time of 2 bits for 57344×8192 at one token and 0.88 at 16,
0.89 and 1.00 for 8192×28672, but 1.08 for 10240×8192 and 1.32 for 13824×2560 at one: it is a kernel of its own, for the largest layers."""


def narrow_unavailable(problem: Problem, gpu: Gpu) -> str | None:
    """The same of the kernel for weights at 1.5 bits, whose metadata are in an order that only sm_90 was seen to take."""
    if gpu.capability != 90:
        return f"needs sm_90, {gpu.name} is {gpu.architecture}"
    if not is_sparse(problem):
        return f"1.5 bits hold 2:4 weights, not {problem.sparsity}"
    if problem.tokens > NARROW_TOKENS:
        return f"takes at most {NARROW_TOKENS} tokens, not {problem.tokens}"
    return unavailable(problem, gpu)


GEMM = Kernel("decode", "gemm", "variant", prepare, default_config, space, unavailable, compile_units=compile_units, interpreted=False)
LAYER = replace(GEMM, op="layer", prepare=prepare_layer)
NARROW = replace(GEMM, name="decode-narrow", default_config=narrow_config, space=narrow_space, unavailable=narrow_unavailable)
NARROW_LAYER = replace(NARROW, op="layer", prepare=prepare_layer)
KERNELS: tuple[Kernel, ...] = (GEMM, LAYER, NARROW, NARROW_LAYER)
