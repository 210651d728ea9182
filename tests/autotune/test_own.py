from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from autotune import own
from autotune.clock import FakeClock
from autotune.own import BoundCall, OwnJob, load, table, tune
from autotune.search import strategy
from kernels.errors import Failure, NoGpu, UsageError

PLAIN = '''
from autotune.own import OwnKernel

def prepare(device, seed, config):
    if config["how"] == "raises":
        raise ZeroDivisionError("no")
    return lambda: seed + (1 if config["how"] == "right" else 2)

def check(device, seed, result):
    return None if result == seed + 1 else f"{result} is not {seed + 1}"

AXES = {"size": (1, 2, 4, 8), "how": ("right", "wrong", "raises")}
KERNEL = OwnKernel(prepare, check, AXES, lambda config: "too large" if config["size"] == 8 else None)
'''


def cost(call: Any) -> float:
    """Best at a size of 4, and for the example's kernel at four warps and a row each."""
    assert isinstance(call, BoundCall)
    config: Mapping[str, Any] = call.config
    if "size" in config:
        return 10.0 + abs(config["size"] - 4)
    return 10.0 + abs(config["num_warps"] - 8) + abs(config["rows"] - 2) + config["block"] / 4096


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLAIN)
    return path


def test_the_best_right_config_wins_and_the_rest_is_named(file: Path, tmp_path: Path) -> None:
    found = tune(str(file), runs=tmp_path / "runs", clock=FakeClock(cost), device="cpu")
    assert found.verdict is not None
    assert found.points[found.verdict.winner] == {"size": 4, "how": "right"}
    assert found.verdict.better
    assert found.default_us == pytest.approx(13, rel=0.02)
    assert (found.evaluated, found.of, len(found.failures)) == (9, 9, 6)
    text = table(found)
    assert text.splitlines()[0].startswith("    10.")
    assert "wrong: 2 is not 1" in text
    assert "ZeroDivisionError: no" in text
    again = tune(str(file), runs=tmp_path / "runs", clock=FakeClock(cost), device="cpu", search="local")
    assert again.verdict == found.verdict, "from the journal"


def test_what_is_searched_how(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list[str]()
    monkeypatch.setattr(own, "strategy", lambda name: names.append(name) or strategy(name))
    for given in ({}, {"seconds": 60.0}, {"seconds": 60.0, "search": "random"}):
        found = tune(str(file), runs=tmp_path / "runs", clock=FakeClock(cost), device="cpu", **given)
        assert found.evaluated == 9
    assert names == ["exhaustive", "local", "random"]


def test_a_file_without_a_kernel_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no OwnKernel named OTHER"):
        load(str(file), "OTHER")
    (tmp_path / "text").write_text("")
    with pytest.raises(UsageError, match="not a Python file"):
        load(str(tmp_path / "text"), "KERNEL")


def test_a_file_that_is_not_there_or_fails_is_told_each_time(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a Python file"):
        load(str(tmp_path / "nowhere.py"), "KERNEL")
    (tmp_path / "fails.py").write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            load(str(tmp_path / "fails.py"), "KERNEL")


@pytest.mark.parametrize("space", ['{"size": ()}', '{"size": (8,)}'])
def test_a_space_without_a_config_is_a_usage_error(space: str, tmp_path: Path) -> None:
    path = tmp_path / "none.py"
    path.write_text(PLAIN.replace("prepare, check, AXES", f"prepare, check, {space}"))
    with pytest.raises(UsageError, match="KERNEL has no config"):
        tune(str(path), runs=tmp_path / "runs", clock=FakeClock(cost), device="cpu")


def test_inputs_are_made_on_the_device_that_was_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = list[str]()
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    for device in ("cuda:1", "cpu"):
        job = OwnJob(str(file), "KERNEL", FakeClock(cost), device)
        assert own.evaluate(job, {"size": 4, "how": "right"}) == pytest.approx(10, rel=0.1)
    assert chosen == ["cuda:1"]


def test_what_was_timed_last_is_checked_again(file: Path) -> None:
    """Right at first, wrong by the time that it was timed: a race, say."""
    text = file.read_text().replace("def check(", "CALLS = []\n\ndef check(")
    file.write_text(text.replace("lambda: seed + (1 if", "lambda: CALLS.append(1) or seed + len(CALLS) // 9 + (1 if"))
    job = OwnJob(str(file), "KERNEL", FakeClock(cost), "cpu")
    right, other = own.finals(job, [{"size": 4, "how": "right"}, {"size": 1, "how": "right"}])
    assert (right, other) == (Failure("wrong", "3 is not 2"), Failure("wrong", "3 is not 2"))


def example(repository: Path, tmp_path: Path) -> Path:
    text = (repository / "examples/tune_your_own.py").read_text()
    assert "ROWS, COLUMNS, EPSILON = 4096, 4096" in text
    path = tmp_path / "example.py"
    path.write_text(text.replace("ROWS, COLUMNS, EPSILON = 4096, 4096", "ROWS, COLUMNS, EPSILON = 4, 4096"))
    return path


@pytest.mark.interpreter
def test_the_example_is_right_in_every_config_that_is_tried(repository: Path, tmp_path: Path) -> None:
    path = example(repository, tmp_path)
    found = tune(str(path), runs=tmp_path / "runs", clock=FakeClock(cost), device="cpu")
    assert found.failures == ()
    assert found.verdict is not None
    assert found.points[found.verdict.winner] == {"block": 512, "rows": 2, "num_warps": 8}


def test_without_a_gpu_its_clock_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.own.detect", lambda index: None)
    with pytest.raises(NoGpu, match="a GPU is needed to tune a kernel"):
        tune(str(file), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.gpu
def test_the_example_runs(repository: Path, tmp_path: Path) -> None:
    found = tune(str(repository / "examples/tune_your_own.py"), runs=tmp_path / "runs", seconds=60)
    assert found.complete
    assert found.failures == ()
    assert found.verdict is not None
    assert 10 < found.verdict.times[found.verdict.winner] < 1000
