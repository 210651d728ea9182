"""GPUs as values: what the vendors' datasheets say, and the only place that asks the device (`detect`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kernels.errors import GpuMismatch, NoGpu, UsageError


@dataclass(frozen=True)
class Gpu:
    """A GPU model, or an unlisted device described by its own properties.

    name: profile name (`--gpu`). device: regular expression that the driver's device name matches. capability: 80 for sm_80.
    sms: streaming multiprocessors. l2_bytes, shared_bytes (most shared memory a block may ask for), memory_gb.
    bandwidth: device memory, bytes per second. peak: dense operations per second by type ("bf16", "int8", "fp8"); sparse tensor
    cores double them. power_w: default cap. measured_as: whether the figures are a vendor's ("datasheet") or the device's own.
    clock_mhz: of the multiprocessors at the rates in `peak` (0 where these are not known).
    """

    name: str
    device: str
    capability: int
    sms: int
    l2_bytes: int
    shared_bytes: int
    memory_gb: int
    bandwidth: float
    peak: Mapping[str, float] = field(default_factory=dict)
    power_w: int = 0
    measured_as: str = "datasheet"
    clock_mhz: int = 0

    @property
    def architecture(self) -> str:
        """The name that compilers use: sm_90."""
        return f"sm_{self.capability}"

    def floor_seconds(self, operations: float, nbytes: float, kind: str = "int8", sparse: bool = False) -> float:
        """The larger of the arithmetic and the memory time, seconds, at the datasheet's rates: no kernel runs faster."""
        rate = self.peak.get(kind, 0.0) * (2 if sparse else 1)
        return max(operations / rate if rate else 0.0, nbytes / self.bandwidth)


MIB = 1 << 20
_AMPERE, _ADA, _HOPPER, _BLACKWELL = 163 * 1024, 99 * 1024, 227 * 1024, 227 * 1024


def _peak(bf16: float, int8: float, fp8: float = 0.0) -> dict[str, float]:
    tera = {"bf16": bf16, "int8": int8, "fp8": fp8}
    return {kind: value * 1e12 for kind, value in tera.items() if value}


# NVIDIA's datasheets, dense rates (half of the printed ones, which count 2:4 zeros): "A100 Tensor Core GPU" (2022; the SXM modules),
# "A10 Tensor Core GPU" (2021), "L4 Tensor Core GPU" (2023), "L40S" (2023), "H100 Tensor Core GPU" (2023; SXM5 and PCIe), "H200 Tensor
# Core GPU" (2024; SXM5), "DGX B200" and "HGX B200" (2024, an eighth of eight GPUs). RTX cards: the whitepapers "NVIDIA Ampere GA102 GPU
# Architecture" (2020) and "NVIDIA Ada GPU Architecture" (2022), bf16 and fp8 with float32 accumulation. Multiprocessors, L2 sizes and
# boost clocks from the architecture whitepapers of A100, GA102, Ada and H100; the H200's L2 as its driver reports it, the B200's L2,
# multiprocessors and clock (peak / per-multiprocessor rate) from NVIDIA's published Blackwell material. The names are what the driver
# calls the devices.
GPUS: tuple[Gpu, ...] = (
    Gpu("a100", r"A100.*80GB", 80, 108, 40 * MIB, _AMPERE, 80, 2.039e12, _peak(312, 624), 400, clock_mhz=1410),
    Gpu("a100-40gb", r"A100.*40GB", 80, 108, 40 * MIB, _AMPERE, 40, 1.555e12, _peak(312, 624), 400, clock_mhz=1410),
    Gpu("a10", r"\bA10$", 86, 72, 6 * MIB, _ADA, 24, 0.600e12, _peak(125, 250), 150, clock_mhz=1695),
    Gpu("rtx3090", r"RTX 3090$", 86, 82, 6 * MIB, _ADA, 24, 0.936e12, _peak(71, 284), 350, clock_mhz=1695),
    Gpu("l4", r"\bL4$", 89, 58, 48 * MIB, _ADA, 24, 0.300e12, _peak(121, 242, 242), 72, clock_mhz=2040),
    Gpu("l40s", r"\bL40S$", 89, 142, 96 * MIB, _ADA, 48, 0.864e12, _peak(362, 733, 733), 350, clock_mhz=2520),
    Gpu("rtx4090", r"RTX 4090$", 89, 128, 72 * MIB, _ADA, 24, 1.008e12, _peak(165, 661, 330), 450, clock_mhz=2520),
    Gpu("h100", r"\bH100(?!.*(PCIe|NVL))", 90, 132, 50 * MIB, _HOPPER, 80, 3.35e12, _peak(989, 1979, 1979), 700, clock_mhz=1830),
    Gpu("h100-pcie", r"\bH100.*PCIe", 90, 114, 50 * MIB, _HOPPER, 80, 2.0e12, _peak(756, 1513, 1513), 350, clock_mhz=1620),
    Gpu("h200", r"\bH200(?!.*NVL)", 90, 132, 60 * MIB, _HOPPER, 141, 4.8e12, _peak(989, 1979, 1979), 700, clock_mhz=1830),
    Gpu("b200", r"\bB200", 100, 148, 126 * MIB, _BLACKWELL, 180, 8.0e12, _peak(2250, 4500, 4500), 1000, clock_mhz=1856),
)


