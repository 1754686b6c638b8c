"""Whole runs whose settings are changed within them: recorded, and going on exactly where the run stood."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stage_runs import losses, records, run, stage_file, start

from megatron_apriel.batch import Batch
from megatron_apriel.config.load import load_stage
from megatron_apriel.errors import ExitCode
from megatron_apriel.testing.corpora import write_corpus
from megatron_apriel.testing.ranks import RankFailure, run_ranks
from megatron_apriel.train import loop as loop_module
from megatron_apriel.train.run import run_stage

CONSTANT = "optimizer={peak: 1.0e-2, warmup: 0, decay: constant}"
TEXT_ONLY = "train={decoder: 1.0}"
LOWER = "optimizer={peak: 2.5e-3, warmup: 0, decay: constant}"


def run_file(root: Path, name: str, step: int) -> dict[str, Any]:
    path = root / name / "checkpoints" / f"step_{step:08d}" / "run.json"
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def test_a_longer_run_is_the_run_that_was_long_from_the_start(root: Path) -> None:
    """The optimizer's state and the place in the data are kept: the same numbers to the bit."""
    assert run(root, "long", CONSTANT) == [ExitCode.OK]
    assert run(root, "grown", CONSTANT, "tokens=1536") == [ExitCode.OK]
    with pytest.raises(RankFailure, match=r"tokens: 1536 -> 3072\n.*\n.*Add --change"):
        run(root, "grown", CONSTANT)
    assert run(root, "grown", CONSTANT, change=True) == [ExitCode.OK]
    assert losses(root, "grown") == losses(root, "long")
    (changed,) = records(root, "grown", "changed")
    assert (changed["step"], changed["settings"]) == (3, {"tokens": [1536, 3072]})
    assert run_file(root, "grown", 6)["extra"]["changes"] == [
        {"step": 3, "settings": {"tokens": [1536, 3072]}, "given": None}
    ]
    # The same command again, with and without the word: nothing differs any more.
    assert run(root, "grown", CONSTANT, change=True) == run(root, "grown", CONSTANT) == [ExitCode.OK]
    assert len(records(root, "grown", "changed")) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_another_rate_takes_effect_with_the_optimizer_as_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    name, at_once = f"slower_{ranks}", f"at_once_{ranks}"
    assert run(root, name, CONSTANT, "tokens=1536", ranks=ranks) == [0] * ranks
    assert run(root, name, LOWER, ranks=ranks, change=True) == [0] * ranks
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "learning_rate", lambda step, *_: 1e-2 if step < 3 else 2.5e-3)
        assert run(root, at_once, CONSTANT, ranks=ranks) == [0] * ranks
    assert losses(root, name) == losses(root, at_once)
    assert [record["lr"] for record in records(root, name, "step")] == [1e-2] * 3 + [2.5e-3] * 3


def test_documents_are_seen_once_across_a_change_of_the_mixture(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(root / "code", [100] * 20, seed=9)
    alone = f"mixture=[{{corpus: {root}/text, long_documents: split}}]"
    both = [f"{{corpus: {root}/text, weight: 50%, long_documents: split}}", f"{{corpus: {root}/code, weight: 50%}}"]
    counted = loop_module._counted

    def noted(stage: Any, batches: Iterator[Batch], work: Any) -> Iterator[Batch]:
        for batch in counted(stage, batches, work):
            with (root / "seen.jsonl").open("a") as file:
                file.write(json.dumps([batch.source, batch.samples]) + "\n")
            yield batch

    monkeypatch.setattr(loop_module, "_counted", noted)
    assert run(root, "mixed", TEXT_ONLY, alone, "tokens=1024") == [ExitCode.OK]
    assert run(root, "mixed", TEXT_ONLY, f"mixture=[{', '.join(both)}]", "tokens=2048", change=True) == [ExitCode.OK]
    seen = [json.loads(line) for line in (root / "seen.jsonl").read_text().splitlines()]
    assert len(seen) == 16
    assert [place for place, _ in seen[8:]].count(1) in (3, 4, 5)
    (root / "seen.jsonl").unlink()
    assert run(root, "alone", TEXT_ONLY, alone, "tokens=2048") == [ExitCode.OK]
    undisturbed = [json.loads(line)[1] for line in (root / "seen.jsonl").read_text().splitlines()]
    of_text = [samples for place, samples in seen if place == 0]
    assert of_text == undisturbed[: len(of_text)]
    (changed,) = records(root, "mixed", "changed")
    assert changed["given"] == {"text": 8, "code": 0}
    assert changed["settings"]["mixture[code].weight"] == [0.0, 0.5]
    assert run_file(root, "mixed", 4)["extra"]["packs"] == [len(of_text), 16 - len(of_text)]


def test_a_run_that_is_made_shorter_ends_there_and_its_record_says_so(root: Path) -> None:
    file = stage_file(root, "shortened")
    assert run_ranks(1, lambda *_: int(run_stage(load_stage(file, [CONSTANT, "checkpoint.every=100"])))) == [0]
    with pytest.raises(RankFailure, match=r"tokens: 3072 -> 512, and .*step_00000006 is of step 6 already"):
        run(root, "shortened", CONSTANT, "tokens=512", change=True)
    assert run(root, "cut", CONSTANT) == [ExitCode.OK]
    (root / "cut" / "checkpoints" / "step_00000006").rename(root / "aside")
    assert run(root, "cut", CONSTANT, "tokens=2048", change=True) == [ExitCode.OK]
    assert run_file(root, "cut", 4)["extra"]["config"]["tokens"] == 2048
    assert run(root, "cut", CONSTANT, "tokens=2048") == [ExitCode.OK]


@pytest.mark.parametrize(("then", "now"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_a_change_of_precision_is_said(root: Path, then: str, now: str) -> None:
    name = f"from_{then}"
    assert run(root, name, f"precision.compute={then}", "tokens=1024", CONSTANT) == [ExitCode.OK]
    process = start(root, name, f"precision.compute={now}", "tokens=2048", CONSTANT, "--change")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == ExitCode.OK, output
    assert f"step 2/4 | CHANGED: tokens: 1024 -> 2048; precision.compute: {then} -> {now}" in output
    assert len(losses(root, name)) == 4


def test_moments_of_fewer_bits_are_a_change_that_says_what_it_costs(root: Path) -> None:
    """And ``auto`` is what the run began with."""
    bf16, auto, narrow = "precision.compute=bf16", "{peak: 1.0e-3, moments: auto}", "{peak: 1.0e-3, moments: bfloat16}"
    assert run(root, "narrow", bf16, "tokens=512", f"optimizer={auto}") == [ExitCode.OK]
    assert run_file(root, "narrow", 1)["extra"]["config"]["optimizer"]["moments"] == "float32"
    with pytest.raises(RankFailure, match=r"optimizer.moments: float32 -> bfloat16(?s:.)*is rounded to bfloat16 once"):
        run(root, "narrow", bf16, "tokens=512", f"optimizer={narrow}")
    process = start(root, "narrow", bf16, "tokens=1024", f"optimizer={narrow}", "--change")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == ExitCode.OK, output
    assert "optimizer.moments: float32 -> bfloat16" in output and "what was saved is rounded to bfloat16 once" in output
    assert "moments in bfloat16" in output
    assert run(root, "narrow", bf16, "tokens=1536", f"optimizer={auto}", change=True) == [ExitCode.OK]
    saved = run_file(root, "narrow", 3)["extra"]
    assert saved["config"]["optimizer"]["moments"] == "bfloat16"
    assert saved["changes"][-1]["settings"] == {"tokens": [1024, 1536]}
