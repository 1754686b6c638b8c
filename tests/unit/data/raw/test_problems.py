"""The report on bad records: an example and the count of each kind of error, the commonest first."""

from __future__ import annotations

import pytest

from megatron_apriel.data.raw.problems import KEPT_PROBLEMS, Problem, ProblemTally
from megatron_apriel.errors import DataError


def said_of(reasons: list[str], records: int = 10_000) -> list[str]:
    tally = ProblemTally(records=records)
    for number, reason in enumerate(reasons, 1):
        tally.add("a.jsonl", Problem(f"a.jsonl:{number}", reason))
    with pytest.raises(DataError) as caught:
        tally.check(0.0)
    return [line.strip() for line in str(caught.value).split("\n") if line.startswith("    ")]


def test_a_rare_reason_is_not_hidden_behind_a_common_one() -> None:
    common = [f"turn {number}: unknown role 'Kunde'" for number in range(1, 40)]
    assert said_of([*common, "2 places for images, but 1 image"]) == [
        "a.jsonl:1: turn 1: unknown role 'Kunde' (38 more alike)",
        "a.jsonl:40: 2 places for images, but 1 image",
    ]


def test_at_most_five_reasons_are_named() -> None:
    assert len(said_of([f"field {letter!r} is missing" for letter in "abcdefgh"])) == 5


def test_where_not_all_are_kept_it_says_among_how_many_it_has_counted() -> None:
    (line,) = said_of(["content is missing"] * (KEPT_PROBLEMS + 5))
    assert line == "a.jsonl:1: content is missing (999 more alike among the first 1,000)"
