"""Tables at the width of a terminal: no heading and no number is broken, nothing is lost, nothing is too wide."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest
from rich.cells import cell_len

from megatron_apriel.evaluate.report import HEADINGS
from megatron_apriel.tables import Table, figures, lines_of, standard_output

RESULT = ("MathVerse, vision-dominant", "60.00", "30.00 to 90.00", "10,000", "10,000", "6,000", "4,000", "0", "0", "0",
          "10", "12,345", "100.3", "77.3")  # fmt: skip


def parts(lines: Sequence[str]) -> list[list[str]]:
    """The lines of each part."""
    found: list[list[str]] = []
    for line in lines:
        if line.startswith("┏"):
            found.append([])
        if found:
            found[-1].append(line)
    return found


def cells_of(part: Sequence[str]) -> list[list[str]]:
    """What stands in the columns of a part: the heading and each row, lines of one cell joined by a space."""
    rows: list[list[str]] = []
    for line in part:
        if line[0] not in "┃│":
            continue
        cells = [cell.strip() for cell in re.split("[┃│]", line)[1:-1]]
        if line[0] == "│" and not all(cells) and rows:
            rows[-1] = [f"{before} {more}".strip() for before, more in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    return rows


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_a_result_is_readable(width: int) -> None:
    table = figures(*HEADINGS, title="a model: percent right of all that was asked")
    table.add_row(*RESULT)
    lines = lines_of(table, width)
    assert lines[0] == "a model: percent right of all that was asked"
    assert max(map(cell_len, lines)) <= width
    found = [cells_of(part) for part in parts(lines)]
    assert [cell for heading, _ in found for cell in heading[1:]] == list(HEADINGS[1:])
    assert [cell for _, row in found for cell in row[1:]] == list(RESULT[1:])
    assert {(heading[0], row[0]) for heading, row in found} == {("benchmark", RESULT[0])}
    assert len(found) == {60: 4, 80: 3, 100: 2, 120: 2, 160: 1}[width]
    assert lines_of(table, width) == lines, "printing changes nothing"


def test_where_there_is_room_nothing_changes() -> None:
    table = Table("a", "b", title="t", caption="c")
    table.add_row("long words that could break", "1")
    assert lines_of(table, 200) == lines_of(table, 41)
    assert len(lines_of(table, 30)) > len(lines_of(table, 41))


@pytest.mark.parametrize("seed", range(30))
def test_any_table(seed: int) -> None:
    draw = random.Random(seed)
    columns, words = draw.randint(2, 20), {0, *draw.sample(range(1, 20), draw.randint(0, 3))}
    headings = [f"heading{place} {'x' * draw.randint(1, 9)}" for place in range(columns)]
    table = figures(*headings, words=words)
    table.caption = "below"
    rows = [
        [f"{place}w{'y' * draw.randint(0, 12)} z" if place in words else f"{draw.randint(0, 10**9):,}"
         for place in range(columns)]
        for _ in range(draw.randint(1, 5))
    ]  # fmt: skip
    for row in rows:
        table.add_row(*row, end_section=draw.random() < 0.3)
    about = next(place for place in range(21) if place not in words)
    for width in (90, 130):
        lines = lines_of(table, width)
        assert max(map(cell_len, lines)) <= width and lines[-1].strip() == "below"
        text = "\n".join(lines)
        for place, heading in enumerate(headings):
            assert all(re.search(rf"[┃ ]{word}[┃ ]", text) for word in heading.split()), heading
            for row in rows:
                for word in row[place].split():
                    assert re.search(rf"│ +{re.escape(word)} ", text) or f" {word} " in text, word
        for part in parts(lines):
            head = "\n".join(line for line in part if line.startswith("┃"))
            assert all(headings[place].split()[0] in head for place in range(min(about, columns)))


def test_long_paths_break_and_leave_room_for_figures() -> None:
    table = figures("result", "score", "95% interval")
    path = "/scratch/somebody/runs/cpt_stage2/evaluations/step_00001000"
    table.add_row(path, "60.00", "30.00 to 90.00")
    lines = lines_of(table, 60)
    (part,) = parts(lines)
    heading, row = cells_of(part)
    assert heading == ["result", "score", "95% interval"] and row[1:] == ["60.00", "30.00 to 90.00"]
    assert row[0].replace(" ", "") == path
    assert row[0].split() == ["/scratch/somebody/runs/", "cpt_stage2/evaluations/", "step_00001000"]


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("datasets--FineVision_charts-2024.parquet", ["datasets--FineVision_", "charts-2024.parquet"]),
        (
            "/data/ein_sehr-langer.name/雪国雪国雪国雪国/雪国雪国",
            ["/data/", "ein_sehr-langer.name/", "雪国雪国雪国雪国/", "雪国雪国"],
        ),
        ("models/nothingThatOneCouldSeparate", ["models/", "nothingThatOneCouldSepar", "ate"]),
        ("a word/of two-parts", ["a word/of two-parts"]),
    ],
)
def test_long_words_break_behind_their_separators(word: str, found: list[str]) -> None:
    """Letter by letter only where there is none; what has room stays whole."""
    table = figures("name", "score", "95% interval", title="t")
    table.add_row(word, "60.00", "30.00 to 90.00")
    assert lines_of(table, 200)[4].split("│")[1].strip() == word
    lines = [line.split("│")[1].strip() for line in lines_of(table, 53) if line.startswith("│")]
    assert lines == found
    assert lines_of(table, 200)[4].split("│")[1].strip() == word, "printing changes nothing"


def test_what_no_column_names_stays_in_one_piece() -> None:
    table = figures(*HEADINGS, words=())
    table.add_row(*RESULT)
    assert len(parts(lines_of(table, 80))) == 1
    named = figures(*HEADINGS, words=(), about=2)
    named.add_row(*RESULT)
    assert all(cells_of(part)[0][:2] == list(HEADINGS[:2]) for part in parts(lines_of(named, 100)))


def test_no_room_at_all_loses_nothing() -> None:
    table = figures("benchmark", "score")
    table.add_row("MMLU", "123,456")
    said = "".join(re.findall("[A-Z0-9,]", "".join(lines_of(table, 12))))
    assert sorted(said) == sorted("MMLU123,456")


def test_the_width_of_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert standard_output(123).width == 123
    monkeypatch.setenv("COLUMNS", "77")
    assert standard_output(123).width == 77
    monkeypatch.setenv("COLUMNS", "wide")
    assert standard_output(123).width == 123
