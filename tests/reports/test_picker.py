from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kernels.problem import Problem
from reports.answers import BLOCK, Answer, answers
from reports.compare import Comparer
from reports.load import Case, Results, load
from reports.picker import card, duration, picker
from suites.record import CaseRecord, Result
from tests.reports import golden


def results(*cases: CaseRecord) -> Results:
    return Results("h200", "test", cases=tuple(Case(case, Problem.from_dict(dict(case.problem))) for case in cases))


def layer(name: str, ours: float, theirs: float, tokens: int = 64, model: str = "bitnet-2b", **changes: object) -> CaseRecord:
    """A case with three kernels whose samples do not scatter: sparse-mma, dense-int8, and dense-fp8, which is another function."""
    n, k = golden.SHAPES["bitnet-2b"].get(name, (64, 256))
    problem = Problem("gemm", n, k, tokens, golden.S24)

    def one(kernel: str, us: float, **also: object) -> Result:
        return golden.result(kernel, us, golden.random.Random(0), samples_us=(us,) * 5, **also)

    made = (one("sparse-mma", ours), one("dense-int8", theirs), one("dense-fp8", ours / 2, exact=False))
    case = golden.case("decode", model, name, problem, (), golden.random.Random(0), results=made)
    return replace(case, **changes)  # type: ignore[arg-type]  # the caller names fields of CaseRecord


def block(*pairs: tuple[float, float], tokens: int = 64) -> list[CaseRecord]:
    return [layer(name, ours, theirs, tokens) for name, (ours, theirs) in zip(reversed(BLOCK), reversed(pairs), strict=True)]


def only(*cases: CaseRecord) -> Answer:
    [answer] = answers(Comparer(results(*cases)))
    return answer


def test_a_block_is_the_sum_of_its_layers() -> None:
    answer = only(*block((10.0, 20.0), (5.0, 5.0), (30.0, 45.0), (15.0, 20.0)))
    assert (answer.us, answer.theirs_us) == pytest.approx((60.0, 90.0))
    assert answer.ratio.value == pytest.approx(1.5)
    assert answer.whole
    assert [item.case.record.layer for item in answer.items] == list(BLOCK)
    assert answer.others["dense-fp8"] == pytest.approx(30.0)
    assert answer.inexact() == [("dense-fp8", pytest.approx(30.0))]


def test_a_block_without_one_of_its_layers_has_no_answer() -> None:
    cases = block((10.0, 20.0), (5.0, 5.0), (30.0, 45.0), (15.0, 20.0))
    failed = replace(cases[2], results=(replace(cases[2].results[0], status="failed", samples_us=()), *cases[2].results[1:]))
    assert answers(Comparer(results(*cases[:2], failed, cases[3]))) == []
    found = results(*cases[:3])
    missing = Case(cases[3], Problem.from_dict(dict(cases[3].problem)), reached=False)
    assert answers(Comparer(replace(found, unreached=(missing,)))) == []


def test_intervals_add_by_share_of_time() -> None:
    def noisy(case: CaseRecord) -> CaseRecord:
        ours, *rest = case.results
        return replace(case, results=(replace(ours, samples_us=tuple(ours.samples_us[0] * f for f in (0.9, 0.95, 1.0, 1.05, 1.1))), *rest))

    cases = block((10.0, 20.0), (10.0, 20.0), (10.0, 20.0), (970.0, 1940.0))
    quiet = only(*[noisy(case) if case.layer != "W2" else case for case in cases]).ratio
    loud = only(*[noisy(case) if case.layer == "W2" else case for case in cases]).ratio
    assert quiet.low == pytest.approx(quiet.value, rel=0.003)
    assert loud.low < 0.95 * loud.value
    assert loud.low <= loud.value <= loud.high


def test_single_shapes_are_not_summed() -> None:
    found = answers(Comparer(results(layer("64x256", 5.0, 6.0, model="custom"), layer("", 5.0, 7.0, model="", suite="square"))))
    assert [answer.model for answer in found] == ["custom 64x256"]
    assert not found[0].whole


