"""The quickstart, shortened: every stage learns, the result loads and answers, and an interrupted run resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from documents import run_quickstart
from PIL import Image
from safetensors import safe_open
from transformers import LlavaForConditionalGeneration

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STAGES = ("stage1", "realign", "cpt_stage1", "cpt_stage2", "sft", "sft_subset", "sft_long")


def held_out(workplace: Path, stage: str) -> list[dict[str, float]]:
    lines = (workplace / "runs" / "quickstart" / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss_by_source"] for record in map(json.loads, lines) if record["kind"] == "validation"]


def test_ends_with_table_plot_and_model(workplace: Path) -> None:
    log = (workplace / "quickstart.log").read_text(encoding="utf-8")
    for stage in STAGES:
        assert stage in log
    assert "the recipe in miniature" in log
    with Image.open(workplace / "runs" / "quickstart" / "losses.png") as plot:
        assert plot.width > 800
    assert (workplace / "runs" / "quickstart" / "apriel-mini" / "model.safetensors").exists()


@pytest.mark.parametrize("stage", ["stage1", "cpt_stage1", "cpt_stage2", "sft"])
def test_held_out_loss_falls(workplace: Path, stage: str) -> None:
    before, after = held_out(workplace, stage)[0], held_out(workplace, stage)[-1]
    assert all(after[name] < before[name] for name in after), (before, after)


def test_stages_train_what_they_say(workplace: Path) -> None:
    root = workplace / "runs" / "quickstart"
    for stage, start, trained in (
        ("stage1", root / "upscaled", "language_model"),
        ("realign", root / "stage1" / "average", "multi_modal_projector"),
        ("sft", root / "cpt_stage2" / "final", "language_model"),
    ):
        with (
            safe_open(start / "model.safetensors", "pt") as before,
            safe_open(root / stage / "final" / "model.safetensors", "pt") as after,
        ):
            assert set(before.keys()) == set(after.keys())
            for name in before.keys():  # noqa: SIM118
                same = torch.equal(before.get_tensor(name), after.get_tensor(name))
                assert same != name.startswith(trained), (stage, name)


def test_the_averages_are_means(workplace: Path) -> None:
    root = workplace / "runs" / "quickstart"
    names = ("sft_subset/final", "sft_long/final", "apriel-mini")
    *states, mean = (LlavaForConditionalGeneration.from_pretrained(root / name).state_dict() for name in names)
    for name, tensor in mean.items():
        expected = (states[0][name].double() + states[1][name].double()) / 2
        assert torch.equal(tensor, expected.float()), name


def test_interrupted_it_goes_on(workplace: Path) -> None:
    root = workplace / "runs" / "quickstart"
    for unfinished in (root / "sft_long" / "final", root / "apriel-mini"):
        shutil.rmtree(unfinished)
    result = run_quickstart(root)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.count("\n$ ") == 3  # the last stage, the average, the answer
    assert (root / "apriel-mini" / "model.safetensors").exists()
