"""The trainer's own command line at full width on this host's GPUs: waiting for data, saving, resuming elsewhere.

A model with random weights and corpora of text and of JPEG images are made. A run on the first layout trains on CPT-2's
mix, saving in the background, and is then resumed from its first checkpoint on the second layout: the same steps
again, whose losses must be the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from benchmarks.logs import log_folder
from benchmarks.measure import environment
from benchmarks.options import add_output_options
from benchmarks.processes import ROOT
from benchmarks.random_model import architecture_of
from benchmarks.report import Page, Record, markdown, write
from benchmarks.spread_cli import print_table
from benchmarks.versions import facts
from megatron_apriel.command_line import CommandLine
from megatron_apriel.data.corpus.format import ImageRecord, TokenizerRecord
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.quantities import counted
from megatron_apriel.testing.corpora import encode, write_corpus

EXAMPLES = """\
examples:
  # data-parallel over all GPUs of this host, resumed as TP2 SP
  python benchmarks/whole_run.py

  # what it writes goes to a disk with room for two checkpoints (14 bytes a parameter)
  python benchmarks/whole_run.py --layers 8 --directory /scratch/trial
"""
STEPS, WARM_UP = 8, 3
"""Of the run, and those at its beginning whose waits are not counted: kernels are compiled in them."""
STAGE = """
stage: whole_run
init_from: {root}/model
output: {root}/run
train: {{tower: frozen, projector: 1.0, decoder: 1.0}}
sequence_length: {length}
batch_tokens: {batch}
tokens: {tokens}
optimizer: {{peak: 1.0e-5, warmup: 10%, decay: cosine}}
mixture:
  - {{corpus: {root}/images, weight: 70%, loss: responses}}
  - {{corpus: {root}/text, weight: 30%, long_documents: split}}
checkpoint: {{every: 4, keep: all, background: true, export: false}}
logging: {{tensorboard: false}}
"""
HEADINGS = ("run", "layout", "tokens/s/GPU", "TFLOP/s/GPU", "data wait, mean", "data wait, most", "checkpoint, GB",
            "saved in, s", "training stood still, s", "loaded in, s")  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Of the data: full, or for a try on a CPU."""

    model: str
    length: int
    image: tuple[int, int]
    documents: int
    text: int

    @property
    def images(self) -> ImageRecord:
        tower = architecture_of(self.model).tower
        assert tower is not None
        return ImageRecord(
            image_token_id=10,
            break_token_id=12,
            end_token_id=13,
            patch_size=tower.patch_size,
            image_size=tower.image_size,
        )

    @property
    def tokenizer(self) -> TokenizerRecord:
        vocabulary = architecture_of(self.model).decoder.vocab_size
        return TokenizerRecord(sha256="0" * 64, vocab_size=vocabulary, bos_id=1, eos_id=2, pad_id=11)


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to use (default: all of this host)")
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="decoder layers (%(default)s)")
    parser.add_argument("--sequences", type=int, default=8, metavar="N", help="of a step (%(default)s)")
    parser.add_argument("--first", default="{}", metavar="YAML", help="parallel section of the first run (%(default)s)")
    parser.add_argument("--second", default="{tensor: 2, sequence: true}", metavar="YAML",
                        help="of the one that resumes (%(default)s)")  # fmt: skip
    parser.add_argument("--precision", default="none", metavar="FP8", help="precision.fp8 (%(default)s)")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="for model, data and checkpoints; removed after")
    add_output_options(parser, "whole_run")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # tiny shapes, on the CPU too
    return parser


