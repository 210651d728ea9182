"""The first screen: what is fastest for your model, work, weights and tokens; against what, by how much, how sure.

Every answer is a card of the page; the script only chooses which one is shown. Without it the first card stands, and the table of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.answers import BLOCKS, WORK, Answer
from reports.compare import in_order
from reports.power import Pair
from suites.statistics import OWN_BASELINES

MOST_CARDS = 500
FIRST = ("layer", "2:4", 2048)
"""What is shown before anything is picked: work, weights, and the tokens it is to be nearest to, of the largest model."""


@dataclass(frozen=True)
class Bar:
    """One kernel's time on a card. share: of the longest, in per cent. kind: ours, theirs or other (another function)."""

    name: str
    us: float
    share: float
    kind: str


@dataclass(frozen=True)
class Card:
    """An answer in words. decided: whether its interval excludes 1. whose: of the fastest. sure: how certain that is; checked: on how many
    rounds, and after which check. rivals: the strongest baselines.

    library: how much faster than the strongest libraries, where these are not the rivals, or empty.
    busy: what the same layers' GEMMs do under the power cap, or empty. again: the command that measures these cases, or empty.
    """

    answer: Answer
    bars: tuple[Bar, ...]
    decided: bool
    fastest: str
    whose: str
    sure: str
    checked: str
    doubts: str
    total: str
    rivals: str
    library: str
    busy: str
    again: str


@dataclass(frozen=True)
class Picker:
    """The cards in the order of the page, what can be picked, and the place of the card that is shown first."""

    cards: tuple[Card, ...]
    first: int
    models: list[str]
    works: list[tuple[str, str]]
    weights: list[str]
    left_out: int


def picker(answers: Sequence[Answer], sustained: Sequence[Pair] = (), gpu: str = "h200") -> Picker | None:
    """The picker over these answers; None without any. At most `MOST_CARDS`: beyond that the largest models' answers are kept.

    sustained: the pairs measured under the power cap, told beside the answers of their model and weights.
    """
    if not answers:
        return None
    kept = _fitting(answers)
    cards = tuple(card(answer, sustained, gpu) for answer in kept)
    work = in_order({answer.work for answer in kept}, tuple(WORK))
    weights = in_order({answer.sparsity for answer in kept}, ("2:4", "6:8", "dense"))
    models = in_order({answer.model for answer in kept}, ())
    return Picker(cards, _first(kept), models, [(name, WORK[name]) for name in work], weights, len(answers) - len(kept))


def _fitting(answers: Sequence[Answer]) -> list[Answer]:
    """Whole models, the largest first, while their answers fit; in the order given."""
    sizes: dict[str, tuple[int, int]] = {}
    for answer in answers:
        sizes[answer.model] = (max(_size(answer), sizes.get(answer.model, (0, 0))[0]), sizes.get(answer.model, (0, 0))[1] + 1)
    chosen, room = set(), MOST_CARDS
    for model in sorted(sizes, key=lambda name: (-sizes[name][0], name)):
        if sizes[model][1] <= room:
            chosen.add(model)
            room -= sizes[model][1]
    return [answer for answer in answers if answer.model in chosen] or list(answers[:MOST_CARDS])


def _size(answer: Answer) -> int:
    return sum(item.case.problem.out_features * item.case.problem.in_features for item in answer.items)


def _first(answers: Sequence[Answer]) -> int:
    work, sparsity, tokens = FIRST

    def rank(place: int) -> tuple[bool, bool, int, float, int]:
        one = answers[place]
        return (one.work != work, one.sparsity != sparsity, -_size(one), abs(math.log(one.tokens / tokens)), place)

    return min(range(len(answers)), key=rank)


