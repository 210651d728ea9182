"""Packed ternary weights: 2 bits a weight, one layout for every kernel, and a file format without pickle.

Layout **dense2**, version 1. in_features is padded with zeros to a multiple of 256. Each block of 256 columns is 64 bytes; byte b,
2-bit field f (bits 2f and 2f+1) holds column 256·block + 64·f + b as a two's-complement code: 0 → 00, +1 → 01, −1 → 11; 10 is illegal.
So `(byte << (6 − 2f)) & 0xC0`, read as int8, is 64 times the weight: two instructions unpack four weights of a 32-bit word.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import dataclass
from functools import cached_property

import torch

from kernels.errors import NonFiniteError, OutputError, PackError, ShapeError, SparsityError, UsageError
from kernels.problem import Sparsity

LAYOUT, VERSION = "dense2", 1
BLOCK = 256
"""Columns of one block of the layout; in_features is padded to a multiple of it."""

FIELD = 64
"""Columns of one 2-bit field of a block, and bytes of a block."""

_FORMAT = "tersparse.packed-ternary"


def packed_width(in_features: int) -> int:
    """Bytes of one packed row: in_features padded to 256, four weights a byte."""
    return -(-in_features // BLOCK) * FIELD


@dataclass(frozen=True)
class PackedTernary:
    """A masked ternary weight [N, K] at 2 bits a weight, with its scales.

    data: uint8 [N, packed_width(K)], contiguous. w_scale: float32 [len(splits)], one per range of output rows. splits: the lengths of
    these ranges, summing to N. in_features: K. sparsity: what the zeros obey. layout, version: of the bytes.
    Raises ShapeError where these do not fit each other, PackError for another layout or version. Values are not read (no
    synchronization); `pack`, `verify` and `load` check them.
    """

    data: torch.Tensor
    w_scale: torch.Tensor
    splits: tuple[int, ...]
    in_features: int
    sparsity: Sparsity
    layout: str = LAYOUT
    version: int = VERSION

    def __post_init__(self) -> None:
        if (self.layout, self.version) != (LAYOUT, VERSION):
            raise PackError(f"packed layout {self.layout} version {self.version}; this code reads {LAYOUT} version {VERSION}")
        expected = (sum(self.splits), packed_width(self.in_features))
        if min(self.splits, default=0) < 0:
            raise ShapeError(f"splits {self.splits}: no split has less than 0 rows")
        if self.data.dtype != torch.uint8 or tuple(self.data.shape) != expected or not self.data.is_contiguous():
            raise ShapeError(f"packed data is {_describe(self.data)}; splits {self.splits} and in_features {self.in_features} "
                             f"need contiguous uint8 {list(expected)}")
        if self.w_scale.dtype != torch.float32 or tuple(self.w_scale.shape) != (len(self.splits),):
            raise ShapeError(f"w_scale is {_describe(self.w_scale)}; splits {self.splits} need float32 [{len(self.splits)}]")
        if self.w_scale.device != self.data.device:
            raise ShapeError(f"w_scale is on {self.w_scale.device}, packed data on {self.data.device}; they must be together")

    @property
    def out_features(self) -> int:
        """N, the rows of the weight."""
        return self.data.shape[0]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight as stored, scales included."""
        return self.data.numel() + 4 * self.w_scale.numel()

    @cached_property
    def split_ends(self) -> torch.Tensor:
        """int32 [len(splits)] on the weight's device: the row after each split. Made on first use, never under graph capture."""
        return torch.tensor(list(itertools.accumulate(self.splits)), dtype=torch.int32, device=self.data.device)

    def to(self, device: str | torch.device) -> PackedTernary:
        """The same weight on another device."""
        return PackedTernary(self.data.to(device), self.w_scale.to(device), self.splits, self.in_features, self.sparsity)


