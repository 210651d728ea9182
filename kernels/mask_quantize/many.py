"""Mask, ternary quantization and packing of a list of master weights, such as all layers of a model: two launches for the list.

The arithmetic is that of `two_pass`, and so are the bits. Floor: two reads of the masters and a quarter of a byte written per weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, islice
from typing import Any

import torch
import triton.language as tl

from kernels.errors import NonFiniteError, ShapeError
from kernels.launch import launch
from kernels.mask_quantize.many_kernels import absmean_many_kernel, pack_many_kernel
from kernels.mask_quantize.two_pass import SUM_PROGRAMS, TwoPassConfig, _by_words, _vector, check_weight, two_pass_config
from kernels.packed import PackedTernary, packed_width
from kernels.problem import Sparsity

_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
_BEYOND = 1 << 40


@dataclass(frozen=True)
class Kind:
    """What one compilation takes: two weights as a word or not; address and row stride multiples of 16; a divisor of in_features."""

    by_words: bool
    aligned: bool
    vector: int

    def constants(
        self, dtype: torch.dtype, sparsity: Sparsity, splits: int, config: TwoPassConfig
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the functions of the first and second pass are specialized for; splits: the most of one weight."""
        both = {"DTYPE": _TYPES[dtype], "ALIGNED": self.aligned, "VECTOR": self.vector}
        pack = {"BF16": dtype == torch.bfloat16, "BY_WORDS": self.by_words, "SPLITS": splits, "KEEP": sparsity.n, "GROUP": sparsity.m,
                "ROWS": config.rows, "BLOCKS": config.blocks, "COLUMNS": 7 + splits}
        return both | {"BLOCK": config.sum_block, "PROGRAMS": SUM_PROGRAMS}, both | pack


def kind_of(weight: torch.Tensor, sparsity: Sparsity) -> Kind:
    """The kind of a checked weight; all layers of a usual model are of one."""
    words = _by_words(weight.dtype, weight.shape[1], sparsity) and weight.stride(0) % 2 == 0 and weight.data_ptr() % 4 == 0
    return Kind(words, weight.data_ptr() % 16 == 0 and weight.stride(0) % 16 == 0, _vector(weight.shape[1]))


def many_config(sparsity: Sparsity) -> TwoPassConfig:
    """That of one weight; 4 weights per thread for groups of 6 and 10, whose tables leave no registers for 8 (Triton 3.7.1 spilled)."""
    config = two_pass_config(sparsity)
    return replace(config, warps=8) if 64 % sparsity.m else config


@dataclass(frozen=True)
class _Group:
    """Weights of one kind: the tables of their two launches, and what the first leaves for itself."""

    constants: tuple[dict[str, Any], dict[str, Any]]
    sum_programs: torch.Tensor
    sum_table: torch.Tensor
    partials: torch.Tensor
    counters: torch.Tensor
    pack_programs: torch.Tensor
    pack_table: torch.Tensor


