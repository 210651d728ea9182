"""CI: the script's exit code is the first that applies, and the workflows name files and commands that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

from suites import calibrate, gate, verdicts
from suites.arguments import parser
from suites.command import PRECEDENCE
from tests.patience import PATIENCE
from tests.suites.fakes import measure

STUB = """#!/bin/sh
echo "$@" >> calls
case "$2" in suites.run) exit {run} ;; suites.gate) exit {gate} ;; esac
"""


@pytest.mark.parametrize(("run", "verdict"), [(0, 0), (4, 0), (0, 1), (4, 1), (3, 4), (4, 3), (0, 5), (1, 130), (2, 0), (5, 0), (130, 0)])
def test_the_first_exit_code_that_applies(run: int, verdict: int, tmp_path: Path, repository: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(repository / "scripts" / "gate", tmp_path / "scripts" / "gate")
    (tmp_path / "scripts" / "environment").write_text(f'set -eu\ncd "{tmp_path}"\npython=./stub\n')
    (tmp_path / "stub").write_text(STUB.format(run=run, gate=verdict))
    (tmp_path / "stub").chmod(0o755)
    line = [tmp_path / "scripts" / "gate", "out dir", "--quick"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE)
    calls = (tmp_path / "calls").read_text().splitlines()
    gated = len(calls) > 1
    assert gated == (run not in (2, 5, 130))
    assert done.returncode == next(code for code in PRECEDENCE if code in (run, verdict if gated else 0))
    arguments = parser().parse_args(calls[0].replace("out dir", "out").split()[2:])
    assert (arguments.gpu, arguments.require_gpu, arguments.until_decided, arguments.quick) == ("auto", True, True, True)
    if gated:
        gate.parser().parse_args(calls[1].replace("out dir", "out").split()[2:])


def test_a_folder_is_needed(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(repository / "scripts" / "gate", tmp_path / "scripts" / "gate")
    (tmp_path / "scripts" / "environment").write_text("python=false\n")
    done = subprocess.run([tmp_path / "scripts" / "gate"], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_workflows_call_what_there_is(repository: Path) -> None:
    workflows = sorted((repository / ".github" / "workflows").glob("*.yml"))
    assert [path.name for path in workflows] == ["cpu.yml", "gpu.yml"]
    for path in workflows:
        text = path.read_text()
        assert "\t" not in text
        scripts = re.findall(r"\./(scripts/\w+)", text)
        assert scripts
        for name in scripts:
            assert (repository / name).stat().st_mode & 0o111, f"{path.name}: {name} cannot be run"
        for module in re.findall(r"python -m ([\w.]+)", text):
            assert (repository / (module.replace(".", "/") + ".py")).is_file()
        assert "permissions:" in text


def test_the_documented_calibration_is_the_committed_one(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What docs/ci.md shows between its marks is what the command that the mark names prints; or that there is none."""
    text = (repository / "docs" / "ci.md").read_text()
    found = re.search(r"<!-- suites\.calibrate (.*?) -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert found
    command, shown = found.groups()
    code = calibrate.main(command.split())
    printed = capsys.readouterr().out.strip()
    assert shown == printed if code == 0 else shown.startswith("None is committed")


def test_forks_never_reach_the_runner(repository: Path) -> None:
    text = (repository / ".github" / "workflows" / "gpu.yml").read_text()
    assert "head.repo.full_name == github.repository" in text
    assert "pull_request_target" not in text
    commands = re.findall(r"run: (.*)", text)
    assert not [line for line in commands if "${{" in line], "what a user typed reaches the shell only through the environment"


GH = """#!/bin/sh
echo "$@" >> "$OUT/calls"
case "$*" in *--paginate*) printf "$FOUND" ;; esac
"""


@pytest.mark.parametrize(("found", "call"), [
    ("", "--method POST repos/o/r/issues/7/comments"), ("11\\n12\\n", "--method PATCH repos/o/r/issues/comments/12"), (None, ""),
])
def test_one_comment_is_made_and_then_rewritten(found: str | None, call: str, tmp_path: Path, repository: Path) -> None:
    """As the step of gpu.yml does it, with another `gh`; a run that left no summary (None) is not told."""
    text = (repository / ".github" / "workflows" / "gpu.yml").read_text()
    (step,) = re.findall(r"- name: Comment on the pull request\n.*?run: \|\n(.*?)\n      - ", text, re.DOTALL)
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    if found is not None:
        (tmp_path / "summary.md").write_text("## TerSparse gate, h200\n")
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path), "GITHUB_REPOSITORY": "o/r", "NUMBER": "7", "FOUND": found or "",
    }
    subprocess.run(["bash", "-e", "-c", dedent(step)], env=environment, check=True, timeout=PATIENCE)
    calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    assert [line for line in calls if "--method" in line] == ([f"api --silent {call} -F body=@{tmp_path}/summary.md"] if call else [])
    head = verdicts.markdown((), "h200").splitlines()[0]
    assert all(head.startswith(own) for own in re.findall(r'startswith\("(.*?)"\)', step)), "it finds what the gate writes"


def test_runs_that_measure_nothing_displace_none(repository: Path) -> None:
    """A group for the whole workflow would be entered by every unlabelled pull request, and its one waiting place be taken from a push."""
    head, _, jobs = (repository / ".github" / "workflows" / "gpu.yml").read_text().partition("\njobs:\n")
    assert "concurrency" not in head
    (group,) = re.findall(r"group: (.*)", jobs)
    assert "pull_request.number" in group
    assert "github.run_id" in group


def test_the_gate_finds_the_gpu_of_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(tmp_path / "run") == 0
    line = ["--gpu", "auto", "--accepted", str(tmp_path / "none.jsonl"), "--run"]
    assert gate.main([*line, str(tmp_path / "run")]) == 0
    (tmp_path / "empty").mkdir()
    assert gate.main([*line, str(tmp_path / "empty")]) == 2
    assert "no .jsonl file" in capsys.readouterr().err