def photograph(generator: np.random.Generator, width: int, height: int) -> bytes:
    """A JPEG that costs what a photograph costs: smooth shapes with fine noise, about 200 kB at 1024 x 768."""
    coarse = generator.integers(0, 256, (max(height // 64, 2), max(width // 64, 2), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = generator.integers(-12, 13, smooth.shape, dtype=np.int16)
    return encode((smooth + noise).clip(0, 255).astype(np.uint8), "JPEG", quality=85)


def make(root: Path, sizes: Sizes, layers: int) -> None:
    """The model and the two corpora."""
    command = [sys.executable, "-m", "benchmarks.random_model", str(root / "model"), str(layers), sizes.model]
    with subprocess.Popen(command, cwd=ROOT, env=paths()) as model:
        generator = np.random.default_rng(0)
        width, height = sizes.image
        pictures = [photograph(generator, width, height) for _ in range(24)]
        visual = [
            [20, *(pictures[index] for index in generator.integers(0, 24, count)), sizes.text // 4]
            for count in generator.integers(1, 4, sizes.documents)
        ]
        write_corpus(root / "images", visual, images=sizes.images, tokenizer=sizes.tokenizer)
        lengths = [int(length) for length in generator.integers(sizes.text // 2, sizes.text * 2, sizes.documents)]
        write_corpus(root / "text", lengths, images=sizes.images, tokenizer=sizes.tokenizer, seed=1)
    if model.returncode:
        raise ConfigError(f"the model was not written: exit code {model.returncode}.", "Its output is above.")


def paths() -> dict[str, str]:
    """This environment, in which the project can be imported."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def train(root: Path, logs: Path, gpus: int, *overrides: str) -> list[dict[str, Any]]:
    """Run the command line; the records that it wrote. Raises ConfigError with the end of its output."""
    metrics = root / "run" / "metrics.jsonl"
    before = len(metrics.read_text(encoding="utf-8").splitlines()) if metrics.exists() else 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    command = [sys.executable, *launcher, "-m", "megatron_apriel.train", str(root / "stage.yaml"), *overrides]
    log = logs / f"{len(list(logs.iterdir()))}.log"
    print(f"training: {' '.join(overrides)}; log in {log}", file=sys.stderr, flush=True)
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(command, cwd=ROOT, env=paths(), stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        # torchrun's own summary, which comes last, does not say why.
        said = log.read_text(encoding="utf-8", errors="replace").partition("elastic/multiprocessing")[0]
        raise ConfigError(f"training ended with exit code {done.returncode}.", said[-6000:])
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()[before:]]


def row(name: str, layout: str, records: Sequence[dict[str, Any]], gpus: int, size: float) -> list[str]:
    """Figures of a run, in the columns of :data:`HEADINGS`."""
    steps = [record for record in records if record["kind"] == "step"]
    counted = steps[WARM_UP:] if len(steps) > WARM_UP else steps
    saved = next((record for record in records if record["kind"] == "checkpoint"), None)
    loaded = next((record["seconds"] for record in records if record["kind"] == "resumed"), math.nan)
    waits = [record["data_wait"] for record in counted]
    return [
        name,
        layout,
        f"{statistics.median(record['tokens_per_second'] for record in counted) / gpus:,.0f}",
        f"{statistics.median(record['tflops_per_gpu'] for record in counted):.0f}",
        f"{statistics.fmean(waits):.1%}",
        f"{max(waits):.1%}",
        f"{size / 1e9:.1f}",
        *([f"{saved['seconds']:.1f}", f"{saved['blocked_seconds']:.1f}"] if saved else ["-", "-"]),
        "-" if math.isnan(loaded) else f"{loaded:.1f}",
    ]


def largest_difference(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> float:
    """Of the losses of steps that both runs made, relative. Raises ConfigError if there are none."""
    losses = {record["step"]: record["loss"] for record in first if record["kind"] == "step"}
    again = {record["step"]: record["loss"] for record in second if record["kind"] == "step"}
    both = losses.keys() & again.keys()
    if not both:
        raise ConfigError("the second run made no step that the first had made.")
    return max(abs(again[step] - losses[step]) / losses[step] for step in both)


def _runs(root: Path, logs: Path, arguments: argparse.Namespace, gpus: int, sizes: Sizes) -> dict[str, Any]:
    begun = time.perf_counter()
    make(root, sizes, arguments.layers)
    print(f"model and corpora made in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    batch = arguments.sequences * sizes.length
    text = STAGE.format(root=root, length=sizes.length, batch=batch, tokens=batch * STEPS)
    (root / "stage.yaml").write_text(text, encoding="utf-8")
    common = [f"precision={{compute: {'bf16' if torch.cuda.is_available() else 'fp32'}, fp8: {arguments.precision}}}"]
    first = train(root, logs, gpus, f"parallel={arguments.first}", *common)
    checkpoints = root / "run" / "checkpoints"
    size = sum(file.stat().st_size for file in (checkpoints / "step_00000004").rglob("*") if file.is_file())
    # Resumed from the middle: the end is taken away.
    shutil.rmtree(checkpoints / "step_00000008")
    second = train(root, logs, gpus, f"parallel={arguments.second}", *common)
    return {
        "rows": [
            row("from the start", arguments.first, first, gpus, size),
            row("resumed from its middle", arguments.second, second, gpus, size),
        ],
        "difference": largest_difference(first, second),
        "records": {"first": first, "second": second},
    }


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    model = f"{record['layers']} decoder layers at full width, random weights; fp8={record['precision']}"
    same = f"Losses of the steps that both runs made: at most {record['difference']:.1e} apart, relatively."
    return Page(
        title="A whole run",
        question="How long does the command line itself wait for data, stand still for saving and take to resume?",
        configuration=model,
        measured=[f"{model}, {name}, {layout}" for name, layout, *_ in record["rows"]],
        body="\n".join([markdown(HEADINGS, record["rows"]), "", same]),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = _parser().parse_args(argv)
    present = torch.cuda.device_count()
    gpus = arguments.gpus or present
    if gpus < 1 or (gpus > present and not arguments.tiny):
        raise ConfigError(
            f"--gpus={gpus}, and this host shows {counted(present, 'CUDA device')}.", "Every rank drives one."
        )
    sizes = Sizes("apriel-15b", 16384, (1024, 768), 240, 3000)
    if arguments.tiny:
        sizes = Sizes("tiny", 256, (96, 64), 60, 60)
    begun = datetime.datetime.now(datetime.UTC)
    with (
        log_folder() as logs,
        tempfile.TemporaryDirectory(prefix="whole_run-", dir=arguments.directory) as scratch,
    ):
        found = _runs(Path(scratch), logs.folder, arguments, gpus, sizes)
    record = {
        **facts("whole_run", arguments.commit, environment(), begun, gpus), "layers": arguments.layers,
        "precision": arguments.precision, **found,
    }  # fmt: skip
    print_table("whole run", HEADINGS, found["rows"])
    print(f"losses of the steps that both runs made: at most {found['difference']:.1e} apart, relatively")
    print(f"{write(arguments.output, record, page(record), begun)}.json and .md")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
