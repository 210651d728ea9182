"""suites.run from its command line, on a fake device."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from autotune.clock import FakeClock
from autotune.conditions import FakeMonitor
from kernels.catalogue import kernels_for
from kernels.gpu import Gpu, by_name
from kernels.problem import Problem, Sparsity
from suites import run as command
from suites import session
from suites.bench import Bench
from suites.case import Case
from suites.command import first_that_applies
from suites.record import CaseRecord, RunRecord, read
from suites.runner import kernels_of
from tests.patience import PATIENCE
from tests.suites.fakes import H200, OTHER, OURS, SMALL, THEIRS, absent, gemm, lab, measure, refusing

TWO = ("--suite", "prefill", "--shape", "16x32", "--tokens", "4", "8", "--sparsity", "2:4")


def cases(out: Path) -> list[CaseRecord]:
    return [record for record in read(out) if isinstance(record, CaseRecord)]


def heads(out: Path) -> list[RunRecord]:
    return [record for record in read(out) if isinstance(record, RunRecord)]


def test_a_record_holds_everything(tmp_path: Path) -> None:
    kernels = (OURS, THEIRS, OTHER, absent("missing"), refusing("picky"))
    assert measure(tmp_path / "run", lab(kernels)) == 0
    head, case = heads(tmp_path / "run")[0], cases(tmp_path / "run")[0]
    assert (head.gpu, head.commit, head.dirty, head.timer, head.evidence) == ("h200", "abc", False, "fake", "measured")
    assert head.versions["torch"]
    assert head.planned == (case.key,)
    assert case.run == head.id
    assert (case.operations, case.compulsory_bytes) == (2 * 16 * 32 * 4, 4 * 32 + 16 + 16 * 32 // 4 + 4 + 4 * 16 * 2)
    assert case.conditions["before"]["power_w"] == 500.0
    assert set(case.phases) == {"inputs", "prepare", "check", "bind", "measure"}
    assert [(result.kernel, result.status) for result in case.results] == [
        ("ours", "ok"), ("theirs", "ok"), ("other", "ok"), ("missing", "unavailable"), ("picky", "refused"),
    ]
    ours, missing = case.result("ours"), case.result("missing")
    assert ours is not None
    assert missing is not None
    assert len(ours.samples_us) == 12
    assert len(ours.call_us) == 3
    assert 48 < min(ours.samples_us) < max(ours.samples_us) < 52
    assert (ours.check, ours.weight_bytes, ours.footprint) == ({"judged": "exact"}, 128, 1 << 20)
    assert missing.reason == "the library is not installed"


def test_the_output_ends_with_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(tmp_path / "run", lab(noise=1e-4)) == 0
    out = capsys.readouterr().out
    assert "[1/1, 0:00 left] prefill custom 16x32 gemm 16x32 T=4 2:4: ours 50.0 µs, 2.00× theirs" in out
    assert "geomean" in out


def test_a_group_that_does_not_divide_is_a_refusal_record(tmp_path: Path) -> None:
    assert measure(tmp_path / "run", None, "--suite", "prefill", "--shape", "16x36", "--tokens", "4", "--sparsity", "2:4", "6:8") == 0
    good, refused = cases(tmp_path / "run")
    assert good.refusal is None
    assert refused.refusal == "in_features 36 is not a multiple of the group of 8 in 6:8"
    assert refused.results == ()


def test_sustained_blocks(tmp_path: Path) -> None:
    strong, weak = gemm("dense-int8", 100.0, "baseline", dense=True), gemm("weak", 100.0, "baseline")
    inexact = gemm("sloppy", 20.0, exact=False)
    kernels = (OURS, inexact, strong, weak, gemm("slidesparse", 90.0, "baseline"))
    assert measure(tmp_path / "run", lab(kernels), *SMALL, "--state", "sustained") == 0
    (case,) = cases(tmp_path / "run")
    assert case.state == "sustained"
    assert [result.kernel for result in case.results] == ["ours", "dense-int8", "slidesparse"]
    blocks = case.results[0].blocks
    assert len(blocks) == 3
    assert all(block["seconds"] == pytest.approx(1.0) and block["calls"] == pytest.approx(20000, rel=0.02) for block in blocks)


@pytest.mark.parametrize("sparsity", ["2:4", "6:8"])
def test_every_sustained_case_has_a_dense_and_an_exact_sparse_baseline(sparsity: str) -> None:
    gpu, problem = by_name("h200"), Problem("gemm", 8192, 8192, 8192, Sparsity.parse(sparsity))
    bench = Bench(gpu, FakeClock(), FakeMonitor(lambda: 0.0), kernels_for)
    chosen = kernels_of(Case("square", "square", "8192x8192", problem, "hot", "sustained"), bench)
    wrong_sparsity = [kernel.name for kernel in chosen if re.search("weights only|are lifted", kernel.unavailable(problem, gpu) or "")]
    able = [kernel for kernel in chosen if kernel.kind == "baseline" and kernel.name not in wrong_sparsity]
    assert any(kernel.exact and not kernel.dense for kernel in able), wrong_sparsity
    assert any(kernel.dense for kernel in able)


@pytest.mark.parametrize("name", ["a100", "b200"])
def test_another_gpu_than_claimed(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(tmp_path / "run", gpu=name) == 2
    error = capsys.readouterr().err
    assert name in error
    assert "h200" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("extra", [("--require-gpu",), ("--state", "sustained")])
def test_no_gpu_where_one_is_needed(tmp_path: Path, extra: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(tmp_path / "run", None, *SMALL, *extra, found=None) == 5
    assert "a GPU is needed" in capsys.readouterr().err


UNLISTED = Gpu("nvidia-x1", "X1", 90, 100, 50 << 20, 1 << 17, 96, float("inf"), measured_as="unlisted GPU, portable defaults")


def test_an_unlisted_gpu_is_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(tmp_path / "run", gpu="auto", found=UNLISTED) == 0
    assert "unlisted GPU, portable defaults" in capsys.readouterr().out
    assert heads(tmp_path / "run")[0].gpu == "nvidia-x1"


def test_an_unlisted_gpu_borrows_a_profile_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(tmp_path / "run", None, *SMALL, "--profile", "h100", gpu="auto", found=UNLISTED) == 0
    assert heads(tmp_path / "run")[0].gpu == "h100"
    assert "borrowed for nvidia-x1" in capsys.readouterr().out
    assert measure(tmp_path / "other", None, *SMALL, "--profile", "h100", gpu="auto", found=H200) == 2
    assert "use --gpu h200" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "says"), [
    (("--kernel", "fast"), "unknown kernel 'fast'; allowed here: ours, theirs, other"),
    (("--profile", "z80"), "unknown GPU 'z80'"),
    (("--device", "3"), "no such device"), (("--device", "-1"), "allowed are 0 and up"),
])
def test_unknown_names(tmp_path: Path, arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--gpu", "h200", *SMALL, *arguments, "--out", str(tmp_path / "run")]
    detect = {0: H200}
    assert command.main(line, detect=detect.get, lab=lab(), build_report=lambda gpu, results, page: 0) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_only_the_named_kernels(tmp_path: Path) -> None:
    assert measure(tmp_path / "run", None, *SMALL, "--kernel", "ours", "theirs") == 0
    assert [result.kernel for result in cases(tmp_path / "run")[0].results] == ["ours", "theirs"]


class InterruptedClock:
    """A clock whose n-th timer is the moment of Ctrl+C."""

    name = "fake"

    def __init__(self, after: int) -> None:
        self._clock, self._left = lab().clock, after

    def timer(self, calls: object, cold: bool) -> object:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._clock.timer(calls, cold)  # type: ignore[arg-type]


def test_ctrl_c_keeps_what_was_measured_and_resume_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert measure(out, replace(lab(), clock=InterruptedClock(4)), *TWO) == 130  # type: ignore[arg-type]
    error = capsys.readouterr().err
    assert f"--out {out} --resume" in error
    assert "Traceback" not in error
    first = cases(out)
    assert len(first) == 1
    assert measure(out, None, *TWO) == 2
    assert "add --resume" in capsys.readouterr().err
    assert measure(out, None, *TWO, "--resume") == 0
    assert cases(out)[0] == first[0]
    assert [case.problem["tokens"] for case in cases(out)] == [4, 8]
    assert len({head.id for head in heads(out)}) == 2
    assert measure(out, None, *TWO, "--resume") == 0
    assert len(cases(out)) == 2


def test_resume_after_a_write_that_was_cut_off(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert measure(out, None, *TWO) == 0
    file = out / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    assert len(cases(out)) == 1
    assert measure(out, None, *TWO, "--resume") == 0
    assert len(cases(out)) == 2
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_resume_on_another_gpu_or_another_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert measure(out) == 0
    assert measure(out, None, *SMALL, "--resume", gpu="auto", found=by_name("h100")) == 2
    error = capsys.readouterr().err
    assert "h200" in error
    assert "h100" in error
    file = out / "records.jsonl"
    before = file.read_text().replace("tersparse/1", "tersparse/9")
    file.write_text(before)
    assert measure(out, None, *SMALL, "--resume") == 2
    assert "'tersparse/9', but this version reads 'tersparse/1'" in capsys.readouterr().err
    assert file.read_text() == before


def test_resume_without_a_folder_takes_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["--gpu", "h200", *SMALL, "--commit", "abc"]
    made = {"detect": lambda index: H200, "build_report": lambda gpu, results, page: 0}
    assert command.main([*line, "--resume"], lab=lab(), **made) == 2  # type: ignore[arg-type]
    assert "no run in runs/" in capsys.readouterr().err
    assert command.main(line, lab=lab(), **made) == 0  # type: ignore[arg-type]
    assert command.main([*line, "--resume"], lab=lab(), **made) == 0  # type: ignore[arg-type]
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-h200")
    assert len(cases(folder)) == 1


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "now", lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc))
    line = ["--gpu", "h200", *SMALL, "--commit", "abc"]
    for _ in range(3):
        assert command.main(line, detect=lambda index: H200, lab=lab(), build_report=lambda gpu, results, page: 0) == 0
    folders = sorted((tmp_path / "runs").iterdir())
    assert [folder.name for folder in folders] == [f"20260102-030405-h200{ending}" for ending in ("", "-2", "-3")]
    assert all(len(cases(folder)) == 1 for folder in folders)
    for folder in folders:
        os.utime(folder / "records.jsonl", (0, 0))
    assert command.main([*line, "--resume"], detect=lambda index: H200, lab=lab(), build_report=lambda gpu, results, page: 0) == 0
    assert [len(list(read(folder))) for folder in folders][:2] == [2, 2], "of equally old ones the last is gone on with"


def test_an_unwritable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert measure(tmp_path / "file" / "run") == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert error.count("\n") == 1


def test_no_disk_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "records.jsonl").symlink_to("/dev/full")
    assert measure(out) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert error.count("\n") == 1


def test_undecided_cases_are_measured_longer(tmp_path: Path) -> None:
    measure(tmp_path / "once", lab(noise=0.02))
    measure(tmp_path / "longer", lab(noise=0.02), *SMALL, "--until-decided")
    once, longer = cases(tmp_path / "once")[0].results[0], cases(tmp_path / "longer")[0].results[0]
    assert len(once.samples_us) == 12
    assert len(longer.samples_us) == 12, "a factor of two is decided at once"
    close = (OURS, gemm("theirs", 50.0, "baseline"))
    measure(tmp_path / "close", lab(close, noise=0.1), *SMALL, "--until-decided")
    (several,) = cases(tmp_path / "close")
    assert several.processes == (12, 12, 12, 12)
    assert [len(result.samples_us) for result in several.results] == [48, 48]


def test_the_report_is_asked_for_and_its_failure_counts(tmp_path: Path) -> None:
    asked: list[tuple[str, list[Path], Path]] = []

    def report(gpu: Gpu, results: list[Path], page: Path) -> int:
        asked.append((gpu.name, list(results), page))
        return 4

    line = ["--gpu", "h200", *SMALL, "--out", str(tmp_path / "run")]
    assert command.main(line, detect=lambda index: H200, lab=lab(), build_report=report) == 4  # type: ignore[arg-type]
    assert asked == [("h200", [tmp_path / "run"], tmp_path / "run" / "report.html")]




@pytest.mark.parametrize(("code", "counts_as"), [(0, 0), (2, 2), (1, 4), (-9, 4)])
def test_a_report_that_dies_is_neither_good_nor_slow(
    tmp_path: Path, code: int, counts_as: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(*line: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess((), code, "", "")

    monkeypatch.setattr(command.subprocess, "run", ended)
    assert command.report_in_child(H200, [tmp_path], tmp_path / "report.html") == counts_as
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1:] == ([] if code else [str(tmp_path / "report.html")])
    assert captured.err.count("\n") == (1 if code else 0)
    assert first_that_applies((0, -9, 1)) == 4


@pytest.mark.parametrize("module", ["suites.run", "autotune.run"])
def test_without_torch_it_says_what_to_install(module: str, repository: Path) -> None:
    code = (
        "import sys; from importlib import import_module; sys.modules['torch'] = None;"
        f"sys.exit(import_module({module!r}).main(['--gpu', 'h200']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"{module}: torch is not installed; it comes with the extra gpu: pip install 'tersparse[gpu]'\n"
