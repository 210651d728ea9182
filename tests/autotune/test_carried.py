"""A cache of compiled kernels that was carried here from another machine, whole or in part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autotune.compile import settle_cache
from kernels.errors import OutputError
from tests.autotune.test_run import run

HALF = ["", '{"child_paths": {"a.cubin": "/else', "[]", '{"child_paths": 3}', '{"child_paths": {"b.cubin": "/x"}}',
        "\0\xff"]
"""Notes that Triton would trip over, or of files that did not arrive."""


@pytest.mark.parametrize("note", HALF)
def test_what_arrived_in_part_is_compiled_anew(note: str, tmp_path: Path) -> None:
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.cubin").write_bytes(b"code")
    whole, part = (tmp_path / name / "__grp__a.json" for name in ("whole", "part"))
    whole.write_text('{"child_paths": {"a.cubin": "/elsewhere/a.cubin"}}')
    part.write_text(note, encoding="latin-1")
    assert settle_cache(tmp_path) == 1
    assert json.loads(whole.read_text()) == {"child_paths": {"a.cubin": str(tmp_path / "whole" / "a.cubin")}}
    assert not part.exists()


def test_a_carried_cache_is_settled_before_anything_looks_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache" / "kernel").mkdir(parents=True)
    code, note = (tmp_path / "cache" / "kernel" / name for name in ("k.cubin", "__grp__k.json"))
    code.write_bytes(b"code")
    note.write_text(json.dumps({"child_paths": {code.name: "/elsewhere/k.cubin"}}))

    def begin(*_: object) -> None:
        assert json.loads(note.read_text()) == {"child_paths": {code.name: str(code)}}
        raise OutputError("as far as this test goes")

    monkeypatch.setattr("autotune.run.Beginning", begin)
    assert run(tmp_path, "--cache", str(tmp_path / "cache")) == OutputError.exit_code
    captured = capsys.readouterr()
    assert "1 compiled kernels in " in captured.out
    assert "as far as this test goes" in captured.err
