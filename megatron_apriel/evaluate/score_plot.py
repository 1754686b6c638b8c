"""Scores over tokens as a picture: a panel for each benchmark, a line for each run, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_apriel.errors import ConfigError, printable
from megatron_apriel.evaluate.comparing import Compared
from megatron_apriel.output_files import whole_file
from megatron_apriel.quantities import short

SUFFIXES = (".png", ".svg", ".pdf")
_ACROSS = 3
_LONGEST_NAME = 40
_LOWEST_TOP = 10
"""Of a panel, in percent: where all scores are near 0, it would show noise."""


def check_picture(path: Path) -> None:
    """Raise ConfigError if no picture can be written under this name."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path} is no picture's name.", fix=f"It ends in {', '.join(SUFFIXES)}.")


def draw_scores(compared: Sequence[Compared], path: Path) -> None:
    """Write the picture. What is of no run is a level across; without any run, points beside each other."""
    check_picture(path)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(one.row.name for one in compared))
    across = min(len(names), _ACROSS)
    down = math.ceil(len(names) / across)
    figure, grid = plt.subplots(down, across, figsize=(4.6 * across, 3.4 * down), layout="constrained", squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        _draw(axes, [one for one in compared if one.row.name == name])
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    handles = {label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels())}  # noqa: B905
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 3), fontsize=8)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=130)
    plt.close(figure)


def _draw(axes: Any, compared: Sequence[Compared]) -> None:
    row = compared[0].row
    of_runs = [one for one in compared if one.result.tokens is not None]
    alone = [one for one in compared if one.result.tokens is None]
    runs = list(dict.fromkeys(one.result.run for one in of_runs))
    for number, run in enumerate(runs):
        points = sorted((one for one in of_runs if one.result.run == run), key=lambda one: one.result.tokens or 0)
        _points(axes, [one.result.tokens or 0 for one in points], points, f"C{number}", run, "o-")
    for number, one in enumerate(alone, len(runs)):
        if runs:
            axes.axhline(one.row.score.value, color=f"C{number}", lw=1, ls="--", label=_label(one.result.name))
        else:
            _points(axes, [number], [one], f"C{number}", one.result.name, "o")
    if row.paper is not None:
        axes.axhline(row.paper, color="0.6", lw=1, ls=":", label="the paper")
    if runs:
        axes.xaxis.set_major_formatter(lambda tokens, place: short(tokens))
    else:
        axes.set_xticks([])
    axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], _LOWEST_TOP))
    axes.set_xlabel("tokens" if runs else "", fontsize=8)
    axes.set_ylabel("percent right", fontsize=8)
    axes.set_title(row.title, fontsize=10, parse_math=False)
    axes.tick_params(labelsize=8)


def _points(axes: Any, places: Sequence[float], points: Sequence[Compared], color: str, name: str, form: str) -> None:
    scores = [one.row.score for one in points]
    ends = [
        [max(score.value - score.low, 0) for score in scores],
        [max(score.high - score.value, 0) for score in scores],
    ]
    values = [score.value for score in scores]
    axes.errorbar(places, values, ends, fmt=form, color=color, ms=4, lw=1.2, capsize=2, label=_label(name))


def _label(name: str) -> str:
    """Of a line; matplotlib reads dollars as mathematics, and leaves out what begins with a line below."""
    name = printable(name).replace("$", r"\$").lstrip("_")
    return name if len(name) <= _LONGEST_NAME else f"...{name[-_LONGEST_NAME:]}"
