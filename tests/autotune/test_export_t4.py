"""Tuning results in T4: what its results schema asks for, from the committed results and from a journal with failures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from autotune import export_t4, landscape
from autotune.journal import Journal, outcome_to_plain
from autotune.table import read
from kernels.errors import Failure
from kernels.gpu import by_name
from kernels.tuned import path_of

WORDS = {"timeout", "compile", "runtime", "correctness", "constraints", "correct"}


def conforms(data: dict[str, Any]) -> None:
    """The results schema of T4, version 1.0.0."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", data["schema_version"])
    for row in data["results"]:
        assert {"configuration", "times", "invalidity", "correctness"} <= set(row)
        assert isinstance(row["configuration"], dict)
        assert isinstance(row["objectives"], list)
        assert isinstance(row["times"]["runtimes"], list)
        assert isinstance(row["timestamp"], str)
        assert row["invalidity"] in WORDS
        assert row["correctness"] in (0, 1)
        for measured in row["measurements"]:
            assert set(measured) == {"name", "value", "unit"}
            assert isinstance(measured["value"], (int, float, str, list))


def test_the_committed_results(tmp_path: Path) -> None:
    line = ["--gpu", "h200", "--out", str(tmp_path / "t4.json"), "--metadata", str(tmp_path / "meta.json")]
    assert export_t4.main(line) == 0
    data = json.loads((tmp_path / "t4.json").read_text())
    conforms(data)
    expected = [own for own in landscape.committed() if own.gpu == "h200"]
    entries = read(path_of(by_name("h200")))
    assert len(data["results"]) == sum(len(own.times) for own in expected) + len(entries)
    assert data["results"][0]["configuration"] == dict(expected[0].points[0])
    assert data["results"][0]["times"]["runtimes"] == [expected[0].times[0] / 1e3]
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["metadata"]["hardware"]["hardware_description"][0]["name"] == "h200"
    assert any(text.startswith("triton==") for text in meta["metadata"]["environment"]["requirements"])


def test_a_journal_with_failures(tmp_path: Path) -> None:
    journal, identity = Journal(tmp_path / "j.jsonl", resume=False), ("ours", "gemm 8x8 T=1 2:4", "hash", {"torch": "2"}, "fake")
    outcomes = (12.5, Failure("wrong", "y"), Failure("timeout", "60 s"), Failure("refused", "too wide"))
    for number, outcome in enumerate(outcomes):
        journal.put(outcome_to_plain(outcome), *identity, {"block": number})
    journal.put([[1.0], [2.0]], "finals", *identity, [{"block": 0}])
    journal.close()
    with (tmp_path / "j.jsonl").open("a") as file:
        file.write('{"key": "unfinis')
    assert export_t4.main(["--gpu", "h200", "--journal", str(tmp_path / "j.jsonl"), "--out", str(tmp_path / "t4.json")]) == 0
    data = json.loads((tmp_path / "t4.json").read_text())
    conforms(data)
    assert [row["invalidity"] for row in data["results"]] == ["correct", "correctness", "timeout", "constraints"]
    assert [row["correctness"] for row in data["results"]] == [1, 0, 1, 1]
    assert data["results"][0]["measurements"][:2] == [
        {"name": "time", "value": 0.0125, "unit": "ms"}, {"name": "kernel", "value": "ours", "unit": ""},
    ]
    assert data["results"][2]["times"]["runtimes"] == []


@pytest.mark.parametrize(("arguments", "says"), [
    (["--gpu", "z80"], "unknown GPU"), (["--gpu", "l4"], "nothing tuned for l4"),
    (["--gpu", "h200", "--journal", "nowhere.jsonl"], "cannot be read"), (["--gpu", "h200", "--journal", "pyproject.toml"], "not a line"),
])
def test_bad_input(arguments: list[str], says: str, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch,
                   capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(repository)
    assert export_t4.main([*arguments, "--out", str(tmp_path / "t4.json")]) == 2
    assert says in capsys.readouterr().err