def by_name(name: str) -> Gpu:
    """The profile of that name; UsageError lists the names there are."""
    for gpu in GPUS:
        if gpu.name == name:
            return gpu
    raise UsageError(f"unknown GPU {name!r}; allowed: auto, {', '.join(gpu.name for gpu in GPUS)}")


def unlisted(name: str) -> Gpu:
    """A GPU of which only the name is known, from its results: no datasheet's roof, and an L2 that anything may fit."""
    return Gpu(name, re.escape(name), 0, 0, 1 << 62, 0, 0, float("inf"), measured_as="unlisted GPU")


def by_device_name(device_name: str) -> Gpu | None:
    """The profile that a driver's device name belongs to, or None for an unlisted device, which a slice of a listed one (MIG) is too."""
    if "MIG" in device_name:
        return None
    return next((gpu for gpu in GPUS if re.search(gpu.device, device_name)), None)


def detect(index: int = 0) -> Gpu | None:
    """The GPU with this index as the driver reports it: a profile where the name is known, else its own properties; None without one."""
    import torch

    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    found = torch.cuda.get_device_properties(index)
    profile = by_device_name(found.name)
    if profile is not None:
        return profile
    slug = re.sub(r"[^a-z0-9]+", "-", found.name.lower()).strip("-")
    shared = getattr(found, "shared_memory_per_block_optin", 48 * 1024)
    return Gpu(
        name=slug, device=re.escape(found.name), capability=found.major * 10 + found.minor, sms=found.multi_processor_count,
        l2_bytes=found.L2_cache_size, shared_bytes=shared, memory_gb=found.total_memory >> 30, bandwidth=float("inf"),
        measured_as="device properties; unlisted GPU, portable defaults",
    )


def claim(name: str, found: Gpu | None, required: bool = False) -> Gpu:
    """The GPU that a command works for: `--gpu` checked against the device.

    name: a profile, or `auto` (the device's; without a device the h200's). found: what `detect` gave. required: a device must be there.
    Raises UsageError for an unknown name, GpuMismatch when the device is another model, NoGpu when one is required and missing.
    """
    claimed = None if name == "auto" or (found is not None and name == found.name) else by_name(name)
    if found is None:
        if required:
            raise NoGpu(f"--gpu {name}: a GPU is needed here and this machine has none")
        return claimed or by_name("h200")
    if claimed is not None and claimed.name != found.name:
        raise GpuMismatch(f"--gpu {claimed.name} is claimed, but the device is {found.name}; use --gpu {found.name} or --gpu auto")
    return found


def choose(name: str, profile: str | None, found: Gpu | None, required: bool = False) -> Gpu:
    """The GPU that a command with `--gpu` and `--profile` works for: `claim`, unless a GPU without a profile is to borrow one.

    profile: the listed GPU whose figures and configs an unlisted one takes, never taken unasked. name: `auto`, that profile, or the
    unlisted GPU. Raises as `claim`; UsageError for two listed GPUs, GpuMismatch for a profile where the device has its own.
    """
    listed = any(gpu.name == name for gpu in GPUS)
    if profile is None:
        try:
            return claim(name, found, required)
        except UsageError as error:
            raise UsageError(f"{error}; another one borrows the figures of the nearest with --profile NAME") from None
    lent = by_name(profile)
    if listed and name != lent.name:
        raise UsageError(f"--gpu {name} and --profile {lent.name} name two GPUs; --profile goes with --gpu auto or an unlisted GPU")
    if found is None:
        gpu = claim(lent.name, found, required)
        return gpu if listed or name == "auto" else replace(gpu, measured_as=f"datasheet of {lent.name}, borrowed for {name}")
    own = any(gpu.name == found.name for gpu in GPUS)
    if own and found.name != lent.name:
        raise GpuMismatch(f"--profile {lent.name}: the device is {found.name}, which has a profile of its own; use --gpu {found.name}")
    if name not in ("auto", lent.name, found.name):
        raise GpuMismatch(f"--gpu {name} is claimed, but the device is {found.name}; use --gpu {found.name} or --gpu auto")
    if own:
        return found
    return replace(
        lent, capability=found.capability, sms=found.sms, l2_bytes=found.l2_bytes, shared_bytes=found.shared_bytes,
        memory_gb=found.memory_gb, measured_as=f"datasheet of {lent.name}, borrowed for {found.name}",
    )
