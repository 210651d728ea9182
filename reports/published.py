"""What others published, as facts with their sources, and which of our cases stand beside each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.compare import Summary, compare, summarize
from reports.load import Results
from suites.record import Result


@dataclass(frozen=True)
class Published:
    """One published figure. beside: our counterpart as (suite, op, sparsity, model or "" for all, baseline), or None for a bound."""

    claim: str
    figure: str
    source: str
    link: str
    beside: tuple[str, str, str, str, str] | None = None


_BOUND = "Arithmetic, no measurement"
PUBLISHED: tuple[Published, ...] = (
    Published("Sparse-BitNet, training, 6:8", "up to 1.30×", "Sparse-BitNet", "https://arxiv.org/abs/2603.05168",
              ("train", "step", "6:8", "", "fakequant-published-compiled")),
    Published("Sparse-BitNet, inference, 6:8", "up to 1.30×", "Sparse-BitNet", "https://arxiv.org/abs/2603.05168",
              ("layer", "layer", "6:8", "", "dense-bf16")),
    Published("SlideSparse, 6:8, Qwen2.5-7B end to end; A100, INT8 prefill, against cuBLASLt INT8", "up to 1.33×", "SlideSparse",
              "https://arxiv.org/abs/2603.05232", ("layer", "layer", "6:8", "qwen2.5-7b", "dense-int8")),
    Published("SlideSparse, 6:8, the GEMM alone on the A100", "about 1.4×", "SlideSparse", "https://arxiv.org/abs/2603.05232",
              ("prefill", "gemm", "6:8", "qwen2.5-7b", "dense-int8")),
    Published("SlideSparse, 6:8 at many tokens on the H100, its repository's figures", "0.9 to 1.15×", "SlideSparse",
              "https://arxiv.org/abs/2603.05232", ("prefill", "gemm", "6:8", "", "slidesparse")),
    Published("Training step with only the forward GEMM sparse, equal precision, 6:8", "at most 1.09×", _BOUND, "",
              ("train", "step", "6:8", "", "dense-bf16")),
    Published("Training step with only the forward GEMM sparse, equal precision, 2:4", "at most 1.20×", _BOUND, "",
              ("train", "step", "2:4", "", "dense-bf16")),
    Published("Training step, forward in sparse int8, the rest in bf16, at the rates an H200 sustains", "about 1.27×", _BOUND, "",
              ("train", "step", "2:4", "", "dense-bf16")),
)  # fmt: skip
FOOTPRINT = (
    "BitNet and BitNet b1.58: BitLinear as a drop-in for a linear layer; memory footprint and energy are their headline",
    (("arXiv 2310.11453", "https://arxiv.org/abs/2310.11453"), ("arXiv 2402.17764", "https://arxiv.org/abs/2402.17764")),
)


def ours_beside(published: Published, results: Results) -> tuple[str, Summary] | None:
    """What we measured that is closest: in words, and summed up; None where nothing like it was measured."""
    if published.beside is None:
        return None
    suite, op, sparsity, model, over = published.beside
    cases = [
        case
        for case in results.measured
        if case.usual
        and (case.record.suite, case.problem.op, str(case.problem.sparsity), case.record.state) == (suite, op, sparsity, "interleaved")
        and model in ("", case.record.model)
    ]
    summary = summarize(compare(case, over, results) for case in cases)
    words = f"{suite if op == suite else f'{suite} {op}'}, {sparsity}{', ' + model if model else ''}, over {over}"
    return (words, summary) if summary.count else None


def weight_share(results: Results) -> float | None:
    """Bytes of our stored weight as a share of the bf16 weight, over the measured GEMM cases that say both; None without any."""
    ours = theirs = 0
    for case in results.measured:
        sizes = [(r.weight_bytes, 2 * case.problem.out_features * case.problem.in_features) for r in case.record.results if _packed(r)]
        if sizes and case.problem.op == "gemm":
            ours, theirs = ours + min(sizes)[0], theirs + min(sizes)[1]
    return ours / theirs if theirs else None


def _packed(result: Result) -> bool:
    return result.kind == "variant" and result.status == "ok" and result.weight_bytes > 0


def sources() -> Sequence[tuple[str, str]]:
    """The links that the page may lead to."""
    return [(entry.source, entry.link) for entry in PUBLISHED if entry.link] + list(FOOTPRINT[1])
