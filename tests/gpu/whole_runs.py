"""Short runs of the whole trainer by its command line, several at once on one GPU."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
)
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.corpora import IMAGES, VOCAB, random_pixels, write_corpus

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


def write_inputs(root: Path) -> None:
    """A checkpoint and two corpora, of text and of images, for the stage of :data:`STAGE`."""
    write_hf_checkpoint(root / "model", ARCHITECTURE, dtype="bfloat16")
    generator = np.random.default_rng(0)
    record = IMAGES.model_copy(update={"patch_size": 16, "image_size": 256})
    write_corpus(root / "text", [int(length) for length in generator.integers(40, 900, 60)], images=record)
    sizes = generator.integers(40, 300, (24, 2))
    documents = [[20, random_pixels(generator, int(height), int(width)), 60] for height, width in sizes]
    write_corpus(root / "images", documents, images=record, seed=1)


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


def trained(root: Path, name: str, *overrides: str, gpu: bool = True) -> list[float]:
    return losses(run(root, name, *overrides, gpu=gpu))


@contextlib.contextmanager
def started(root: Path, wanted: dict[str, list[str]]) -> Iterator[dict[str, Future[list[float]]]]:
    """Losses by the name of the run, all begun at once: most of a short run's time is its start.

    Args:
        root: where :func:`write_inputs` has written.
        wanted: name of a run and of its directory -> what it overrides; one called ``cpu`` sees no GPU.
    """
    with ThreadPoolExecutor(max((os.cpu_count() or 1) // 2, 1)) as pool:
        yield {
            name: pool.submit(trained, root, name, *overrides, gpu=name != "cpu") for name, overrides in wanted.items()
        }
