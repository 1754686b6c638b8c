"""The benchmarks: what loads each, how it is asked, and the figure of the paper.

Where the paper states no setting, it is that of the index it quotes (Artificial Analysis Intelligence Index 3.0): so
many runs, sampling at 0.6, and as many tokens as the model allows, which is the index's rule for models that reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_apriel.errors import ConfigError
from megatron_apriel.evaluate import loaders
from megatron_apriel.evaluate.from_evalscope import ADAPTERS
from megatron_apriel.evaluate.loaders import Given, Loaded
from megatron_apriel.evaluate.own_questions import own
from megatron_apriel.evaluate.scicode_items import scicode


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
        conversed: whether it is conversations with a simulated user, which another model is.
        blind: of the same items without their pictures, the name of that benchmark.
    """

    name: str
    title: str
    load: Callable[[Given], Loaded]
    paper: float | None = None
    runs: int = 1
    judged: bool = False
    conversed: bool = False
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
        Benchmark("live_code_bench", "LiveCodeBench", ADAPTERS["live_code_bench"].load, 72.8, runs=3),
        Benchmark("scicode", "SciCode", scicode, 34.8, runs=3),
        Benchmark("tau2_telecom", "tau2-bench, telecom", loaders.tau2_telecom, 68.4, runs=3, conversed=True),
        Benchmark("hle", "HLE, text only", ADAPTERS["hle"].load, 12.0, judged=True),
        Benchmark("mmmu", "MMMU", ADAPTERS["mmmu"].load, 70.22),
        Benchmark("mmmu_pro", "MMMU-Pro, 10 options", ADAPTERS["mmmu_pro"].load, 55.38),
        Benchmark("mmmu_pro_vision", "MMMU-Pro, vision", ADAPTERS["mmmu_pro_vision"].load, 48.21),
        Benchmark("logic_vista", "LogicVista", ADAPTERS["logic_vista"].load, 58.39),
        Benchmark("math_vision", "MathVision", ADAPTERS["math_vision"].load, 50.99),
        Benchmark("math_vista", "MathVista", ADAPTERS["math_vista"].load, 75.50),
        Benchmark("math_verse_vd", "MathVerse, vision-dominant", ADAPTERS["math_verse_vd"].load, 58.38),
        Benchmark("math_verse_td", "MathVerse, text-dominant", ADAPTERS["math_verse_td"].load, 76.40),
        Benchmark("mm_star", "MMStar", ADAPTERS["mm_star"].load, 67.73),
        Benchmark("charxiv_d", "CharXiv, descriptive", ADAPTERS["charxiv_d"].load, 88.20, judged=True),
        Benchmark("charxiv_r", "CharXiv, reasoning", ADAPTERS["charxiv_r"].load, 50.10, judged=True),
        Benchmark("ai2d", "AI2D", ADAPTERS["ai2d"].load, 82.87),
        Benchmark("blink", "BLINK", ADAPTERS["blink"].load, 58.71),
        Benchmark("own", "own questions", own),
        Benchmark("visual_tasks", "visual tasks", loaders.visual_tasks, blind="visual_tasks_blind"),
        Benchmark("visual_tasks_blind", "visual tasks, no picture", loaders.visual_tasks_blind),
    )
}


GROUPS = {
    "text10": (
        "mmlu_pro", "gpqa_diamond", "hle", "live_code_bench", "scicode", "aime25", "ifbench", "aa_lcr",
        "terminal_bench_hard", "tau2_telecom",
    ),
    "vision13": (
        "mmmu", "mmmu_pro", "mmmu_pro_vision", "logic_vista", "math_vision", "math_vista", "math_verse_vd",
        "math_verse_td", "mm_star", "charxiv_d", "charxiv_r", "ai2d", "blink",
    ),
}  # fmt: skip
"""The columns of the paper, by the names of its tables."""
ABSENT = {
    "terminal_bench_hard": "each of its tasks is a container in which an agent works, so it needs Docker, harbor, and "
    "the 44 tasks of terminal-bench-hard-aa-split, which nemo-evaluator 0.3.0 lists and runs",
}
"""Why a column of the paper is not there. A group leaves it out and says so, and by itself it is refused."""


def left_out(names: str) -> list[str]:
    """What the groups among names leave out, and why."""
    words = [word.strip() for word in names.split(",")]
    return [
        f"{word} without {name}, which is not evaluated here: {ABSENT[name]}."
        for word in words for name in GROUPS.get(word, ()) if name in ABSENT
    ]  # fmt: skip


def chosen_benchmarks(names: str) -> list[Benchmark]:
    """Benchmarks by their names, in the order given; one that is asked without pictures too brings that along.

    Raises:
        ConfigError: there is none of a name, or it cannot be evaluated here.
    """
    found: list[Benchmark] = []
    words = [one for word in names.split(",") if (one := word.strip())]
    given = [name for word in words for name in GROUPS.get(word, (word,)) if word not in GROUPS or name not in ABSENT]
    for name in given:
        if name in ABSENT:
            raise ConfigError(
                f"{name} cannot be evaluated: {ABSENT[name]}.",
                fix=f"Name those that can: {', '.join(one for one in given if one in BENCHMARKS) or 'see --help'}.",
            )
        if name not in BENCHMARKS:
            near = _near(name.lower().replace("-", "_"))
            raise ConfigError(
                f"there is no benchmark {name!r}{f'; did you mean {near}?' if near else '.'}",
                fix=f"There are {', '.join((*GROUPS, *BENCHMARKS))}.",
            )
        found += [BENCHMARKS[name], *([BENCHMARKS[blind]] if (blind := BENCHMARKS[name].blind) else [])]
    if not found:
        raise ConfigError("no benchmark is named.", fix=f"There are {', '.join(BENCHMARKS)}.")
    return list(dict.fromkeys(found))


def check_other_models(benchmarks: Sequence[Benchmark], missing: Mapping[str, str]) -> None:
    """Check that no benchmark needs a model that is missing.

    Args:
        benchmarks: that are evaluated.
        missing: options that would name a model, and the way out besides, for the end of a sentence.

    Raises:
        ConfigError: one needs it.
    """
    for option, names in (
        ("--judge", [one.name for one in benchmarks if one.judged]),
        ("--user-model", [one.name for one in benchmarks if one.conversed]),
    ):
        if names and option in missing:
            raise model_missing(option, names, missing[option])


_MODELS = {"--judge": "judged by a model", "--user-model": "held with a model that plays the user"}
"""What another model does, by the option that names it."""


def model_missing(option: str, names: Sequence[str], way_out: str = "") -> ConfigError:
    """The error where something needs another model and none is given.

    Args:
        option: that would name it.
        names: what needs it.
        way_out: besides, for the end of a sentence.
    """
    return ConfigError(
        f"{', '.join(names)} {'are' if len(names) > 1 else 'is'} {_MODELS[option]}, and none is given.",
        fix=f"Give its address with {option}{way_out}.",
    )


def _near(name: str) -> str:
    """What a wrong name begins or resembles; empty if nothing."""
    valid = [*GROUPS, *BENCHMARKS]
    return next(iter([one for one in valid if one.startswith(name)] or difflib.get_close_matches(name, valid)), "")
