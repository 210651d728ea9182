from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.table import read
from autotune.tuned import explain, write
from kernels.errors import OutputError, RecordError
from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity
from kernels.tuned import FOLDER, lookup, major, source_hash
from kernels.tuned_table import SCHEMA, Entry, Table, read_table
from tests.autotune import fakes

H200 = by_name("h200")
GOOD = fakes.find("good", "gemm")
PROBLEM = Problem("gemm", 24, 16, 512, Sparsity(2, 4))


def entry(tokens: int = 512, tile: int = 64, **changes: object) -> Entry:
    config = {"tile": tile, "how": "right"}
    made = Entry("good", "gemm", 24, 16, tokens, "2:4", "bf16", config, 10.0, 20.0, source_hash(GOOD), date="2026-11-22")
    return replace(made, **changes)  # type: ignore[arg-type]  # a test's changes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tuned" / "h200.json"


def found(path: Path, tokens: int) -> tuple[int, str]:
    config, source = lookup(GOOD, PROBLEM.with_(tokens=tokens), H200, path)
    return config.tile, source


def test_exact_then_nearest_then_default(path: Path) -> None:
    write(path, [entry(512, 64), entry(4096, 128), entry(512, 32, kernel="other")])
    assert found(path, 512) == (64, "tuned")
    assert found(path, 1024) == (64, "tuned")
    assert found(path, 2048) == (128, "tuned")
    assert found(path, 64) == (32, "default")
    assert lookup(GOOD, PROBLEM.with_(out_features=48, splits=(48,)), H200, path)[1] == "default"
    assert lookup(GOOD, PROBLEM.with_(sparsity=Sparsity(6, 8)), H200, path)[1] == "default"
    assert lookup(GOOD, PROBLEM.with_(dtype="int32"), H200, path)[1] == "default"


def test_stale_entries_are_named_and_not_applied(path: Path) -> None:
    write(path, [entry(512, 64, source="0123456789abcdef"), entry(1024, 128)])
    assert found(path, 512) == (128, "tuned"), "the next nearest one stands in"
    text = explain(GOOD, PROBLEM, H200, path)
    assert "for 512 tokens (10.00 µs, default 20.00 µs): stale" in text
    assert "for 1024 tokens (10.00 µs, default 20.00 µs): usable" in text


def test_rejected_and_foreign_configs_are_not_applied(path: Path) -> None:
    write(path, [entry(2, 128), entry(3, config={"tiles": 1}), entry(4, default_us=None)])
    assert found(path, 2) == (64, "tuned")
    text = explain(GOOD, PROBLEM.with_(tokens=2), H200, path)
    assert "rejected: too large for the tokens" in text
    assert "not a config of this kernel" in text
    assert "default cannot run" in text
    assert "more than a factor of 2" in explain(GOOD, PROBLEM, H200, path)


def test_explain_without_entries(path: Path) -> None:
    text = explain(GOOD, PROBLEM, H200, path)
    assert text.startswith("good (gemm) for gemm 24x16 T=512 2:4 on h200: default {'tile': 32")
    assert "no entry" in text


def test_the_file_is_sorted_and_reads_back(path: Path) -> None:
    rows = [entry(4096, ties=({"tile": 32, "how": "right"},)), entry(16), entry(16, us=9.0)]
    write(path, rows)
    assert read(path) == (rows[2], rows[0])
    first = path.read_bytes()
    write(path, reversed([rows[2], rows[0]]))
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["h200.json"]
    json.loads(first)


def test_another_triton_or_driver_or_memory_is_stale_and_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.tuned.installed", lambda: {"triton": "3", "driver": "580"})
    write(path, [entry(512, 64, versions={"triton": "3.6.0", "driver": "580.159.04"}, memory_gb=141)])
    assert found(path, 512) == (64, "tuned")
    for changes, reason in (
        ({"versions": {"triton": "4.0.1"}}, "stale: tuned with triton 4, here is triton 3"),
        ({"versions": {"triton": "3.9", "driver": "570.2"}}, "stale: tuned with driver 570, here is driver 580"),
        ({"memory_gb": 80}, "stale: tuned on a h200 of 80 GB, this one has 141"),
    ):
        write(path, [entry(512, 64, **changes)])
        assert found(path, 512) == (32, "default")
        assert reason in explain(GOOD, PROBLEM, H200, path)
    assert major("580.159.04") == "580"
    assert major(None) is None


