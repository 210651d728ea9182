"""The command of the model-level step, on children that answer what a test says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.conditions import NullMonitor
from kernels.errors import Failure, RecordError
from kernels.gpu import Gpu, by_name
from suites.model_arguments import parameters, parser, requests, scaled_vocabulary
from suites.model_child import Spec, Started, Turn
from suites.model_on_gpu import ModelLab
from suites.model_record import FILE, ModelCase, ModelRun, from_dict, latest, ratio, read, to_line
from suites.model_run import ModelPlan
from suites.model_step import main
from suites.model_variants import VARIANTS, Evidence
from suites.models import find

H200 = by_name("h200")
SMALL = ("--gpu", "h200", "--model", "3b", "--accumulation", "1")
TIMES = {"dense-bf16": 100.0, "fakequant-bf16": 400.0, "fakequant-bf16-compiled": 150.0, "fakequant-published-compiled": 300.0,
         "bitlinear-compiled": 120.0, "bitlinear-traced-compiled": 120.0}  # fmt: skip
EVIDENCE = Evidence({"loss": [9.0], "0.qkv": [1.0, -2.0], "0.down": [0.5, 0.25]}, [9.0, 8.5, 8.2, 8.0])


class FakeChild:
    """Answers at once: an optimizer step takes what `TIMES` says, 1000 where it says nothing, times the micro-batches."""

    def __init__(self, spec: Spec, log: list[str], **answers: object) -> None:
        self.spec, self.log, self.answers = spec, log, answers

    def start(self) -> Started | Failure:
        answer = self.answers.get("start", EVIDENCE)
        if isinstance(answer, KeyboardInterrupt):
            raise answer
        if isinstance(answer, Failure):
            return answer
        assert isinstance(answer, Evidence)
        return Started(answer, 1e5, {"parameters": 1000, "chosen": {"qkv": "a+b+c"}, "packings": 4}, 2.0)

    def turn(self, accumulation: int, steps: int) -> Turn | Failure:
        self.log.append(self.spec.variant)
        answer = self.answers.get("turn")
        if isinstance(answer, Failure) and self.log.count(self.spec.variant) > 1:
            return answer
        return Turn(TIMES.get(self.spec.variant, 1000.0) * accumulation, 50.0, 7 << 30)

    def kill(self) -> None:
        self.log.append(f"kill {self.spec.variant}")

    def close(self) -> None:
        self.log.append(f"close {self.spec.variant}")


class Lab:
    """Runs the command with fake children. answers: by variant, see `FakeChild`."""

    def __init__(self, folder: Path, **answers: dict[str, object]) -> None:
        self.folder, self.log = folder, list[str]()
        self.answers = {name.replace("_", "-"): given for name, given in answers.items()}

    def run(self, *arguments: str, gpu: Gpu | None = H200) -> int:
        def make(spec: Spec) -> FakeChild:
            return FakeChild(spec, self.log, **self.answers.get(spec.variant, {}))

        lab = ModelLab(make, NullMonitor("a test"), ModelPlan(4, 0.3))
        return main([*arguments, "--out", str(self.folder)], detect=lambda index: gpu, lab=lab)

    @property
    def case(self) -> ModelCase:
        (case,) = latest(read(self.folder)).values()
        return case


def test_a_run_is_recorded_and_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = Lab(tmp_path / "run")
    assert lab.run(*SMALL, "--accumulation", "1,4") == 0
    one, four = latest(read(tmp_path / "run")).values()
    assert (one.accumulation, four.accumulation, one.blocks, one.all_blocks, one.parameters) == (1, 4, 4, 36, 1000)
    assert [result.variant for result in one.results] == [variant.name for variant in VARIANTS]
    mine, theirs = one.result("bitlinear-compiled"), one.result("fakequant-bf16-compiled")
    assert mine is not None
    assert theirs is not None
    assert mine.samples_us == (120.0,) * 4
    assert (mine.peak_bytes, mine.losses, mine.packings, mine.chosen["qkv"]) == (7 << 30, (9.0, 8.5, 8.2, 8.0), 4, "a+b+c")
    assert one.tokens_per_second(mine) == pytest.approx(8192 / 120e-6)
    assert four.tokens_per_second(four.results[-1]) == pytest.approx(8192 / 120e-6)
    found = ratio(mine, theirs)
    assert found is not None
    assert (found.value, found.pairs) == (pytest.approx(1.25), 4)
    printed = capsys.readouterr().out
    assert "bitlinear-compiled: 1.250x [1.250, 1.250] over fakequant-bf16-compiled; 2.500x [2.500, 2.500] over" in printed


def test_turns_alternate_in_both_directions(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    assert lab.run(*SMALL, "--variant", "bitlinear-compiled", "dense-bf16") == 0
    turns = [entry for entry in lab.log if not entry.startswith("close")]
    there = ["dense-bf16", "fakequant-bf16", "bitlinear-compiled"]
    assert turns == [*there, *there[::-1], *there, *there[::-1]], "with what ours is checked against, whether it was named or not"
    assert sorted(lab.log[-3:]) == sorted(f"close {name}" for name in there)


def shifted(**changes: Sequence[float]) -> Evidence:
    """Evidence that differs in these tensors, or in its losses."""
    losses = changes.pop("losses", EVIDENCE.losses)
    return Evidence({**EVIDENCE.probe, **{name.replace("q_", "0."): values for name, values in changes.items()}}, losses)


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (shifted(loss=[9.02]), "loss is off by 0.02"),
        (shifted(loss=[math.nan]), "loss is off by nan"),
        (shifted(q_qkv=[1.0, 2.0]), r"gradient of 0\.qkv is off by 1\.79"),
        (shifted(q_down=[0.5, math.inf]), r"gradient of 0\.down is off by nan"),
        (shifted(q_down=[0.5]), r"gradient of 0\.down is off by inf"),
        (shifted(losses=[9.0, 8.7, 8.5, 8.2]), "trained is off by 0.299"),
        (shifted(losses=[9.0, 8.5, 8.2, math.nan]), "trained is off by nan"),
    ],
)
def test_wrong_numbers_are_not_timed(tmp_path: Path, evidence: Evidence, reason: str) -> None:
    lab = Lab(tmp_path, bitlinear={"start": evidence})
    assert lab.run(*SMALL) == 3
    result = lab.case.result("bitlinear")
    assert result is not None
    assert (result.status, result.stage, result.samples_us) == ("wrong", "wrong", ())
    assert result.reason is not None
    assert re.search(reason, result.reason)
    assert "bitlinear" not in lab.log
    assert all(other.status == "ok" for other in lab.case.results if other.variant != "bitlinear")


def test_small_differences_are_not_wrong(tmp_path: Path) -> None:
    lab = Lab(tmp_path, bitlinear={"start": shifted(loss=[9.005], q_qkv=[1.05, -2.1], losses=[9.0, 8.51, 8.21, 8.02])})
    assert lab.run(*SMALL) == 0


def test_a_failure_costs_only_itself(tmp_path: Path) -> None:
    lab = Lab(tmp_path, fakequant_published={"start": Failure("memory", "out of memory")},
              fakequant_bf16_compiled={"turn": Failure("timeout", "no answer within 60 s; killed")})  # fmt: skip
    assert lab.run(*SMALL) == 4
    reasons = {result.variant: (result.status, result.stage) for result in lab.case.results if result.status != "ok"}
    assert reasons == {"fakequant-published": ("failed", "memory"), "fakequant-bf16-compiled": ("failed", "timeout")}
    assert all(len(result.samples_us) == 4 for result in lab.case.results if result.status == "ok")
    assert lab.log.count("fakequant-bf16-compiled") == 2


def test_an_interrupt_ends_all_children(tmp_path: Path) -> None:
    lab = Lab(tmp_path, bitlinear={"start": KeyboardInterrupt()})
    assert lab.run(*SMALL) == 130
    assert {entry for entry in lab.log if entry.startswith("kill")} == {f"kill {variant.name}" for variant in VARIANTS}
    assert {entry for entry in lab.log if entry.startswith("close")} == {f"close {variant.name}" for variant in VARIANTS}
    assert [type(record) for record in read(tmp_path)] == [ModelRun]


def test_nothing_is_timed_that_nothing_vouches_for(tmp_path: Path) -> None:
    lab = Lab(tmp_path, fakequant_bf16={"start": Failure("launch", "died")})
    assert lab.run(*SMALL) == 4
    reasons = {result.variant: result.reason for result in lab.case.results if not result.dense}
    assert reasons.pop("fakequant-bf16") == "died"
    assert set(reasons.values()) == {"not checked, and so not timed: fakequant-bf16 failed"}
    assert {entry for entry in lab.log if not entry.startswith("close")} == {"dense-bf16", "dense-bf16-compiled"}


def test_without_a_gpu_it_says_what_it_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Lab(tmp_path / "run").run(*SMALL, gpu=None) == 0
    printed = capsys.readouterr().out
    assert "no h200 here" in printed
    assert "nothing was measured" in printed
    assert "qwen2.5-3b: 4 of 36 blocks, vocabulary 16,896 of 151,936, 343 M parameters in bf16" in printed
    assert not (tmp_path / "run").exists()
    assert Lab(tmp_path / "run").run(*SMALL, "--require-gpu", gpu=None) == 5
    assert Lab(tmp_path / "run").run(*SMALL, "--list", gpu=None) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpu", "a100"), "--gpu a100 is claimed, but the device is h200"),
        (("--model", "gpt-17"), "unknown model 'gpt-17'; allowed"),
        (("--variant", "bit"), "unknown variant 'bit'; allowed: dense-bf16"),
        (("--blocks", "0"), "--blocks 0: allowed are 1 and up"),
        (("--vocabulary", "1"), "--vocabulary 1: allowed are 2 and up"),
        (("--device", "-1"), "--device -1: allowed are 0 and up"),
        (("--timeout", "nan"), "--timeout nan: allowed are seconds from 1 on"),
        (("--tokens", "3000"), "--tokens 3000: not whole sequences of --context 2048"),
        (("--tokens", "x"), "unknown tokens 'x'"),
        (("--accumulation", "0"), "unknown tokens '0'"),
        (("--accumulation", ","), "no tokens in ','; allowed: positive integers"),
        (("--sparsity", "6:10"), "in_features 896 is not a multiple of the group of 10"),
        (("--sparsity", "two"), "two"),
        (("--master", "fp16"), "fp16"),
        (("--accept", "no-such-run"), "no-such-run: cannot be read"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    assert Lab(tmp_path).run(*arguments) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert said in complaint


def test_results_are_never_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Lab(tmp_path).run(*SMALL) == 0
    assert Lab(tmp_path).run(*SMALL) == 2
    assert "already holds results" in capsys.readouterr().err


def test_accepted_cases_replace_those_of_the_same_key(tmp_path: Path) -> None:
    def accept(run: str, *more: str) -> int:
        return main(["--accept", str(tmp_path / run), *more], accepted=tmp_path / "h200.model.jsonlines")

    assert Lab(tmp_path / "a").run(*SMALL, "--accumulation", "1,4") == 0
    assert Lab(tmp_path / "b").run(*SMALL) == 0
    assert Lab(tmp_path / "bad", bitlinear={"start": shifted(loss=[1.0])}).run(*SMALL) == 3
    assert accept("a") == accept("b", "--gpu", "h200") == 0
    assert accept("bad") == accept("b", "--gpu", "a100") == 2
    records = read(tmp_path / "h200.model.jsonlines")
    first, second = latest(records).values()
    heads = {record.id: record for record in records if isinstance(record, ModelRun)}
    assert (first.accumulation, second.accumulation) == (1, 4)
    assert first.run != second.run
    assert set(heads) == {first.run, second.run}
    assert all("--out" not in head.arguments for head in heads.values())


BARE = {"variant": "a", "kind": "variant", "status": "ok"}


def damaged(change: Callable[[dict[str, object]], None]) -> str:
    case = ModelCase("r", "m", 1, 2, 128, 64, 64, 1, "2:4", "bf16", 10, ())
    data = json.loads(to_line(case))
    change(data)
    return json.dumps(data)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    assert lab.run(*SMALL) == 0
    for line in (tmp_path / FILE).read_text().splitlines():
        assert to_line(from_dict(json.loads(line), "here")) == line
    with (tmp_path / FILE).open("a") as file:
        file.write('{"type":"case","run"')
    assert lab.case.key.startswith("qwen2.5-3b/4 blocks/V=16896/T=8192/context=2048/accumulation=1/2:4/bf16")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"type":"run","schema":"tersparse/1"}', "schema 'tersparse/1'"),
        ("[]", "not a model-level record"),
        ("{", "not JSON"),
        ('{"type": []}', "not a model-level record"),
        ('{"type": ' + "9" * 5000 + "}", "a whole number beyond 64 bits"),
        (damaged(lambda data: data.pop("tokens")), "tokens"),
        (damaged(lambda data: data.update(tokens="many")), "tokens 'many'"),
        (damaged(lambda data: data.update(results=[{**BARE, "samples_us": [-1.0]}])), "positive"),
        (damaged(lambda data: data.update(results=[{**BARE, "status": "fine"}])), "status 'fine'"),
        (damaged(lambda data: data.update(more=1)), "more"),
        (damaged(lambda data: None), "starts with its run record"),
    ],
)
def test_damaged_records_are_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / FILE).write_text(line + "\n")
    with pytest.raises(RecordError, match=said):
        read(tmp_path)


def test_the_head_keeps_its_share() -> None:
    model = find("3b")
    assert scaled_vocabulary(model, 36) == scaled_vocabulary(model, 99) == 151936
    assert scaled_vocabulary(model, 4) == 16896
    (request,) = requests(parser().parse_args(["--model", "3b", "--blocks", "36", "--variant", "bitlinear"]))
    assert [spec.variant for spec in request.specs] == ["fakequant-bf16", "bitlinear"]
    assert parameters(request.specs[0]) == 36 * (2560 * 2048 + 2048 * 2048 + 33024 * 2048 + 2 * 2048) + 151937 * 2048
    assert replace(request.specs[0], variant="x") != request.specs[0]


def test_a_config_that_has_no_whole_heads_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    assert Lab(tmp_path / "run").run("--model", str(tmp_path / "config.json")) == 2
    assert "heads of 16 columns do not fit its attention of 48 and 32" in capsys.readouterr().err
