"""Verdicts for people and machines: a table, Markdown, JUnit XML. All text from records is escaped."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from suites.calibration import EXCLUDED

if TYPE_CHECKING:
    from suites.settling import Judgement

LOUD = ("WRONG", "REGRESSED", "MISSING", "INCONCLUSIVE", "IMPROVED")
"""What is told one by one, in this order."""
MOST_CHARACTERS = 60_000
"""Of a summary: a comment on GitHub holds 65,536, and one that is longer is not made at all."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def counts(judgements: Sequence[Judgement]) -> str:
    """How often each verdict fell, in one line."""
    found = Counter(judgement.verdict for judgement in judgements)
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items())) or "nothing to judge"


def limits(judgements: Sequence[Judgement]) -> str:
    """How the comparisons were judged, in one line; empty where nothing was compared."""
    tests = [judgement.test for judgement in judgements if judgement.test is not None]
    plain = sum(judgement.change is not None and judgement.test is None for judgement in judgements)
    if not tests:
        return f"not calibrated: {plain} comparisons against a margin for all of them" if plain else ""
    coarse = sum(test.noise.smallest(len(tests), *test.processes) > EXCLUDED for test in tests)
    borrowed = sum(test.noise.borrowed for test in tests)
    rest = f", {plain} not calibrated" if plain else ""
    return f"{len(tests)} calibrated comparisons ({borrowed} with borrowed limits, {coarse} that may miss {EXCLUDED:.0%} slower){rest}"


def loud(judgements: Sequence[Judgement]) -> list[Judgement]:
    """What is not plain PASS or NEW, the worst first."""
    return sorted((own for own in judgements if own.verdict in LOUD), key=lambda own: LOUD.index(own.verdict))


def show(judgements: Sequence[Judgement]) -> None:
    """Print every verdict that is not plain PASS or NEW, the worst first, then the counts."""
    for judgement in loud(judgements):
        print(f"{judgement.verdict:12} {judgement.key} {judgement.kernel}: {_line(judgement.detail)}")
    if limits(judgements):
        print(f"suites.gate: {limits(judgements)}")
    print(f"suites.gate: {counts(judgements)}")


def markdown(judgements: Sequence[Judgement], gpu: str) -> str:
    """A summary with a table of what is not plain PASS or NEW, the worst first, cut where a comment on GitHub would not hold it."""
    lines = [f"## TerSparse gate, {_cell(gpu)}", "", counts(judgements), ""]
    lines += [limits(judgements), ""] if limits(judgements) else []
    told = loud(judgements)
    rows = [f"| {j.verdict} | {_cell(j.key)} | {_cell(j.kernel)} | {_cell(j.detail)} |" for j in told]
    sizes = accumulate(len(row) + 1 for row in rows)
    kept = [row for row, size in zip(rows, sizes, strict=True) if size <= MOST_CHARACTERS]
    if rows:
        lines += ["| verdict | case | kernel | detail |", "|---|---|---|---|", *kept]
    if len(kept) < len(rows):
        lines += ["", f"and {len(rows) - len(kept)} more; the JUnit file has them all"]
    return "\n".join(lines) + "\n"


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    """Text that stays text in a Markdown table: no HTML, no columns, no emphasis, no links."""
    return re.sub(r"([\\`*_{}\[\]()#|~!])", r"\\\1", html.escape(_line(text), quote=False))


def junit(judgements: Sequence[Judgement]) -> str:
    """JUnit XML: a test per verdict; WRONG and REGRESSED are failures, MISSING and INCONCLUSIVE errors."""
    kinds = {"WRONG": "failure", "REGRESSED": "failure", "MISSING": "error", "INCONCLUSIVE": "error"}
    tally = Counter(kinds.get(judgement.verdict, "passed") for judgement in judgements)
    root = ElementTree.Element("testsuite", {
        "name": "suites.gate", "tests": str(len(judgements)), "failures": str(tally["failure"]), "errors": str(tally["error"]),
    })
    for judgement in judgements:
        test = ElementTree.SubElement(root, "testcase", {"classname": _xml(judgement.key), "name": _xml(judgement.kernel or "case")})
        kind = kinds.get(judgement.verdict)
        if kind:
            ElementTree.SubElement(test, kind, {"type": judgement.verdict, "message": _xml(judgement.detail)})
        else:
            ElementTree.SubElement(test, "system-out").text = _xml(f"{judgement.verdict} {judgement.detail}")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    return _NOT_XML.sub("�", text)
