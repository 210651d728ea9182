from __future__ import annotations

import json
from pathlib import Path

import pytest

from autotune import landscape, quality
from autotune.landscape import Landscape, carried, committed, count_at, expected_loss, from_journal, nearest_winners, read, replay, write
from autotune.search import STRATEGIES
from kernels.errors import RecordError
from kernels.problem import DENSE, Problem, Sparsity

POINTS = tuple({"a": a, "b": b, "c": "x"} for a in (1, 2, 4) for b in (True, False))


def made(tokens: int, times: tuple[float, ...], n: int = 64) -> Landscape:
    return Landscape("k", "h200", "2026-11-22", "a machine", n, 64, tokens, "2:4", POINTS, times)


HERE, THERE = made(64, (6, 5, 4, 3, 2, 1)), made(128, (1, 2, 3, 4, 5, 6))


def test_a_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    write(path, [THERE, HERE])
    assert read(path) == (HERE, THERE)
    data = json.loads(path.read_text())
    assert data["axes"] == ["a", "b"]
    assert data["constant"] == {"c": "x"}
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": "other"}', '{"schema": "tersparse-landscape/1", "landscapes": []}',
             '{"schema": "tersparse-landscape/1", "kernel": "k", "gpu": "g", "date": "d", "machine": "m", "axes": ["a"],'
             ' "landscapes": [{"out_features": 1, "in_features": 1, "tokens": 1, "sparsity": "2:4", "rows": [[1, -3.0]]}]}'],
)
def test_damaged_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "k.json").write_text(text)
    with pytest.raises(RecordError, match=r"k\.json"):
        read(tmp_path / "k.json")


def test_replay_is_the_best_so_far() -> None:
    assert replay(HERE, STRATEGIES["exhaustive"], (2,)) == pytest.approx((1 / 4, 1 / 4, 1 / 4, 1 / 3, 1 / 2, 1.0))
    curve = replay(HERE, STRATEGIES["local"], (0,), 3)
    assert len(curve) == 6
    assert curve[-1] == 1.0
    assert replay(HERE, STRATEGIES["local"], (0,), 3, 0.5) == curve[:3]
    assert [count_at(share, 6) for share in (0.01, 0.25, 0.5, 1.0)] == [1, 1, 3, 6]


def test_winners_come_from_the_nearest_other_shapes() -> None:
    far = made(8192, (6, 5, 1, 3, 2, 4))
    assert nearest_winners(HERE, [HERE, far, THERE]) == [0, 2]
    assert nearest_winners(HERE, [HERE]) == []


def test_the_loss_of_carrying_a_config_over() -> None:
    assert expected_loss(2, [HERE, THERE]) == pytest.approx(5.0)
    assert expected_loss(8, [HERE, THERE]) is None


def test_what_carrying_over_loses_is_said() -> None:
    assert "a factor of 2 in tokens loses 500.0%" in carried("k", 100, 64, [HERE, THERE])
    assert "no landscape of this kernel" in carried("other", 100, 64, [HERE, THERE])
    assert "no landscape of this kernel" in carried("k", 8192, 64, [HERE, THERE])
    recorded = read(landscape.FOLDER / "h200-dense-triton.json")
    assert "a factor of 4 in tokens loses 2.2%" in carried("dense-triton", 512, 1024, recorded)


