from __future__ import annotations

import math
from dataclasses import replace

import pytest

from kernels.errors import GpuMismatch, NoGpu, UsageError
from kernels.gpu import GPUS, by_device_name, by_name, choose, claim
from kernels.occupancy import LIMITS, occupancy

H200, A100 = by_name("h200"), by_name("a100")
UNLISTED = replace(A100, name="nvidia-a30", sms=56, shared_bytes=100_000, measured_as="device properties; unlisted GPU, portable defaults")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA A100 80GB PCIe", "a100"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"), ("NVIDIA A10", "a10"), ("NVIDIA GeForce RTX 3090", "rtx3090"), ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H200", "h200"), ("NVIDIA B200", "b200"),
    ],
)
def test_devices_have_their_profile(device: str, name: str) -> None:
    found = by_device_name(device)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA A10G", "NVIDIA A30", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA L40", "NVIDIA GH200 480GB", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA GB200", "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
    ],
)
def test_relatives_are_not_mistaken_for_them(device: str) -> None:
    assert by_device_name(device) is None


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_datasheets_fit_together(gpu: object) -> None:
    profile = next(one for one in GPUS if one is gpu)
    per_clock = profile.peak["int8"] / (profile.sms * profile.clock_mhz * 1e6)
    assert any(math.isclose(per_clock, rate, rel_tol=0.01) for rate in (2048, 4096, 8192, 16384)), "int8 per clock: a power of two"
    assert profile.peak["bf16"] <= profile.peak["int8"] / 2 * 1.01
    assert ("fp8" in profile.peak) == (profile.capability >= 89)
    limits = LIMITS[profile.capability]
    assert profile.shared_bytes == limits.shared_bytes - 1024, "a block gets all but the system's kilobyte"
    assert by_name(profile.name) is profile


def test_unknown_gpus_are_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match=r"unknown GPU 'a30'; allowed: auto, a100, a100-40gb, .*b200$"):
        claim("a30", None)
    with pytest.raises(UsageError, match=r"unknown GPU 'a30'; allowed: .*b200; .*--profile"):
        choose("a30", None, None)


def test_a_profile_is_borrowed_only_when_told() -> None:
    assert choose("auto", None, UNLISTED) is choose("nvidia-a30", None, UNLISTED) is UNLISTED
    lent = choose("auto", "a100", UNLISTED)
    assert (lent.bandwidth, lent.sms, lent.shared_bytes) == (A100.bandwidth, 56, 100_000)
    assert lent.measured_as == "datasheet of a100, borrowed for nvidia-a30"
    assert choose("nvidia-a30", "a100", UNLISTED) == lent
    absent = choose("a30", "a100", None)
    assert (absent.name, absent.measured_as) == ("a100", "datasheet of a100, borrowed for a30")
    assert choose("a100", "a100", None) is A100
    assert choose("auto", "h200", H200) is H200


@pytest.mark.parametrize(
    ("name", "profile", "found", "error"),
    [
        ("h100", "h200", None, UsageError), ("auto", "z80", None, UsageError), ("auto", "a100", H200, GpuMismatch),
        ("a30", "h200", H200, GpuMismatch), ("t4", "a100", UNLISTED, GpuMismatch),
    ],
)
def test_what_does_not_fit_is_refused(name: str, profile: str, found: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        choose(name, profile, found)  # type: ignore[arg-type]  # a Gpu or None


def test_a_required_device_must_be_there() -> None:
    with pytest.raises(NoGpu):
        choose("a30", "a100", None, required=True)


# From NVIDIA's occupancy rules: registers by 256 a warp, warps by fours, a kilobyte of shared memory of the system's a block.
@pytest.mark.parametrize(
    ("gpu", "warps", "registers", "shared", "blocks", "limit"),
    [
        (A100, 8, 32, 0, 8, "registers"), (A100, 4, 128, 0, 4, "registers"), (A100, 8, 255, 0, 1, "registers"),
        (A100, 4, 32, 81920, 2, "shared memory"), (A100, 4, 16, 167000, 0, "shared memory"), (A100, 1, 16, 0, 32, "blocks"),
        (by_name("a10"), 1, 16, 0, 16, "blocks"), (by_name("l4"), 8, 16, 0, 6, "warps"), (H200, 12, 168, 200_000, 1, "registers"),
    ],
)
def test_occupancy(gpu: object, warps: int, registers: int, shared: int, blocks: int, limit: str) -> None:
    found = occupancy(gpu, warps, registers, shared)  # type: ignore[arg-type]  # a Gpu
    assert found is not None
    assert (found.blocks, found.warps, found.limit) == (blocks, blocks * warps, limit)


def test_no_occupancy_for_an_unknown_architecture() -> None:
    assert occupancy(replace(A100, capability=75), 4, 32, 0) is None
