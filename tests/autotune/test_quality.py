from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autotune import quality
from autotune.landscape import Landscape, committed
from autotune.quality import SHARES, WAYS, Searched, Way, measure, read, table, write
from kernels.errors import RecordError

LOCAL, MODEL, RANDOM = (Way(name, False) for name in quality.NAMES)
FROM_WINNERS = Way("local", True)
FOUND = read()
CLASSES: dict[str, Callable[[Searched], bool]] = {
    "few candidates": lambda one: one.few, "many candidates": lambda one: not one.few, "all": lambda one: True
}


def middle(found: list[Searched], way: Way, share: float) -> float:
    return statistics.median(one.at(way, share) for one in found)


def test_it_is_about_every_landscape() -> None:
    assert [(one.landscape, one.candidates) for one in FOUND] == [(str(one), len(one.points)) for one in committed()]
    assert set(FOUND[0].curves) == set(map(str, WAYS))


@pytest.mark.parametrize("name", CLASSES)
def test_a_quarter_of_the_evaluations_finds_nearly_the_optimum(name: str) -> None:
    found = list(filter(CLASSES[name], FOUND))
    assert middle(found, FROM_WINNERS, 0.25) >= 0.98
    for share in (0.125, 0.25):
        assert middle(found, FROM_WINNERS, share) > middle(found, RANDOM, share), "at equal cost"
        assert middle(found, LOCAL, share) > middle(found, RANDOM, share), "at equal cost, and knowing nothing"
        assert middle(found, FROM_WINNERS, share) >= middle(found, Way("random", True), share), "knowing the same"


def test_where_there_is_something_to_learn_nothing_need_be_known_before() -> None:
    found = [one for one in FOUND if not one.few]
    assert middle(found, LOCAL, 0.25) >= 0.98
    assert middle(found, LOCAL, 0.25) > middle(found, MODEL, 0.25) > middle(found, RANDOM, 0.25)


@pytest.mark.parametrize("kernel", sorted({(one.kernel, one.few) for one in FOUND}), ids=str)
def test_no_kernel_is_searched_worse_than_by_chance(kernel: tuple[str, bool]) -> None:
    found = [one for one in FOUND if (one.kernel, one.few) == kernel]
    assert middle(found, LOCAL, 0.25) > middle(found, RANDOM, 0.25)
    assert middle(found, FROM_WINNERS, 0.25) > middle(found, RANDOM, 0.25)


def test_what_is_committed_is_what_a_replay_finds() -> None:
    """Rounding of another processor may turn a choice, so a curve may differ a little, here and there."""
    every = committed()
    apart = []
    for place in range(0, len(every), 4):
        for way in (LOCAL, FROM_WINNERS, RANDOM) if len(every[place].points) < 120 else (RANDOM,):
            curve = quality.searched(every[place], way, every)
            apart += [abs(now - then) for now, then in zip(curve, FOUND[place].curves[str(way)], strict=True)]
    assert statistics.median(apart) == 0
    assert max(apart) < 0.1


def test_by_hand(tmp_path: Path) -> None:
    points = tuple({"a": 2**power} for power in range(8))
    small = Landscape("k", "h200", "d", "m", 8, 8, 8, "2:4", points, (8.0, 4.0, 2.0, 1.0, 2.0, 4.0, 8.0, 8.0))
    other = replace(small, tokens=16, times=(8.0, 4.0, 1.0, 2.0, 2.0, 4.0, 8.0, 8.0))
    ways = (FROM_WINNERS, LOCAL, RANDOM)
    first, _ = found = measure([small, other], ways, seeds=3)
    assert first.at(FROM_WINNERS, 0.125) == 0.5, "the other's winner takes twice the optimum"
    assert first.at(FROM_WINNERS, 0.5) == 1.0
    assert all(list(curve) == sorted(curve) for curve in first.curves.values())
    full = [replace(one, curves={str(way): one.curves[str(RANDOM if way.strategy == "model" else way)] if way in (*ways, MODEL)
                                 else tuple(1.0 for _ in SHARES) for way in WAYS}) for one in found]
    write(tmp_path / "q.json", full)
    assert list(read(tmp_path / "q.json")) == full
    (kind, way, values), *rest = table(full)
    assert (kind, way, values[0], len(rest)) == ("2 of 8 to 8", FROM_WINNERS, 0.5, 5)


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": "other"}', "shares", "ways", "curve"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "q.json"
    write(path, FOUND[:1])
    data = json.loads(path.read_text())
    if damage == "shares":
        data["shares"] = [0.5]
    elif damage == "ways":
        data["searched"][0]["curves"].pop(str(MODEL))
    elif damage == "curve":
        data["searched"][0]["curves"][str(MODEL)].pop()
    path.write_text(json.dumps(data) if damage in ("shares", "ways", "curve") else damage)
    with pytest.raises(RecordError, match=r"q\.json"):
        read(path)


def test_the_command_prints_what_is_committed(capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(table(FOUND))
    (kind, way, *_) = table(FOUND)[0]
    assert lines[2].startswith(f"| {kind} | {way} | ")
    assert quality.main(["--unknown"]) == 2
