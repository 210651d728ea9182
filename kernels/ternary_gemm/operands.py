"""What the library baselines share: operands padded to what a library takes, dequantized copies, a choice of settings by time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import torch

from kernels.errors import ShapeError
from kernels.inputs import DTYPES, ROW_ALIGNMENT, GemmInputs, Inputs, LayerInputs
from kernels.kernel import Outputs, Prepared
from kernels.mask_quantize.activation import activation_config, launch_activation
from kernels.problem import Problem
from kernels.space import Config
from kernels.ternary_gemm.scaling import launch_scaling, row_scales
from reference.lifting import lift_activation, lifted_width

Linear = GemmInputs | LayerInputs
E4M3 = torch.float8_e4m3fn
GRAPH_CALLS = 4
TURN_MILLISECONDS = 5.0


@dataclass(frozen=True)
class Int8Operand:
    """Activations as a library takes them: x_q int8 [padded tokens, padded in_features], contiguous, and x_scale float32 [tokens].

    load: the work inside the clock that fills x_q (quantization in a layer, a copy where the tokens had to be padded, else nothing).
    """

    x_q: torch.Tensor
    x_scale: torch.Tensor
    load: Callable[[], None]


@dataclass(frozen=True)
class OutputPass:
    """Accumulators to outputs: one scaling pass into y [tokens, out_features], or none where the raw int32 accumulators are asked for."""

    y: torch.Tensor
    x_scale: torch.Tensor
    row_scale: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def of(cls, problem: Problem, inputs: Linear, x_scale: torch.Tensor) -> OutputPass:
        """The pass of a problem, with a y of its own."""
        tokens = 0 if problem.dtype == "int32" else problem.tokens
        y = torch.empty((tokens, problem.out_features), dtype=DTYPES[problem.dtype], device=x_scale.device)
        return cls(y, x_scale, row_scales(inputs.w_scale, problem.splits), inputs.bias)

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """y, where a call writes it in place."""
        return {} if self.y.dtype == torch.int32 else {"y": self.y}

    def __call__(self, acc: torch.Tensor) -> Outputs:
        """Outputs from accumulators of at least [tokens, out_features]; what was padded is left out."""
        acc = acc[: self.x_scale.shape[0], : self.row_scale.shape[0]]
        if self.y.dtype == torch.int32:
            return {"y": acc}
        launch_scaling(acc, self.x_scale, self.row_scale, self.bias, self.y)
        return {"y": self.y}


def linear_inputs(inputs: Inputs) -> Linear:
    """The inputs of a gemm or a layer; ShapeError for those of another op."""
    if not isinstance(inputs, (GemmInputs, LayerInputs)):
        raise ShapeError(f"{type(inputs).__name__} are not the inputs of a gemm or a layer")
    return inputs


def no_tokens(problem: Problem) -> str | None:
    """The reason against a call without tokens, which no library here takes."""
    return None if problem.tokens else "the library takes no empty batch (0 tokens)"


def only_bf16(problem: Problem) -> str | None:
    """The reason against types other than bf16."""
    return None if problem.dtype == "bf16" else f"gives bf16, the problem asks for {problem.dtype}"


def up_to(size: int, multiple: int) -> int:
    """The smallest multiple that is not below `size`."""
    return -(-size // multiple) * multiple


def zero_padded(tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A contiguous tensor of [rows, columns] with zeros behind; the tensor itself where nothing is to be added."""
    if tensor.shape == (rows, columns):
        return tensor.contiguous()
    buffer = torch.zeros((rows, columns), dtype=tensor.dtype, device=tensor.device)
    buffer[: tensor.shape[0], : tensor.shape[1]] = tensor
    return buffer


def to_e4m3(codes: torch.Tensor) -> torch.Tensor:
    """int8 codes rounded to fp8 e4m3, half to even; -1, 0 and 1 are exact."""
    return codes.to(torch.float32).to(E4M3)


def nbytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of the elements of these tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def dequantized_weight(problem: Problem, inputs: Linear) -> torch.Tensor:
    """The masked ternary weight times its scale, rounded to bf16: [out_features, in_features]."""
    return (inputs.w_ternary * row_scales(inputs.w_scale, problem.splits)[:, None]).bfloat16()


def dequantized_activations(inputs: GemmInputs) -> torch.Tensor:
    """x_q · x_scale rounded to bf16: [tokens, in_features]."""
    return (inputs.x_q * inputs.x_scale[:, None]).bfloat16()


def int8_operand(problem: Problem, inputs: Linear, rows: int, lifted: bool = False) -> Int8Operand:
    """The int8 activations of a problem in `rows` >= tokens rows.

    A layer quantizes (and lifts) inside the clock, straight into the padded buffer. A gemm copies inside the clock where its tokens
    need padding; a layout that the library cannot take (columns not a multiple of 128) and lifting are settled before it.
    """
    tokens = problem.tokens
    width = lifted_width(problem.in_features, problem.sparsity.m) if lifted else problem.in_features
    columns = up_to(width, ROW_ALIGNMENT)
    if isinstance(inputs, LayerInputs):
        x, m = inputs.x, problem.sparsity.m if lifted else None
        buffer = torch.zeros((rows, columns), dtype=torch.int8, device=x.device)
        x_scale = torch.empty(tokens, dtype=torch.float32, device=x.device)
        x_q = buffer[:tokens, :width]
        config = activation_config(problem.in_features, tokens)
        return Int8Operand(buffer, x_scale, lambda: launch_activation(x, x_q, x_scale, m, config))
    if lifted:
        return Int8Operand(zero_padded(lift_activation(inputs.x_q, problem.sparsity.m), rows, columns), inputs.x_scale, _nothing)
    x_q, load = in_rows(zero_padded(inputs.x_q, tokens, columns), rows)
    return Int8Operand(x_q, inputs.x_scale, load)


def in_rows(source: torch.Tensor, rows: int) -> tuple[torch.Tensor, Callable[[], None]]:
    """The operand in `rows` >= its own rows, and the copy that fills it inside the clock (nothing where no row is added)."""
    if rows == source.shape[0]:
        return source, _nothing
    buffer = torch.zeros((rows, source.shape[1]), dtype=source.dtype, device=source.device)
    target = buffer[: source.shape[0]]
    return buffer, lambda: _copy(target, source)


def _nothing() -> None:
    return None


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)


def fastest(candidates: Sequence[Config], prepare: Callable[[Config], Prepared]) -> Config:
    """The candidate whose prepared call takes the least kernel time, by short turns of CUDA graph replays.

    A candidate that the library refuses with a RuntimeError is left out; when all are refused the last refusal is raised.
    """
    best, least, refusal = None, float("inf"), None
    for candidate in candidates:
        try:
            elapsed = graph_microseconds(prepare(candidate).run)
        except RuntimeError as error:
            refusal = error
            continue
        if elapsed < least:
            best, least = candidate, elapsed
    if best is None:
        raise refusal or ValueError("no candidates to choose from")
    return best


def graph_microseconds(run: Callable[[], object]) -> float:
    """Kernel time of one call, µs: a CUDA graph of a few calls, replayed for at least 5 ms after a warm-up."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS):
            run()
    once = _replay_milliseconds(graph, 1)
    replays = max(1, ceil(TURN_MILLISECONDS / max(once, 1e-3)))
    return _replay_milliseconds(graph, replays) * 1e3 / (replays * GRAPH_CALLS)


def _replay_milliseconds(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
