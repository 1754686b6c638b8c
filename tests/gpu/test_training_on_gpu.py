"""Whole runs on one GPU through the command line: like the CPU's, in FP8 too, and resumable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


RECIPES = ("delayed", "tensorwise", "blockwise")
RECOMPUTATION = ("selective", "full")
RUNS = {
    "bf16": [],
    "in_foreground": [],
    "in_background": ["checkpoint.background=true"],
    **{recipe: [f"precision.fp8={recipe}"] for recipe in RECIPES},
    **{mode: [f"recompute={{mode: {mode}}}"] for mode in RECOMPUTATION},
}
"""Name of a run and of its directory -> what it overrides."""


@pytest.fixture(scope="module")
def runs(root: Path) -> Iterator[dict[str, Future[list[float]]]]:
    """Losses by run; several share the GPU, since most of a short run's time is its start."""
    with ThreadPoolExecutor(max((os.cpu_count() or 1) // 2, 1)) as pool:
        begun = {name: pool.submit(trained, root, name, *overrides) for name, overrides in RUNS.items()}
        begun["cpu"] = pool.submit(trained, root, "cpu", "precision={compute: fp32}", gpu=False)
        yield begun


def trained(root: Path, name: str, *overrides: str, gpu: bool = True) -> list[float]:
    return losses(run(root, name, *overrides, gpu=gpu))


def test_bf16_follows_the_cpu_in_float32(runs: dict[str, Future[list[float]]]) -> None:
    assert len(runs["bf16"].result()) == 12
    assert runs["bf16"].result() == pytest.approx(runs["cpu"].result(), rel=0.01)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_follows_bf16(runs: dict[str, Future[list[float]]], recipe: str) -> None:
    assert runs[recipe].result() == pytest.approx(runs["bf16"].result(), rel=0.03)


@pytest.mark.parametrize("name", ["in_foreground", "in_background"])
def test_resumes(root: Path, runs: dict[str, Future[list[float]]], name: str) -> None:
    """A run whose last checkpoint is missing goes on from the one before, however that was saved."""
    runs[name].result()
    (root / name / "checkpoints" / "step_00000012").rename(root / f"{name}_aside")
    records = run(root, name)
    assert [record["step"] for record in records][-4:] == [9, 10, 11, 12]
    assert losses(records) == pytest.approx(runs["bf16"].result(), rel=2e-3)


@pytest.mark.parametrize("mode", RECOMPUTATION)
def test_recomputation_changes_nothing(runs: dict[str, Future[list[float]]], mode: str) -> None:
    assert runs[mode].result() == pytest.approx(runs["bf16"].result(), rel=2e-3)
