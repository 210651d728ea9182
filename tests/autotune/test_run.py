from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.beginning import Surroundings
from autotune.clock import FakeClock
from autotune.command import parse_shape
from autotune.lock import FolderLock
from autotune.options import parse_budget
from autotune.run import main
from autotune.table import read
from kernels.errors import OutputError, UsageError
from kernels.gpu import Gpu, by_name
from tests.patience import PATIENCE, alive, hangs, only_hangs_take_too_long, until

TINY = ["--gpu", "h200", "--op", "gemm", "--shape", "24x16", "--tokens", "128", "--sparsity", "2:4"]


def around(folder: Path, **changes: object) -> Surroundings:
    fields = {
        "detect": lambda: by_name("h200"), "devices": lambda gpu: ["cpu"], "catalogue": "tests.autotune.fakes",
        "table": folder / "h200.json",
        "runs": folder / "runs", "trial_seconds": PATIENCE, "warm": False, **changes,
    }
    return Surroundings(**fields)  # type: ignore[arg-type]  # a test's changes


def run(folder: Path, *arguments: str, **changes: object) -> int:
    return main([*TINY, *arguments], FakeClock(), around(folder, **changes))


def journal(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "runs/tune-h200/journal.jsonl").read_text().splitlines()]


def test_the_fastest_right_config_is_stored_and_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--kernel", "good", "default-wins") == 0
    (entry,) = read(tmp_path / "h200.json")
    assert (entry.kernel, entry.tokens, dict(entry.config)) == ("good", 128, {"tile": 64, "how": "right"})
    assert entry.us == pytest.approx(10, rel=0.05)
    assert entry.default_us == pytest.approx(20, rel=0.05)
    assert entry.ties == ()
    assert "default is as good" in capsys.readouterr().out
    explain = ["--gpu", "h200", "--explain", "24x16", "--tokens", "128", "--sparsity", "2:4", "--kernel", "good"]
    assert main(explain, None, around(tmp_path, detect=lambda: pytest.fail("explain asked for a device"))) == 0
    out = capsys.readouterr().out
    assert "good (gemm) for gemm 24x16 T=128 2:4 on h200: tuned {'tile': 64, 'how': 'right'}" in out
    assert "usable" in out


def test_faults_cost_one_candidate_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with only_hangs_take_too_long():
        assert run(tmp_path, "--kernel", "faulty", trial_seconds=3.0) == 0
    (entry,) = read(tmp_path / "h200.json")
    assert dict(entry.config) == {"tile": 64, "how": "right"}
    stages = [row["value"]["stage"] for row in journal(tmp_path) if isinstance(row["value"], dict)]  # type: ignore[call-overload, index]
    assert stages == ["timeout", "launch", "refused"]
    assert "3 candidates failed" in capsys.readouterr().out


def test_wrong_numbers_are_never_timed_and_exit_3(tmp_path: Path) -> None:
    assert run(tmp_path, "--kernel", "liar") == 3
    (entry,) = read(tmp_path / "h200.json")
    assert entry.config["how"] == "right"


def test_nothing_measurable_exits_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, catalogue="tests.autotune.hopeless") == 4
    assert "no candidate could be measured" in capsys.readouterr().out
    assert read(tmp_path / "h200.json") == ()


def test_budget_resume_and_a_journal_cut_in_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--kernel", "good", "--budget", "0s") == 4
    assert "the budget was spent" in capsys.readouterr().out
    assert run(tmp_path, "--kernel", "good") == 0
    lines = len(journal(tmp_path))
    assert lines == 4  # three candidates and the finals
    (tmp_path / "h200.json").unlink()
    assert run(tmp_path, "--kernel", "good", "--resume") == 0
    assert len(journal(tmp_path)) == lines, "nothing was measured again"
    assert len(read(tmp_path / "h200.json")) == 1
    file = tmp_path / "runs/tune-h200/journal.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    assert run(tmp_path, "--kernel", "good", "--resume") == 0
    assert len(journal(tmp_path)) == lines, "only the line that was cut off"
    assert run(tmp_path, "--kernel", "good") == 0
    assert len(journal(tmp_path)) == 2 * lines, "without --resume everything is measured, and the old lines are kept"
    file.write_text("no journal\n")
    assert run(tmp_path, "--kernel", "good", "--resume") == 2


