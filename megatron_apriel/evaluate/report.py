"""The table of an evaluation, in a terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_apriel import __version__
from megatron_apriel.errors import brief
from megatron_apriel.evaluate.results import Part, Row, as_json
from megatron_apriel.evaluate.statistics import Interval
from megatron_apriel.output_files import replace_file
from megatron_apriel.quantities import counted
from megatron_apriel.tables import Table, figures

HEADINGS = ("benchmark", "score", "95% interval", "asked", "scored", "right", "wrong", "none", "truncated", "failed",
            "runs", "tokens", "seconds", "paper")  # fmt: skip
_SHOWN = 200
"""Letters of a reason."""
PART_HEADINGS = ("part", "items", "score", "95% interval", "chance", "most frequent answer")


@dataclass(frozen=True)
class Report:
    """All rows of an evaluation.

    Attributes:
        settings: of its directory.
        rows: one a benchmark.
        baselines: by the name of an earlier evaluation, the difference on the items that both have, by benchmark.
        unpaired: what of the baselines has other items, a sentence each.
        blind: of a benchmark with pictures, what they add to its score.
        left_out: columns that are not evaluated, and why.
    """

    settings: Mapping[str, Any]
    rows: Sequence[Row]
    baselines: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    blind: Mapping[str, Interval] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    unpaired: Sequence[str] = ()

    def remarks(self) -> list[str]:
        """What a reader must know beside the numbers."""
        said = [*self.left_out, *self.unpaired]
        for row in self.rows:
            said += [f"{row.title}: {left_out}" for left_out in row.source.left_out]
            if row.asked and not row.right + row.wrong:
                said.append(f"{row.title}: no answer could be scored, so the score says nothing: {row.truncated:,} "
                            f"were cut off (--max-tokens), {row.none:,} hold none, {row.failed:,} failed.")  # fmt: skip
            if row.missing:
                said.append(f"{row.title}: {row.missing:,} of {row.items * row.runs:,} are not asked and scored yet; "
                            "they count as wrong.")  # fmt: skip
            said += [f"{row.title}: {damage}" for damage in row.damage]
            if row.uncheckable:
                why, again = row.unchecked
                said.append(f"{row.title}: {row.uncheckable:,} could not be checked, whatever was answered, and count "
                            f"as wrong, for example: {brief(why, _SHOWN)}."
                            + (f" The same command checks {again:,} of them again." if again else ""))  # fmt: skip
            if row.loose is not None:
                said.append(f"{row.title}: by the loose rule {row.loose}.")
            if row.items < row.source.items:
                said.append(f"{row.title}: {row.items:,} of {counted(row.source.items, 'item')} "
                            f"{'was' if row.items == 1 else 'were'} chosen"
                            f"{'.' if row.paper is None else '; the paper has all.'}")  # fmt: skip
        scored = {row.title for row in self.rows if row.right + row.wrong}
        for name, gain in self.blind.items():
            if name not in scored:
                continue
            what = f"{gain.value:.2f} points ({gain.low:.2f} to {gain.high:.2f})"
            said.append(f"{name}: pictures add {what}." if gain.low > 0 else
                        f"{name}: no sure gain from the pictures: {what}.")  # fmt: skip
        return said

    def differences(self) -> list[str]:
        """To the baselines, a sentence each."""
        return [
            f"{row.title}: {gains[row.name].value:+.2f} points to {name} ({gains[row.name].low:+.2f} to"
            f" {gains[row.name].high:+.2f}), on the items of both."
            for name, gains in self.baselines.items()
            for row in self.rows
            if row.name in gains
        ]


def cells(row: Row) -> list[str]:
    """A row of the table."""
    return [
        row.title, f"{row.score.value:.2f}", f"{row.score.low:.2f} to {row.score.high:.2f}",
        *(f"{count:,}" for count in (row.asked, row.right + row.wrong, row.right, row.wrong, row.none, row.truncated,
                                     row.failed, row.runs)),
        "" if row.tokens is None else f"{row.tokens:,.0f}", "" if row.seconds is None else f"{row.seconds:,.1f}",
        "" if row.paper is None else f"{row.paper:g}",
    ]  # fmt: skip


def part_cells(part: Part) -> list[str]:
    """A row of the table of parts."""
    guesses = ("" if value is None else f"{value:.1f}" for value in (part.chance, part.most_frequent))
    return [f"{part.name[0]}: {part.name[1]}", f"{part.items:,}", f"{part.score.value:.2f}",
            f"{part.score.low:.2f} to {part.score.high:.2f}", *guesses]  # fmt: skip


def table(report: Report) -> Table:
    """The table for a terminal."""
    found = figures(*HEADINGS, title=f"{report.settings['model']}: percent right of all that was asked")
    for row in report.rows:
        found.add_row(*cells(row))
    return found


def markdown(report: Report) -> str:
    """The page for people."""
    settings = ", ".join(f"{name} {value}" for name, value in report.settings.items() if value not in (None, ""))
    parts = [
        f"# {_plain(str(report.settings['model']))}", "",
        "Percent right of all that was asked: what failed, was cut off or could not be read counts as wrong.", "",
        f"Settings: {_plain(settings)}.", "", _table(HEADINGS, map(cells, report.rows)), "",
        *(f"- {_plain(remark)}" for remark in report.remarks()),
    ]  # fmt: skip
    for name, differences in report.baselines.items():
        rows = [[row.title, str(differences[row.name])] for row in report.rows if row.name in differences]
        parts += ["", f"## Difference to {_plain(name)}, on the items of both", "",
                  _table(("benchmark", "points (95% interval)"), rows)]  # fmt: skip
    for row in report.rows:
        if row.parts:
            parts += ["", f"## {row.title}", "", _table(PART_HEADINGS, map(part_cells, row.parts))]
    parts += ["", "## Data and scorers", ""]
    parts += [f"- {row.title}: {_plain(row.source.data)}, {counted(row.source.items, 'item')}, "
              f"SHA-256 {row.source.checksum}, loaded by {row.source.loader}, "
              f"scored by {_plain('; '.join(row.scorers) or 'nothing yet')}"
              for row in report.rows]  # fmt: skip
    return "\n".join([*parts, ""])


def _table(headings: Sequence[str], rows: Any) -> str:
    lines = [headings, ["---"] * len(headings), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text in which Markdown reads nothing."""
    return "".join(f"\\{letter}" if letter in "\\|`*_<>[]" else letter for letter in text.replace("\n", " "))


def write_report(folder: Path, report: Report) -> None:
    """Write ``report.md`` and, last of all, ``report.json``: where that is, following counts an evaluation as whole."""
    record = {
        "version": __version__, "settings": dict(report.settings), "rows": [as_json(row) for row in report.rows],
        "baselines": {name: {one: vars(gain) for one, gain in gains.items()}
                      for name, gains in report.baselines.items()},
        "pictures_add": {name: vars(gain) for name, gain in report.blind.items()}, "remarks": report.remarks(),
    }  # fmt: skip
    replace_file(folder / "report.md", markdown(report))
    replace_file(folder / "report.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
