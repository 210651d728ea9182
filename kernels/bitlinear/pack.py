"""What is made of a weight, or of a bias, for the kernels: on a device the packed codes and fragments, on a CPU the reference's values."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import triton

from kernels.bitlinear.small_kernels import launch_row_scale
from kernels.errors import ShapeError
from kernels.launch import current_stream_handle
from kernels.mask_quantize.repack import fragments_shape, launch_repack
from kernels.mask_quantize.two_pass import PrepareBuffers, check_weight, start_prepare, two_pass_config
from kernels.mask_quantize.two_pass_kernels import pack_kernel
from kernels.packed import PackedTernary, unpack
from kernels.problem import Sparsity
from kernels.ternary_gemm.sparse_wgmma import FragmentWeight, dense_fragment_weight, fragment_weight, padded_rows
from reference.quantize import ternary_quantize
from reference.sparsity import nm_mask

Key: TypeAlias = tuple[Sparsity, tuple[int, ...]]
Fragments: TypeAlias = Literal["sparse", "dense"]


def capturing(tensor: torch.Tensor) -> bool:
    """Whether what is launched for this tensor now is recorded into a CUDA graph instead of run."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def runs_kernels(tensor: torch.Tensor) -> bool:
    """Whether the Triton kernels take this tensor: a CUDA device, or Triton's interpreter. Else the reference does the work."""
    return tensor.is_cuda or not isinstance(pack_kernel, triton.JITFunction)


