"""The files of a run when something goes wrong with them: the lock, the table, what the command line names."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import threading
from pathlib import Path

import pytest

from autotune import options as arguments
from autotune import table
from autotune.beginning import Beginning, Surroundings
from autotune.clock import FakeClock
from autotune.command import parse_tokens
from autotune.job import Job
from autotune.journal import Journal
from autotune.keeping import Keeper, Outcome
from autotune.lock import FolderLock
from autotune.search import Budget
from autotune.tuning import Found
from kernels.errors import GpuMismatch, OutputError, UsageError
from kernels.gpu import by_name
from kernels.problem import Problem, Sparsity
from kernels.tuned import source_hash
from kernels.tuned_table import Entry, Table, read_table
from tests.autotune.test_run import run
from tests.patience import PATIENCE

ENTRY = Entry("k", "gemm", 64, 64, 1, "2:4", "bf16", {"tile": 1}, 1.0, 2.0, "hash")


def test_a_lock_that_the_folder_cannot_give_is_not_called_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OutputError, match="cannot be locked: No locks available"), FolderLock(tmp_path):
        pass


@pytest.mark.parametrize("owner", [b"", b"{", b"3", b"\xff\xfe", b'{"process": 1}', b'{"process": 1, "host": "x", "since": "y"}'])
def test_an_owner_that_cannot_be_read_is_another_process(owner: bytes, tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        (tmp_path / "lock").write_bytes(owner)
        with pytest.raises(UsageError, match="in use by another process; wait for it or end it"), FolderLock(tmp_path):
            pass


def test_a_full_disk_is_told_once_by_the_journal(tmp_path: Path) -> None:
    """/dev/full takes nothing; what could not be written must not come up again as the file is closed."""
    journal = Journal(tmp_path / "j.jsonl", resume=False)
    journal.put(1.0, "a")
    journal._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115  the journal closes it
    with pytest.raises(OutputError, match="No space left on device; what was measured before is kept"):
        journal.put(2.0, "b")
    journal.close()
    assert Journal(tmp_path / "j.jsonl", resume=True).get("a") == 1.0


def test_a_run_is_here_or_on_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--ray", "--device", "1") == 2
    assert "--device names GPUs of this machine, --ray takes those of a cluster" in capsys.readouterr().err


def test_a_table_is_on_the_disk_before_it_takes_the_place_of_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = list[str]()
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("replace"), replace(old, new)))
    table.write(tmp_path / "t.json", [ENTRY])
    assert done == ["sync", "replace"]
    assert table.read(tmp_path / "t.json") == (ENTRY,)


def test_an_interrupt_leaves_the_old_table_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.write(tmp_path / "t.json", [ENTRY])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table.write(tmp_path / "t.json", [])
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    assert table.read(tmp_path / "t.json") == (ENTRY,)


def test_two_runs_that_write_one_table_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of two folders, into the same table: the second one's turn comes between the first one's reading and writing, if it may."""
    path, inside, done = tmp_path / "new" / "t.json", threading.Event(), threading.Event()

    def read(table: Path) -> Table:
        found = read_table(table)
        if not inside.is_set():
            inside.set()
            done.wait(0.5)
        return found

    def keeper(tokens: int) -> Keeper:
        made = Keeper(path)
        problem = Problem("gemm", 24, 16, tokens, Sparsity(2, 4))
        job = Job("good", problem, by_name("h200"), FakeClock(), "tests.autotune.fakes", "cpu")
        entry = Entry("good", "gemm", 24, 16, tokens, "2:4", "bf16", {"tile": 64, "how": "right"}, 1.0, 2.0, source_hash(job.find()))
        made._due = math.inf
        made.keep(Outcome(job, entry, Found(True)), None)
        return made

    first, second = keeper(1), keeper(2)
    monkeypatch.setattr("autotune.keeping.read_table", read)
    other = threading.Thread(target=first.write)
    other.start()
    assert inside.wait(PATIENCE)
    second.write()
    done.set()
    other.join(PATIENCE)
    assert [entry.tokens for entry in table.read(path)] == [1, 2]


def test_a_file_without_shapes_and_tokens_without_a_number_are_not_everything(tmp_path: Path) -> None:
    (tmp_path / "shapes").write_text("\n")
    with pytest.raises(UsageError, match="shapes: no shape in it; allowed: one NxK a line, such as 13824x2560"):
        arguments.shapes(arguments.parser().parse_args(["--gpu", "h200", "--shapes", str(tmp_path / "shapes")]))
    with pytest.raises(UsageError, match="no tokens in ','; allowed: positive integers"):
        parse_tokens([","])
    assert parse_tokens([]) == ()


def test_what_the_space_rejected_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--kernel", "good", "--tokens", "1") == 0
    assert "1 rejected before compiling: 1 too large for the tokens\n" in capsys.readouterr().out


def begun(tmp_path: Path, *devices: str) -> Beginning:
    """Of a run on a machine with an A100 and two H200s."""
    from contextlib import ExitStack

    options = arguments.parser().parse_args(["--gpu", "h200", "--op", "gemm", "--shape", "24x16", *devices])
    around = Surroundings(catalogue="tests.autotune.fakes", table=tmp_path / "t.json", warm=False)
    with ExitStack() as stack:
        made = Beginning(options, around, stack, Budget())
        stack.pop_all()
    made._models = [by_name("a100"), by_name("h200"), by_name("h200")]
    return made


@pytest.mark.parametrize(
    ("devices", "slots"),
    [((), ["cuda:1", "cuda:2"]), (("--device", "2", "1"), ["cuda:2", "cuda:1"]), (("--device", "2", "2", "1", "2"), ["cuda:2", "cuda:1"])],
)
def test_a_run_has_every_gpu_of_the_model_once_whatever_else_is_there(devices: tuple[str, ...], slots: list[str], tmp_path: Path) -> None:
    made = begun(tmp_path, *devices)
    assert made.machine() == by_name("h200")
    assert [slot.device for slot in made.slots(by_name("h200"))] == slots


def test_named_devices_are_of_one_model(tmp_path: Path) -> None:
    with pytest.raises(GpuMismatch, match="--device 1 is h200, --device 0 is a100; a run is for one model"):
        begun(tmp_path, "--device", "1", "0").machine()
    with pytest.raises(GpuMismatch, match="--gpu h200 is claimed, but the device is a100"):
        begun(tmp_path, "--device", "0").machine()
