"""Whole runs on one GPU through the command line: like the CPU's, in FP8 too, and resumable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_apriel.architecture import Architecture, DecoderArchitecture, ProjectorArchitecture, TowerArchitecture
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.corpora import IMAGES, VOCAB, random_pixels, write_corpus
from megatron_apriel.testing.marks import needs_transformer_engine

pytestmark = [pytest.mark.gpu, needs_transformer_engine]
pytest.importorskip("nvidia.dali")

ARCHITECTURE = Architecture(
    decoder=DecoderArchitecture(256, 4, 4, 2, 128, 512, VOCAB, rope_theta=1e6),
    tower=TowerArchitecture(128, 2, 2, 64, 256, "silu", patch_size=16, image_size=256),
    projector=ProjectorArchitecture(128, 256),
)
STAGE = """
stage: trial
init_from: {root}/model
output: {root}/{name}
train: {{tower: 1.0, projector: 1.0, decoder: 1.0}}
sequence_length: 1024
batch_tokens: 4096
tokens: 49152
optimizer: {{peak: 1.0e-3, warmup: 20%, decay: cosine}}
mixture:
  - {{corpus: {root}/text, weight: 50%}}
  - {{corpus: {root}/images, weight: 50%, loss: responses}}
validation: {{every: 6, sequences: 3, corpora: [{{corpus: {root}/text}}]}}
checkpoint: {{every: 4, keep: all}}
logging: {{tensorboard: false}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("training")
    write_hf_checkpoint(root / "model", ARCHITECTURE, dtype="bfloat16")
    generator = np.random.default_rng(0)
    record = IMAGES.model_copy(update={"patch_size": 16, "image_size": 256})
    write_corpus(root / "text", [int(length) for length in generator.integers(40, 900, 60)], images=record)
    sizes = generator.integers(40, 300, (24, 2))
    documents = [[20, random_pixels(generator, int(height), int(width)), 60] for height, width in sizes]
    write_corpus(root / "images", documents, images=record, seed=1)
    return root


def run(root: Path, name: str, *overrides: str, gpu: bool = True) -> list[dict[str, Any]]:
    """Train by the command line; returns the records of the steps."""
    file = root / f"{name}.yaml"
    file.write_text(STAGE.format(root=root, name=name), encoding="utf-8")
    environment = dict(os.environ) if gpu else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "megatron_apriel.train", str(file), *overrides]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    lines = (root / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "step"]


def losses(records: list[dict[str, Any]]) -> list[float]:
    by_step = {record["step"]: record["loss"] for record in records}
    return [by_step[step] for step in sorted(by_step)]


@pytest.fixture(scope="module")
def bf16(root: Path) -> list[float]:
    return losses(run(root, "bf16"))


def test_bf16_follows_the_cpu_in_float32(root: Path, bf16: list[float]) -> None:
    on_cpu = losses(run(root, "cpu", "precision={compute: fp32}", gpu=False))
    assert len(bf16) == 12
    assert bf16 == pytest.approx(on_cpu, rel=0.01)


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_fp8_follows_bf16(root: Path, bf16: list[float], recipe: str) -> None:
    found = losses(run(root, recipe, f"precision.fp8={recipe}"))
    assert found == pytest.approx(bf16, rel=0.03)


@pytest.mark.parametrize("background", ["false", "true"])
def test_resumes(root: Path, bf16: list[float], background: str) -> None:
    name = f"resumed_{background}"
    run(root, name, f"checkpoint.background={background}")
    (root / name / "checkpoints" / "step_00000012").rename(root / f"{name}_aside")
    records = run(root, name)
    assert [record["step"] for record in records][-4:] == [9, 10, 11, 12]
    assert losses(records) == pytest.approx(bf16, rel=2e-3)


def test_recomputation_changes_nothing(root: Path, bf16: list[float]) -> None:
    for mode in ("selective", "full"):
        assert losses(run(root, mode, f"recompute={{mode: {mode}}}")) == pytest.approx(bf16, rel=2e-3)
