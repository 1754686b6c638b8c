"""Items: what is asked and how it is scored, one a line of ``items.jsonl``, their pictures beside it.

``items.json`` says where they come from, with a checksum of the data, so that a figure can be traced to them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_apriel.errors import DataError, brief
from megatron_apriel.generate.conversation import Picture, Question, Sampling, Turn
from megatron_apriel.inputs import open_input, read_input
from megatron_apriel.output_files import replace_file

ITEMS, SOURCE = "items.jsonl", "items.json"
Part = str | Mapping[str, str]
"""Text, ``{"picture": PATH}`` with a path below the folder of the items, or ``{"code": KEY}``: the code of an answer to
another item, which :mod:`~megatron_apriel.evaluate.chains` puts in its place."""


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        key: its name, unique in its benchmark.
        parts: the user's turn: texts and pictures in their order.
        scorer: how it is scored, as :mod:`~megatron_apriel.evaluate.scoring` names it.
        grading: what the scorer needs: the gold answer and whatever belongs to it.
        cluster: items that share a document or picture have the same; empty for an item alone.
        groups: what the score is divided by: category, variant, difficulty.
        system: the system's turn, if any.
        after: keys of the items whose answers this one builds on, in their order.
    """

    key: str
    parts: tuple[Part, ...]
    scorer: str
    grading: Mapping[str, Any]
    cluster: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    system: str = ""
    after: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The question's text alone."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> list[str]:
        """Paths of its pictures, below the folder of the items."""
        return [part["picture"] for part in self.parts if not isinstance(part, str) and "picture" in part]

    @property
    def is_ready(self) -> bool:
        """Whether it can be asked: what it builds on is there."""
        return all(isinstance(part, str) or "code" not in part for part in self.parts)

    @property
    def question_mark(self) -> str:
        """Changes where the question does."""
        return digest([self.system, *self.parts])

    @property
    def grading_mark(self) -> str:
        """Changes where the scoring does."""
        return digest([self.scorer, self.grading])

    def question(self, folder: Path, sampling: Sampling) -> Question:
        """What a model is asked. Raises DataError if a picture cannot be read."""
        content = tuple(
            part if isinstance(part, str) else Picture.from_file(folder / part["picture"]) for part in self.parts
        )
        turns = (Turn("system", (self.system,)),) if self.system else ()
        return Question((*turns, Turn("user", content)), sampling=sampling)


@dataclass(frozen=True)
class Source:
    """Where items come from.

    Attributes:
        data: name of the data, and their version.
        checksum: SHA-256 of the files that were read.
        items: how many there are in all, before a limit.
        loader: what made items of them.
        left_out: parts that could not be made of them, with the reasons, a sentence each.
    """

    data: str
    checksum: str
    items: int
    loader: str
    left_out: tuple[str, ...] = ()


def digest(value: Any) -> str:
    """The beginning of a SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=dict)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def file_digest(files: Iterable[Path]) -> str:
    """SHA-256 of files, one behind the other."""
    total = hashlib.sha256()
    for path in files:
        with open_input(path) as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def write_items(folder: Path, items: Sequence[Item], source: Source) -> None:
    """Write both files; the one that says what they are last, so that it vouches for the other."""
    keys = [item.key for item in items]
    if len(set(keys)) != len(keys):
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise DataError(f"{source.data} has two items {brief(twice)}.")
    lines = [
        {
            "key": item.key, "parts": list(item.parts), "scorer": item.scorer, "grading": dict(item.grading),
            "cluster": item.cluster, "groups": dict(item.groups), "system": item.system, "after": item.after,
        }
        for item in items
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / ITEMS, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
    replace_file(folder / SOURCE, json.dumps(vars(source), indent=1) + "\n")


def read_items(folder: Path) -> tuple[list[Item], Source]:
    """Items and their source. Raises DataError if they are damaged."""
    try:
        source = Source(**json.loads(read_input(folder / SOURCE)))
        source = replace(source, left_out=tuple(source.left_out))
        with open_input(folder / ITEMS) as file:
            items = [_item(json.loads(line)) for line in file]
        if len(items) != source.items:
            raise ValueError(f"{ITEMS} has {len(items):,} of {source.items:,}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"the items in {folder} cannot be read: {error}.",
            fix=f"Remove {folder / SOURCE}: they are loaded again, and answers to the same questions stay.",
        ) from None
    return items, source


def _item(line: Mapping[str, Any]) -> Item:
    return Item(
        line["key"], tuple(line["parts"]), line["scorer"], line["grading"], line["cluster"], line["groups"],
        line["system"], tuple(line.get("after", ())),
    )  # fmt: skip


def take_items(folder: Path, other: Path) -> None:
    """Have the items of another folder in this one; their pictures take no room again where links can be."""
    if (folder / SOURCE).exists() or not (other / SOURCE).exists():
        return
    apart = shutil.ignore_patterns("answers-*", "verdicts-*", SOURCE)
    shutil.copytree(other, folder, ignore=apart, copy_function=_linked, dirs_exist_ok=True)
    replace_file(folder / SOURCE, read_input(other / SOURCE).decode())


def _linked(source: str, destination: str) -> None:
    Path(destination).unlink(missing_ok=True)
    try:
        Path(destination).hardlink_to(source)
    except OSError:  # a file system without such links
        shutil.copy2(source, destination)


def chosen_items(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most so many, by a hash of their names: spread over the data, and more of them hold fewer.

    An item that builds on others follows them.
    """
    if limit is None or limit >= len(items):
        return list(items)
    by_hash = sorted(items, key=lambda item: (digest([*item.after, item.key][0]), len(item.after)))
    kept = {item.key for item in by_hash[:limit]}
    return [item for item in items if item.key in kept]
