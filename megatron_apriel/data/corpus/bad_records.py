"""A file of all bad records, for whoever corrects them: written as they are found, and kept where no corpus is.

A line of JSON for each, in the order of the input::

    {"place": "raw/sft.jsonl:17", "reason": "2 places for images (<image> or image parts), but 1 image"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_apriel.data.raw.problems import Problem, ProblemTally
from megatron_apriel.errors import DataError, OutputError
from megatron_apriel.output_files import check_file, whole_file
from megatron_apriel.outputs import followed, resolved


def check_list(path: Path, overwrite: bool, inputs: Sequence[str | Path], corpora: Sequence[Path]) -> None:
    """Raise OutputError if the file may not be written, or lies in an input or a corpus."""
    check_file(path, overwrite)
    target = resolved(path)
    for kind, places in (("input", inputs), ("corpus", corpora)):
        for place in map(Path, places):
            if followed(place) in (target, *target.parents):
                relation = "is" if followed(place) == target else "lies in"
                raise OutputError(
                    f"the list of bad records {path} {relation} the {kind} {place}.",
                    "An input is only read, and a corpus appears only if not too many of its records are bad.",
                    "Give a name outside of it.",
                )


@contextmanager
def bad_records_in(path: Path | None, tally: ProblemTally) -> Iterator[None]:
    """Write each bad record that ``tally`` counts in the block to ``path``, if one is given.

    The file is there behind the block, also where that raises DataError: it may say what to correct.
    """
    if path is None:
        yield
        return
    failed: DataError | None = None
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:

        def write(problem: Problem) -> None:
            file.write(json.dumps(vars(problem), ensure_ascii=False) + "\n")

        tally.write, tally.listed_in = write, path
        try:
            yield
        except DataError as error:
            failed = error
    if failed is not None:
        raise failed
