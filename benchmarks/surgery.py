"""How long checkpoint surgery takes, beside a plain copy and mergekit: upscaling one checkpoint, averaging three.

Random checkpoints are made in a temporary folder, then every subject takes its turn, several rounds over, with the
inputs in the page cache and nothing waiting to be written. Only ratios within one run mean something: what a disk or a
busy machine does to one, it does to all. Nothing here needs a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.options import add_output_options, wrong_usage
from benchmarks.processes import ROOT
from benchmarks.report import Page, Record, markdown, write
from benchmarks.versions import facts, processor
from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.formats.tensor_files import TensorSpec
from megatron_apriel.surgery.layer_maps import layer_map
from megatron_apriel.surgery.shards import Room, plan_shards, write_tensors

EXAMPLES = """\
examples:
  # our tools beside cp; takes a minute or two, and 5 GB in the folder for temporary files
  python benchmarks/surgery.py

  # beside mergekit too, which lives in an environment of its own, and beside an earlier commit's tools
  python benchmarks/surgery.py --mergekit ~/mergekit/bin/mergekit-yaml --earlier ../checkout-of-last-month

Exit code: 0 if every subject did its work, 1 if one did not.
"""
HEADINGS = ("work", "subject", "seconds", "least", "most", "CPU seconds", "times cp", "of mergekit")
UPSCALE, AVERAGE = "upscale", "average"
LAYERS, DEEPER = 24, 28
"""Of the checkpoint, and of the deeper one: 7/6, about as the recipe's 40 become 48."""
INPUTS = 3
COPY, DURABLE_COPY = "cp -r", "cp -r, then sync"
COPIES = (COPY, DURABLE_COPY)
"""One ends before the disk has anything, the other when a power cut could do no harm, as ours does."""
_IN_PROCESS = """
import json, sys, time
from megatron_apriel.surgery.layer_maps import layer_map
from megatron_apriel.surgery.models import GivenModel
from megatron_apriel.surgery.upscale import plan_upscale, upscale
from megatron_apriel.surgery.average import average, plan_average
from megatron_apriel.surgery.average_inputs import AverageInput
work, destination, deeper, *sources = sys.argv[1:]
begun = time.perf_counter()
if work == "upscale":
    source = GivenModel.open(sources[0])
    upscale(plan_upscale(source, layer_map("spread-middle", source.num_layers, int(deeper)), "copy", None), destination)
else:
    average(plan_average([AverageInput.from_directory(source) for source in sources]), destination)
print(time.perf_counter() - begun)
"""


@dataclass
class Subject:
    """Something that is timed.

    Attributes:
        work: what it does, as the table groups it.
        name: who does it.
        command: its command line, which makes the directory ``destination`` of the scratch folder.
        says_seconds: whether it times itself and prints that, its start left out.
        seconds, cpu_seconds: one of each a round: until the command ends, and of all cores.
    """

    work: str
    name: str
    command: Sequence[str | Path]
    says_seconds: bool = False
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def run(self, scratch: Path) -> None:
        """Take a turn. Raises CalledProcessError, with what it printed, if the command fails."""
        shutil.rmtree(scratch / "destination", ignore_errors=True)
        os.sync()
        before, begun = _cpu_seconds(), time.perf_counter()
        done = subprocess.run([str(word) for word in self.command], capture_output=True, text=True, cwd=scratch,
                              env=_environment(self.command), check=True)  # fmt: skip
        seconds = time.perf_counter() - begun
        self.seconds.append(float(done.stdout.split()[-1]) if self.says_seconds else seconds)
        self.cpu_seconds.append(_cpu_seconds() - before)


