"""What surrounds a measurement: clocks, power, temperature and throttling (NVML, read only), the device and the library versions."""

from __future__ import annotations

import itertools
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from types import TracebackType
from typing import Any, Protocol

Fact = float | int | str | None

REASONS: dict[int, str] = {
    0x1: "idle", 0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "thermal (software)",
    0x40: "thermal (hardware)", 0x80: "power brake", 0x100: "display clocks",
}
"""NVML's clock event reasons, by bit."""

ENERGY_PERIOD = 0.01
CLOCK_PERIOD = 0.05


class Monitor(Protocol):
    """Reads a device's conditions; changes nothing."""

    def snapshot(self) -> dict[str, Fact]:
        """sm_mhz, mem_mhz, power_w, temperature_c, throttle (hex), throttle_names, other_processes; None where unreadable."""

    def energy_joules(self) -> float | None:
        """The device's energy counter, joules since some start, or None."""


class NullMonitor:
    """No NVML: every snapshot says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def snapshot(self) -> dict[str, Fact]:
        """Only the reason."""
        return {"unavailable": self.reason}

    def energy_joules(self) -> None:
        """None."""


class FakeMonitor:
    """A device that draws `watts` at `sm_mhz` for ever; `seconds` tells the time of its energy counter (a FakeClock's, say)."""

    def __init__(self, seconds: Callable[[], float], watts: float = 500.0, sm_mhz: int = 1500, throttle: int = 0) -> None:
        self.seconds, self.watts, self.sm_mhz, self.throttle = seconds, watts, sm_mhz, throttle

    def snapshot(self) -> dict[str, Fact]:
        """The scripted conditions."""
        return {"sm_mhz": self.sm_mhz, "mem_mhz": 3000, "power_w": self.watts, "temperature_c": 50, **decode_reasons(self.throttle)}

    def energy_joules(self) -> float:
        """Watts times the time passed."""
        return self.watts * self.seconds()


class NvmlMonitor:
    """Reads one device through NVML; a value that the driver does not give is None."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def _read(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None

    def snapshot(self) -> dict[str, Fact]:
        """Clocks in MHz, power in W, temperature in °C, throttle reasons, and how many other processes compute on the device."""
        nvml = self._nvml
        power = self._read("nvmlDeviceGetPowerUsage")
        reasons = self._read("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:  # drivers before 535 know the older name
            reasons = self._read("nvmlDeviceGetCurrentClocksThrottleReasons")
        processes = self._read("nvmlDeviceGetComputeRunningProcesses")
        return {
            "sm_mhz": self._read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "mem_mhz": self._read("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            "power_w": None if power is None else power / 1e3,
            "temperature_c": self._read("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            **decode_reasons(reasons),
            "other_processes": None if processes is None else max(0, len(processes) - 1),
        }

    def energy_joules(self) -> float | None:
        """The energy counter since the driver was loaded."""
        millijoules = self._read("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def facts(self) -> dict[str, Fact]:
        """Name, UUID, power cap in W, largest clocks in MHz."""
        nvml = self._nvml
        cap = self._read("nvmlDeviceGetEnforcedPowerLimit")
        return {
            "name": _text(self._read("nvmlDeviceGetName")),
            "uuid": _text(self._read("nvmlDeviceGetUUID")),
            "power_cap_w": None if cap is None else cap / 1e3,
            "max_sm_mhz": self._read("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
            "max_mem_mhz": self._read("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_MEM),
        }


def decode_reasons(bits: int | None) -> dict[str, Fact]:
    """Throttle reasons as a hexadecimal string and as names."""
    if bits is None:
        return {"throttle": None, "throttle_names": None}
    names = [name for bit, name in REASONS.items() if bits & bit]
    return {"throttle": hex(bits), "throttle_names": ", ".join(names)}


def nvml_monitor(index: int = 0) -> Monitor:
    """A monitor of the CUDA device with this index, or a NullMonitor that names what is missing."""
    try:
        import pynvml
    except ImportError:
        return NullMonitor("the package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
        return NvmlMonitor(pynvml, _handle(pynvml, index))
    except pynvml.NVMLError as error:
        return NullMonitor(f"NVML: {error}")


def _handle(nvml: Any, index: int) -> Any:
    """NVML counts all devices, CUDA the visible ones: match by UUID where CUDA knows it."""
    import torch

    if torch.cuda.is_available() and index < torch.cuda.device_count():
        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
        if uuid is not None:
            try:
                return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            except nvml.NVMLError:  # a MIG slice has a UUID of another form
                return nvml.nvmlDeviceGetHandleByIndex(index)
    return nvml.nvmlDeviceGetHandleByIndex(index)


def device_facts(index: int = 0) -> dict[str, Fact]:
    """name, uuid, power_cap_w, max_sm_mhz, max_mem_mhz, driver of the CUDA device; `unavailable` with a reason instead without NVML."""
    monitor = nvml_monitor(index)
    if not isinstance(monitor, NvmlMonitor):
        return monitor.snapshot()
    return {**monitor.facts(), "driver": library_versions()["driver"]}


def library_versions() -> dict[str, str | None]:
    """Versions of python, tersparse, torch, triton, cuda, driver, cusparselt, cublas; None for what is missing."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions |= {name: _package(name) for name in ("tersparse", "torch", "triton")}
    return {**versions, "driver": _driver(), **_torch_libraries()}


def _package(*names: str) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _driver() -> str | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _torch_libraries() -> dict[str, str | None]:
    try:
        import torch
    except ImportError:
        return {"cuda": None, "cusparselt": None, "cublas": None}
    sparse = torch.backends.cusparselt.version() if torch.cuda.is_available() else None
    major = (torch.version.cuda or "").split(".")[0]
    return {
        "cuda": torch.version.cuda,
        "cusparselt": None if sparse is None else str(sparse),
        "cublas": _package("nvidia-cublas", f"nvidia-cublas-cu{major}"),
    }


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


class Watch:
    """Reads a monitor while a block runs: energy every 10 ms, clocks and power every 50 ms, in a thread; use as a context manager."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor, self._stop = monitor, threading.Event()
        self._energy: list[tuple[float, float]] = []
        self._shots: list[dict[str, Fact]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._read_energy()
        self._shots.append(self._monitor.snapshot())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._read_energy()
        self._stop.set()
        self._thread.join()
        self._shots.append(self._monitor.snapshot())

    def _run(self) -> None:
        next_shot = time.monotonic() + CLOCK_PERIOD
        while not self._stop.wait(ENERGY_PERIOD):
            self._read_energy()
            if time.monotonic() >= next_shot:
                self._shots.append(self._monitor.snapshot())
                next_shot += CLOCK_PERIOD

    def _read_energy(self) -> None:
        joules = self._monitor.energy_joules()
        if joules is not None:
            self._energy.append((time.monotonic(), joules))

    def summary(self, seconds: float) -> dict[str, float]:
        """joules over those seconds, and the medians sm_mhz and power_w; what could not be read is left out."""
        found: dict[str, float] = {}
        if (joules := energy_used(self._energy, seconds)) is not None:
            found["joules"] = joules
        for name in ("sm_mhz", "power_w"):
            values = [float(shot[name]) for shot in self._shots[1:] if isinstance(shot.get(name), (int, float))]  # type: ignore[arg-type]
            if values:
                found[name] = statistics.median(values)
        return found


def energy_used(readings: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """Joules over `seconds` from (time, counter) readings, or None without two of them.

    The counter advances in steps, at moments of its own: the rate is taken between its first and its last step, so that no part of a step
    is counted at either end. With too few steps for that it is the plain difference.
    """
    if len(readings) < 2:
        return None
    steps = [later for earlier, later in itertools.pairwise(readings) if later[1] != earlier[1]]
    if len(steps) < 5:
        return readings[-1][1] - readings[0][1]
    (first_time, first), (last_time, last) = steps[0], steps[-1]
    return (last - first) / (last_time - first_time) * seconds