def test_evaluations_are_a_budget_and_end_in_finals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--kernel", "good", "--budget", "2", "--search", "exhaustive") == 0
    (entry,) = read(tmp_path / "h200.json")
    assert entry.evaluated == (2, 3)
    assert entry.chance == 1.0
    assert "[2 of 3]" in capsys.readouterr().out
    assert run(tmp_path, "--kernel", "good", "--budget", "1") == 0
    assert read(tmp_path / "h200.json") == (), "nothing but the default was tried, and it stays"


def test_two_tuners_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FolderLock(tmp_path / "runs/tune-h200"):
        assert run(tmp_path, "--kernel", "good") == 2
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_nothing_to_compile_ahead_exits_4_without_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(tmp_path, "--kernel", "good", "--compile-only", detect=lambda: pytest.fail("compiling asked for a device"))
    assert code == 4
    assert "0 kernels compiled for h200" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--gpu", "h201"], 2, "unknown GPU 'h201'"),
        (["--gpu", "a100"], 2, "the device is h200"),
        (["--shape", "24by16"], 2, "24by16"),
        (["--tokens", "many"], 2, "positive integers"),
        (["--budget", "soon"], 2, "such as 10m"),
        (["--sparsity", "5:4"], 2, "5:4"),
        (["--kernel", "nobody"], 2, "unknown kernel nobody; allowed: default-wins, faulty"),
        (["--op", "prepare"], 2, "nothing to tune"),
        (["--shapes", "/nowhere/at.all"], 2, "cannot be read"),
        (["--op", "gem"], 2, "invalid choice"),
        (["--help"], 0, ""),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str) -> None:
    assert run(tmp_path, *arguments) == code
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == (1 if code else 0)
    assert not (tmp_path / "h200.json").exists()


def test_without_a_device_5_and_interpreted_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nothing() -> Gpu | None:
        return None

    assert run(tmp_path, detect=nothing) == 5
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run(tmp_path) == 2
    assert "interpreter" in capsys.readouterr().err


def test_a_damaged_table_or_place_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "h200.json").write_text("{")
    assert run(tmp_path, "--kernel", "good") == 2
    assert "not a readable table" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(tmp_path, "--kernel", "good", runs=tmp_path / "file", table=tmp_path / "new.json") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_interrupted_exits_130_and_leaves_no_process(tmp_path: Path, repository: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.autotune.test_run import run;"
        f"sys.exit(run(Path({str(tmp_path)!r}), '--kernel', 'faulty', trial_seconds=3600.0))"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    file = tmp_path / "runs/tune-h200/journal.jsonl"
    until(lambda: any(map(hangs, workers_of(child.pid))) or child.poll() is not None, "the candidate that hangs")
    workers = workers_of(child.pid)
    assert workers
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130, errors
    assert "--resume goes on" in errors
    assert file.exists()
    assert not any(map(alive, workers))


def workers_of(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def test_values_are_parsed() -> None:
    assert parse_shape("13824x2560") == (13824, 2560)
    assert [parse_budget(text) for text in ("90s", "10m", "1.5h", "40")] == [(90, None), (600, None), (5400, None), (None, 40)]
    with pytest.raises(UsageError):
        parse_shape("0x16")


@pytest.mark.parametrize(("heard", "code", "seen"), [(True, 0, 0), (True, 4, 4), (False, 0, OutputError.exit_code), (False, 4, 4)])
def test_leaving_writes_what_was_printed_and_keeps_the_code(heard: bool, code: int, seen: int, repository: Path) -> None:
    line = [sys.executable, "-c", f"import sys; from autotune.run import leave; print('told'); sys.stdin.read(); leave({code})"]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # as output to a pipe is
    pipe = subprocess.PIPE
    child = subprocess.Popen(line, cwd=repository, env=buffered, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert child.stdin
    assert child.stdout
    assert child.stderr
    if not heard:
        child.stdout.close()
    child.stdin.close()
    assert not child.stderr.read()
    assert child.wait(PATIENCE) == seen
    assert not heard or child.stdout.read() == "told\n"
    child.stderr.close()
