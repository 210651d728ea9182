from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kernels.errors import NonFiniteError, OutputError, PackError, ShapeError, SparsityError
from kernels.packed import PackedTernary, load, pack, packed_width, save, unpack
from kernels.problem import DENSE, Sparsity

TWO_OF_FOUR = Sparsity(2, 4)


def ternary(rows: int, columns: int, sparsity: Sparsity, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
    if sparsity.n < sparsity.m:
        values.view(rows, -1, sparsity.m)[:, :, sparsity.n :] = 0
    return values


def packed(rows: int = 7, columns: int = 320, sparsity: Sparsity = TWO_OF_FOUR) -> PackedTernary:
    return pack(ternary(rows, columns, sparsity), torch.tensor([0.5, 2.0]), (3, rows - 3), sparsity)


@pytest.mark.parametrize("sparsity", [DENSE, TWO_OF_FOUR, Sparsity(6, 8), Sparsity(8, 10), Sparsity(4, 16)], ids=str)
@pytest.mark.parametrize("columns", [80, 240, 1280, 1360])
def test_unpack_returns_what_was_packed(sparsity: Sparsity, columns: int) -> None:
    values = ternary(9, columns, sparsity)
    result = pack(values, torch.ones(1), (9,), sparsity)
    assert result.data.shape == (9, packed_width(columns))
    assert torch.equal(unpack(result), values)


def test_layout_is_the_documented_one() -> None:
    values = ternary(2, 512, DENSE)
    data = pack(values, torch.ones(1), (2,), DENSE).data
    for column in (0, 1, 63, 64, 130, 255, 256, 300, 511):
        block, rest = divmod(column, 256)
        field, byte = divmod(rest, 64)
        code = (data[:, 64 * block + byte].to(torch.int32) << (6 - 2 * field)) & 0xC0
        assert torch.equal(code.to(torch.uint8).view(torch.int8), values[:, column] * 64)


def test_no_rows_pack_and_unpack() -> None:
    result = pack(torch.empty((0, 64), dtype=torch.int8), torch.ones(1), (0,), TWO_OF_FOUR)
    assert unpack(result).shape == (0, 64)


def test_non_contiguous_weight_packs_the_same() -> None:
    values = ternary(8, 64, TWO_OF_FOUR)
    wide = torch.zeros((8, 128), dtype=torch.int8)
    wide[:, ::2] = values
    assert torch.equal(pack(wide[:, ::2], torch.ones(1), (8,), TWO_OF_FOUR).data, pack(values, torch.ones(1), (8,), TWO_OF_FOUR).data)


def test_weight_bytes_counts_data_and_scales() -> None:
    assert packed(7, 320).weight_bytes == 7 * 128 + 8


@pytest.mark.parametrize("value", [2, -2, -128, 127])
def test_other_values_are_refused(value: int) -> None:
    values = torch.zeros((4, 64), dtype=torch.int8)
    values[1, 5] = value
    with pytest.raises(ShapeError, match=r"-1, 0 and \+1"):
        pack(values, torch.ones(1), (4,), DENSE)


def test_bad_input_is_refused() -> None:
    values = ternary(4, 64, DENSE)
    with pytest.raises(SparsityError, match="2:4 allows 2"):
        pack(torch.ones_like(values), torch.ones(1), (4,), TWO_OF_FOUR)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteError, match="w_scale"):
            pack(values, torch.tensor([bad]), (4,), DENSE)
    with pytest.raises(ShapeError, match="w_scale"):
        pack(values, torch.ones(2), (4,), DENSE)
    with pytest.raises(ShapeError, match="splits"):
        pack(values, torch.ones(1), (5,), DENSE)
    with pytest.raises(ShapeError, match="int8"):
        pack(values.float(), torch.ones(1), (4,), DENSE)
    with pytest.raises(ShapeError, match="multiple of the group of 6"):
        pack(values, torch.ones(1), (4,), Sparsity(4, 6))


def test_save_and_load(tmp_path: Path) -> None:
    original = packed()
    save(original, tmp_path / "w.safetensors")
    loaded = load(tmp_path / "w.safetensors")
    assert torch.equal(loaded.data, original.data)
    assert torch.equal(loaded.w_scale, original.w_scale)
    assert (loaded.splits, loaded.in_features, loaded.sparsity) == (original.splits, original.in_features, original.sparsity)


def test_unwritable_place_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        save(packed(), tmp_path / "absent" / "w.safetensors")


def refused(path: Path, match: str) -> None:
    with pytest.raises(PackError, match=match) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_truncated_foreign_and_missing_files(tmp_path: Path) -> None:
    whole = tmp_path / "w.safetensors"
    save(packed(), whole)
    content = whole.read_bytes()
    for length in (0, 5, 40, len(content) - 1):
        cut = tmp_path / f"cut{length}"
        cut.write_bytes(content[:length])
        refused(cut, "not a readable safetensors file")
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign")
    refused(tmp_path / "foreign", "not a packed ternary weight")
    (tmp_path / "text").write_text("hello, this is no weight at all")
    refused(tmp_path / "text", "not a readable safetensors file")
    refused(tmp_path / "absent", "not a readable safetensors file")


def test_every_flipped_data_byte_is_noticed(tmp_path: Path) -> None:
    whole = tmp_path / "w.safetensors"
    save(packed(), whole)
    content = bytearray(whole.read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for position in (header, (header + len(content)) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        (tmp_path / "damaged").write_bytes(damaged)
        refused(tmp_path / "damaged", "checksum")


@pytest.mark.parametrize(("changes", "match"), [
    ({"version": "2"}, "layout dense2 version 2; this code reads dense2 version 1"),
    ({"layout": "sparse24"}, "layout sparse24"),
    ({"splits": "3,x"}, "damaged metadata"),
    ({"splits": "3,5"}, "need contiguous uint8"),
    ({"splits": "9,-2"}, "no split has less than 0 rows"),
    ({"in_features": "-"}, "damaged metadata"),
    ({"in_features": "512"}, "checksum"),
    ({"sparsity": "3:7"}, "unknown sparsity"),
    ({"sparsity": "1:4"}, "checksum"),
    ({"checksum": "0"}, "checksum"),
])
def test_changed_metadata_is_refused(tmp_path: Path, changes: dict[str, str], match: str) -> None:
    whole = tmp_path / "w.safetensors"
    save(packed(7, 320), whole)
    content = whole.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    save_file(load_file(whole), whole, {**header["__metadata__"], **changes})
    refused(whole, match)


def test_a_file_that_lies_is_refused(tmp_path: Path) -> None:
    good = packed(7, 320)
    save(PackedTernary(good.data, good.w_scale, good.splits, good.in_features, Sparsity(1, 4)), tmp_path / "sparsity")
    refused(tmp_path / "sparsity", "1:4 allows 1")
    save(PackedTernary(good.data, good.w_scale, good.splits, 300, good.sparsity), tmp_path / "columns")
    refused(tmp_path / "columns", "columns behind in_features are not zero")
    save(PackedTernary(good.data, good.w_scale * float("nan"), good.splits, good.in_features, good.sparsity), tmp_path / "scale")
    refused(tmp_path / "scale", "w_scale holds a NaN")


def test_illegal_code_is_refused() -> None:
    good = packed()
    good.data[1, 2] = 0b10_00
    with pytest.raises(PackError, match="illegal code 10"):
        unpack(good)


def test_other_layout_or_version_is_refused() -> None:
    good = packed()
    with pytest.raises(PackError, match="version 2"):
        PackedTernary(good.data, good.w_scale, good.splits, good.in_features, good.sparsity, version=2)