def test_an_exhaustive_journal_is_a_landscape(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    identity = ["k", "gemm 64x64 T=64 2:4", "source", {}, "fake"]
    rows = [{"key": json.dumps([*identity, {"a": a}]), "value": value} for a, value in ((1, 5.0), (2, {"stage": "x"}), (4, 7.0), (1, 6.0))]
    rows += [{"key": json.dumps(["finals", *identity, []]), "value": []}, {"key": json.dumps(["other", *identity[1:], {}]), "value": 1.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = from_journal(path, "k", "h200", "2026-11-22", "a machine")
    assert (found.shape, found.points, found.times) == ((64, 64, 64), ({"a": 1}, {"a": 4}), (6.0, 7.0))


def test_candidates_of_another_source_are_another_landscape(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    keys = [["k", "gemm 64x64 T=64 2:4", source, {}, "fake", {"a": a}] for source, a in (("old", 1), ("old", 2), ("new", 2), ("new", 3))]
    path.write_text("".join(json.dumps({"key": json.dumps(key), "value": 1.0}) + "\n" for key in keys))
    (found,) = from_journal(path, "k", "h200", "2026-11-22", "a machine")
    assert found.points == ({"a": 2}, {"a": 3})


def test_a_journal_is_recorded_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal, out = tmp_path / "journal.jsonl", tmp_path / "h200-new.json"
    line = ["--record", str(journal), "--gpu", "h200", "--out", str(out)]
    assert quality.main([*line, "--kernel", "k"]) == 2
    assert "journal.jsonl: cannot be read" in capsys.readouterr().err
    keys = [["k", f"gemm 64x64 T={tokens} 2:4", "s", {}, "fake", {"a": a, "b": 1}] for tokens in (1, 2) for a in (4, 8)]
    lines = [json.dumps({"key": json.dumps(key), "value": 1.0 + key[5]["a"]}) + "\n" for key in keys]  # type: ignore[index]  # of mixed types
    journal.write_text("".join(lines) + '{"key": "[unfin')
    assert quality.main([*line, "--kernel", "other"]) == 2
    assert "no candidate of other was timed; it has those of k" in capsys.readouterr().err
    assert quality.main(line) == 2
    assert "--record needs --kernel" in capsys.readouterr().err
    assert not out.exists()
    assert quality.main([*line, "--kernel", "k"]) == 0
    assert "2 landscapes of 4 candidates" in capsys.readouterr().out
    first, second = read(out)
    assert (first.shape, first.points, first.times) == ((64, 64, 1), ({"a": 4, "b": 1}, {"a": 8, "b": 1}), (5.0, 9.0))
    assert (second.tokens, second.gpu, first.kernel) == (2, "h200", "k")
    assert "cores" in first.machine
    journal.write_text("[]\n")
    assert quality.main([*line, "--kernel", "k"]) == 2
    assert "journal.jsonl:1: not a line of a tuning journal" in capsys.readouterr().err
    assert quality.main(["--record", str(journal), "--kernel", "k", "--gpu", "h201", "--out", str(out)]) == 2
    assert "unknown GPU 'h201'" in capsys.readouterr().err


@pytest.mark.parametrize("problem", [
    Problem("prepare", 64, 128, 0, Sparsity(6, 8), (32, 32)), Problem("activation", 0, 128, 7, DENSE),
    Problem("layer", 64, 128, 7, DENSE, bias=True), Problem("gemm", 64, 128, 7, Sparsity(2, 4), dtype="fp16"),
], ids=str)
def test_cases_of_any_op_become_landscapes(tmp_path: Path, problem: Problem) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({"key": json.dumps(["k", str(problem), "source", {}, "fake", {"a": 1}]), "value": 2.0}) + "\n")
    (found,) = from_journal(path, "k", "h200", "2026-11-22", "a machine")
    assert (*found.shape, found.sparsity) == (problem.out_features, problem.in_features, problem.tokens, str(problem.sparsity))
    path.write_text(path.read_text().replace(problem.op, ""))
    with pytest.raises(RecordError, match="unknown case"):
        from_journal(path, "k", "h200", "2026-11-22", "a machine")


def test_what_is_committed() -> None:
    found = committed()
    assert len(found) >= 20
    assert sum(file.stat().st_size for file in landscape.FOLDER.glob("*-*.json")) < 200_000
    assert all(len({json.dumps(point, sort_keys=True) for point in one.points}) == len(one.points) >= 9 for one in found)
