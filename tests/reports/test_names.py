from __future__ import annotations

from reports import names
from reports.compare import Comparer
from reports.load import Results, load
from reports.panel import Data


def test_every_committed_kernel_has_a_line_on_the_right_side() -> None:
    results = load("h200")
    kinds: dict[str, set[str]] = {}
    for case in results.cases:
        for result in case.record.results:
            kinds.setdefault(result.kernel, set()).add(result.kind)
    assert {name for name, kind in kinds.items() if "variant" in kind} == set(names.OURS)
    assert {name for name, kind in kinds.items() if kind == {"baseline"}} == set(names.BASELINES)
    made = names.panel(Data(results, Comparer(results)))
    assert made is not None
    assert all(f'<th scope="row">{name}</th>' in made.html for name in kinds)


def test_a_dense_kernel_of_ours_among_the_baselines_is_said_to_be() -> None:
    assert [names.whose(name) for name in ("decode", "dense-int8-triton", "dense-bf16")] == ["ours", "ours, a baseline", "baseline"]


def test_without_results_there_is_no_panel() -> None:
    nothing = Results("h200", "a test")
    assert names.panel(Data(nothing, Comparer(nothing))) is None
