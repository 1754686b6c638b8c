"""Every YAML that a page shows is one that a run takes; a stage of the recipe trains there as its own file says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from documents import ROOT

from megatron_apriel.config.load import load_stage

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/README.md"))]
SHOWN = [
    (f"{page.stem}-{number}", body)
    for page in PAGES
    for number, body in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]
RECIPE = ("upscale", "realign", "cpt_stage1", "cpt_stage2", "sft")


def stages() -> dict[str, str]:
    """The complete files, by the name of their stage."""
    found = {match[1]: body for _, body in SHOWN if (match := re.match(r"stage: (\w+)\n", body))}
    assert len(found) == sum(body.startswith("stage: ") for _, body in SHOWN), "a stage is shown twice"
    return found


@pytest.mark.parametrize("body", [body for _, body in SHOWN], ids=[name for name, _ in SHOWN])
def test_what_is_shown_is_valid(body: str, tmp_path: Path) -> None:
    """A part of a file is put into a whole one."""
    settings = yaml.safe_load(body)
    if "stage" not in settings:
        body = yaml.safe_dump({**yaml.safe_load(stages()["sft"]), **settings})
    (tmp_path / "stage.yaml").write_text(body, encoding="utf-8")
    load_stage(tmp_path / "stage.yaml")


@pytest.mark.parametrize("name", RECIPE)
def test_a_stage_of_the_recipe_is_that_of_the_examples(name: str, tmp_path: Path) -> None:
    (tmp_path / "stage.yaml").write_text(stages()[name], encoding="utf-8")
    shown, example = load_stage(tmp_path / "stage.yaml"), load_stage(ROOT / "examples" / f"{name}.yaml")
    for setting in ("train", "sequence_length", "batch_tokens", "optimizer", "recompute"):
        assert getattr(shown, setting) == getattr(example, setting), setting
    assert shown.checkpoint.keep == example.checkpoint.keep
    assert shown.epochs == 4 if name == "sft" else shown.tokens == example.tokens
    assert {source.loss for source in shown.mixture} == {source.loss for source in example.mixture}
