"""Every tool prints names of files and labels as they are spelled, be they control characters or look like markup."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from megatron_apriel.config.yaml_text import write_yaml
from megatron_apriel.errors import run_command
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.scripts import load_script
from megatron_apriel.train import command as trainer

ROOT = Path(__file__).resolve().parents[3]
NAME = "a\x1b[31m\r\nok\x9b\u202e[red]:bomb:$x^$"
PRINTED = r"a\x1b[31m\r\nok\x9b\u202e[red]:bomb:$x^$"
STEERING = "\x1b\r\x9b\u202e\x07"


@pytest.fixture
def printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a tool's main and returns its exit code and all that it printed, after looking for what steers."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(module: ModuleType, *words: object) -> tuple[int, str]:
        capfd.readouterr()
        code = run_command(lambda: module.main([str(word) for word in words]))
        out, err = capfd.readouterr()
        text = out + err
        assert not any(letter in text for letter in STEERING), repr(text)
        assert "\nok" not in text
        return code, text.replace("\n", "")

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("models") / NAME, Architecture.from_preset("tiny"))


def test_surgery(printed, model: Path, tmp_path: Path) -> None:
    upscale, average = load_script("tools/upscale_layers.py"), load_script("tools/average_checkpoints.py")
    code, text = printed(upscale, model, tmp_path / NAME, "--num-layers", 6)
    assert code == 0 and PRINTED in text
    code, text = printed(upscale, tmp_path / f"none {NAME}", tmp_path / "out", "--num-layers", 6)
    assert code == 1 and PRINTED in text
    other = tmp_path / "other" / NAME
    shutil.copytree(model, other)
    code, text = printed(average, tmp_path / f"mean {NAME}", "--checkpoints", model, other)
    assert code == 0 and PRINTED in text
    (other / "config.json").write_text(json.dumps({"model_type": NAME}))
    code, text = printed(average, tmp_path / "out", "--checkpoints", model, other)
    assert code == 1 and PRINTED in text


def test_conversion(printed, model: Path, tmp_path: Path) -> None:
    convert = load_script("tools/convert_checkpoint.py")
    code, text = printed(convert, model, tmp_path / NAME, "--to", "hf", "--verify")
    assert code == 0 and text.count(PRINTED) >= 2
    code, text = printed(
        load_script("tools/convert_checkpoint.py"), tmp_path / f"x{NAME}", tmp_path / "out", "--to", "hf"
    )
    assert code == 1 and PRINTED in text


def test_preparing(printed, model: Path, tmp_path: Path) -> None:
    architecture = Architecture.from_preset("mini")
    source = write_hf_checkpoint(tmp_path / "model" / NAME, architecture, processor=True)
    file = tmp_path / f"{NAME}.jsonl"
    records = [json.dumps({"text": "some words"}), "{", json.dumps({"text": 3})]
    file.write_text("\n".join(records), encoding="utf-8")
    words = ["--input", file, "--model", source, "--max-bad", "0.9"]
    code, text = printed(load_script("tools/prepare_data.py"), tmp_path / f"corpus {NAME}", *words)
    assert code == 0 and "bad record: " in text and text.count(PRINTED) >= 4
    code, text = printed(load_script("tools/prepare_data.py"), tmp_path / "other", *words[:-2])
    assert code == 1 and PRINTED in text


def test_visual_tasks(printed, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
        Image.fromarray(pixels).save(folder / f"{number}{NAME}.png")
    (folder / f"damaged{NAME}.png").write_bytes(b"nothing")
    image = {"id": 1, "file_name": f"0{NAME}.png", "width": 256, "height": 256}
    box = {"image_id": 1, "category_id": 1, "bbox": [40, 40, 100, 100]}
    document = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": NAME}]}
    file = tmp_path / f"{NAME}.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    words = ["--images", folder, "--annotations", file, "--samples", 2, "--tasks", "count", "--max-side", 256]
    code, text = printed(load_script("tools/make_visual_tasks.py"), tmp_path / f"made {NAME}", *words)
    assert code == 0 and f"unusable image: damaged{PRINTED}" in text and f"made {PRINTED}" in text
    document["categories"].append({"id": 2, "name": NAME})
    document["annotations"].append({**box, "category_id": 2})
    file.write_text(json.dumps(document), encoding="utf-8")
    code, text = printed(load_script("tools/make_visual_tasks.py"), tmp_path / "other", *words)
    assert code == 1 and "two categories have the name" in text


def test_planning_and_the_dry_run(printed, tmp_path: Path) -> None:
    place = tmp_path / f"{NAME}.yaml"
    text = (ROOT / "examples" / "cpt_stage1.yaml").read_text(encoding="utf-8")
    label = write_yaml(f"{NAME}[/b]").strip()
    place.write_text(text.replace("name: replay", f"name: {label}"), encoding="utf-8")
    plan = ["--gpus", 64, "--stage", place, "--architecture", "apriel-15b"]
    code, text = printed(load_script("tools/plan.py"), *plan, "--set", f"name={label}")
    assert code == 0 and PRINTED in text
    code, text = printed(load_script("tools/plan.py"), *plan, "--set", f"{NAME}=1")
    assert code == 1 and PRINTED in text
    code, text = printed(load_script("tools/plan.py"), *plan, "--json", place)
    assert code == 1 and PRINTED in text
    dry = ["--dry-run", "--architecture", "apriel-15b", "--world-size", 64, f"mixture.0.corpus={label}"]
    code, text = printed(trainer, place, *dry)
    assert code == 0 and text.count(PRINTED) >= 2
    code, text = printed(trainer, place, *dry, f"{NAME}=1")
    assert code == 1 and PRINTED in text
    code, text = printed(trainer, tmp_path / f"no {NAME}")
    assert code == 1 and PRINTED in text


def test_the_quickstart(printed, tmp_path: Path) -> None:
    report = load_script("examples/quickstart/report.py")
    for stage in report.STAGES:
        run = tmp_path / NAME / stage
        run.mkdir(parents=True)
        losses = {NAME: 1.0, "b": 2.0}
        records = [{"kind": "step", "step": 1, "tokens": 10, "loss": 1.0}]
        records += [{"kind": "validation", "step": step, "loss_by_source": losses} for step in (0, 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (run / "config.resolved.yaml").write_text("train: {tower: 0, projector: 1, decoder: 1}\n")
    code, text = printed(report, tmp_path / NAME)
    assert code == 0 and PRINTED in text
    code, text = printed(load_script("examples/quickstart/run.py"), "--list", "--output", tmp_path / NAME)
    assert code == 0 and PRINTED in text
