"""Records that cannot become documents: what went wrong, where, and how many of them are tolerated."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_apriel.errors import DataError
from megatron_apriel.quantities import counted

REASON_CHARACTERS = 1000
"""Of a problem's reason, and of its place."""

KEPT_PROBLEMS = 1000
"""Problems listed one by one in a corpus; beyond that they are only counted, so that memory stays bounded."""

PATH_CHARACTERS = 120
"""Of a field's path, in counts and messages."""

_NAMES_CHARACTERS = 500
"""Of a list of names in a message."""

_NUMBERS = re.compile(r"\d+")


class BadRecord(DataError):
    """One record that cannot become a document; the message is the reason, without the place, cut to one paragraph."""

    def __init__(self, reason: str) -> None:
        super().__init__(shortened(reason, REASON_CHARACTERS))


def shortened(text: str, most: int) -> str:
    """The text, or what it begins with: values out of records can be of any length."""
    return text if len(text) <= most else f"{text[:most]}..."


def way_out(path: str) -> str:
    """How a record is read on without a field that was refused, to be added to the reason."""
    return f"; --ignore {shortened(path, PATH_CHARACTERS)} reads on without it"


def names_shown(names: Sequence[str]) -> str:
    """The names in a row, shortened."""
    return shortened(", ".join(names[:_NAMES_CHARACTERS]), _NAMES_CHARACTERS)


def printable(text: str) -> str:
    """The text with halves of surrogate pairs escaped.

    Names of files that are not UTF-8 and broken JSON strings hold them, and nothing with them in it can be written.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Problem:
    """A bad record: the file with the line or row, and the reason, both printable."""

    place: str
    reason: str

    def __post_init__(self) -> None:
        for name in ("place", "reason"):
            object.__setattr__(self, name, printable(shortened(getattr(self, name), REASON_CHARACTERS)))

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass
class ProblemTally:
    """Counts records and bad records, and keeps the first problems in the order of the input.

    Attributes:
        records: records seen, good and bad.
        count: bad ones among them.
        first: the first ``KEPT_PROBLEMS`` problems.
        files: bad records per file.
        write: takes every bad record, where there is a file for all of them.
        listed_in: that file.
    """

    records: int = 0
    count: int = 0
    first: list[Problem] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)
    write: Callable[[Problem], None] | None = None
    listed_in: Path | None = None

    @property
    def spelled(self) -> str:
        """How many records are bad, in words."""
        return f"{self.count:,} of {counted(self.records, 'record')} {'is' if self.count == 1 else 'are'} bad"

    def add(self, file: str, problem: Problem) -> None:
        """Count one bad record of ``file``."""
        self.count += 1
        self.files[file] += 1
        if len(self.first) < KEPT_PROBLEMS:
            self.first.append(problem)
        if self.write is not None:
            self.write(problem)

    def check(self, tolerated: float) -> None:
        """Raise DataError if more than the fraction ``tolerated`` of the records is bad."""
        if self.count <= tolerated * self.records:
            return
        way = "--bad-records FILE lists all" if self.listed_in is None else f"{self.listed_in} lists all"
        listed = "\n    ".join(self._kinds(most=5))
        files = ", ".join(f"{file} ({count})" for file, count in self.files.most_common(3))
        raise DataError(
            f"{self.spelled} ({self.count / self.records:.3%}), "
            f"more than the tolerated {tolerated:.3%}; no corpus was written.\n    {listed}",
            f"Most are in: {files}; {way}.",
            "Correct the records or the options (--format, --map, --ignore, --image-root), or raise --max-bad.",
        )

    def _kinds(self, most: int) -> list[str]:
        """The commonest reasons, each with the first problem of it and how many more there are.

        Reasons that differ by numbers alone, as of a turn or of images, are one.
        """
        kinds: dict[str, list[Problem]] = {}
        for problem in self.first:
            kinds.setdefault(_NUMBERS.sub("0", problem.reason), []).append(problem)
        commonest = sorted(kinds.values(), key=len, reverse=True)[:most]
        among = f" among the first {KEPT_PROBLEMS:,}" if self.count > len(self.first) else ""
        return [f"{same[0]}{f' ({len(same) - 1:,} more alike{among})' if same[1:] else ''}" for same in commonest]
