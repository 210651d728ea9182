from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune import tuned
from autotune.beginning import Surroundings
from autotune.explain import explain
from autotune.run import main
from kernels.chooser import ESTIMATED, TUNED, choose
from kernels.errors import UsageError
from kernels.gpu import by_name
from kernels.kernel import CompileUnit, Kernel
from kernels.problem import Problem, Sparsity
from kernels.tuned import source_hash
from kernels.tuned_table import Entry
from tests.autotune import fakes

H200 = by_name("h200")
PROBLEM = Problem("gemm", 24, 16, 512, Sparsity(2, 4))


def variant(name: str, expects: dict[int, str]) -> Kernel:
    unit = CompileUnit(SimpleNamespace(__name__=name), {}, {}, expects=expects)
    return replace(fakes.find("good", "gemm"), name=name, compile_units=lambda problem, config: [unit])


SLOW, FAST, ABSENT = variant("slow", {80: "IMMA"}), variant("fast", {90: "IGMMA.SP"}), variant("absent", {80: "IMMA"})
KERNELS = (SLOW, FAST, replace(ABSENT, unavailable=lambda problem, gpu: "needs another GPU"))


def entry(kernel: str, us: float, tokens: int = 512, **changes: object) -> Entry:
    config = {"tile": 64, "how": "right"}
    made = Entry(kernel, "gemm", 24, 16, tokens, "2:4", "bf16", config, us, 2 * us, source_hash(SLOW), date="2026-11-22")
    return replace(made, **changes)  # type: ignore[arg-type]  # a test's changes


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "h200.json"


def test_two_tuned_variants_are_compared_by_their_times(table: Path) -> None:
    tuned.write(table, [entry("slow", 5.0), entry("fast", 6.0)])
    choice = choose(PROBLEM, H200, KERNELS, table)
    assert (choice.kernel.name, choice.basis) == ("slow", TUNED), "though it is estimated to be slower"
    told = explain([PROBLEM], H200, KERNELS, path=table)
    assert told[0] == f"{PROBLEM} on h200: slow, tuned: the fastest of 2 at 512 tokens"
    assert told[1:3] == ["  slow: 5.00 µs (2026-11-22)", "  fast: 6.00 µs (2026-11-22)"]
    assert "  absent: cannot: needs another GPU" in told
    assert any(line.startswith("slow (gemm) for gemm 24x16 T=512 2:4 on h200: tuned {'tile': 64") for line in told)


@pytest.mark.parametrize(
    "entries",
    [
        [], [entry("slow", 5.0)], [entry("slow", 5.0), entry("fast", 6.0, source="0123456789abcdef")],
        [entry("slow", 5.0), entry("fast", 6.0, tokens=1024)], [entry("slow", 5.0, tokens=64), entry("fast", 6.0, tokens=64)],
        [entry("slow", 5.0), entry("fast", 6.0, sparsity="6:8")], [entry("slow", 5.0), entry("absent", 1.0)],
    ],
    ids=["empty", "one", "stale", "other tokens", "far", "other sparsity", "not available"],
)
def test_else_it_is_estimated(table: Path, entries: list[Entry]) -> None:
    tuned.write(table, entries)
    choice = choose(PROBLEM.with_(tokens=512), H200, KERNELS, table)
    assert (choice.basis, choice.timed) == (ESTIMATED, ())
    big = Problem("gemm", 8192, 8192, 8192, Sparsity(2, 4))
    assert choose(big, H200, KERNELS, table).kernel.name == "fast"
    assert "estimated: it and another variant" in explain([PROBLEM], H200, KERNELS, path=table)[0]


def test_the_nearest_tokens_with_two_variants_count(table: Path) -> None:
    tuned.write(table, [
        entry("slow", 1.0, 480), entry("slow", 5.0, 512), entry("fast", 6.0, 512), entry("slow", 9.0, 1024), entry("fast", 8.0, 1024),
    ])
    assert choose(PROBLEM.with_(tokens=500), H200, KERNELS, table).kernel.name == "slow"
    assert choose(PROBLEM.with_(tokens=900), H200, KERNELS, table).kernel.name == "fast"


def test_a_variant_that_was_not_tuned_is_named_beside_the_others(table: Path) -> None:
    tuned.write(table, [entry("slow", 5.0), entry("fast", 6.0)])
    told = explain([PROBLEM], H200, (*KERNELS, variant("new", {80: "IMMA"})), path=table)
    assert any(line.startswith("  new: not tuned beside them; about") for line in told)


def test_what_is_estimated_to_be_the_best_has_to_be_among_the_timed(table: Path) -> None:
    kernels = (*KERNELS, variant("other", {80: "IMMA"}))
    big = Problem("gemm", 8192, 8192, 512, Sparsity(2, 4))
    tuned.write(table, [entry(name, 5.0, out_features=8192, in_features=8192) for name in ("slow", "other")])
    assert choose(big, H200, kernels, table).kernel.name == "fast", "which nobody timed beside them"
    assert choose(big, H200, [one for one in kernels if one.name != "fast"], table).basis == TUNED


def test_nothing_to_choose_from(table: Path) -> None:
    with pytest.raises(UsageError, match=r"no variant can do gemm 24x16 .* absent: needs another GPU"):
        choose(PROBLEM, H200, KERNELS[2:], table).kernel  # noqa: B018  reading it raises
    assert explain([PROBLEM], H200, KERNELS[2:], path=table) == [
        f"{PROBLEM} on h200: no variant can", "  absent: cannot: needs another GPU",
    ]
    with pytest.raises(UsageError, match="nothing to explain"):
        explain([replace(PROBLEM, op="prepare")], H200, KERNELS, path=table)


def test_only_named_kernels(table: Path) -> None:
    told = explain([PROBLEM], H200, KERNELS, ["slow"], table)
    assert told[0].endswith("slow, the only one to choose from")
    assert not any("fast" in line for line in told)
    with pytest.raises(UsageError, match="unknown kernel quick; allowed: absent, fast, slow"):
        explain([PROBLEM], H200, KERNELS, ["quick"], table)


def test_the_command_needs_no_device_and_lends_only_when_told(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    around = Surroundings(detect=lambda: pytest.fail("explain asked for a device"), catalogue="tests.autotune.fakes", table=table)
    line = ["--explain", "24x16", "--tokens", "7", "--sparsity", "2:4"]
    assert main(["--gpu", "a100", *line], None, around) == 0
    assert "gemm 24x16 T=7 2:4 on a100: good, estimated" in capsys.readouterr().out
    assert main(["--gpu", "a30", *line], None, around) == 2
    assert "unknown GPU 'a30'; allowed: auto, a100" in capsys.readouterr().err
    assert main(["--gpu", "a30", "--profile", "a100", *line], None, around) == 0
    assert capsys.readouterr().out.startswith("a100: datasheet of a100, borrowed for a30\ngemm 24x16")
    assert main(["--gpu", "a100", *line, "--op", "prepare"], None, around) == 2
    assert "nothing to explain" in capsys.readouterr().err
