"""`pytest tests/bench --benchmark-json`: the file that pytest-benchmark's own tools read, with the device's times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from suites.on_gpu import Lab
from tests.bench.conftest import chosen
from tests.patience import PATIENCE
from tests.suites.fakes import lab

CASES = "--suite prefill --shape 16x32 --tokens 4 8 --sparsity 2:4"


def bench(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pytest", "tests/bench", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    # pytest-benchmark writes nothing in a process that takes itself for a worker of xdist.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(line, cwd=repository, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_the_json_holds_the_clocks_times(tmp_path: Path, repository: Path) -> None:
    file = tmp_path / "gpu.json"
    done = bench(repository, "--lab", "tests.suites.fakes:lab", "--cases", CASES, f"--benchmark-json={file}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {(entry["group"], entry["extra_info"]["kernel"]): entry for entry in json.loads(file.read_text())["benchmarks"]}
    assert len(found) == 6
    ours = found["prefill/custom/16x32/gemm 16x32 T=4 2:4/hot/interleaved", "ours"]
    assert ours["stats"]["rounds"] == 12
    assert ours["stats"]["median"] == pytest.approx(50e-6, rel=0.01)
    assert 49e-6 < min(ours["stats"]["data"]) < max(ours["stats"]["data"]) < 51e-6
    assert ours["extra_info"]["over"] == "theirs"
    assert ours["extra_info"]["speedup"] == pytest.approx(2.0, rel=0.01)
    tool = [sys.executable, "-m", "pytest_benchmark", "compare", str(file), "--columns=median", "--group-by=group"]
    compared = subprocess.run(tool, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert compared.returncode == 0, compared.stderr
    assert "test_case" in compared.stdout + compared.stderr


def test_without_a_gpu_it_skips_with_the_reason(repository: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = bench(repository, "--cases", CASES, "-rs")
    assert done.returncode == 0, done.stdout
    assert "GPU times need a GPU, and there is none here" in done.stdout
    assert "passed" not in done.stdout


def test_unknown_cases(repository: Path) -> None:
    done = bench(repository, "--cases", "--suite nonsense")
    assert done.returncode != 0
    assert "--cases: unknown suite 'nonsense'" in done.stdout + done.stderr


@pytest.mark.parametrize(("cases", "says"), [
    ("--kernel nonsense", "unknown kernel 'nonsense'; allowed here: ours, theirs"), ("'x", "No closing quotation"),
    ("--state sustained", "unrecognized arguments: --state sustained"), ("--help", "unrecognized arguments: --help"),
])
def test_what_is_no_choice_of_cases(cases: str, says: str) -> None:
    class Config:
        def getoption(self, name: str, default: object = None) -> object:
            return {"--cases": f"{CASES} {cases}", "--lab": "tests.suites.fakes:lab"}[name]

    with pytest.raises(pytest.UsageError, match=f"--cases: {says}"):
        chosen(Config())  # type: ignore[arg-type]  # all that it asks of a pytest.Config


def test_what_is_refused_is_no_benchmark(tmp_path: Path, repository: Path) -> None:
    file = tmp_path / "gpu.json"
    done = bench(repository, "--lab", "tests.suites.test_bench_json:throttled", "--cases", CASES, f"--benchmark-json={file}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "refused: throttled: " in done.stdout
    assert not file.exists() or json.loads(file.read_text())["benchmarks"] == []


def throttled() -> Lab:
    """A device that slows down."""
    return lab(throttle=0x40)