def test_a_lookup_is_a_dictionary_read() -> None:
    """It calls no other function of ours, and takes not many times what a read with a key of as many values takes on this machine."""
    problems = [PROBLEM.with_(tokens=tokens) for tokens in (1, 512, 4096)]
    again = [PROBLEM.with_(tokens=tokens) for tokens in (1, 512, 4096)]
    for problem in problems:
        lookup(GOOD, problem, H200)
    known, called, best = {tuple(range(14)): 1}, list[str](), {"lookup": float("inf"), "read": float("inf")}

    def read(place: int) -> object:
        return known.get((place, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13))

    for _ in range(30):
        for name, call in (("lookup", lambda place: lookup(GOOD, again[place % 3], H200)), ("read", read)):
            started = time.perf_counter()
            for place in range(1000):
                call(place)
            best[name] = min(best[name], time.perf_counter() - started)
    assert best["lookup"] < 8 * best["read"], f"{best['lookup'] * 1e3:.2f} µs a call, {best['read'] * 1e3:.2f} a read"
    sys.setprofile(lambda frame, event, what: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        lookup(GOOD, again[0], H200)
    finally:
        sys.setprofile(None)
    assert called == ["lookup"]


def test_a_default_that_stays_is_kept_apart_and_ends_the_search(path: Path) -> None:
    stays = entry(1024, config={}, us=20.0, memory_gb=141, evaluated=(5, 9), versions={"triton": None, "torch": "2.11.0"})
    write(path, [entry(512, 64), stays], {"seconds": 12.5})
    table = read_table(path)
    assert [one.tokens for one in table.entries] == [512] == [one.tokens for one in read(path)]
    assert table.stays == (replace(stays, versions={"triton": None}),), "of the libraries only what makes it stale"
    assert table.made == {"seconds": 12.5}
    assert found(path, 1024) == (32, "default"), "not the winner of half the tokens"
    assert found(path, 512) == (64, "tuned")
    text = explain(GOOD, PROBLEM.with_(tokens=1024), H200, path)
    assert "for 1024 tokens: the default stays: nothing was shown to be faster (20.00 µs, 5 of 9 tried)" in text
    write(path, [replace(stays, source="0123456789abcdef"), entry(512, 64)])
    assert found(path, 1024) == (64, "tuned"), "a stale one keeps nothing"


@pytest.mark.parametrize("rows", ['"entries": [], "defaults": 1', '"entries": [], "made": 1', '"entries": [], "defaults": [{}]'])
def test_damaged_defaults_are_named(path: Path, rows: str) -> None:
    path.parent.mkdir()
    path.write_text(f'{{"schema": "{SCHEMA}", {rows}}}')
    with pytest.raises(RecordError, match=r"h200\.json"):
        read(path)


def test_a_config_stands_with_the_winners_only(path: Path) -> None:
    write(path, [entry()])
    text = path.read_text()
    path.write_text(text.replace('"entries"', '"defaults"').replace("{\"schema\"", '{"entries": [], "schema"'))
    with pytest.raises(RecordError, match="an entry has no config, or a default has one"):
        read(path)
    assert read_table(path.with_name("none.json")) == Table()


def test_write_is_seen_by_lookup_at_once(path: Path) -> None:
    assert found(path, 512)[1] == "default"
    write(path, [entry()])
    assert found(path, 512)[1] == "tuned"


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"schema": "other/9", "entries": []}', f'{{"schema": "{SCHEMA}", "entries": [1]}}',
        f'{{"schema": "{SCHEMA}", "entries": [{{"kernel": "good"}}]}}', b"\xff\xfe",
    ],
)
def test_damaged_tables_are_named(path: Path, text: str | bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecordError, match=r"h200\.json"):
        read(path)


def test_wrong_types_are_named(path: Path) -> None:
    write(path, [entry(us="fast")])
    with pytest.raises(RecordError, match="entry 1: a field has the wrong type"):
        read(path)


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "file" / "h200.json", [entry()])


def test_the_hash_follows_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_hash(GOOD)
    assert before == source_hash(fakes.find("liar", "gemm")), "one module, one hash"
    monkeypatch.setattr("inspect.getsource", lambda module: "other text")
    assert source_hash(GOOD) != before


def test_committed_tables_are_valid() -> None:
    for file in FOLDER.glob("*.json"):
        assert by_name(file.stem)
        read(file)