class Pack:
    """The masked ternary values of one weight, for one sparsity and one set of splits.

    flags: int32 [2], see `packs.ACTIVATION`. count: how often it was made. stamp: address and version of the weight it was made from (and
    the address of its scales, where it came packed), None when unknown (stale); recorded: of the weight that the last capture of a CUDA
    graph recorded its making from.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flags = torch.zeros(2, dtype=torch.int32, device=device)
        self.stamp: tuple[int, ...] | None = None
        self.recorded: tuple[int, ...] | None = None
        self.count = 0
        self._stream: torch.cuda.Stream | None = None
        self._event: torch.cuda.Event | None = None

    def fill(self, weight: torch.Tensor) -> None:
        """Make it anew from the weight, on the current stream, without synchronizing."""
        raise NotImplementedError

    def mark(self, weight: torch.Tensor) -> None:
        """Write down that it was made, on which stream, and when."""
        self.count += 1
        if not weight.is_cuda or capturing(weight):
            return
        if self._event is None:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no types there
        if self._stream is None or current_stream_handle(self.device) != self._stream.cuda_stream:
            self._stream = torch.cuda.current_stream()
        self._event.record(self._stream)

    def wait(self) -> None:
        """Let the current stream wait until it is made, where another one made it; a captured graph is replayed after what was enqueued
        before its capture."""
        if self._stream is None or self._event is None or current_stream_handle(self.device) == self._stream.cuda_stream:
            return
        if not torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream().wait_event(self._event)


class KernelPack(Pack):
    """2-bit codes on the device that the kernels read. buffers: what they are made in; None for a weight that comes packed.

    fragments: the same weight in the order of Hopper's tensor cores, sparse or dense, once a forward kernel has asked for it
    (`add_fragments`); no_bias: then float32 zeros, as long as their row_scale.
    """

    def __init__(self, packed: PackedTernary, buffers: PrepareBuffers | None) -> None:
        super().__init__(packed.data.device)
        self.packed, self.buffers = packed, buffers
        self.fragments: dict[Fragments, FragmentWeight] = {}
        self.no_bias = torch.empty(0, device=self.device)
        self._addresses: dict[Fragments, tuple[int, int, int]] = {}
        self.packed.split_ends  # noqa: B018 (made here, outside of any graph capture)
        self._fits: tuple[torch.Size, torch.dtype] | None = None

    def add_fragments(self, kind: Fragments) -> None:
        """Make a layout of tensor cores too, the sparse one of a 2:4 weight; its bytes come with the next `fill`."""
        packed, (rows, columns) = self.packed, (self.packed.out_features, self.packed.in_features)
        if not self.fragments:
            self.no_bias = padded_rows(torch.zeros(rows, device=self.device), rows)
        if self.buffers is None:
            self.fragments[kind] = self._fragments(kind)
            return
        blocks = torch.empty(fragments_shape(packed, transposed=False), dtype=torch.int32, device=self.device)
        scales = padded_rows(torch.zeros(rows, device=self.device), rows)
        self.fragments[kind] = FragmentWeight(blocks, scales, rows, columns, columns, sparse=kind == "sparse")
        self.stamp = self.recorded = None

    def addresses(self, kind: Fragments) -> tuple[int, int, int]:
        """Of the blocks and row scales of these fragments, and of the flags; they stay where they are."""
        found = self._addresses.get(kind)
        if found is None:
            made = self.fragments[kind]
            found = self._addresses[kind] = made.blocks.data_ptr(), made.row_scale.data_ptr(), self.flags.data_ptr()
        return found

    def _fragments(self, kind: Fragments) -> FragmentWeight:
        values = (unpack(self.packed), self.packed.w_scale, self.packed.splits)
        return fragment_weight(*values, self.packed.sparsity) if kind == "sparse" else dense_fragment_weight(*values)

    def replace(self, packed: PackedTernary) -> None:
        """Take other bytes of the same sizes, for a weight that comes packed; what was made of them is made anew in place."""
        self.packed = packed
        self.packed.split_ends  # noqa: B018 (as above)
        for kind, made in self.fragments.items():
            new = self._fragments(kind)
            made.blocks.copy_(new.blocks)
            made.row_scale.copy_(new.row_scale)

    def fill(self, weight: torch.Tensor) -> None:
        """Two launches into the same buffers, and two more for each kind of fragments, which are made from the packed bytes."""
        sparsity, splits, buffers = self.packed.sparsity, self.packed.splits, self.buffers
        assert buffers is not None
        rows = weight if weight.stride(1) == 1 or weight.shape[1] == 1 else weight.detach().contiguous()
        key = (weight.shape, weight.dtype)
        if key != self._fits:
            check_weight(rows, sparsity, splits)
            self._fits = key
        start_prepare(rows, buffers.packed, buffers.w_scale, buffers.inv_scale, buffers.workspace, sparsity, two_pass_config(sparsity))
        for made in self.fragments.values():
            launch_repack(self.packed, made.blocks, sparse=made.sparse)
            launch_row_scale(buffers.w_scale, buffers.workspace.bounds, made.row_scale, self.packed.out_features)
        self.mark(weight)


def check_bias(bias: torch.Tensor, out_features: int) -> None:
    """Raises ShapeError unless it is a floating-point [out_features]."""
    if tuple(bias.shape) != (out_features,) or not bias.is_floating_point():
        raise ShapeError(f"bias is {bias.dtype} {list(bias.shape)}; floating point [{out_features}] is needed")


class BiasPack(Pack):
    """A bias [N] as the kernels read it. rows: float32 with zeros behind it, see `padded_rows`. Raises ShapeError for a bias of another
    length, behind which kernels would read."""

    def __init__(self, bias: torch.Tensor, out_features: int) -> None:
        check_bias(bias, out_features)
        super().__init__(bias.device)
        self.rows = padded_rows(torch.zeros(out_features, device=bias.device), out_features)

    def fill(self, weight: torch.Tensor) -> None:
        """One launch."""
        self.rows[: weight.shape[0]].copy_(weight.detach())
        self.mark(weight)


class ReferencePack(Pack):
    """The plain reference on a CPU: `ternary` int8 [N, K], masked, and `w_scale` float32 [S]."""

    def __init__(self, ternary: torch.Tensor, w_scale: torch.Tensor, key: Key) -> None:
        super().__init__(ternary.device)
        self.ternary, self.w_scale, (self.sparsity, self.splits) = ternary, w_scale, key

    def fill(self, weight: torch.Tensor) -> None:
        """Quantize, then mask."""
        values = weight.detach()
        ternary, self.w_scale = ternary_quantize(values, self.splits)
        self.ternary = ternary * nm_mask(values, self.sparsity.n, self.sparsity.m)
        self.mark(weight)
