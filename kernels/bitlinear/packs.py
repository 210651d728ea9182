"""The packs of master weights: made once per change of a weight, kept beside it, found again by every forward and backward pass.

A pack is a pure function of its weight, so the operators take the weight and look its pack up. The table is weak: a pack lives as long
as its weight, is in no state_dict and in no pickle. A pack is stale when the weight's version counter or address is not the one that it
was made from, which `load_state_dict`, `to` and every other in-place change do, and after every step of an optimizer that holds the weight
(a hook: fused ones leave the version as it is); `Tensor.data` and replays of a captured optimizer change values without a trace: call
`repack` after them. Stale packs are made again in place, so that captured graphs that read them see the new values.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeAlias, TypeVar, cast

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from kernels.bitlinear.pack import BiasPack, Fragments, KernelPack, Key, Pack, ReferencePack, capturing, runs_kernels
from kernels.errors import UsageError
from kernels.mask_quantize.two_pass import allocate_prepare
from kernels.packed import PackedTernary, unpack
from kernels.problem import DENSE, Sparsity

ACTIVATION, GRADIENT = 0, 1
"""Places in `Pack.flags`: 1 where an activation or a gradient was NaN or infinite since the last check."""

Use: TypeAlias = Literal["train", "eval", "backward", "renew"]
T = TypeVar("T")
_BIAS: Key = (DENSE, ())


@functools.cache
def _table() -> MutableMapping[torch.Tensor, dict[Key, Pack]]:
    """The packs of every weight; the one that counts. It hears of optimizer steps from its first pack on."""
    register_optimizer_step_post_hook(_stepped)
    return cast("MutableMapping[torch.Tensor, dict[Key, Pack]]", WeakTensorKeyDictionary())


@functools.cache
def _near() -> dict[int, tuple[weakref.ref[torch.Tensor], dict[Key, Pack]]]:
    """What the table holds, by the id of the tensor: the table itself takes the host several times as long."""
    return {}


def _held(tensor: torch.Tensor) -> dict[Key, Pack]:
    """The packs of a tensor, to add to."""
    near, number = _near(), id(tensor)
    found = near.get(number)
    if found is not None and found[0]() is tensor:
        return found[1]

    def forget_it(reference: weakref.ref[torch.Tensor]) -> None:
        if number in near and near[number][0] is reference:
            del near[number]

    table = _table()
    held = table.get(tensor)
    if held is None:
        held = table.setdefault(tensor, {})
    near[number] = weakref.ref(tensor, forget_it), held
    return held


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


def pack_of(
    weight: torch.Tensor, sparsity: Sparsity, splits: tuple[int, ...], use: Use = "eval", fragments: Fragments | None = None
) -> Pack:
    """The pack of a weight [N, K], made where there is none or a stale one. fragments: with that layout too.

    use: "renew" makes it in any case. A captured "train" does so too: its graph must follow the weight; what it recorded is fresh for a
    captured "backward", and for nothing that runs. The first pack of a weight allocates and synchronizes, later calls do neither.
    Raises UsageError where the first one falls into the capture of a CUDA graph.
    """
    key = (sparsity, splits)
    return _fresh(weight, key, use, lambda: _empty_pack(weight, key), fragments)


def bias_rows(bias: torch.Tensor, rows: int, use: Use = "eval") -> torch.Tensor:
    """float32 rows of a bias [N] on a device, see `BiasPack`: made and renewed as `pack_of` does it. rows: N of the weight. Raises as
    `pack_of`, and ShapeError for another bias."""
    pack = _fresh(bias, _BIAS, use, lambda: BiasPack(bias, rows))
    assert isinstance(pack, BiasPack)
    return pack.rows


def _fresh(tensor: torch.Tensor, key: Key, use: Use, make: Callable[[], Pack], fragments: Fragments | None = None) -> Pack:
    """The pack of a tensor under a key, made where there is none, filled where it is stale."""
    held = _held(tensor)
    pack = held.get(key)
    if pack is None or pack.device != tensor.device:
        pack = held[key] = _apart(tensor, make)
    if fragments is not None:
        _ask_for(pack, fragments)
    recorded, stamp = capturing(tensor), None if tensor.is_inference() else (tensor.data_ptr(), tensor._version)
    fresh = pack.stamp == stamp or (recorded and use == "backward" and pack.recorded == stamp)
    if stamp is None or not fresh or use == "renew" or (recorded and use == "train"):
        pack.fill(tensor)
        pack.stamp, pack.recorded = (None, stamp) if recorded else (stamp, None)
    else:
        pack.wait()
    return pack


def frozen_pack_of(
    data: torch.Tensor, w_scale: torch.Tensor, splits: tuple[int, ...], in_features: int, sparsity: Sparsity,
    fragments: Fragments | None = None,
) -> Pack:
    """The pack of a weight that comes packed (see `PackedTernary`). data: the tensor that holds its bytes and whose life is the pack's.
    Other bytes or scales in the same tensors, as a state_dict brings them, are packed in place. Raises UsageError as `pack_of` does."""
    key = (sparsity, splits)
    held = _held(data)
    stamp = data.data_ptr(), _version(data) + _version(w_scale), w_scale.data_ptr()
    pack = held.get(key)
    if pack is None or pack.device != data.device or pack.stamp != stamp:
        # Not `data` itself: the table would keep it alive.
        packed = PackedTernary(data.detach(), w_scale, splits, in_features, sparsity)
        if isinstance(pack, KernelPack) and pack.device == data.device:
            _apart(data, functools.partial(pack.replace, packed))
        else:
            pack = held[key] = _apart(data, lambda: _pack_as_it_is(packed, key))
        pack.stamp = stamp
    if fragments is not None:
        _ask_for(pack, fragments)
    return pack


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def forget(weight: torch.Tensor) -> None:
    """Take every pack of a weight for stale; the buffers stay where they are."""
    for pack in packs_of(weight).values():
        pack.stamp = pack.recorded = None


def _ask_for(pack: Pack, fragments: Fragments) -> None:
    if isinstance(pack, KernelPack) and fragments not in pack.fragments:
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
