"""Stages of the recipe as jobs that last seconds: a model and corpora in their place, and what to set."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cluster import Cluster

from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
)
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.corpora import VOCAB, random_pixels, write_corpus

ROOT = Path(__file__).parents[2]
ARCHITECTURE = Architecture(
    decoder=DecoderArchitecture(32, 4, 4, 2, 16, 48, VOCAB, rope_theta=1e6),
    tower=TowerArchitecture(32, 2, 2, 16, 48, "silu", patch_size=4, image_size=32),
    projector=ProjectorArchitecture(32, 32),
)
TEXT, IMAGES = ("cpt1_text",), ("visual_tasks", "sft", "sft_subset", "sft_long")
SMALL = (
    "sequence_length=128", "batch_tokens=512", "parallel.tensor=1", "parallel.sequence=false", "images.threads=1",
    "precision.compute=fp32", "optimizer.peak=1e-2", "checkpoint.every=100000", "logging.every=1",
    "logging.tensorboard=false",
)  # fmt: skip


def write_inputs(root: Path) -> None:
    """A model, and the corpora of the stages from CPT-2 on."""
    write_hf_checkpoint(root / "model", ARCHITECTURE)
    generator = np.random.default_rng(0)
    for name in TEXT:
        write_corpus(root / name, [int(length) for length in generator.integers(10, 160, 40)])
    documents = [[8, random_pixels(generator, *map(int, generator.integers(9, 32, 2))), 24] for _ in range(24)]
    for name in IMAGES:
        write_corpus(root / name, documents, seed=1)


class Jobs:
    """Submits stages, and reads what they leave.

    Attributes:
        runs: what ``RUN_ROOT`` names; the product before CPT-2 is there.
        here: from which jobs are submitted; not the project's directory.
    """

    def __init__(self, cluster: Cluster, inputs: Path, runs: Path) -> None:
        self.cluster, self.runs = cluster, runs
        self.here = runs.parent / "elsewhere"
        self.here.mkdir()
        shutil.copytree(inputs / "model", runs / "cpt_stage1" / "average")
        self.environment = {
            "RUN_ROOT": str(runs), "DATA_ROOT": str(inputs), "PROJECT_ROOT": str(ROOT), "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT), "RETRY_AFTER": "1",
        }  # fmt: skip

    def submit(
        self, *options: str, nodes: int = 1, tasks: int = 1, steps: int = 6, settings: tuple[str, ...] = ()
    ) -> str:
        """Submit CPT-2; returns the job's number."""
        size = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--gpus-per-node=0"]
        command = [ROOT / "examples" / "cpt_stage2.sh", *SMALL, f"tokens={512 * steps}", *settings]
        words = ["sbatch", "--parsable", *size, *options, *command]
        return self.cluster.run(*words, cwd=self.here, **self.environment).strip()

    def log(self, job: str, name: str = "cpt_stage2") -> str:
        path = self.runs / "logs" / f"{name}-{job}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def wait_for_line(self, job: str, text: str) -> None:
        """Wait until the log of a job has ``text`` in it."""
        self.cluster.wait_for(lambda: text in self.log(job), f"{text!r} in the log of job {job}", 900)

    def losses(self, run: str = "cpt_stage2") -> list[float]:
        """By step; of a repeated step the last."""
        lines = (self.runs / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        by_step = {record["step"]: record["loss"] for record in records if record["kind"] == "step"}
        return [by_step[step] for step in sorted(by_step)]
