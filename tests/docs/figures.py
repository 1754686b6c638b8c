"""Finds figures in a page that somebody measured, and whether the page says where each of them comes from.

A page is taken apart into blocks: a paragraph, an item of a list, a row of a table. A block has a measured figure if it
has a number with

- a unit that only a measurement gives: TFLOP/s, tokens/s, milliseconds, watts, joules;
- a comparison: ``1.08 times``, ``3 to 6% slower``, ``within 2%``, ``1% apart``;
- a unit that a limit or a setting may have too (bytes, seconds, minutes, percent), and a word of measuring in the same
  sentence.

In a table the unit may stand in the heading of the column. The evidence is a link to a stored result, or the command or
test whose output the figure is. It stands in the block; for a row also in the heading, or in the paragraph right above
the table or right below it. A number in a row that names a result by a link must stand in that result's page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NUMBER = r"(?<![\w.`=/-])\d[\d,.]*(?: (?:to|and|or) \d[\d,.]*)?"
_WORD = r"\b(?:two|three|four|five|six|seven|eight|nine|ten|twelve)\b"
_ALWAYS = re.compile(
    rf"{_NUMBER}[ -]?(?:TFLOP/s|tokens/s|ms\b|milliseconds?\b|W\b|J\b|watts?\b|joules?\b)"
    rf"|{_NUMBER} times\b"
    rf"|{_NUMBER}% (?:slower|faster|longer|shorter|less|more|further|above|below|off|high|low|apart)\b"
    rf"|within {_NUMBER}%"
)
_SOMETIMES = re.compile(
    rf"(?:{_NUMBER}|{_WORD}) ?(?:[kMGT]i?B\b|megabytes\b|gigabytes\b|s\b|seconds?\b|minutes?\b|hours?\b|%)"
)
_MEASURING = re.compile(
    r"\b(?:measured|takes?|took|costs?|ran|printed|of memory|of the step|slower|faster|apart|H100|H200|two cores)\b"
)
_UNIT_OF_COLUMN = re.compile(r"TFLOP/s|tokens/s|\bms\b|milliseconds|\bGiB\b|\bwatts?\b|\bjoule|\benergy\b")
_CELL = re.compile(r"[+-]?\d[\d,.]*%?(?: \*)?")
_RESULT = re.compile(r"\]\(((?:\.\./)?benchmarks/results/[^)#]+)\)")
_COMMAND = re.compile(
    r"`(?:python (?:-m )?(?:benchmarks|tools|tests|pytest)\b[^`]*|make [a-z]+|tests/[\w/]+\.py[^`]*)`"
)


@dataclass(frozen=True)
class Block:
    """A part of a page.

    Attributes:
        line: where it begins, from 1.
        text: of the block in one line.
        headings: of the columns, where it is a row of a table.
        around: for a row, the paragraphs above and below its table.
    """

    line: int
    text: str
    headings: str = ""
    around: str = ""

    @property
    def figures(self) -> list[str]:
        """The measured figures in it."""
        text = _RESULT.sub("]", self.text)
        found = [match.group() for match in _ALWAYS.finditer(text)]
        for sentence in re.split(r"(?<=[.;:]) ", text):
            if _MEASURING.search(sentence):
                found += [match.group() for match in _SOMETIMES.finditer(sentence)]
        return [*found, *self.measured_cells]

    @property
    def measured_cells(self) -> list[str]:
        """Cells of a row with figures: in a column or a row that has a unit, or percentages."""
        if not self.headings:
            return []
        cells = _cells(self.text)
        of_row = bool(_UNIT_OF_COLUMN.search(cells[0]))
        pairs = zip(_cells(self.headings)[1:], cells[1:], strict=False)
        return [
            cell
            for title, cell in pairs
            if re.match(r"[+-]?\d", cell)
            and (of_row or _UNIT_OF_COLUMN.search(title) or (_CELL.fullmatch(cell) and "%" in cell))
        ]

    @property
    def results(self) -> list[str]:
        """Results that it links to, or that the table it belongs to does."""
        return _RESULT.findall(self.text) or _RESULT.findall(f"{self.headings} {self.around}")

    @property
    def has_evidence(self) -> bool:
        return bool(self.results or _COMMAND.search(f"{self.text} {self.headings} {self.around}"))


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page in Markdown; listings of code are left out."""
    parts = list(_parts(page))
    for place, (line, lines) in enumerate(parts):
        if not lines[0].startswith("|"):
            yield Block(line, " ".join(text.strip() for text in lines))
            continue
        around = [" ".join(parts[other][1]) for other in (place - 1, place + 1) if 0 <= other < len(parts)]
        for number, row in enumerate(lines[2:], start=line + 2):
            yield Block(number, row, lines[0], " ".join(around))


def _parts(page: str) -> Iterator[tuple[int, list[str]]]:
    """Paragraphs, items of lists and whole tables, with the line where each begins."""
    found: list[str] = []
    begun, in_code = 0, False
    for number, line in enumerate([*page.splitlines(), ""], start=1):
        fence = line.lstrip().startswith("```")
        new = re.match(r"\s*(?:[-*]|\d+\.) ", line) or line.startswith(("#", "<!--"))
        of_table = bool(found) and found[0].startswith("|") != line.startswith("|")
        if found and (fence or in_code or not line.strip() or new or of_table):
            yield begun, found
            found = []
        in_code ^= fence
        if line.strip() and not fence and not in_code:
            begun = begun if found else number
            found.append(line)


def without_evidence(page: str) -> list[str]:
    """One line for every block that has a measured figure and no evidence."""
    return [
        f"line {block.line}: {', '.join(block.figures)}: {block.text[:90]}"
        for block in blocks(page)
        if block.figures and not block.has_evidence
    ]


def not_in_result(page: str, folder: Path) -> list[str]:
    """One line for every figure of a table that none of the results has to which its row, or its table, links.

    A result has a figure if one of its numbers, rounded to the figure's digits, is the same.
    """
    missing = []
    for block in blocks(page):
        pages = [folder / result for result in block.results if result.endswith(".md")]
        stored = {
            float(text.replace(",", ""))
            for file in pages
            for text in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", file.read_text(encoding="utf-8"))
        }
        for figure in re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?", " ".join(block.measured_cells)) if pages else ():
            digits = len(figure.partition(".")[2])
            value, step = float(figure.replace(",", "")), 10.0**-digits
            if not any(abs(number - value) <= 0.5001 * step for number in stored):
                missing.append(f"line {block.line}: {figure} is not in {', '.join(file.name for file in pages)}")
    return missing
