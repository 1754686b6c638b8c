"""Table and plot of a quickstart run: what each stage trained on, and what it did to held-out data and benchmarks.

usage: report.py [runs/quickstart]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from megatron_apriel.command_line import CommandLine
from megatron_apriel.config.yaml_text import read_yaml
from megatron_apriel.errors import DataError, printable, run_command
from megatron_apriel.evaluate.benchmarks import BENCHMARKS
from megatron_apriel.quantities import short
from megatron_apriel.tables import Table, standard_output
from megatron_apriel.terminal import say
from megatron_apriel.train.metrics import clock

STAGES = ("stage1", "realign", "cpt_stage1", "cpt_stage2", "sft", "sft_subset", "sft_long")


def read(run: Path) -> list[dict[str, Any]]:
    """A stage's records; where a step was repeated after an interruption, the later one."""
    file = run / "metrics.jsonl"
    if not file.exists():
        raise DataError(f"{file} does not exist.", fix="Run the quickstart to its end first.")
    latest = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        latest[record["kind"], record["step"]] = record
    return list(latest.values())


def trained(run: Path) -> str:
    """The components with a learning-rate factor above zero, from the run's own configuration."""
    parts = read_yaml(run / "config.resolved.yaml")[0]["train"]
    names = [name for name in ("tower", "projector", "decoder") if parts[name]]
    return "all" if len(names) == 3 else ", ".join(names)


def table(root: Path, seconds: dict[str, float]) -> Table:
    shown = Table(title="the recipe in miniature")
    for heading, side in (("stage", "left"), ("tokens", "right"), ("trained", "left"), ("held-out", "left"),
                          ("before", "right"), ("after", "right"), ("time", "right")):  # fmt: skip
        shown.add_column(heading, justify=side, no_wrap=True)  # lines of one row stand beside each other
    for name in STAGES:
        records = read(root / name)
        steps = [record for record in records if record["kind"] == "step"]
        checks = sorted((record for record in records if record["kind"] == "validation"), key=lambda r: r["step"])
        before, after = checks[0]["loss_by_source"], checks[-1]["loss_by_source"]
        lines = [(f"loss, {label}", f"{before[label]:.3f}", f"{after[label]:.3f}") for label in after]
        lines += scores(records)
        shown.add_row(name, short(steps[-1]["tokens"]), trained(root / name), *map(list, zip(*lines, strict=True)),
                      clock(seconds.get(f"stage {name}", 0)))  # fmt: skip
    return shown


def scores(records: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Of a stage whose checkpoints were evaluated: benchmark, and percent right before and after it."""
    found = sorted((record for record in records if record["kind"] == "evaluation"), key=lambda record: record["step"])
    if len(found) < 2:
        return []
    before, after = found[0]["scores"], found[-1]["scores"]
    return [(f"{BENCHMARKS[name].title}, % right", f"{before[name]:.1f}", f"{after[name]:.1f}") for name in after]


def plot(root: Path) -> Path:
    """All losses across the stages against the tokens seen so far."""
    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    offset = 0
    for number, name in enumerate(STAGES):
        records = sorted(read(root / name), key=lambda record: record["step"])
        steps = [record for record in records if record["kind"] == "step"]
        per_step = steps[-1]["tokens"] / steps[-1]["step"]
        color = f"C{number}"
        axes.plot([offset + r["tokens"] for r in steps], [r["loss"] for r in steps], color=color, lw=1.4, label=name)
        checks = [record for record in records if record["kind"] == "validation"]
        for label in checks[-1]["loss_by_source"]:
            points = [(offset + r["step"] * per_step, r["loss_by_source"][label]) for r in checks]
            axes.plot(*zip(*points, strict=True), "o--", color=color, ms=4, lw=0.8, alpha=0.7)
            place = {"xytext": (3, 3), "textcoords": "offset points"}
            axes.annotate(printable(label), points[-1], **place, fontsize=7, color=color, parse_math=False)
        offset += steps[-1]["tokens"]
        axes.axvline(offset, color="0.85", lw=0.8, zorder=0)
    axes.set(xlabel="tokens", ylabel="loss per token", title="lines: training; dots: held-out data before and after")
    axes.legend(ncols=len(STAGES), fontsize=8, loc="upper right")
    file = root / "losses.png"
    figure.savefig(file, dpi=130)
    return file


def main(argv: list[str] | None = None) -> int:
    parser = CommandLine(description=__doc__)
    parser.add_argument("root", type=Path, nargs="?", default=Path("runs/quickstart"))
    root = parser.parse_args(argv).root
    record = root / "seconds.json"
    standard_output(120).print(table(root, json.loads(record.read_text()) if record.exists() else {}))
    say(f"plot of all losses: {plot(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
