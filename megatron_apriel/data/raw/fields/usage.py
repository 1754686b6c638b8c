"""What was used of the records and what was not, over a whole run: for the summary, and for ``--strict``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from megatron_apriel.data.raw.documents import Remarks
from megatron_apriel.data.raw.problems import printable
from megatron_apriel.errors import DataError

KEPT_PATHS = 1000
"""Paths counted one by one; names that are different in every record do not fill the memory."""
OTHER_PATHS = "(other fields)"


@dataclass
class Usage:
    """Counts over documents.

    Attributes:
        unused: dotted paths of fields that were not used, with their counts.
        reasoning: documents that show reasoning.
        hidden_reasoning: earlier turns of the assistant whose reasoning is not shown.
        unrecognised: documents that look as if they held reasoning in a spelling that is not known.
        marked: documents that say themselves which of their words are learned.
    """

    unused: Counter[str] = field(default_factory=Counter)
    reasoning: int = 0
    hidden_reasoning: int = 0
    unrecognised: int = 0
    marked: int = 0

    def add(self, remarks: Remarks) -> None:
        """Count a document."""
        for path, count in remarks.unused.items():
            path = printable(path)
            known = path in self.unused or len(self.unused) < KEPT_PATHS
            self.unused[path if known else OTHER_PATHS] += count
        self.reasoning += remarks.reasoning
        self.hidden_reasoning += remarks.hidden_reasoning
        self.unrecognised += remarks.unrecognised
        self.marked += remarks.marked

    def sorted(self) -> list[tuple[str, int]]:
        """The paths with their counts, the most frequent first, alike ones by name."""
        return sorted(self.unused.items(), key=lambda item: (-item[1], item[0]))

    def listed(self, most: int) -> str:
        """The paths with their counts, the most frequent first."""
        paths = ", ".join(f"{path} ({count:,})" for path, count in self.sorted()[:most])
        rest = len(self.unused) - most
        return paths + (f" and {rest:,} more" if rest > 0 else "")

    def check(self) -> None:
        """Raise DataError if a field was not used."""
        if self.unused:
            raise DataError(
                f"fields of the records were not used: {self.listed(100)}.",
                "--strict makes that an error, since a field that nobody reads may change what is meant.",
                "Name those that are meant to be unused with --ignore PATH, or map them with --map THEIRS=OURS.",
            )

    def record(self) -> dict[str, Any]:
        """For the corpus's own description."""
        return {
            "unused_fields": dict(self.sorted()),
            "reasoning": self.reasoning,
            "hidden_reasoning": self.hidden_reasoning,
            "unrecognised_reasoning": self.unrecognised,
            "marked": self.marked,
        }
