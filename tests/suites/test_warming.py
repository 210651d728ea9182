"""A device that rested is loaded before its rounds, and `--kernel` may name a suite."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from autotune.conditions import Fact
from suites import gate, on_gpu
from suites.arguments import parser
from suites.bench import Bench
from suites.case import asked
from suites.executor import DeviceArguments, Local
from suites.record import CaseRecord, read
from suites.warming import LOAD_SECONDS, PAUSE_SECONDS, Warmer
from tests.suites.fakes import H200, PLAN, SMALL, lab, measure
from tests.suites.test_calibrating import CASE


@dataclass
class Device:
    """A device whose load takes 3 ms each, and that draws what the test says."""

    watts: float | None
    seconds: float = 0.0
    loads: int = 0
    pauses: list[float] = field(default_factory=list)

    def snapshot(self) -> dict[str, Fact]:
        return {"power_w": self.watts}

    def energy_joules(self) -> None:
        return None

    def load(self) -> None:
        self.loads += 1
        self.seconds += 0.003

    def warmer(self) -> Warmer:
        return Warmer(self, self.load, 700.0, lambda: self.seconds, self.pauses.append)


@pytest.mark.parametrize(("watts", "times"), [(120.0, 3), (209.0, 3), (211.0, 0), (650.0, 0), (None, 1)])
def test_only_a_device_that_rested_is_loaded(watts: float | None, times: int) -> None:
    device = Device(watts)
    warm = device.warmer()
    for _ in range(3):
        warm()
    assert device.pauses == [PAUSE_SECONDS] * times
    assert device.seconds == pytest.approx(times * LOAD_SECONDS, abs=0.004 * times)
    assert device.loads > 50 * times or not times


@pytest.mark.parametrize(("state", "calls"), [("interleaved", 1), ("sustained", 0)])
def test_before_interleaved_rounds(state: str, calls: int) -> None:
    made, seen = lab(), list[str]()
    bench = Bench(H200, made.clock, made.monitor, made.kernels_for, "cpu", seen.append, warm=lambda: seen.append("warm"))
    Local(bench).case(replace(CASE, state=state), PLAN, {})
    assert seen.count("warm") == calls
    if calls:
        place = seen.index("warm")
        assert not [mark for mark in seen[:place] if mark.endswith("\tmeasure")], "before the first turn"
        assert [mark for mark in seen[place:] if mark.endswith("\tmeasure")]


@pytest.mark.parametrize("more", [(), ("--until-decided",)])
def test_runs_that_decide_are_measured_warm_as_calibrations_are(more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[DeviceArguments] = []
    monkeypatch.setattr(on_gpu, "Worker", lambda factory, arguments: told.append(arguments))
    args = parser().parse_args([*SMALL, "--kernel", "prefill/ours", *more])
    on_gpu._executor(args, H200, "run", PLAN, None, lambda op: [])
    assert [(own.warm, own.only) for own in told] == [(bool(more), ("prefill/ours",))]


@pytest.mark.parametrize(("kernel", "names", "suite", "said"), [
    ("ours", (), "prefill", True), ("ours", ("ours",), "prefill", True), ("ours", ("theirs",), "prefill", False),
    ("ours", ("prefill/ours",), "prefill", True), ("ours", ("decode/ours",), "prefill", False), ("ours", ("decode/ours",), None, True),
    ("ours", ("decode/ours", "ours"), "prefill", True), ("theirs", ("prefill/ours",), None, False),
])
def test_what_was_asked_for(kernel: str, names: tuple[str, ...], suite: str | None, said: bool) -> None:
    assert asked(kernel, names, suite) is said


def test_kernels_of_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gate does not miss what was not asked for in this suite."""
    assert measure(tmp_path / "all") == 0
    assert measure(tmp_path / "some", lab(seed=3), *SMALL, "--kernel", "prefill/ours", "theirs") == 0
    cases = [record for record in read(tmp_path / "some" / "records.jsonl") if isinstance(record, CaseRecord)]
    assert [[result.kernel for result in case.results] for case in cases] == [["ours", "theirs"]]
    line = ["--gpu", "h200", "--run", str(tmp_path / "some"), "--accepted", str(tmp_path / "all" / "records.jsonl")]
    assert gate.main(line) == 0
    assert "MISSING" not in capsys.readouterr().out
    assert measure(tmp_path / "none", None, *SMALL, "--kernel", "decode/ours") == 2
    assert "no case of a suite 'decode'; allowed here: prefill" in capsys.readouterr().err


def test_a_case_is_measured_alike_whoever_asks() -> None:
    """The same kernels for a child that was told the names as for this process."""
    made = lab()
    bench = Bench(H200, made.clock, made.monitor, made.kernels_for, "cpu", only=("decode/ours", "theirs"))
    in_prefill, in_decode = (Local(bench).case(replace(CASE, suite=suite), PLAN, {}) for suite in ("prefill", "decode"))
    assert [result.kernel for result in in_prefill.results] == ["theirs"]
    assert [result.kernel for result in in_decode.results] == ["ours", "theirs"]
