from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from autotune import conditions
from autotune.conditions import NullMonitor, NvmlMonitor, Watch, decode_reasons, device_facts, energy_used, library_versions, nvml_monitor
from tests.patience import until


class Nvml:
    """As much of pynvml as a monitor reads, with one value that the driver does not give. Each reading of its energy takes 10 ms."""

    def __init__(self) -> None:
        self.now, self.read = 0.0, threading.local()

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        return 691_500

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: object) -> int:
        raise self.NVMLError("function not found")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> int:
        return 0x4 | 0x20

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[int]:
        return [1, 2]

    def nvmlDeviceGetClockInfo(self, handle: object, kind: int) -> int:
        return {1: 1485, 2: 3201}[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle: object, kind: int) -> int:
        return {1: 1980, 2: 3201}[kind]

    def nvmlDeviceGetTemperature(self, handle: object, kind: int) -> int:
        raise self.NVMLError("not supported")

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: object) -> int:
        return 700_000

    def nvmlDeviceGetName(self, handle: object) -> bytes:
        return b"NVIDIA H200"

    def nvmlDeviceGetUUID(self, handle: object) -> str:
        return "GPU-1"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> float:
        self.now = self.read.at = self.now + 0.01
        return self.read.at * 500e3

    def monotonic(self) -> float:
        """When this thread read it."""
        return getattr(self.read, "at", 0.0)


def test_snapshot_has_units_names_and_gaps() -> None:
    shot = NvmlMonitor(Nvml(), None).snapshot()
    assert shot == {
        "sm_mhz": 1485, "mem_mhz": 3201, "power_w": 691.5, "temperature_c": None, "throttle": "0x24",
        "throttle_names": "power cap, thermal (software)", "other_processes": 1,
    }
    facts = NvmlMonitor(Nvml(), None).facts()
    assert facts == {"name": "NVIDIA H200", "uuid": "GPU-1", "power_cap_w": 700.0, "max_sm_mhz": 1980, "max_mem_mhz": 3201}


def test_reasons() -> None:
    assert decode_reasons(0) == {"throttle": "0x0", "throttle_names": ""}
    assert decode_reasons(None) == {"throttle": None, "throttle_names": None}


def test_energy_is_counted_between_steps_of_the_counter() -> None:
    stepping = [(t / 100, 700.0 * (t // 10) / 10) for t in range(5, 176)]  # a step every 0.1 s; read every 10 ms, from the middle of one
    assert energy_used(stepping, 1.7) == pytest.approx(700 * 1.7, rel=1e-6)
    assert energy_used([(0.0, 10.0), (1.0, 13.0)], 1.0) == pytest.approx(3.0)
    assert energy_used([(0.0, 10.0)], 1.0) is None


def test_a_watch_reads_while_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Nvml()
    monkeypatch.setattr(conditions, "time", SimpleNamespace(monotonic=device.monotonic))
    with Watch(NvmlMonitor(device, None)) as watch:
        until(lambda: device.now > 0.25, "twenty-five readings")
    summary = watch.summary(0.25)
    assert summary["joules"] == pytest.approx(500 * 0.25)
    assert (summary["sm_mhz"], summary["power_w"]) == (1485, 691.5)


def test_without_a_driver_the_reason_is_given() -> None:
    monitor = nvml_monitor()
    if isinstance(monitor, NvmlMonitor):
        pytest.skip("NVML is here")
    assert monitor.snapshot()["unavailable"]
    assert monitor.energy_joules() is None
    assert device_facts().keys() == {"unavailable"}
    with Watch(NullMonitor("none")) as watch:
        pass
    assert watch.summary(1.0) == {}


def test_versions_never_fail() -> None:
    versions: dict[str, Any] = library_versions()
    assert set(versions) == {"python", "tersparse", "torch", "triton", "cuda", "driver", "cusparselt", "cublas"}
    assert versions["torch"].startswith("2.")
