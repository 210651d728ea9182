"""The packs of master weights: made once per change of a weight, kept beside it, found again by every forward and backward pass.

A pack is a pure function of its weight, so the operators take the weight and look its pack up. The table is weak: a pack lives as long
as its weight, is in no state_dict and in no pickle. A pack is stale when the weight's version counter or address is not the one that it
was made from, which `load_state_dict`, `to` and every other in-place change do, and after every step of an optimizer that holds the weight
(a hook: fused ones leave the version as it is); `Tensor.data` and replays of a captured optimizer change values without a trace: call
`repack` after them. Stale packs are made again in place, so that captured graphs that read them see the new values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeAlias, TypeVar, cast

import torch
import triton
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from kernels.bitlinear.small_kernels import launch_row_scale
from kernels.errors import UsageError
from kernels.launch import current_stream_handle
from kernels.mask_quantize.repack import fragments_shape, launch_repack
from kernels.mask_quantize.two_pass import PrepareBuffers, allocate_prepare, check_weight, start_prepare, two_pass_config
from kernels.mask_quantize.two_pass_kernels import pack_kernel
from kernels.packed import PackedTernary, unpack
from kernels.problem import Sparsity
from kernels.ternary_gemm.sparse_wgmma import FragmentWeight, dense_fragment_weight, fragment_weight, padded_rows
from reference.quantize import ternary_quantize
from reference.sparsity import nm_mask

ACTIVATION, GRADIENT = 0, 1
"""Places in `Pack.flags`: 1 where an activation or a gradient was NaN or infinite since the last check."""

Key: TypeAlias = tuple[Sparsity, tuple[int, ...]]
Fragments: TypeAlias = Literal["sparse", "dense"]
Use: TypeAlias = Literal["train", "eval", "backward", "renew"]
T = TypeVar("T")


def runs_kernels(tensor: torch.Tensor) -> bool:
    """Whether the Triton kernels take this tensor: a CUDA device, or Triton's interpreter. Else the reference does the work."""
    return tensor.is_cuda or not isinstance(pack_kernel, triton.JITFunction)


class Pack:
    """The masked ternary values of one weight, for one sparsity and one set of splits.

    flags: int32 [2], see `ACTIVATION`. count: how often it was made. stamp: address and version of the weight it was made from, None
    when unknown (stale); recorded: of the weight that the last capture of a CUDA graph recorded its making from.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flags = torch.zeros(2, dtype=torch.int32, device=device)
        self.stamp: tuple[int, int] | None = None
        self.recorded: tuple[int, int] | None = None
        self.count = 0

    def fill(self, weight: torch.Tensor) -> None:
        """Make it anew from the weight, on the current stream, without synchronizing."""
        raise NotImplementedError

    def wait(self) -> None:
        """Let the current stream wait until the pack is made."""


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
        self.packed.split_ends  # noqa: B018 (made here, outside of any graph capture)
        self._fits: tuple[torch.Size, torch.dtype] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._event: torch.cuda.Event | None = None

    def add_fragments(self, kind: Fragments) -> None:
        """Make a layout of tensor cores too, the sparse one of a 2:4 weight; its bytes come with the next `fill`."""
        packed, (rows, columns) = self.packed, (self.packed.out_features, self.packed.in_features)
        if not self.fragments:
            self.no_bias = padded_rows(torch.zeros(rows, device=self.device), rows)
        if self.buffers is None:
            values = (unpack(packed), packed.w_scale, packed.splits)
            self.fragments[kind] = fragment_weight(*values, packed.sparsity) if kind == "sparse" else dense_fragment_weight(*values)
            return
        blocks = torch.empty(fragments_shape(packed, transposed=False), dtype=torch.int32, device=self.device)
        scales = padded_rows(torch.zeros(rows, device=self.device), rows)
        self.fragments[kind] = FragmentWeight(blocks, scales, rows, columns, columns, sparse=kind == "sparse")
        self.stamp = self.recorded = None

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
        self.count += 1
        if weight.is_cuda and not capturing(weight):
            self._mark()

    def _mark(self) -> None:
        """Write down on which stream it was made, and when."""
        if self._event is None:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no types there
        if self._stream is None or current_stream_handle(self.device) != self._stream.cuda_stream:
            self._stream = torch.cuda.current_stream()
        self._event.record(self._stream)

    def wait(self) -> None:
        """Only where another stream made it; a captured graph is replayed after what was enqueued before its capture."""
        if self._stream is None or self._event is None or current_stream_handle(self.device) == self._stream.cuda_stream:
            return
        if not torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream().wait_event(self._event)


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
        self.count += 1


@functools.cache
def _table() -> MutableMapping[torch.Tensor, dict[Key, Pack]]:
    """The packs of every weight; the only table of a process. It hears of optimizer steps from its first pack on."""
    register_optimizer_step_post_hook(_stepped)
    return cast("MutableMapping[torch.Tensor, dict[Key, Pack]]", WeakTensorKeyDictionary())


def _stepped(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            forget(parameter)


def packs_of(weight: torch.Tensor) -> Mapping[Key, Pack]:
    """The packs that are held for a weight."""
    return _table().get(weight, {})


def take_flags(weight: torch.Tensor) -> list[bool]:
    """The flags of all packs of a weight together, cleared. Synchronizes."""
    held = list(packs_of(weight).values())
    found = [bool(flag) for flag in torch.stack([pack.flags for pack in held]).amax(0)] if held else [False, False]
    for pack in held:
        pack.flags.zero_()
    return found


def capturing(tensor: torch.Tensor) -> bool:
    """Whether what is launched for this tensor now is recorded into a CUDA graph instead of run."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def pack_of(
    weight: torch.Tensor, sparsity: Sparsity, splits: tuple[int, ...], use: Use = "eval", fragments: Fragments | None = None
) -> Pack:
    """The pack of a weight [N, K], made where there is none or a stale one. fragments: with that layout too.

    use: "renew" makes it in any case. A captured "train" does so too: its graph must follow the weight; what it recorded is fresh for a
    captured "backward", and for nothing that runs. The first pack of a weight allocates and synchronizes, later calls do neither.
    Raises UsageError where the first one falls into the capture of a CUDA graph.
    """
    table = _table()
    held = table.get(weight)
    if held is None:
        held = table.setdefault(weight, {})
    pack = held.get((sparsity, splits))
    if pack is None or pack.device != weight.device:
        pack = held[sparsity, splits] = _apart(weight, lambda: _empty_pack(weight, (sparsity, splits)))
    _ask_for(pack, fragments)
    recorded, stamp = capturing(weight), None if weight.is_inference() else (weight.data_ptr(), weight._version)
    fresh = pack.stamp == stamp or (recorded and use == "backward" and pack.recorded == stamp)
    if stamp is None or not fresh or use == "renew" or (recorded and use == "train"):
        pack.fill(weight)
        pack.stamp, pack.recorded = (None, stamp) if recorded else (stamp, None)
    else:
        pack.wait()
    return pack