def card(answer: Answer, sustained: Sequence[Pair] = (), gpu: str = "h200") -> Card:
    """One answer in words and bars."""
    ratio = answer.ratio
    decided, ahead = ratio.low > 1 or ratio.high < 1, ratio.value >= 1
    first = (_names(answer.ours), ", ours") if ahead else (rivals(answer.theirs), ", a baseline")
    fastest, whose = first if decided else ("neither for certain", "")
    level = "it is certain which is faster" if decided else "it includes 1, so neither is faster for certain"
    sure = f"95 % interval {ratio.low:.3f} to {ratio.high:.3f}: {level}."
    checked = f"At least {answer.pairs} paired rounds a layer; every output was judged against an exact reference."
    return Card(
        answer, _bars(answer), decided, fastest, whose, sure, checked, "; ".join(answer.doubts), _total(answer), rivals(answer.theirs),
        _over_library(answer), _busy(answer, sustained), _again(answer, gpu),
    )


def _over_library(answer: Answer) -> str:
    """Over what one would use without this project, where the strongest baseline is a kernel of this project."""
    if answer.library_us is None or answer.libraries == answer.theirs:
        return ""
    return f"{answer.library_us / answer.us:.2f}× as fast as the strongest {'library' if len(answer.libraries) == 1 else 'libraries'}, " \
        f"{_names(answer.libraries)}"


def _busy(answer: Answer, sustained: Sequence[Pair]) -> str:
    """The sustained ratios of this model's GEMMs with these weights, each over the strongest baseline measured so; empty without any."""
    found: dict[tuple[str, int], Pair] = {}
    for pair in sustained:
        record, problem = pair.case.record, pair.case.problem
        here = (record.model, str(problem.sparsity)) == (answer.model, answer.sparsity) and answer.work in ("gemm", "layer")
        before = found.get((record.layer, problem.tokens))
        if here and (before is None or _rank(pair) < _rank(before)):
            found[record.layer, problem.tokens] = pair
    return "; ".join(
        f"{layer} at {tokens} tokens {pair.sustained.value:.2f}× {pair.theirs.kernel}{'' if pair.theirs.exact else ' (another function)'}"
        for (layer, tokens), pair in found.items()
    )


def _rank(pair: Pair) -> tuple[bool, float]:
    """Baselines of the same function first, of these the fastest."""
    return not pair.theirs.exact, pair.sustained.value


def _again(answer: Answer, gpu: str) -> str:
    """The command that measures the answer's cases; empty for models that the command does not know by name."""
    if answer.model not in BLOCKS:
        return ""
    suite = answer.items[0].case.record.suite
    what = f"--suite {suite} --model {answer.model} --sparsity {answer.sparsity} --tokens {answer.tokens}"
    return f"python -m suites.run --gpu {gpu} {what}"


def _bars(answer: Answer) -> tuple[Bar, ...]:
    rows = [(_names(answer.ours) + " (ours)", answer.us, "ours"), (rivals(answer.theirs), answer.theirs_us, "theirs")]
    if answer.library_us is not None and answer.libraries != answer.theirs:
        rows.append((_names(answer.libraries), answer.library_us, "theirs"))
    inexact = answer.inexact()
    shown = [answer.theirs, answer.libraries, *([name] for name, _ in inexact)]
    if "dense-bf16" in answer.others and ["dense-bf16"] not in shown:
        rows.append(("dense-bf16, cuBLAS", answer.others["dense-bf16"], "theirs"))
    rows += [(f"{name}, another function", us, "other") for name, us in inexact]
    longest = max(us for _, us, _ in rows)
    return tuple(Bar(name, us, 100 * us / longest, kind) for name, us, kind in sorted(rows, key=lambda row: row[1]))


def rivals(names: Sequence[str]) -> str:
    """Baselines by name; those that are kernels of this project are said to be."""
    return _names([f"{name} (our own dense kernel)" if name in OWN_BASELINES else name for name in names])


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _total(answer: Answer) -> str:
    """What all blocks of the model cost, in words; empty where they are not known."""
    blocks = BLOCKS.get(answer.model)
    if not blocks or not answer.whole:
        return ""
    ours, theirs = duration(blocks * answer.us), duration(blocks * answer.theirs_us)
    return f"All {blocks} blocks: {ours} with ours, {theirs} with the strongest baselines."


def duration(us: float) -> str:
    """Microseconds for people: 12.3 µs, 1.23 ms, 2.34 s."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{_three(us / size)} {unit}"
    return f"{_three(us)} µs"


def _three(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
