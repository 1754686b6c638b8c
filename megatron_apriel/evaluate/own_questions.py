"""Questions of a person's own, as a benchmark: text or a picture, with options or with a short answer.

One row a question, in JSONL, Parquet or CSV below ``DATA/own``::

    {"question": "Which is a module?", "options": ["json", "rainbow"], "answer": "A", "category": "names"}
    {"question": "How many sides has it?", "image": "pictures/hexagon.png", "answer": 6}

With options the letter is scored, without them the last box: equal as text, as whole numbers, or as mathematics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS
from megatron_apriel.errors import DataError, brief
from megatron_apriel.evaluate.data_files import Kind, data_files, rows_of
from megatron_apriel.evaluate.items import Item, Part, Source, file_digest
from megatron_apriel.evaluate.loaders import Given, Loaded, multiple_choice
from megatron_apriel.grading.option_texts import LETTERS
from megatron_apriel.inputs import read_input

_WANTED = "JSONL, Parquet or CSV of rows with question and answer, and options for a choice of letters"
_SHORT_PROMPT = """\
{question}

Put your answer, and nothing else, inside \\boxed{{}}."""
"""Of a question without options, which need not be one of mathematics."""


def own(given: Given) -> Loaded:
    """Questions of a person's own. Raises DataError for a row that cannot be asked or scored."""
    files = data_files(given.data, "own", _WANTED)
    rows: list[tuple[Path, int, dict[str, Any]]] = []
    for path in files:
        found = rows_of([path], {"question": Kind.TEXT, "answer": Kind.NAME})
        rows += [(path, number, row) for number, row in enumerate(found, 1)]
    items = [_item(str(number), row, path, place, given.folder) for number, (path, place, row) in enumerate(rows)]
    return items, Source("own questions", file_digest(files), len(items), "own 2")


def _item(key: str, row: Mapping[str, Any], path: Path, place: int, folder: Path) -> Item:
    options = row.get("options")
    if options:
        if not isinstance(options, list) or not all(isinstance(one, str) and one.strip() for one in options):
            raise DataError(f"row {place} of {path}: options is {brief(options)}, and not a list of texts.")
        grading = {"gold": _letter(row["answer"], options, path, place), "options": len(options),
                   "rule": "labelled", "choices": options}  # fmt: skip
        scorer, prompt = "letter", multiple_choice(row["question"], options)
    else:
        scorer, prompt = "mathematics", _SHORT_PROMPT.format(question=row["question"])
        grading = {"gold": str(row["answer"])}
    parts: tuple[Part, ...] = (prompt,)
    if image := row.get("image"):
        parts = ({"picture": _kept(path.parent / str(image), folder)}, prompt)
    category = row.get("category")
    return Item(key, parts, scorer, grading, groups={"category": str(category)} if category else {})


def _letter(answer: Any, options: Sequence[str], path: Path, place: int) -> str:
    """The right option's letter: of the option with that text, else the letter itself."""
    if len(options) > len(LETTERS):
        raise DataError(f"row {place} of {path} has {len(options)} options; there are {len(LETTERS)} letters.")
    letters = LETTERS[: len(options)]
    if options.count(answer) == 1:
        return letters[options.index(answer)]
    if isinstance(answer, str) and len(answer) == 1 and answer in letters and answer not in options:
        return answer
    raise DataError(
        f"row {place} of {path}: the answer {brief(answer)} is none of its options.",
        fix=f"Give the text of one option, or its letter: {', '.join(letters)}.",
    )


def _kept(image: Path, folder: Path) -> str:
    """A copy of a picture beside the items, where the page and the asking find it."""
    try:
        data = read_input(image, DEFAULT_LIMITS.record_bytes)
    except OSError as error:
        raise DataError(f"the picture {image} cannot be read: {error}.") from None
    name = f"pictures/{hashlib.sha256(data).hexdigest()[:24]}{image.suffix}"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return name
