"""A thousand candidates with real hangs and deaths, and a tuner that is killed ten times: nothing is lost, the table is the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune.beginning import Surroundings
from autotune.clock import FakeClock
from autotune.journal import Journal
from autotune.run import main
from autotune.table import read
from kernels.gpu import by_name
from tests.autotune import scripted
from tests.patience import PATIENCE, only_hangs_take_too_long, until

CASE = ["--gpu", "h200", "--op", "gemm", "--shape", "24x16", "--sparsity", "2:4"]


def tune(folder: Path, *arguments: str, seconds: float = 0.5) -> int:
    around = Surroundings(
        lambda: by_name("h200"), lambda gpu: ["cpu", "cpu"], "tests.autotune.scripted", folder / "h200.json", folder / "runs",
        seconds, "tests.autotune.scripted", lambda: {"triton": "3.6.0"}, False,
    )
    with only_hangs_take_too_long():
        return main([*CASE, *arguments], FakeClock(), around)


def outcomes(folder: Path) -> dict[str, object]:
    rows = [json.loads(line) for line in (folder / "runs/tune-h200/journal.jsonl").read_text().splitlines()]
    keys = [(json.loads(row["key"]), row["value"]) for row in rows]
    return {json.dumps(key[-1]): value for key, value in keys if len(key) == 6 and "a" in key[-1]}


def test_a_thousand_candidates_with_faults_and_hangs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path, "--kernel", "thousand", "--tokens", "128") == 0
    found = outcomes(tmp_path)
    configs = [vars(config) for config in scripted.find("thousand", "gemm").space.candidates()]
    allowed = [config for config in configs if config["c"] <= config["a"] + 8]
    assert len(found) == len(allowed) == 990
    stages = {"hang": "timeout", "abort": "launch", "cuda": "launch", "memory": "memory"}
    for config in allowed:
        value, how = found[json.dumps(config)], scripted.fault(config)
        if how is None:
            assert value == pytest.approx(scripted.cost(config), rel=0.05)
        else:
            assert isinstance(value, dict)
            assert value["stage"] == stages[how]
            assert value["reason"]
    faults = sum(scripted.fault(config) is not None for config in allowed)
    assert faults == 50
    assert f"({faults} candidates failed" in capsys.readouterr().out
    (entry,) = read(tmp_path / "h200.json")
    best = min((config for config in allowed if not scripted.fault(config)), key=scripted.cost)
    assert dict(entry.config) == best
    assert entry.evaluated == (990, 990)


def table(folder: Path) -> list[dict[str, object]]:
    entries = json.loads((folder / "h200.json").read_text())["entries"]
    return [{name: value for name, value in entry.items() if name != "date"} for entry in entries]


def tune_until(folder: Path, size: float) -> int:
    """Goes no further once the journal holds so many bytes: however fast it is, it is there still when it is killed."""
    put = Journal.put

    def held(journal: Journal, value: object, *key: object) -> None:
        put(journal, value, *key)
        if journal.path.stat().st_size >= size:
            time.sleep(3600)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "put", held)
        return tune(folder, "--kernel", "hundred", "--tokens", "64,128", "--resume", seconds=1.0)


def spawn(folder: Path, repository: Path, size: float = 1e9) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from tests.autotune.test_endurance import tune_until;"
        f"sys.exit(tune_until(Path({str(folder)!r}), {size!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, cwd=folder, env=environment)


def killed(child: subprocess.Popen[bytes], journal: Path, size: float) -> int:
    """What a tuner ended with that is killed when its journal holds so many bytes."""
    try:
        until(lambda: child.poll() is not None or (journal.exists() and journal.stat().st_size >= size), "the journal to grow")
    finally:
        child.kill()
    return child.wait(PATIENCE)


def test_killed_at_ten_random_moments_and_resumed(tmp_path: Path, repository: Path) -> None:
    undisturbed, disturbed = tmp_path / "a", tmp_path / "b"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    assert spawn(undisturbed, repository).wait(PATIENCE) == 0
    journal, draw = disturbed / "runs/tune-h200/journal.jsonl", random.Random(7)
    whole = len((undisturbed / "runs/tune-h200/journal.jsonl").read_bytes())
    moments = sorted(draw.uniform(0.0, 0.97) for _ in range(10))
    for moment in moments:
        assert killed(spawn(disturbed, repository, moment * whole), journal, moment * whole) == -signal.SIGKILL
    assert spawn(disturbed, repository).wait(PATIENCE) == 0
    assert table(disturbed) == table(undisturbed)
    assert outcomes(disturbed) == outcomes(undisturbed)
