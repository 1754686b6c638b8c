"""Items that build on the answers to others, as the steps of SciCode do: each is asked when what it builds on is there.

Filled in, such an item is one like any other. Its question changes with the answers that it builds on, so it is asked
again where one of them is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from megatron_apriel.evaluate.items import Item, Part
from megatron_apriel.evaluate.records import Record, answer_of
from megatron_apriel.grading.responses import final_response
from megatron_apriel.grading.scicode import python_block


def filled(items: Sequence[Item], records: Mapping[str, Record]) -> list[Item]:
    """Items with the code of earlier answers in its place; those whose earlier ones have no answer yet as they are.

    An answer that was cut off or has no code gives an empty one, and so it is in SciCode's own harness.

    Args:
        items: of a benchmark, each behind those that it builds on.
        records: answers of a run.
    """
    found: list[Item] = []
    codes: dict[str, str] = {}
    needed = {key for item in items for key in item.after}
    for item in items:
        own = _filled(item, codes) if item.after and all(key in codes for key in item.after) else item
        found.append(own)
        record = records.get(item.key)
        if item.key in needed and record is not None and record["question"] == own.question_mark:
            answer = answer_of(record)
            if answer is not None:
                response = final_response(answer)
                codes[item.key] = (python_block(response) or "") if isinstance(response, str) else ""
    return found


def _filled(item: Item, codes: Mapping[str, str]) -> Item:
    parts: list[Part] = [
        part if isinstance(part, str) or "code" not in part else codes[part["code"]] for part in item.parts
    ]
    return replace(
        item, parts=tuple(parts), grading={**item.grading, "earlier": {key: codes[key] for key in item.after}}
    )