def pack(w_ternary: torch.Tensor, w_scale: torch.Tensor, splits: tuple[int, ...], sparsity: Sparsity) -> PackedTernary:
    """Pack int8 [N, K] of −1, 0, +1 (already masked) with float32 scales, one per split, on the weight's device.

    Raises ShapeError for other shapes, types or values, SparsityError for more non-zeros in a group than the sparsity allows,
    NonFiniteError for a scale that is NaN or infinite.
    """
    if w_ternary.dim() != 2 or w_ternary.dtype != torch.int8 or w_ternary.shape[1] < 1:
        raise ShapeError(f"w_ternary is {_describe(w_ternary)}; int8 [out_features, in_features] is needed")
    if bool((w_ternary.abs() > 1).any()) or bool((w_ternary == -128).any()):
        raise ShapeError("w_ternary holds values other than -1, 0 and +1")
    if not bool(torch.isfinite(w_scale).all()):
        raise NonFiniteError("w_scale holds a NaN or an infinity")
    rows, in_features = w_ternary.shape
    _check_sparsity(w_ternary, sparsity)
    padded = torch.nn.functional.pad(w_ternary, (0, packed_width(in_features) * 4 - in_features))
    fields = (padded.view(torch.uint8) & 3).view(rows, packed_width(in_features) // FIELD, 4, FIELD)
    data = fields[:, :, 0] | fields[:, :, 1] << 2 | fields[:, :, 2] << 4 | fields[:, :, 3] << 6
    return PackedTernary(data.reshape(rows, packed_width(in_features)), w_scale.to(w_ternary.device), tuple(splits), in_features, sparsity)


def unpack(packed: PackedTernary) -> torch.Tensor:
    """The masked ternary weight as int8 [N, K]. Raises PackError where a code is illegal (10)."""
    if bool(((packed.data & 0xAA) & ~(packed.data << 1)).any()):
        raise PackError("packed data holds the illegal code 10; it is damaged or not ternary")
    return _decode(packed)[:, : packed.in_features].contiguous()


def verify(packed: PackedTernary) -> None:
    """Read every value. Raises PackError for illegal codes and for columns behind in_features that are not zero, SparsityError for more
    non-zeros in a group than the sparsity allows, NonFiniteError for a scale that is NaN or infinite."""
    if not bool(torch.isfinite(packed.w_scale).all()):
        raise NonFiniteError("w_scale holds a NaN or an infinity")
    _check_sparsity(unpack(packed), packed.sparsity)
    if bool(_decode(packed)[:, packed.in_features :].any()):
        raise PackError("columns behind in_features are not zero")


def save(packed: PackedTernary, path: str | os.PathLike[str]) -> None:
    """Write a safetensors file: tensors `data` and `w_scale`, the rest in its metadata. Raises OutputError where it cannot be written."""
    from safetensors import SafetensorError  # here: packing and unpacking work without the file format's library
    from safetensors.torch import save_file

    tensors = {"data": packed.data.cpu(), "w_scale": packed.w_scale.cpu().contiguous()}
    metadata = {
        "format": _FORMAT, "layout": packed.layout, "version": str(packed.version), "sparsity": str(packed.sparsity),
        "splits": ",".join(map(str, packed.splits)), "in_features": str(packed.in_features),
    }
    metadata["checksum"] = _checksum(tensors, metadata)
    try:
        save_file(tensors, os.fspath(path), metadata)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {os.fspath(path)}: {_line(error)}") from error


def load(path: str | os.PathLike[str]) -> PackedTernary:
    """Read what `save` wrote, onto the CPU. Raises PackError, in one line, for a missing, damaged, foreign or other-version file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise PackError(f"{os.fspath(path)}: not a readable safetensors file: {_line(error)}") from error
    try:
        return _from_file(metadata, tensors)
    except (PackError, ShapeError, SparsityError, UsageError, NonFiniteError) as error:
        raise PackError(f"{os.fspath(path)}: {error}") from error


def _from_file(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> PackedTernary:
    if metadata.get("format") != _FORMAT or set(tensors) != {"data", "w_scale"}:
        raise PackError(f"not a packed ternary weight (format {metadata.get('format')!r}, tensors {sorted(tensors)})")
    if (metadata.get("layout"), metadata.get("version")) != (LAYOUT, str(VERSION)):
        raise PackError(f"layout {metadata.get('layout')} version {metadata.get('version')}; this code reads {LAYOUT} version {VERSION}")
    try:
        splits = tuple(int(part) for part in metadata["splits"].split(","))
        in_features, sparsity = int(metadata["in_features"]), Sparsity.parse(metadata["sparsity"])
    except (KeyError, ValueError) as error:
        raise PackError(f"damaged metadata: {_line(error)}") from error
    packed = PackedTernary(tensors["data"], tensors["w_scale"], splits, in_features, sparsity)
    if metadata.get("checksum") != _checksum(tensors, metadata):
        raise PackError("checksum mismatch: the file is damaged")
    verify(packed)
    return packed


def _decode(packed: PackedTernary) -> torch.Tensor:
    """int8 [N, K padded to 256]."""
    shifts = torch.tensor([6, 4, 2, 0], dtype=torch.uint8, device=packed.data.device).view(1, 1, 4, 1)
    fields = packed.data.view(packed.out_features, packed.data.shape[1] // FIELD, 1, FIELD) << shifts
    return (fields.view(torch.int8) >> 6).view(packed.out_features, packed.data.shape[1] * 4)


def _check_sparsity(w_ternary: torch.Tensor, sparsity: Sparsity) -> None:
    rows, in_features = w_ternary.shape
    if in_features % sparsity.m:
        raise ShapeError(f"in_features {in_features} is not a multiple of the group of {sparsity.m} in {sparsity}")
    if rows and sparsity.n < sparsity.m:
        most = int((w_ternary != 0).view(rows, -1, sparsity.m).sum(-1, dtype=torch.int8).max())
        if most > sparsity.n:
            raise SparsityError(f"w_ternary has a group of {sparsity.m} with {most} non-zeros; {sparsity} allows {sparsity.n}")


def _checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    described = ";".join(f"{name}={value}" for name, value in sorted(metadata.items()) if name != "checksum")
    digest = hashlib.sha256(described.encode())
    for name in ("data", "w_scale"):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} with strides {list(tensor.stride())}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