class PreparePlan:
    """A list of master weights with the buffers they are packed to: made once, launched after every step of the optimizer.

    weights: [N, K] each, of one device and dtype (bf16, fp16 or fp32), unit column stride, any shapes; the plan keeps them. splits:
    output rows per scale for each weight (None for it or for all: one scale). names: what errors call them. chunk_bytes: cut the list
    where the masters of a part exceed so many bytes (what an L2 holds: the second pass then finds them there), two launches each; None:
    one part. Weights of another `Kind` are parts of their own.
    packed, inv_scale, nonfinite: per weight, as `launch_prepare` leaves them (float32 [S], int32 [S]); undefined before the first launch.
    Raises ShapeError, with the name of the weight, for lists that do not fit. Making it synchronizes.
    """

    def __init__(
        self, weights: Sequence[torch.Tensor], sparsity: Sparsity, splits: Sequence[Sequence[int] | None] | None = None,
        config: TwoPassConfig | None = None, names: Sequence[str] | None = None, chunk_bytes: int | None = None,
    ) -> None:
        self.weights, self.sparsity, self.config = tuple(weights), sparsity, config or many_config(sparsity)
        self.names = tuple(names) if names is not None else tuple(f"weight {index}" for index in range(len(self.weights)))
        given = tuple(splits) if splits is not None else (None,) * len(self.weights)
        if not len(self.weights) == len(given) == len(self.names):
            raise ShapeError(f"{len(self.weights)} weights, {len(given)} splits and {len(self.names)} names; one of each is needed")
        if chunk_bytes is not None and chunk_bytes < 1:
            raise ShapeError(f"chunk_bytes is {chunk_bytes}; at least 1 is needed")
        parts = [tuple(weight.shape[:1] if part is None else part) for weight, part in zip(self.weights, given, strict=True)]
        self._check(parts)
        device = self.weights[0].device if self.weights else torch.device("cpu")
        slot = -(-max(map(len, parts), default=0) // 4) * 4  # scales of each weight start at a multiple of 16 bytes
        size = (len(parts), slot)
        self._w_scale, self._inv_scale = torch.zeros(size, device=device), torch.zeros(size, device=device)
        self._limits, self._nonfinite = (torch.zeros(size, dtype=torch.int32, device=device) for _ in range(2))
        shapes = [(weight.shape[0], packed_width(weight.shape[1])) for weight in self.weights]
        self.packed = tuple(
            PackedTernary(torch.empty(shape, dtype=torch.uint8, device=device), scale[: len(part)], part, weight.shape[1], sparsity)
            for weight, shape, scale, part in zip(self.weights, shapes, self._w_scale, parts, strict=True)
        )
        self.inv_scale = tuple(row[: len(part)] for row, part in zip(self._inv_scale, parts, strict=True))
        self.nonfinite = tuple(row[: len(part)] for row, part in zip(self._nonfinite, parts, strict=True))
        self._places = [_place(weight) for weight in self.weights]
        self._groups = tuple(self._group(kind, members) for kind, members in self._members(chunk_bytes))

    @property
    def launches(self) -> int:
        """Launches of `launch`: two for a list of one kind without chunks."""
        return sum(1 + (group.pack_programs.numel() > 0) for group in self._groups)

    def launch(self) -> None:
        """Mask, quantize and pack all weights on the current stream: no allocation, no synchronization, capturable after a first launch.

        Raises ShapeError, before anything is launched, where a weight no longer lies where it lay when the plan was made.
        """
        for weight, place, name in zip(self.weights, self._places, self.names, strict=True):
            if _place(weight) != place:
                raise ShapeError(f"{name} has moved or changed its shape or type since the plan was made; make another plan")
        for group in self._groups:
            (sums, pack), config = group.constants, self.config
            launch(
                absmean_many_kernel, (group.sum_programs.numel(),),
                (group.sum_programs, group.sum_table, group.partials, group.counters, self._limits, self._nonfinite, self._w_scale,
                 self._inv_scale), (), **sums, num_warps=config.sum_warps,
            )
            if group.pack_programs.numel():
                launch(
                    pack_many_kernel, (group.pack_programs.numel(),),
                    (group.pack_programs, group.pack_table, self._limits, self._w_scale), (), **pack, num_warps=config.warps,
                )

    def check_finite(self) -> None:
        """Raises NonFiniteError for the first weight that held a NaN or an infinity at the last launch; it synchronizes."""
        for name, bad in zip(self.names, self._nonfinite.any(dim=1).tolist(), strict=True):
            if bad:
                raise NonFiniteError(f"{name} holds a NaN or an infinity; it cannot be quantized")

    def _check(self, parts: Sequence[tuple[int, ...]]) -> None:
        for weight, part, name in zip(self.weights, parts, self.names, strict=True):
            try:
                check_weight(weight, self.sparsity, part)
            except ShapeError as error:
                raise ShapeError(f"{name}: {error}") from None
            first = self.weights[0]
            if (weight.dtype, weight.device) != (first.dtype, first.device):
                raise ShapeError(f"{name} is {weight.dtype} on {weight.device}, {self.names[0]} {first.dtype} on {first.device}; "
                                 "a list has one dtype and device")

    def _members(self, chunk_bytes: int | None) -> list[tuple[Kind, list[int]]]:
        """The parts of the list: indices of weights of one kind, of at most chunk_bytes together (or one weight)."""
        found: list[tuple[Kind, list[int]]] = []
        latest: dict[Kind, tuple[list[int], int]] = {}
        for index, weight in enumerate(self.weights):
            kind, size = kind_of(weight, self.sparsity), weight.numel() * weight.element_size()
            members, before = latest.get(kind, ([], 0))
            if not members or (chunk_bytes is not None and before + size > chunk_bytes):
                members, before = [], 0
                found.append((kind, members))
            members.append(index)
            latest[kind] = members, before + size
        return found

    def _group(self, kind: Kind, members: Sequence[int]) -> _Group:
        splits = max(len(self.packed[index].splits) for index in members)
        sums = [row for index in members for row in self._sum_rows(index)]
        starts = [0, *accumulate(row[-2] for row in sums)]
        sum_table = [[*row[:-2], start, *row[-2:]] for row, start in zip(sums, starts[:-1], strict=True)]
        owners, pack_table = self._pack_rows([index for index in members if self.weights[index].shape[0]], splits)
        device = self._w_scale.device
        return _Group(
            constants=kind.constants(self.weights[members[0]].dtype, self.sparsity, splits, self.config),
            sum_programs=_owners([row[-2] for row in sums]).to(device),
            sum_table=torch.tensor(sum_table, dtype=torch.int64).to(device),
            partials=torch.zeros(starts[-1], dtype=torch.float64, device=device),
            counters=torch.zeros(len(sums), dtype=torch.int32, device=device),
            pack_programs=owners.to(device),
            pack_table=torch.tensor(pack_table, dtype=torch.int64).to(device),
        )

    def _sum_rows(self, index: int) -> Iterator[list[int]]:
        """Per split of a weight its row of the first table, less the first program."""
        weight, parts = self.weights[index], self.packed[index].splits
        in_features, stride = weight.shape[1], weight.stride(0)
        for split, first, size in zip(count(index * self._w_scale.shape[1]), accumulate(parts, initial=0), parts):
            rows, width = (min(size, 1), size * in_features) if stride == in_features else (size, in_features)
            tiles = rows * -(-width // self.config.sum_block)
            address = weight.data_ptr() + first * stride * weight.element_size()
            yield [address, rows, width, stride, size * in_features, max(min(tiles, SUM_PROGRAMS), 1), split]

    def _pack_rows(self, members: Sequence[int], splits: int) -> tuple[torch.Tensor, list[list[int]]]:
        """The member that each tile belongs to, int32, and the rows of the second table."""
        counts: list[int] = []
        table, tiles = [], 0
        for index in members:
            weight, packed = self.weights[index], self.packed[index]
            column_tiles = -(-packed_width(weight.shape[1]) // (64 * self.config.blocks))
            above = -(-tiles // column_tiles)
            end = (above + -(-weight.shape[0] // self.config.rows)) * column_tiles
            first, stride = above * self.config.rows, weight.stride(0)
            bounds = [first + bound for bound in islice(accumulate(packed.splits, initial=0), len(packed.splits))]
            table.append([
                weight.data_ptr() - first * stride * weight.element_size(), packed.data.data_ptr() - first * packed.data.shape[1],
                first + weight.shape[0], weight.shape[1], stride, column_tiles, index * self._w_scale.shape[1],
                *bounds, *[_BEYOND] * (splits - len(bounds)),
            ])
            if counts:
                counts[-1] += above * column_tiles - tiles
            counts.append(end - above * column_tiles)
            tiles = end
        return _owners(counts), table


def prepare_many(
    weights: Sequence[torch.Tensor], sparsity: Sparsity, splits: Sequence[Sequence[int] | None] | None = None,
    config: TwoPassConfig | None = None, names: Sequence[str] | None = None,
) -> tuple[PackedTernary, ...]:
    """`prepare_weight` for a list of masters of one device and dtype, any shapes and strides, in two launches; it synchronizes.

    Raises ShapeError for a list that does not fit, NonFiniteError with the name of a weight that holds a NaN or an infinity.
    """
    rows = [weight if weight.dim() != 2 or weight.stride(1) == 1 else weight.contiguous() for weight in weights]
    plan = PreparePlan(rows, sparsity, splits, config, names)
    plan.launch()
    plan.check_finite()
    return plan.packed


def _owners(counts: Sequence[int]) -> torch.Tensor:
    """int32: i, counts[i] times, for every i."""
    return torch.repeat_interleave(torch.arange(len(counts), dtype=torch.int32), torch.tensor(counts, dtype=torch.int64))


def _place(weight: torch.Tensor) -> tuple[Any, ...]:
    return weight.data_ptr(), weight.dtype, weight.device, weight.shape, weight.stride()
