"""Other trainers' words: the table is right about our settings, and answers a wrong key wherever it is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_apriel.config.fields import all_settings
from megatron_apriel.config.load import load_stage
from megatron_apriel.config.peers import WORDS, find
from megatron_apriel.config.reference import updated
from megatron_apriel.errors import ConfigError
from megatron_apriel.train.command import main

PAGE = Path(__file__).parents[3] / "docs" / "coming_from.md"
STAGE = """
stage: trial
init_from: model
output: out
train: {decoder: 1.0}
sequence_length: 128
batch_tokens: 512
tokens: 1024
mixture: [{corpus: text, weight: 100%}]
optimizer: {peak: 1.0e-3}
"""


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    file = tmp_path / "stage.yaml"
    file.write_text(STAGE)
    return file


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert updated(text) == text, "run: python -m megatron_apriel.config.reference --update docs/coming_from.md"


def test_every_word_leads_to_a_setting_and_stands_once() -> None:
    settings = {name for name, _ in all_settings()}
    for word in WORDS:
        assert set(word.here) <= settings, word
        assert word.how.endswith((".", "-")), word
        assert not word.same or len(word.here) == 1
    names = [name for word in WORDS for name in word.names]
    assert len(names) == len(set(names))
    # None of them may be a setting here: it would never be asked for.
    own = {name.replace("[]", "") for name in settings}
    assert not own & {name for word in WORDS for name in word.names if name not in word.here}


@pytest.mark.parametrize(
    ("line", "key", "here"),
    [
        ("learning_rate: 1.0e-4", "learning_rate", "Here: optimizer.peak. The same value."),
        ("gradient_accumulation_steps: 8", "gradient_accumulation_steps", "Here: batch_tokens. per-device batch x"),
        ("num_train_epochs: 3", "num_train_epochs", "Here: epochs."),
        ("cutoff_len: 4096", "cutoff_len", "Here: sequence_length."),
        ("lora_rank: 8", "lora_rank", "no LoRA"),
        ("freeze_vit: true", "freeze_vit", "Here: train.tower. true: frozen."),
        ("training: {seq_len: 4096, unknown: 1}", "training.seq_len", "Here: sequence_length."),
        ("lr_scheduler: {warmup_steps: 10}", "lr_scheduler", "Here: optimizer.decay."),
        ("Template: chatml", "Template", "one chat format"),
    ],
)
def test_a_wrong_key_of_a_file(stage: Path, line: str, key: str, here: str) -> None:
    stage.write_text(STAGE + line + "\n")
    with pytest.raises(ConfigError) as refused:
        load_stage(stage)
    said = str(refused.value)
    assert f"stage.yaml, line 11: {key} is not a setting.\n  {here}" in said or here in said
    assert f"{key} is not a setting." in said


def test_keys_inside_of_our_sections_and_overrides(stage: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_stage(stage, ["optimizer.lr=1e-4", "mixture.0.dataset=x", "warmup-ratio=0.1"])
    said = str(refused.value)
    assert "optimizer.lr is not a setting. Here: optimizer.peak." in said
    assert "mixture.0.dataset is not a setting. Here: mixture[].corpus." in said
    assert "warmup-ratio is not a setting. Here: optimizer.warmup." in said


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--learning_rate", "1e-4"], "Write optimizer.peak=1e-4"),
        (["--learning-rate=1e-4"], "Write optimizer.peak=1e-4"),
        (["--optimizer.peak", "1e-4"], "write optimizer.peak=1e-4"),
        (["--mixture.0.weight=3"], "write mixture.0.weight=3"),
        (["--bf16"], "Here: precision.compute."),
        (["--deepspeed", "zero3.json"], "Megatron Core's layout replaces it"),
        (["--tokenz", "1B"], "did you mean tokens=1B?"),
        (["--zzz"], "there is no such setting"),
        (["seed=3", "--save_steps", "10", "--logging_steps", "5"], "Write logging.every=5"),
        (["--\x1b[31m"], "there is no such setting"),
        (["--dry_run"], "did you mean --dry-run?"),
        (["--dryrun"], "did you mean --dry-run?"),
        (["--World-Size=8"], "did you mean --world-size?"),
    ],
)
def test_options(stage: Path, words: list[str], answer: str) -> None:
    with pytest.raises(ConfigError, match="no such option") as refused:
        main([str(stage), *words])
    assert answer in str(refused.value)
    assert "key=value" in str(refused.value) and "\x1b" not in str(refused.value)


def test_a_last_part_is_looked_up_only_where_it_is_a_whole_word() -> None:
    """torchtitan's ``optimizer.name`` and ``checkpoint.interval`` say nothing about another section's."""
    assert find("optimizer.lr") is find("LR") is find("--lr") is not None
    for key in ("name", "mixture.name", "interval", "mode", "steps", "seed"):
        assert find(key) is None, key
