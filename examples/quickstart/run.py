"""The whole recipe in miniature, by the commands that a user would give: from a checkpoint to a reasoning model.

usage: run.py [--output runs/quickstart] [--scale 1.0] [--list]

Every step is one command, printed before it runs; run it by hand to try variations. A step whose product exists is
skipped, and training resumes from its newest checkpoint, so an interrupted run continues where it stopped. At the end:
benchmarks of one stage, a table of all, a plot of their losses, and the directory of the result.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_apriel.command_line import CommandLine
from megatron_apriel.config.load import load_stage
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.formats.run_directory import RunDirectory, checkpoint_path
from megatron_apriel.formats.run_evaluations import REPORT
from megatron_apriel.terminal import say
from megatron_apriel.train.metrics import clock

HERE = Path(__file__).parent
TOOLS = HERE.parent.parent / "tools"
DEFAULT_ROOT = Path("runs/quickstart")
STAGES = ("stage1", "realign", "cpt_stage1", "cpt_stage2", "sft", "sft_subset", "sft_long")
EVALUATED = "cpt_stage2"
"""The stage whose file has a section ``evaluate``."""


@dataclass(frozen=True)
class Step:
    """A command and the file or directory that exists once it has ended well."""

    name: str
    product: Path
    command: list[str]


def python(script: Path, *arguments: object) -> list[str]:
    return [sys.executable, str(script), *map(str, arguments)]


def preparation(root: Path, scale: float) -> Iterator[Step]:
    """Model, raw data, corpora."""
    raw, corpora, tasks = root / "raw", root / "corpora", root / "visual_tasks"
    model = root / "pixtral-mini"
    yield Step("a small Pixtral-shaped checkpoint", model, python(HERE / "make_model.py", model))
    yield Step("raw text and photographs", raw / "complete", python(HERE / "collect_data.py", raw))
    photographs = raw / "photographs"
    for suffix, seed, samples in (("", 1, max(round(240 * scale), 24)), ("_heldout", 2, 32)):
        destination = root / f"visual_tasks{suffix}"
        command = python(TOOLS / "make_visual_tasks.py", destination, "--images", photographs, "--seed", seed)
        options = ["--samples", str(samples), "--difficulty", "easy", "--max-side", "128"]
        yield Step(f"visual tasks{suffix.replace('_', ', ')}", destination, command + options)
    sources = {
        "web": raw, "web_heldout": raw, "code": raw, "captions": photographs, "captions_heldout": photographs,
        "reasoning": raw, "reasoning_subset": raw, "reasoning_long": raw, "reasoning_heldout": raw,
        "questions": raw,
        "visual_tasks": tasks, "visual_tasks_heldout": tasks.with_name("visual_tasks_heldout"),
    }  # fmt: skip
    for name, images in sources.items():
        source = images if name.startswith("visual") else raw / f"{name}.jsonl"
        command = python(TOOLS / "prepare_data.py", corpora / name, "--input", source, "--model", model)
        yield Step(f"corpus {name}", corpora / name, [*command, "--image-root", str(images)])


def training(name: str, scale: float) -> list[str]:
    """Command that trains one stage, shortened to ``scale`` of its tokens."""
    stage = load_stage(HERE / f"{name}.yaml", [])
    steps = max(round(stage.steps * scale), 6)
    short = [f"tokens={steps * stage.batch_tokens}"] if scale != 1 else []
    if scale != 1 and stage.checkpoint.keep.policy == "equispaced":
        short.append(f"checkpoint.every={max(steps // stage.checkpoint.keep.number, 1)}")
    return [sys.executable, "-m", "megatron_apriel.train", str(HERE / f"{name}.yaml"), *short]


def recipe(root: Path, scale: float) -> Iterator[Step]:
    """All steps in order."""
    yield from preparation(root, scale)
    upscale = python(TOOLS / "upscale_layers.py", root / "pixtral-mini", root / "upscaled", "--num-layers", 6)
    yield Step("depth upscaling, 5 to 6 layers", root / "upscaled", upscale)
    average = TOOLS / "average_checkpoints.py"
    for name in STAGES:
        yield Step(f"stage {name}", root / name / "final", training(name, scale))
        number = {"stage1": 6, "cpt_stage1": 3}.get(name)
        if number:
            mean = root / name / "average"
            yield Step(
                f"average of {number} checkpoints", mean,
                python(average, mean, "--run", root / name, "--equispaced", number),
            )  # fmt: skip
    parts = [root / name / "final" for name in ("sft_subset", "sft_long")]
    yield Step(
        "average of the two last runs", root / "apriel-mini",
        python(average, root / "apriel-mini", "--checkpoints", *parts),
    )  # fmt: skip
    evaluated = RunDirectory(root / EVALUATED)
    yield Step(
        f"benchmarks before and after {EVALUATED}",
        checkpoint_path(evaluated.evaluations, 0) / REPORT,  # before it; comes last
        python(TOOLS / "evaluate.py", "--follow", evaluated.path, "--once", "--engine", "transformers"),
    )  # fmt: skip


def run(step: Step, number: int, count: int, environment: dict[str, str]) -> float:
    """Run one step with its output shown; returns its seconds. Raises ConfigError naming the command if it fails."""
    say("", f"[{number}/{count}] {step.name}", f"$ {shlex.join(step.command)}")
    started = time.monotonic()
    code = subprocess.run(step.command, env=environment, check=False).returncode
    if code in (ExitCode.REQUEUE, ExitCode.INTERRUPTED, -2):
        raise KeyboardInterrupt
    if code or not step.product.exists():
        raise ConfigError(
            f"step {number}, {step.name}, ended with exit code {code}.",
            f"Its command: {shlex.join(step.command)}",
            "Its message stands above. Run this again to resume at this step.",
        )
    return time.monotonic() - started


def main(argv: list[str] | None = None) -> int:
    parser = CommandLine(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_ROOT, help="default: runs/quickstart")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the tokens of every stage (default: 1)")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    arguments = parser.parse_args(argv)
    root = arguments.output
    # Where the stages' files look, unless set otherwise; their outputs call it by this name.
    environment = dict(os.environ) if root == DEFAULT_ROOT else {**os.environ, "QUICKSTART": str(root)}
    steps = list(recipe(root, arguments.scale))
    if arguments.list:
        say(*(shlex.join(step.command) for step in steps))
        return 0
    root.mkdir(parents=True, exist_ok=True)
    record = root / "seconds.json"
    seconds: dict[str, float] = json.loads(record.read_text()) if record.exists() else {}
    started = time.monotonic()
    for number, step in enumerate(steps, 1):
        if step.product.exists():
            continue
        seconds[step.name] = seconds.get(step.name, 0.0) + run(step, number, len(steps), environment)
        record.write_text(json.dumps(seconds, indent=1))
    command = python(HERE / "generate.py", root / "apriel-mini", "--image", root / "raw" / "photographs" / "coffee.jpg")
    say("", "the result, loaded and asked by transformers alone", f"$ {shlex.join(command)}")
    if subprocess.run(command, check=False).returncode:
        raise ConfigError("transformers could not load or run the result.", fix="Its message stands above.")
    report = python(HERE / "report.py", root)
    if subprocess.run(report, check=False).returncode:
        raise ConfigError("the report could not be made.", fix="Its message stands above.")
    say(f"this run took {clock(time.monotonic() - started)}; the model is in {root / 'apriel-mini'}")
    say("your own data: source .venv/bin/activate, and docs/first_run.md from its first step")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
