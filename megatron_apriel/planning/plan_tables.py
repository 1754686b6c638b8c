"""The tables of ``tools/plan.py``: layouts in their order, the nearest that do not fit, smaller states, all stages."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError
from megatron_apriel.planning.certainty import signs
from megatron_apriel.planning.layouts import Candidate, Candidates
from megatron_apriel.planning.plan_words import hours_of, memory_of, recomputation_of
from megatron_apriel.quantities import size, three_digits
from megatron_apriel.tables import Table, figures

LAYOUT_COLUMNS = ("TP", "CP", "PP", "VP", "DP", "layers", "recompute")
LAYOUT_WORDS = (5, 6)
NAMED_BY = LAYOUT_COLUMNS.index("layers")
"""How many of them are repeated where a table has more columns than room."""


def _sizes(candidate: Candidate) -> list[str]:
    layout = candidate.layout
    return [str(one) for one in (layout.tensor, layout.context, layout.pipeline, layout.virtual, layout.data)]


def _layout_cells(candidate: Candidate) -> list[str]:
    runs = [(count, len(list(equal))) for count, equal in itertools.groupby(candidate.layers)]
    layers = ", ".join(f"{count} x{times}" if times > 1 else str(count) for count, times in runs)
    return [*_sizes(candidate), layers, recomputation_of(candidate)]


def ranking(found: Sequence[Candidate], title: str) -> Table:
    """The layouts that fit, as they are ordered."""
    columns = ("m.b.", "memory", "s/step", "tokens/s/GPU", "TFLOP/s/GPU", "bubble", "comm.", "sure", "GPU-hours")
    table = figures(*LAYOUT_COLUMNS, *columns, words=LAYOUT_WORDS, title=title, about=NAMED_BY)
    for candidate in found:
        time = candidate.time
        table.add_row(
            *_layout_cells(candidate),
            str(time.micro_batches),
            memory_of(candidate),
            three_digits(time.total),
            three_digits(candidate.tokens_per_second),
            three_digits(candidate.teraflops),
            f"{time.bubble / time.total:.1%}",
            f"{time.communication / time.total:.1%}",
            signs(candidate.doubts),
            hours_of(candidate),
        )
    return table


def states_table(best: Mapping[str, Candidate | ConfigError | None]) -> Table:
    """The fastest layout with each form of the optimizer's numbers, if one fits; the first is the stage's own.

    A form with which a run would be refused has the error.
    """
    title = "What smaller optimizer states would give (docs/one_gpu.md says what they lose)"
    columns = ("states", *LAYOUT_COLUMNS[:4], "recompute", "memory", "tokens/s/GPU", "gain")
    table = figures(*columns, words=(0, 5), title=title)
    own = next(iter(best.values()))
    for name, candidate in best.items():
        if not isinstance(candidate, Candidate):
            table.add_row(name, *["-"] * 5, "does not fit" if candidate is None else "refused", "-", "-")
            continue
        others = own if isinstance(own, Candidate) and own != candidate else None
        gain = "-" if others is None else f"{candidate.tokens_per_second / others.tokens_per_second - 1:+.1%}"
        cells = _layout_cells(candidate)
        speed = three_digits(candidate.tokens_per_second)
        table.add_row(name, *cells[:4], cells[-1], memory_of(candidate), speed, gain)
    return table


def misses(found: Sequence[Candidate]) -> Table:
    """Layouts that do not fit, and by how much."""
    title = "The nearest that do not fit"
    table = figures(*LAYOUT_COLUMNS, "memory", "over by", "stage", words=LAYOUT_WORDS, title=title, about=NAMED_BY)
    for candidate in found:
        table.add_row(
            *_layout_cells(candidate), memory_of(candidate), size(candidate.over), str(candidate.fullest_stage)
        )
    return table


def stages_table(title: str) -> Table:
    """A table for the fastest layout of each of several stages, a :func:`stage_row` for each."""
    names = ("stage", "sequence", "fp8", *LAYOUT_COLUMNS[:5], "recompute", "moments", "memory", "tokens/s/GPU")
    return figures(*names, "TFLOP/s/GPU", "sure", "GPU-hours", words=(0, 2, 8, 9, 10), title=title)


def stage_row(name: str, config: StageConfig, found: Candidates) -> list[str]:
    """The fastest layout of a stage, or what the nearest lacks."""
    named = [name, f"{config.sequence_length:,}", config.precision.fp8]
    if not found.accepted:
        return [*named, *["-"] * 8, "no layout can run", "", "", ""]
    fitting = found.fitting()
    best = (fitting or found.missing())[0]
    speed = [three_digits(best.tokens_per_second), three_digits(best.teraflops), signs(best.doubts), hours_of(best)]
    return [
        *named,
        *_sizes(best),
        recomputation_of(best),
        best.config.optimizer.moments,
        memory_of(best),
        *(speed if fitting else [f"over by {size(best.over)}", "", "", ""]),
    ]