def _cpu_seconds() -> float:
    """Of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment(command: Sequence[str | Path]) -> dict[str, str]:
    """Tools of a checkout import that checkout; nothing asks the network."""
    tool = next((Path(word) for word in command if str(word).endswith(".py")), ROOT / "tools" / "any.py")
    return {**os.environ, "PYTHONPATH": str(tool.resolve().parents[1]), "HF_HUB_OFFLINE": "1"}


def shapes(tiny: bool) -> dict[str, tuple[int, ...]]:
    """Of a text-only Mistral of 357 million parameters, under Hugging Face names."""
    hidden, ffn, vocabulary = (64, 128, 256) if tiny else (1024, 3072, 32768)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(LAYERS):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 4, hidden),
            "self_attn.v_proj": (hidden // 4, hidden), "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }.items():  # fmt: skip
            found[f"model.layers.{layer}.{name}.weight"] = shape
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def make_checkpoint(directory: Path, seed: int, tiny: bool) -> int:
    """Write a checkpoint of bfloat16 weights that differ from seed to seed by a tenth; returns its bytes."""
    table = shapes(tiny)
    shared, own = np.random.default_rng(0), np.random.default_rng(1 + seed)

    def contents(spec: TensorSpec, room: Room) -> list[memoryview]:
        numbers = shared.standard_normal(spec.elements, dtype=np.float32)
        numbers += 0.1 * own.standard_normal(spec.elements, dtype=np.float32)
        return [memoryview(((0.02 * numbers).view(np.uint32) >> 16).astype(np.uint16))]

    directory.mkdir()
    shards = plan_shards([TensorSpec(name, "BF16", shape) for name, shape in table.items()], None)
    write_tensors(directory, shards, contents)
    hidden = table["model.norm.weight"][0]
    config = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": hidden,
        "intermediate_size": table["model.layers.0.mlp.up_proj.weight"][0], "num_hidden_layers": LAYERS,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": hidden // 8,
        "vocab_size": table["lm_head.weight"][0], "rms_norm_eps": 1e-5, "rope_theta": 1e6, "hidden_act": "silu",
        "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return shards[0].size


def _read(file: Path) -> None:
    """Bring a file into the page cache."""
    buffer = bytearray(1 << 20)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def subjects(scratch: Path, mergekit: Path | None, earlier: Path | None) -> list[Subject]:
    """All that take turns, the copy first."""
    sources = [scratch / f"source{number}" for number in range(INPUTS)]
    destination = scratch / "destination"
    durable: list[str | Path] = ["sh", "-c", 'cp -r "$1" "$2" && sync -f "$2"', "cp", sources[0], destination]
    found = [
        Subject(UPSCALE, COPY, ["cp", "-r", sources[0], destination]),
        Subject(UPSCALE, DURABLE_COPY, durable),
    ]
    for name, root in (("ours", ROOT), ("ours, earlier", earlier)):
        if root is None:
            continue
        upscale, average = (root / "tools" / f"{tool}.py" for tool in ("upscale_layers", "average_checkpoints"))
        deeper: list[str | Path] = [sources[0], destination, "--num-layers", str(DEEPER)]
        found.append(Subject(UPSCALE, name, [sys.executable, upscale, *deeper]))
        found.append(Subject(AVERAGE, name, [sys.executable, average, destination, "--checkpoints", *sources]))
    for work in (UPSCALE, AVERAGE):
        timing_itself: list[str | Path] = [sys.executable, "-c", _IN_PROCESS, work, destination, str(DEEPER), *sources]
        found.append(Subject(work, "ours, without its start", timing_itself, says_seconds=True))
    if mergekit is not None:
        for work, recipe in _mergekit_recipes(sources).items():
            file = scratch / f"{work}.yml"
            file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
            options = ["--no-copy-tokenizer", "--no-write-model-card", "--clone-tensors"]
            found.append(Subject(work, "mergekit", [mergekit, file, destination, *options]))
    return sorted(found, key=lambda subject: subject.work == AVERAGE)


def _mergekit_recipes(sources: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The same work in mergekit's words: the layers of our default map one by one; a mean taken in float32."""
    layers = layer_map("spread-middle", LAYERS, DEEPER).originals
    slices = [{"sources": [{"model": str(sources[0]), "layer_range": [layer, layer + 1]}]} for layer in layers]
    models = [{"model": str(source), "parameters": {"weight": 1.0}} for source in sources]
    return {
        UPSCALE: {"merge_method": "passthrough", "dtype": "bfloat16", "slices": slices},
        AVERAGE: {"merge_method": "linear", "dtype": "float32", "out_dtype": "bfloat16", "models": models},
    }


