from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.errors import UsageError
from kernels.gpu import by_name
from suites.arguments import parser, selection
from suites.case import Case
from suites.catalogue import SUITES, Selection, listing, plan
from suites.run import main
from tests.patience import PATIENCE


def chosen(*arguments: str) -> tuple[Case, ...]:
    return plan(selection(parser().parse_args(arguments)))


def test_the_defaults() -> None:
    cases = chosen()
    assert Counter(case.suite for case in cases) == {"prefill": 160, "decode": 144, "layer": 144, "prepare": 58, "train": 192, "square": 10}
    assert len({case.key for case in cases}) == len(cases)
    caches = {case.suite: case.cache for case in cases}
    assert caches == {"prefill": "hot", "decode": "cold", "layer": "hot", "prepare": "cold", "train": "hot", "square": "hot"}
    assert not [case for case in cases if case.problem.refusal]


@pytest.mark.parametrize(
    ("suite", "tokens", "sparsities", "models"),
    [
        ("prefill", {128, 512, 2048, 8192, 16384}, {"2:4", "6:8"}, {"qwen2.5-0.5b", "qwen2.5-3b", "qwen2.5-7b", "bitnet-2b"}),
        ("decode", {1, 4, 16, 64}, {"dense", "2:4", "6:8"}, {"qwen2.5-3b", "bitnet-2b", "llama3-70b"}),
        ("layer", {1, 64, 2048, 8192}, {"dense", "2:4", "6:8"}, {"qwen2.5-3b", "qwen2.5-7b", "bitnet-2b"}),
        ("train", {4096, 16384}, {"2:4", "6:8"}, {"qwen2.5-0.5b", "qwen2.5-3b", "qwen2.5-7b"}),
        ("square", {1024, 2048, 4096, 8192, 16384}, {"2:4", "6:8"}, {"square"}),
        ("prepare", {0, 1, 64, 2048, 16384}, {"dense", "2:4", "6:8"}, {"qwen2.5-3b", "bitnet-2b", "square"}),
    ],
)
def test_a_suite(suite: str, tokens: set[int], sparsities: set[str], models: set[str]) -> None:
    cases = chosen("--suite", suite)
    assert {case.problem.tokens for case in cases} == tokens
    assert {str(case.problem.sparsity) for case in cases} == sparsities
    assert {case.model for case in cases} == models


def test_prepare_has_masters_and_activations() -> None:
    cases = chosen("--suite", "prepare")
    assert {(c.problem.op, str(c.problem.sparsity)) for c in cases} == {
        ("prepare", "2:4"), ("prepare", "6:8"), ("activation", "dense"), ("activation", "6:8"),
    }
    assert {str(case.problem.sparsity) for case in chosen("--suite", "prepare", "--sparsity", "2:4")} == {"dense", "2:4"}


def test_training_has_its_four_parts() -> None:
    parts = Counter(case.problem.op for case in chosen("--suite", "train"))
    assert parts == {"forward": 48, "input-grad": 48, "weight-grad": 48, "step": 48}


def test_quick_is_a_small_part_of_the_defaults() -> None:
    quick, every = chosen("--quick"), {case.key for case in chosen()}
    assert 60 <= len(quick) <= 80
    assert {case.suite for case in quick} == {suite.name for suite in SUITES}
    assert {case.key for case in quick} <= every


def test_ones_own_shapes_and_tokens() -> None:
    cases = chosen("--suite", "prefill", "--shape", "48x64", "16x32", "--tokens", "512,4096", "7", "--sparsity", "4:6")
    assert [(case.layer, case.problem.tokens) for case in cases] == [(n, t) for n in ("48x64", "16x32") for t in (512, 4096, 7)]
    assert {case.suite for case in chosen("--shape", "48x64")} == {"prefill", "decode", "layer", "prepare", "train"}
    assert {case.model for case in chosen("--suite", "train", "--model", "1b", "3b")} == {"llama3.2-1b", "qwen2.5-3b"}


def test_sustained_cases() -> None:
    cases = chosen("--state", "sustained")
    assert len(cases) == 18
    assert {case.problem.tokens for case in cases} == {8192}
    assert {case.layer for case in cases} == {"W13", "W2", "8192x8192"}
    assert all(case.state == "sustained" and case.key.endswith("/sustained") for case in cases)
    with pytest.raises(UsageError, match="prefill, square, decode"):
        chosen("--suite", "layer", "--state", "sustained")


def test_decode_is_sustained_when_it_is_named() -> None:
    assert not [case for case in chosen("--state", "sustained") if case.suite == "decode"]
    cases = chosen("--suite", "decode", "--state", "sustained", "--model", "llama3-70b", "--sparsity", "2:4")
    assert [(case.layer, case.problem.tokens) for case in cases] == [("W13", 1), ("W13", 16), ("W2", 1), ("W2", 16)]
    assert all((case.state, case.cache) == ("sustained", "cold") for case in cases)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--suite", "prefil"), "allowed: prefill, decode, layer, prepare, train, square"),
        (("--model", "gpt"), "unknown model 'gpt'; allowed: qwen2.5-0.5b"),
        (("--sparsity", "3:2"), "unknown sparsity 3:2; allowed"),
        (("--sparsity", "half"), "unknown sparsity 'half'; allowed"),
        (("--tokens", "12,x"), "unknown tokens 'x'; allowed"),
        (("--tokens", "0"), "unknown tokens '0'; allowed"),
        (("--shape", "12"), "unknown shape '12'; allowed"),
        (("--suite", "square", "--model", "3b"), "square has no layers"),
        (("--state", "tired"), "choose from"),
        (("--colour",), "unrecognized arguments: --colour"),
    ],
)
def test_bad_words_are_one_line_and_exit_2(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(arguments), detect=lambda index: None) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_list_prints_the_cases_and_their_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "square", "--tokens", "64", "128", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "square/square/64x64/gemm 64x64 T=64 2:4/hot/interleaved"
    assert lines[-2:] == ["square: 4 cases", "in all: 4 cases"]
    assert lines == listing(plan(Selection(suites=("square",), tokens=(64, 128))))


@pytest.mark.parametrize(("extra", "says"), [
    (("--gpu", "z80"), "unknown GPU 'z80'"), (("--profile", "z80"), "unknown GPU 'z80'"), (("--device", "-1"), "allowed are 0 and up"),
    (("--gpu", "h200", "--profile", "h100"), "name two GPUs"),
])
def test_list_checks_the_names_that_a_run_would(extra: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "square", "--list", *extra], detect=lambda index: None) == 2
    out, error = capsys.readouterr()
    assert says in error
    assert not out


def test_list_takes_the_device_s_own_name_and_needs_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "square", "--list", "--gpu", "nvidia-x1"], detect=lambda index: replace(by_name("h100"), name="nvidia-x1")) == 0
    assert main(["--suite", "square", "--list", "--gpu", "nvidia-x1", "--profile", "h100"], detect=lambda index: None) == 0
    assert main(["--suite", "square", "--list", "--gpu", "h200", "--state", "sustained"], detect=lambda index: None) == 0
    assert capsys.readouterr().out.count("in all: ") == 3


def test_planning_and_judging_need_no_torch(repository: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, triton=None)\n"
        "import suites.gate, suites.verdicts, suites.accept, suites.floors, suites.quality, suites.record, suites.statistics\n"
        "from suites.run import main; raise SystemExit(main(['--list', '--suite', 'square']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "in all: 10 cases"
