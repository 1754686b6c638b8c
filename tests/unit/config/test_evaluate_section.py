"""What a stage may say of the evaluation of its checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_apriel.config.load import load_stage, to_yaml
from megatron_apriel.errors import ConfigError
from megatron_apriel.testing.stages import small_stage


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    path = tmp_path / "stage.yaml"
    path.write_text(to_yaml(small_stage()))
    return path


def test_one_name_is_enough(stage: Path) -> None:
    section = load_stage(stage, ["evaluate={benchmarks: [ifbench]}", "evaluate.max_tokens=4K"]).evaluate
    assert section is not None
    assert (section.every, section.start, section.waiting, section.temperature) == (None, True, 2, 0.6)
    assert section.max_tokens == 4000
    assert load_stage(stage).evaluate is None


def test_it_is_written_back(stage: Path, tmp_path: Path) -> None:
    config = load_stage(stage, ["evaluate={benchmarks: [ifbench], pictures: some/where, every: 1000}"])
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load_stage(again) == config


@pytest.mark.parametrize(("every", "nearest"), [(300, "500"), (700, "500 or 1000"), (1001, "1000 or 1500")])
def test_only_checkpoints_are_evaluated(stage: Path, every: int, nearest: str) -> None:
    said = f"evaluate.every={every} is not a multiple of checkpoint.every=500, and what is evaluated are checkpoints"
    with pytest.raises(ConfigError, match=f"{re.escape(said)}; nearest: {nearest}"):
        load_stage(stage, [f"evaluate={{benchmarks: [ifbench], every: {every}}}"])


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{}", "evaluate.benchmarks is missing"),
        ("{benchmarks: []}", "at least 1 value"),
        ("{benchmarks: ifbench}", "It must be a list"),
        ("{benchmarks: [ifbench], evry: 5}", "Did you mean evaluate.every?"),
        ("{benchmarks: [ifbench], waiting: -1}", "It must be at least 0"),
        ("{benchmarks: [ifbench], temperature: -0.1}", "It must be at least 0"),
        ("{benchmarks: [ifbench], limit: 0}", "It must be at least 1"),
        ("{benchmarks: [ifbench], max_tokens: 0}", "It must be at least 1"),
    ],
)
def test_what_cannot_be(stage: Path, section: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_stage(stage, [f"evaluate={section}"])