def frozen_pack_of(data: torch.Tensor, packed: PackedTernary, fragments: Fragments | None = None) -> Pack:
    """The pack of a weight that comes packed. data: the tensor that holds its bytes and whose life is the pack's; `packed` must not hold
    this object itself, else the table would keep it alive. Raises UsageError as `pack_of` does."""
    key = (packed.sparsity, packed.splits)
    held = _table().setdefault(data, {})
    stamp = (data.data_ptr(), 0 if data.is_inference() or runs_kernels(data) else data._version)
    pack = held.get(key)
    if pack is None or pack.device != data.device or pack.stamp != stamp:
        pack = held[key] = _apart(data, lambda: _pack_as_it_is(packed, key))
        pack.stamp = stamp
    _ask_for(pack, fragments)
    return pack


def forget(weight: torch.Tensor) -> None:
    """Take every pack of a weight for stale; the buffers stay where they are."""
    for pack in packs_of(weight).values():
        pack.stamp = pack.recorded = None


def _ask_for(pack: Pack, fragments: Fragments | None) -> None:
    if fragments is not None and isinstance(pack, KernelPack) and fragments not in pack.fragments:
        _apart(pack.flags, lambda: pack.add_fragments(fragments))


def _empty_pack(weight: torch.Tensor, key: Key) -> Pack:
    (sparsity, splits), (out_features, in_features) = key, weight.shape
    if not runs_kernels(weight):
        return ReferencePack(torch.empty(0, dtype=torch.int8), torch.empty(0), key)
    buffers = allocate_prepare(out_features, in_features, splits, weight.device)
    return KernelPack(PackedTernary(buffers.packed, buffers.w_scale, splits, in_features, sparsity), buffers)


def _pack_as_it_is(packed: PackedTernary, key: Key) -> Pack:
    return KernelPack(packed, None) if runs_kernels(packed.data) else ReferencePack(unpack(packed), packed.w_scale, key)


def _apart(tensor: torch.Tensor, make: Callable[[], T]) -> T:
    """Make something that outlives the call, on the tensor's device. Raises UsageError in the capture of a CUDA graph."""
    if not tensor.is_cuda:
        with torch.inference_mode(False):
            return make()
    if capturing(tensor):
        raise UsageError("a layer is captured in a CUDA graph before it has a pack; call it once before the capture")
    caller = torch.cuda.current_stream(tensor.device)

    def on_a_stream_of_its_own() -> T:
        torch.cuda.set_device(tensor.device)  # a new thread is on device 0, and would open a context there as it leaves the stream
        side = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call] # torch has no types there
        side.wait_stream(caller)
        with torch.cuda.stream(side):
            made = make()
        side.synchronize()
        return made

    # In a thread of its own: what this one allocates while torch.compile makes its graphs (a stream's, or a thread's, by version) belongs
    # to their pool, which must hold nothing that stays. A new thread is in no inference mode either.
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(on_a_stream_of_its_own).result()
