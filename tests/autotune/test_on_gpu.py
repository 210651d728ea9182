"""The real clock on a real device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from autotune.clock import MAX_COPIES, CudaClock, Unmeasurable
from autotune.conditions import device_facts, nvml_monitor
from autotune.measure import QUICK, SUSTAINED, bind, copies_needed, interleaved, sustained
from autotune.roofs import SPARSE_MMA, measure_roofs
from kernels.errors import Failure
from kernels.gpu import detect

pytestmark = pytest.mark.gpu


def product(size: int) -> Callable[[], torch.Tensor]:
    x = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    return lambda: torch.matmul(x, x, out=y)


@pytest.fixture
def clean() -> Iterator[None]:
    yield
    torch.cuda.synchronize()


@pytest.mark.usefixtures("clean")
class TestClock:
    def test_kernel_time_is_that_of_a_long_plain_loop(self) -> None:
        call = product(4096)
        timer = CudaClock().timer([call], cold=False)
        graph = min(timer.sample() for _ in range(5))
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(50):
            call()
        end.record()
        end.synchronize()
        assert graph == pytest.approx(start.elapsed_time(end) * 1e3 / 50, rel=0.15)
        assert timer.call_time() > 0.9 * graph
        timer.close()

    def test_two_of_the_same_are_equally_fast(self) -> None:
        timers = {name: CudaClock().timer([product(2048)], cold=False) for name in ("a", "b")}
        samples = interleaved(timers, QUICK)
        ratios = sorted(a / b for a, b in zip(samples["a"].kernel_us, samples["b"].kernel_us, strict=True))
        assert ratios[len(ratios) // 2] == pytest.approx(1.0, abs=0.03)
        for timer in timers.values():
            timer.close()

    def test_cold_reads_are_slower_than_hot_ones(self) -> None:
        gpu = detect()
        assert gpu is not None
        size = 16 << 20
        count = copies_needed(size, gpu.l2_bytes, cold=True)
        copies = [torch.randint(0, 9, (size // 4,), device="cuda", dtype=torch.int32) for _ in range(count)]
        calls = [lambda copy=copy: copy.max() for copy in copies]
        hot, cold = CudaClock().timer(calls[:1], cold=False), CudaClock().timer(calls, cold=True)
        hot_us, cold_us = (min(timer.sample() for _ in range(5)) for timer in (hot, cold))
        assert cold_us > 1.05 * hot_us
        assert cold_us > size / 5e12 * 1e6, "faster than device memory can be"
        hot.close()
        cold.close()

    def test_small_copies_are_cold_behind_a_flush(self) -> None:
        copies = [torch.ones(4096, device="cuda") for _ in range(MAX_COPIES)]
        timer = CudaClock().timer([copy.neg_ for copy in copies], cold=True)
        assert 0.5 < timer.sample() < 100
        with pytest.raises(Unmeasurable, match="sustained"):
            timer.block(0.1)
        timer.close()

    def test_a_synchronizing_call_is_a_failure_and_the_device_lives(self) -> None:
        x = torch.ones(8, device="cuda")
        failure = bind(CudaClock(), [lambda: x.sum().item()], False)
        assert isinstance(failure, Failure)
        assert failure.stage == "measure"
        assert "captured" in failure.reason
        assert float(x.sum()) == 8
        torch.cuda.empty_cache()
        timer = CudaClock().timer([lambda: x.add(1)], cold=False)
        assert timer.sample() > 0
        assert torch.equal(timer.outputs(), x + 1)  # type: ignore[arg-type]  # what the lambda returned
        timer.close()

    def test_outputs_are_what_the_replays_write(self) -> None:
        x, y = torch.ones(1024, device="cuda"), torch.empty(1024, device="cuda")
        timer = CudaClock(200.0).timer([lambda: torch.mul(x, 2, out=y)], cold=False)
        y.fill_(float("nan"))
        timer.sample()
        assert timer.outputs() is y
        assert bool((y == 2).all())
        timer.close()

    def test_a_block_lasts_as_long_as_asked(self) -> None:
        timer = CudaClock().timer([product(4096)], cold=False)
        started = time.monotonic()
        block = timer.block(0.5)
        assert 0.45 < block.seconds < 0.8
        assert time.monotonic() - started < 1.0
        assert block.seconds / block.calls * 1e6 == pytest.approx(timer.sample(), rel=0.3)
        timer.close()

    def test_memory_is_given_back(self) -> None:
        before = torch.cuda.memory_allocated()
        x = torch.ones(1 << 24, device="cuda")
        for _ in range(3):
            timer = CudaClock(500.0).timer([x.abs], cold=False)
            timer.sample()
            timer.close()
        del x, timer
        assert torch.cuda.memory_allocated() - before < 1 << 24


def test_nvml_knows_the_device() -> None:
    monitor = nvml_monitor()
    shot = monitor.snapshot()
    assert isinstance(shot["sm_mhz"], int)
    assert isinstance(shot["power_w"], float)
    assert device_facts()["name"] == torch.cuda.get_device_name()


def test_sustained_has_energy() -> None:
    timers = {"product": CudaClock().timer([product(8192)], cold=False)}
    (first, *_) = sustained(timers, SUSTAINED, nvml_monitor())["product"].blocks
    assert first["seconds"] > 1.5
    watts = first["joules"] / first["seconds"]
    assert watts == pytest.approx(first["power_w"], rel=0.15)
    timers["product"].close()


def test_roofs_are_near_the_datasheet_and_not_above() -> None:
    gpu = detect()
    assert gpu is not None
    started = time.monotonic()
    roofs = {roof.name: roof for roof in measure_roofs(CudaClock())}
    assert time.monotonic() - started < 20
    for name in ("copy", "read"):
        assert 0.6 * gpu.bandwidth < roofs[name].value < 1.02 * gpu.bandwidth
    for name, peak in (("dense-bf16", "bf16"), ("dense-fp8", "fp8"), ("dense-int8", "int8")):
        if name in roofs and peak in gpu.peak:
            assert 0.2 * gpu.peak[peak] < roofs[name].value < 1.02 * gpu.peak[peak]
    if "int8" in gpu.peak:  # sparse: twice the operations, at half of the rate where the instruction is not the card's own
        assert 0.35 * 2 * gpu.peak["int8"] < roofs[SPARSE_MMA].value < 1.02 * 2 * gpu.peak["int8"]
