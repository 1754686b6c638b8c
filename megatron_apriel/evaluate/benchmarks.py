"""The benchmarks: what loads each, how it is asked, and the figure of the paper.

Where the paper states no setting, it is that of the index it quotes (Artificial Analysis Intelligence Index 3.0): so
many runs, sampling at 0.6, and as many tokens as the model allows, which is the index's rule for models that reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_apriel.errors import ConfigError
from megatron_apriel.evaluate import loaders
from megatron_apriel.evaluate.loaders import Given, Loaded


@dataclass(frozen=True)
class Benchmark:
    """One column of the table.

    Attributes:
        name: on the command line, and of its folder.
        title: for people.
        load: makes its items.
        paper: the published figure in percent; None where there is none.
        runs: how often every item is asked.
        judged: whether a judge is needed.
        blind: of the same items without their pictures, the name of that benchmark.
    """

    name: str
    title: str
    load: Callable[[Given], Loaded]
    paper: float | None = None
    runs: int = 1
    judged: bool = False
    blind: str = ""


TEMPERATURE = 0.6
"""Of the published runs."""

BENCHMARKS = {
    one.name: one
    for one in (
        Benchmark("mmlu_pro", "MMLU-Pro", loaders.mmlu_pro, 77.3),
        Benchmark("gpqa_diamond", "GPQA-Diamond", loaders.gpqa_diamond, 71.3, runs=5),
        Benchmark("aime25", "AIME'25", loaders.aime25, 87.5, runs=10),
        Benchmark("ifbench", "IFBench", loaders.ifbench, 61.7, runs=5),
        Benchmark("aa_lcr", "AA-LCR", loaders.aa_lcr, 20.0, runs=3, judged=True),
        Benchmark("visual_tasks", "visual tasks", loaders.visual_tasks, blind="visual_tasks_blind"),
        Benchmark("visual_tasks_blind", "visual tasks, no picture", loaders.visual_tasks_blind),
    )
}


def chosen_benchmarks(names: str) -> list[Benchmark]:
    """Benchmarks by their names, in the order given; one that is asked without pictures too brings that along.

    Raises:
        ConfigError: there is none of a name.
    """
    found: list[Benchmark] = []
    for name in filter(None, (one.strip() for one in names.split(","))):
        if name not in BENCHMARKS:
            raise ConfigError(f"there is no benchmark {name!r}.", fix=f"There are {', '.join(BENCHMARKS)}.")
        found += [BENCHMARKS[name], *([BENCHMARKS[blind]] if (blind := BENCHMARKS[name].blind) else [])]
    if not found:
        raise ConfigError("no benchmark is named.", fix=f"There are {', '.join(BENCHMARKS)}.")
    return list(dict.fromkeys(found))