def rows(timed: Sequence[Subject]) -> list[list[str]]:
    """One row a subject, in the columns of :data:`HEADINGS`; medians."""
    medians = {(one.work, one.name): statistics.median(one.seconds) for one in timed}
    copy = medians[UPSCALE, COPY]
    found = []
    for one in timed:
        seconds, peer = medians[one.work, one.name], medians.get((one.work, "mergekit"))
        found.append([
            one.work if one.name not in COPIES else "-", one.name, f"{seconds:.2f}", f"{min(one.seconds):.2f}",
            f"{max(one.seconds):.2f}", f"{statistics.median(one.cpu_seconds):.2f}", f"{seconds / copy:.2f}",
            f"{seconds / peer:.2f}" if peer and one.name not in COPIES else "-",
        ])  # fmt: skip
    return found


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    timed = [
        Subject(one["work"], one["subject"], (), seconds=one["seconds"], cpu_seconds=one["cpu_seconds"])
        for one in record["measured"]
    ]
    before, after = record["load"]
    return Page(
        title="Checkpoint surgery",
        question="How long do upscaling and averaging take, beside a plain copy and mergekit?",
        configuration=f"checkpoints of {record['bytes'] / 1e9:.2f} GB, {record['rounds']} rounds, load average of the "
        f"machine {before} at the start and {after} at the end",
        measured=[f"{one.work}, {one.name}" for one in timed],
        body=markdown(HEADINGS, rows(timed)),
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each subject (%(default)s)")
    parser.add_argument("--mergekit", type=Path, metavar="FILE", help="mergekit-yaml of the environment that has it")
    parser.add_argument("--earlier", type=Path, metavar="DIR", help="a checkout of an earlier commit, for its tools")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where to work (default: for temporary files)")
    add_output_options(parser, "surgery")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # small checkpoints
    return parser


def _check(arguments: argparse.Namespace) -> None:
    if arguments.rounds < 1:
        raise ConfigError(f"--rounds={arguments.rounds} measures nothing.", fix="Give a number above 0.")
    for option, file in (
        ("--mergekit", arguments.mergekit),
        ("--earlier", arguments.earlier and arguments.earlier / "tools" / "upscale_layers.py"),
    ):
        if file is not None and not file.is_file():
            raise ConfigError(f"{option}: there is no {file}.", fix="Give a path to it, or leave the option out.")


def _turns(
    scratch: Path, arguments: argparse.Namespace, say: Callable[[str], None]
) -> tuple[list[Subject], int, list[str]]:
    """All rounds: what was timed, the bytes of a checkpoint, and what failed."""
    say(f"making {INPUTS} checkpoints in {scratch}")
    size = max(make_checkpoint(scratch / f"source{seed}", seed, arguments.tiny) for seed in range(INPUTS))
    timed = subjects(scratch, arguments.mergekit and arguments.mergekit.absolute(), arguments.earlier)
    failures: list[str] = []
    for number in range(arguments.rounds):
        for subject in list(timed):
            say(f"round {number + 1}: {subject.work}, {subject.name}")
            for file in scratch.glob("source*/*"):
                _read(file)
            try:
                subject.run(scratch)
            except subprocess.CalledProcessError as error:
                failures.append(f"{subject.work}, {subject.name}: {error.stderr.strip()[-500:]}")
                timed.remove(subject)
    return timed, size, failures


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    arguments = _parser().parse_args(argv)
    try:
        _check(arguments)
    except ConfigError as error:
        return wrong_usage(error)
    begun, load = datetime.datetime.now(datetime.UTC), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="surgery-", dir=arguments.directory) as scratch:
        timed, size, failures = _turns(Path(scratch), arguments, lambda line: print(line, file=sys.stderr, flush=True))
    table = Table(*HEADINGS, title=f"checkpoints of {size / 1e9:.2f} GB; cp alone does not wait for the disk")
    for cells in rows(timed):
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    environment = {"device": "CPU", "versions": {"numpy": np.__version__}}
    record = {
        **facts("surgery", arguments.commit, environment, begun), "hardware": processor(), "bytes": size,
        "rounds": arguments.rounds, "load": [round(one, 1) for one in (load, os.getloadavg()[0])],
        "measured": [
            {"work": one.work, "subject": one.name, "seconds": one.seconds, "cpu_seconds": one.cpu_seconds}
            for one in timed
        ],
    }  # fmt: skip
    print(f"{write(arguments.output, record, page(record), begun)}.json and .md")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return ExitCode.FAILED if failures else ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