def test_a_card_says_who_is_fastest_and_how_sure() -> None:
    def said(ours: float, theirs: float) -> tuple[str, str, bool]:
        made = card(only(*block(*[(ours, theirs)] * 4)))
        return made.fastest, made.whose, made.decided

    assert said(1.0, 2.0) == ("sparse-mma", ", ours", True)
    assert said(2.0, 1.0) == ("dense-int8", ", a baseline", True)
    assert said(1.0, 1.0) == ("neither for certain", "", False)
    made = card(only(*block(*[(10.0, 40.0)] * 4)))
    assert [(bar.name, bar.us, bar.share, bar.kind) for bar in made.bars] == [
        ("dense-fp8, another function", 20.0, 12.5, "other"),
        ("sparse-mma (ours)", 40.0, 25.0, "ours"),
        ("dense-int8", 160.0, 100.0, "theirs"),
    ]
    assert made.total == "All 30 blocks: 1.20 ms with ours, 4.80 ms with the strongest baselines."


def test_what_is_shown_first_is_a_rule_not_a_choice(run: Path) -> None:
    made = picker(answers(Comparer(load("h200", [run]))))
    assert made is not None
    first = made.cards[made.first].answer
    assert (first.work, first.sparsity, first.tokens) == ("layer", "2:4", 2048)
    assert made.works[0][0] == "layer"
    assert [name for name, _ in made.works] == ["layer", "gemm", "step"]
    assert picker([]) is None


def test_too_many_answers_keep_the_largest_models(monkeypatch: pytest.MonkeyPatch) -> None:
    small = [layer("64x256", 5.0, 6.0, tokens=tokens, model="custom") for tokens in (1, 2, 4)]
    large = block(*[(1.0, 2.0)] * 4)
    monkeypatch.setattr("reports.picker.MOST_CARDS", 2)
    made = picker(answers(Comparer(results(*small, *large))))
    assert made is not None
    assert (made.models, made.left_out) == (["bitnet-2b"], 3)


@pytest.mark.parametrize(("us", "text"), [(3.456, "3.46 µs"), (12.34, "12.3 µs"), (1500.0, "1.50 ms"), (2.5e6, "2.50 s")])
def test_durations(us: float, text: str) -> None:
    assert duration(us) == text


def test_our_own_dense_kernel_is_named_as_such_and_the_library_stands_beside() -> None:
    def with_own(case: CaseRecord) -> CaseRecord:
        ours, int8, eight = case.results
        own = replace(ours, kernel="dense-wgmma", samples_us=tuple(us * 1.5 for us in ours.samples_us))
        return replace(case, results=(ours, own, int8, eight))

    answer = only(*[with_own(case) for case in block(*[(10.0, 40.0)] * 4)])
    made = card(answer)
    assert answer.ratio.value == pytest.approx(1.5)
    assert made.rivals == "dense-wgmma (our own dense kernel)"
    assert made.library == "4.00× as fast as the strongest library, dense-int8"
    assert [bar.name for bar in made.bars] == [
        "dense-fp8, another function", "sparse-mma (ours)", "dense-wgmma (our own dense kernel)", "dense-int8",
    ]
    assert card(only(*block(*[(10.0, 40.0)] * 4))).library == "", "the strongest is a library already"


def test_dense_bf16_stands_once_where_it_is_another_function() -> None:
    def with_bf16(case: CaseRecord, exact: bool) -> CaseRecord:
        return replace(case, results=(*case.results[:2], replace(case.results[1], kernel="dense-bf16", exact=exact, dense=True)))

    def names(exact: bool) -> list[str]:
        cases = [with_bf16(case, exact) for case in block(*[(10.0, 40.0)] * 4)]
        return [bar.name for bar in card(only(*cases)).bars if bar.name.startswith("dense-bf16")]

    assert names(exact=False) == ["dense-bf16, another function"]
    assert len(names(exact=True)) <= 1
