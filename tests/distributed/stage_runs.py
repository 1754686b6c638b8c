"""A stage of six steps that several ranks train on a CPU in seconds, and what it wrote."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_apriel.batch import Batch
from megatron_apriel.config.load import load_stage
from megatron_apriel.data.corpus.tokens import load_tokenizer, tokenizer_digest
from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
)
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.corpora import TOKENIZER, VOCAB, random_pixels, write_corpus
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.train import loop as loop_module
from megatron_apriel.train.objectives.next_token import NextToken
from megatron_apriel.train.objectives.objective import Counted
from megatron_apriel.train.run import run_stage

ARCHITECTURE = Architecture(
    decoder=DecoderArchitecture(32, 4, 4, 2, 16, 48, VOCAB, rope_theta=1e6),
    tower=TowerArchitecture(32, 2, 2, 16, 48, "silu", patch_size=4, image_size=32),
    projector=ProjectorArchitecture(32, 32),
)
STAGE = """
stage: trial
init_from: {root}/model
output: {root}/{name}
train: {{tower: 0.5, projector: 1.0, decoder: 1.0}}
sequence_length: 128
batch_tokens: 512
tokens: 3072
optimizer: {{peak: 1.0e-2, warmup: 20%, decay: cosine}}
mixture:
  - {{corpus: {root}/text, weight: 50%, long_documents: split}}
  - {{corpus: {root}/images, weight: 50%, loss: responses}}
validation: {{every: 3, sequences: 3, corpora: [{{corpus: {root}/text, long_documents: split}}]}}
precision: {{compute: fp32}}
checkpoint: {{every: 2, keep: last 2}}
logging: {{tensorboard: false}}
images: {{threads: 1}}
"""


TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} "
"""What a line of a run begins with where it does not go to a terminal."""


def write_inputs(root: Path, sidecars: bool = False) -> Path:
    """What the stage starts from: a model, a text corpus and one with images; returns ``root``.

    With ``sidecars`` the model has a tokenizer, a processor and a chat template of its own, and the corpora are those
    of its tokenizer.
    """
    model = write_hf_checkpoint(root / "model", ARCHITECTURE, processor=sidecars)
    digest = tokenizer_digest(load_tokenizer(model)) if sidecars else TOKENIZER.sha256
    tokenizer, generator = TOKENIZER.model_copy(update={"sha256": digest}), np.random.default_rng(0)
    write_corpus(root / "text", [int(length) for length in generator.integers(10, 160, 40)], tokenizer=tokenizer)
    documents = [[8, random_pixels(generator, *map(int, generator.integers(9, 32, 2))), 24] for _ in range(24)]
    write_corpus(root / "images", documents, seed=1, tokenizer=tokenizer)
    return root


def stage_file(root: Path, name: str) -> Path:
    file = root / f"{name}.yaml"
    file.write_text(STAGE.format(root=root, name=name), encoding="utf-8")
    return file


def run(root: Path, name: str, *overrides: str, ranks: int = 1, change: bool = False) -> list[int]:
    """Run the stage in forked ranks; returns their exit codes."""
    file = stage_file(root, name)
    return run_ranks(ranks, lambda rank, size: int(run_stage(load_stage(file, overrides), change)))


def records(root: Path, name: str, kind: str) -> list[dict[str, Any]]:
    lines = (root / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def losses(root: Path, name: str) -> list[float]:
    """Losses by step; of a repeated step the last."""
    by_step = {record["step"]: record["loss"] for record in records(root, name, "step")}
    return [by_step[step] for step in sorted(by_step)]


def start(root: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    """The stage as a user starts it."""
    return _started([sys.executable, "-m", "megatron_apriel.train", str(stage_file(root, name)), *overrides])


HELD = """
import runpy, sys
from megatron_apriel.train import loop
held, step = int(sys.argv.pop(1)), loop._step
def waiting(stage, work):
    if stage.finished_steps == held:
        sys.stdin.readline()
    return step(stage, work)
loop._step = waiting
runpy.run_module("megatron_apriel.train", run_name="__main__", alter_sys=True)
"""
"""The command line, which waits after so many steps."""


def start_held(root: Path, name: str, finished_steps: int, *overrides: str) -> subprocess.Popen[str]:
    """As :func:`start`, but after so many steps it waits for a line, or the end, of what it is given to read."""
    command = [sys.executable, "-c", HELD, str(finished_steps), str(stage_file(root, name)), *overrides]
    return _started(command, stdin=subprocess.PIPE)


def _started(command: list[str], **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **options
    )


def before_step(monkeypatch: pytest.MonkeyPatch, finished_steps: int, action: Callable[[int], None]) -> None:
    """Have every rank call ``action`` with its number before it makes the step after so many."""
    step = loop_module._step

    def stepped(stage: Any, work: Any) -> Any:
        if stage.finished_steps == finished_steps:
            action(torch.distributed.get_rank())
        return step(stage, work)

    monkeypatch.setattr(loop_module, "_step", stepped)


def without_times(output: str) -> list[str]:
    """The lines of a run's output, without the time that each begins with."""
    return [re.sub(TIME, "", line) for line in output.splitlines()]


def wait_for_line(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if re.match(TIME + re.escape(beginning), line):
            return
    pytest.fail(f"no line {beginning!r} in\n{''.join(seen)}")


def poison(monkeypatch: pytest.MonkeyPatch, sequences: set[int]) -> None:
    """Make the loss of these sequences NaN, as a damaged sample would."""
    sound = NextToken.__call__

    def poisoned(objective: NextToken, head: Any, hidden_S1H: torch.Tensor, batch: Batch) -> Counted:
        counted = sound(objective, head, hidden_S1H, batch)
        return replace(counted, sum=counted.sum * (float("nan") if batch.sequence in sequences else 1.0))

    monkeypatch.setattr(NextToken, "__call__", poisoned)
