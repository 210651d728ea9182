"""GPU times of the suites' cases in pytest-benchmark's own format.

    pytest tests/bench --benchmark-json gpu.json
    pytest tests/bench --cases "--suite prefill --model 7b" --benchmark-json gpu.json
    pytest-benchmark compare gpu.json

Each round is a sample of the suites' clock (CUDA graph replay), not the time that a call takes in Python.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from suites.case import Case
from suites.quality import IMPOSSIBLE, case_refusals
from suites.record import Result
from suites.statistics import speedup, strongest, time_us
from tests.bench.conftest import Measured


class DeviceTime:
    """A timer for pytest-benchmark that shows the device's time: `pass_by` is what the benchmark calls, once a round."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.samples: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self) -> None:
        self.seconds += next(self.samples) * 1e-6


DEVICE_TIME = DeviceTime()


@pytest.mark.benchmark(timer=DEVICE_TIME, disable_gc=True, warmup=False)
def test_case(case: Case, kernel: str, measured: Measured, benchmark: BenchmarkFixture) -> None:
    record = measured.case(case)
    result = record.result(kernel)
    assert result is not None
    if result.status == "wrong":
        pytest.fail(f"wrong numbers: {result.reason}", pytrace=False)
    if result.status == "failed":
        pytest.fail(f"{result.stage}: {result.reason}", pytrace=False)
    if result.status != "ok":
        pytest.skip(f"{result.stage}: {result.reason}")
    refused = [*map(str, case_refusals(record)), *filter(None, [result.notes.get(IMPOSSIBLE)])]
    if refused:
        pytest.fail(f"refused: {'; '.join(refused)}", pytrace=False)
    benchmark.group = case.key
    benchmark.extra_info.update(facts(result))
    theirs = strongest(record)
    ratio = speedup(result, theirs) if theirs else None
    if theirs is not None and ratio is not None:
        benchmark.extra_info.update(over=theirs.kernel, speedup=ratio.value, speedup_low=ratio.low, speedup_high=ratio.high)
    if record.operations:
        benchmark.extra_info["tops"] = record.operations / (time_us(result) or float("nan")) / 1e6
    DEVICE_TIME.samples = iter(result.samples_us)
    rounds = len(result.samples_us) if benchmark.enabled else 1
    benchmark.pedantic(DEVICE_TIME.pass_by, rounds=rounds, iterations=1, warmup_rounds=0)


def facts(result: Result) -> dict[str, object]:
    return {
        "kernel": result.kernel, "kind": result.kind, "exact": result.exact, "config": dict(result.config),
        "config_source": result.config_source, "call_us": list(result.call_us), "weight_bytes": result.weight_bytes,
        "clock": "CUDA graph replay, seconds per call",
    }
