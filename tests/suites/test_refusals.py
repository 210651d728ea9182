"""Impossible results, each provoked through the command lines of the run and of the gate; and the reasons that a regression is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from autotune.clock import FakeClock
from autotune.conditions import FakeMonitor
from kernels.inputs import Inputs
from kernels.kernel import Kernel, Prepared
from kernels.problem import Problem
from kernels.space import Config
from suites import gate
from suites.on_gpu import Lab
from suites.quality import RefusalName
from suites.record import CaseRecord, Record, RunRecord, read
from suites.store import write_all
from tests.suites.fakes import OTHER, OURS, PLAN, SMALL, THEIRS, gemm, lab, measure

COLD = ("--suite", "decode", "--shape", "16x32", "--tokens", "4", "--sparsity", "2:4")
LARGER = ("--suite", "prefill", "--shape", "256x128", "--tokens", "256", "--sparsity", "2:4")


class Monitor(FakeMonitor):
    """A device in the conditions that a test wants."""

    def __init__(self, clock: FakeClock, **conditions: Any) -> None:
        super().__init__(lambda: clock.seconds)
        self.conditions = conditions

    def snapshot(self) -> dict[str, Any]:
        return {**super().snapshot(), **self.conditions}


def among(**conditions: Any) -> Lab:
    made = lab()
    assert isinstance(made.clock, FakeClock)
    return replace(made, monitor=Monitor(made.clock, **conditions))


def drifting() -> Lab:
    clock = FakeClock(noise=0.002, drift=0.02)
    return Lab(clock, (OURS, THEIRS, OTHER), FakeMonitor(lambda: clock.seconds), PLAN)


def claiming(kernel: Kernel, footprint: int) -> Kernel:
    """The kernel, saying that it touches so many bytes."""

    def prepare(problem: Problem, inputs: Inputs, config: Config) -> Prepared:
        return replace(kernel.prepare(problem, inputs, config), footprint=footprint)

    return replace(kernel, prepare=prepare)


PROVOKED: dict[str, tuple[Callable[[], Lab], tuple[str, ...], int]] = {
    "above-roof": (lambda: lab((gemm("ours", 1e-6), THEIRS)), LARGER, 4),
    "identical-samples": (lambda: lab(noise=0.0), SMALL, 4),
    "repeated-inputs": (lambda: lab((claiming(OURS, 1 << 30), claiming(THEIRS, 0))), COLD, 4),
    "wrong-after-timing": (lambda: lab((gemm("ours", 50.0, does="late"), THEIRS)), SMALL, 3),
    "other-process": (lambda: among(other_processes=1), SMALL, 4),
    "throttled": (lambda: lab(throttle=0x40), SMALL, 4),
    "clocks-unsettled": (drifting, SMALL, 4),
}


def test_every_refusal_is_provoked() -> None:
    assert set(PROVOKED) == set(get_args(RefusalName))


@pytest.mark.parametrize("name", PROVOKED)
def test_an_impossible_result_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, arguments, code = PROVOKED[name]
    assert measure(tmp_path / "run", make(), *arguments) == code
    assert name in capsys.readouterr().out or name == "wrong-after-timing"
    assert gate.main(["--gpu", "h200", "--run", str(tmp_path / "run"), "--accepted", str(tmp_path / "none.jsonl")]) == code
    assert name in capsys.readouterr().out


def test_the_same_without_the_fault_is_good(tmp_path: Path) -> None:
    assert measure(tmp_path / "a", among(other_processes=0)) == 0
    assert measure(tmp_path / "b", lab((claiming(OURS, 0), claiming(THEIRS, 0))), *COLD) == 0
    assert measure(tmp_path / "c", lab(), *LARGER) == 0


def test_samples_of_another_kernel_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(tmp_path / "run") == 0
    file = tmp_path / "run" / "records.jsonl"
    write_all(file, [_twins(record) for record in read(file)])
    assert gate.main(["--gpu", "h200", "--run", str(file), "--accepted", str(tmp_path / "none.jsonl")]) == 4
    assert "identical-samples: sample by sample those of theirs" in capsys.readouterr().out


def _twins(record: Record) -> Record:
    if not isinstance(record, CaseRecord):
        return record
    ours, theirs, *others = record.results
    return replace(record, results=(replace(ours, samples_us=theirs.samples_us), theirs, *others))


SLOW = gemm("ours", 56.0)


def headed(**changes: Any) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        return replace(record, **changes) if isinstance(record, RunRecord) else record

    return change


def configured(record: Record) -> Record:
    if not isinstance(record, CaseRecord):
        return record
    return replace(record, results=tuple(replace(result, config={"block": 64}) for result in record.results))


def cooler(record: Record) -> Record:
    """As if accepted on a cooler device with a higher clock."""
    if not isinstance(record, CaseRecord):
        return record
    return replace(record, conditions={"after": {**record.conditions["after"], "sm_mhz": 1700, "temperature_c": 40, "power_w": 480.0}})


@pytest.mark.parametrize(("made", "then", "says"), [
    (lab((SLOW, THEIRS, OTHER)), None, "probably slower in cycles: 75.0 → 84.0 thousand"),
    (lab((OURS, gemm("theirs", 90.0, "baseline"), OTHER)), None, "probably the baseline moved: theirs 100.00 → 90.00 µs"),
    (lab((SLOW, THEIRS, OTHER)), headed(versions={"triton": "3.6.0"}), "probably versions changed: triton 3.6.0 →"),
    (lab((SLOW, THEIRS, OTHER)), headed(method="older/1"), "probably the method changed: older/1 with fake → interleaved"),
    (lab((SLOW, THEIRS, OTHER)), configured, "probably its config changed: block 64 → None"),
    (among(), cooler, "probably heat: 40 → 50 °C, 1700 → 1500 MHz"),
    (among(throttle="0x4", throttle_names="power cap", temperature_c=42), cooler, "probably power cap: 480 → 500 W, 1700 → 1500 MHz"),
    (among(temperature_c=42), cooler, "probably lower clock: 1700 → 1500 MHz"),
])
def test_a_regression_names_its_probable_reason(
    made: Lab, then: Callable[[Record], Record] | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = made.kernels[0] is OURS and then is not None
    quick = replace(made, clock=FakeClock(noise=1e-4), kernels=(SLOW, THEIRS, OTHER) if plain else made.kernels)
    assert measure(tmp_path / "good", lab(noise=1e-4)) == 0
    file = tmp_path / "good" / "records.jsonl"
    write_all(file, [then(record) if then else record for record in read(file)])
    assert measure(tmp_path / "run", quick) == 0
    assert gate.main(["--gpu", "h200", "--run", str(tmp_path / "run"), "--accepted", str(file)]) == 1
    out = capsys.readouterr().out
    assert "REGRESSED" in out
    assert says in out
