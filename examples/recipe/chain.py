"""The recipe as a chain of steps: stages, and between them the surgery and the averages, each with what it makes.

The one table of what follows what. ``examples/submit_all.sh`` submits it, shows it and runs it; the scripts of the
stages ask it which command makes what they begin with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_apriel.formats.run_directory import RunDirectory

LAYERS = 48
"""Of the deepened decoder."""
RELEASE = "release"
"""The last step."""
AVERAGE = "tools/average_checkpoints.py"


@dataclass(frozen=True)
class Step:
    """One job of the recipe.

    Attributes:
        name: also of its job.
        product: directory that is there once the step has ended well.
        before: names of the steps whose products it reads.
        command: what bash runs, from the project's directory.
        stage: whether it trains; the others run one of the tools, without GPUs.
        given: what it reads that no step makes.
    """

    name: str
    product: Path
    before: tuple[str, ...]
    command: tuple[str, ...]
    stage: bool = False
    given: Path | None = None

    @property
    def done(self) -> bool:
        """Whether its product is there, and of its last training."""
        if self.stage and RunDirectory(self.product.parent).outdated.exists():
            return False
        return self.product.exists()


def recipe(runs: Path, source_model: Path) -> dict[str, Step]:
    """The steps by name, each behind those that it waits for.

    Args:
        runs: directory of the runs (``RUN_ROOT``).
        source_model: Hugging Face directory that the recipe begins with.
    """

    def stage(name: str, before: str) -> Step:
        return Step(name, RunDirectory(runs / name).final, (before,), (f"examples/{name}.sh",), stage=True)

    def tool(name: str, product: Path, before: tuple[str, ...], *words: object, given: Path | None = None) -> Step:
        return Step(name, product, before, ("examples/tool.sh", *map(str, words)), given=given)

    def average(name: str, run: str, number: int) -> Step:
        product = runs / run / "average"
        return tool(name, product, (run,), AVERAGE, product, "--run", runs / run, "--equispaced", number)

    deepened, release = runs / "upscaled", runs / "release"
    last = [RunDirectory(runs / name).final for name in ("sft_subset", "sft_long")]
    deepening = ("tools/upscale_layers.py", source_model, deepened, "--num-layers", LAYERS)
    steps = [
        tool("surgery", deepened, (), *deepening, given=source_model),
        stage("upscale", "surgery"),
        average("average_upscale", "upscale", 6),
        stage("realign", "average_upscale"),
        stage("cpt_stage1", "realign"),
        average("average_cpt1", "cpt_stage1", 3),
        stage("cpt_stage2", "average_cpt1"),
        stage("sft", "cpt_stage2"),
        stage("sft_subset", "sft"),
        stage("sft_long", "sft"),
        tool(RELEASE, release, ("sft_subset", "sft_long"), AVERAGE, release, "--checkpoints", *last),
    ]
    return {step.name: step for step in steps}


def of_environment() -> dict[str, Step]:
    """The recipe in the places that ``RUN_ROOT``, ``MODEL_ROOT`` and ``SOURCE_MODEL`` name."""
    models = os.environ.get("MODEL_ROOT") or "models"
    return recipe(runs_of_environment(), Path(os.environ.get("SOURCE_MODEL") or Path(models, "pixtral-12b")))


def runs_of_environment() -> Path:
    """The directory of the runs."""
    return Path(os.environ.get("RUN_ROOT") or "runs")


def missing(steps: Mapping[str, Step]) -> list[Step]:
    """The steps that are to be made for the released model, in order.

    What only steps need whose products are there is not made again: its runs may have been removed to make room.
    """
    wanted, open_steps = set(), [RELEASE]
    while open_steps:
        name = open_steps.pop()
        if name not in wanted and not steps[name].done:
            wanted.add(name)
            open_steps += steps[name].before
    return [step for step in steps.values() if step.name in wanted]
