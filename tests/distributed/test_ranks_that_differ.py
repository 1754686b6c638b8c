"""Ranks that would train different things, since hosts have copies of their own: refused, before the first step."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from stage_runs import ARCHITECTURE, run, stage_file

from megatron_apriel import outputs
from megatron_apriel.config.load import load_stage
from megatron_apriel.errors import AprielError
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.corpora import write_corpus
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.train import assembly
from megatron_apriel.train.run import run_stage


def refusals(root: Path, name: str, *of_last: str) -> set[str]:
    """The errors of two ranks, of which the last has further settings."""
    file = stage_file(root, name)

    def main(rank: int, size: int) -> str:
        config = load_stage(file, of_last if rank == size - 1 else ())
        with pytest.raises(AprielError) as caught:
            run_stage(config)
        return f"{type(caught.value).__name__}: {caught.value}"

    return set(run_ranks(2, main, timeout=100))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=7", "seed=1234 for rank 0 and 7 for rank 1"),
        ("tokens=2K", "tokens=3072 for rank 0 and 2000 for rank 1"),
        ("train.tower=frozen", "train.tower=0.5 for rank 0 and 0.0 for rank 1"),
        ("mixture.1.loss=all", "mixture.1.loss='responses' for rank 0 and 'all' for rank 1"),
        ("validation=null", "validation.corpora.0.weight=1.0 for rank 0 and None, "),
    ],
)
def test_other_settings(root: Path, setting: str, words: str) -> None:
    (said,) = refusals(root, "settings", setting)
    assert said.startswith("ConfigError: ") and words in said


@pytest.mark.parametrize("used", ["mixture", "validation.corpora"])
def test_other_documents(root: Path, tmp_path: Path, used: str) -> None:
    """A pipeline rank would learn the next tokens of one text from the tokens of another."""
    other = write_corpus(tmp_path / "text", [12, 40, 200], seed=3).path
    (said,) = refusals(root, "documents", f"{used}.0.corpus={other}")
    assert said.startswith("DataError: ") and "text" in said and "rank 1" in said


@pytest.mark.parametrize("what", ["weights", "settings"])
def test_other_models(root: Path, tmp_path: Path, what: str) -> None:
    """An older copy on one host: the model would be made of both."""
    shutil.copytree(root / "model", tmp_path / "model")
    if what == "weights":
        write_hf_checkpoint(tmp_path / "model", ARCHITECTURE, seed=5)
    else:
        config = tmp_path / "model" / "config.json"
        config.write_text(re.sub(r'("rope_theta": )1000000\.0', r"\g<1>10000.0", config.read_text()))
        assert config.read_text() != (root / "model" / "config.json").read_text()
    (said,) = refusals(root, f"models_{what}", f"init_from={tmp_path / 'model'}")
    models = f"{root}/model of rank 0 and {tmp_path}/model of rank 1"
    assert said.startswith(f"CheckpointError: {models} are different models.")


def test_copies_at_other_places_are_the_same(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "text", tmp_path / "copy")
    shutil.copytree(root / "model", tmp_path / "model")
    file = stage_file(root, "copies")

    def main(rank: int, size: int) -> int:
        moved = [f"mixture.0.corpus={tmp_path / 'copy'}", "mixture.0.name=text"] if rank else ["mixture.0.name=text"]
        moved += [f"init_from={tmp_path / 'model'}"] * rank
        return int(run_stage(load_stage(file, [*moved, "tokens=1K"])))

    assert run_ranks(2, main) == [0, 0]


def test_other_checkpoints(root: Path, tmp_path: Path) -> None:
    """An output directory of its own for each host."""
    assert run(root, "own") == [0]
    (said,) = refusals(root, "own", f"output={tmp_path}")
    assert said.startswith("CheckpointError: the newest checkpoint is step_00000006 for rank 0 and none for rank 1.")


def test_outputs_that_are_not_shared(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of its own for each host, and nothing in it yet: no checkpoint would be whole."""
    monkeypatch.setattr(outputs, "SEEN_WITHIN_S", 0.0)
    (said,) = refusals(root, "alone", f"output={tmp_path}")
    assert said.startswith(f"OutputError: {tmp_path} of rank 1 is not the directory {root}/alone of rank 0")
    assert not list((root / "alone").glob(".met-*")) and not (root / "alone" / "checkpoints").exists()


def test_an_output_that_one_host_loses_later(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes then goes to a directory of its own: a checkpoint without that is none."""
    monkeypatch.setattr(assembly, "check_output", lambda output: None)
    monkeypatch.setattr(outputs, "SEEN_WITHIN_S", 0.0)
    said = refusals(root, "lost", f"output={tmp_path}")
    assert len(said) == 2 and all("__1_0.distcp is not there as rank 0 sees it" in each for each in said)
    assert list((root / "lost" / "checkpoints").iterdir()) == []


def test_a_result_that_one_host_does_not_see_yet(root: Path, tmp_path: Path) -> None:
    """Rank 0 knows that all is done: the other must not wait for it in steps of its own."""
    assert run(root, "late", "tokens=1K", ranks=2) == [0, 0]
    shutil.copytree(root / "late", tmp_path / "late", ignore=shutil.ignore_patterns("final"))
    file = stage_file(root, "late")

    def main(rank: int, size: int) -> int:
        return int(run_stage(load_stage(file, ["tokens=1K", *[f"output={tmp_path / 'late'}"] * rank])))

    assert run_ranks(2, main, timeout=100) == [0, 0]
