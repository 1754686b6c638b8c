"""Collect the quickstart's raw data: real text and real photographs that come inside installed packages.

usage: collect_data.py DST

Nothing is downloaded. Text: the language reference that ships with Python (``pydoc_data``), and documentation and
source of the standard library. Photographs: those of scikit-image and scikit-learn, with captions from their own
documentation. Everything is written as the JSONL and image files that a user would bring.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

from megatron_apriel.command_line import CommandLine
from megatron_apriel.evaluate.loaders import multiple_choice
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import say

LIBRARY = [
    "argparse", "bisect", "calendar", "collections", "configparser", "contextlib", "copy", "csv", "dataclasses",
    "datetime", "difflib", "enum", "fractions", "functools", "gettext", "glob", "gzip", "heapq", "html", "inspect",
    "io", "itertools", "json", "logging", "math", "operator", "optparse", "os", "pathlib", "pickle", "pprint",
    "queue", "random", "re", "sched", "shelve", "shlex", "shutil", "smtplib", "socket", "sqlite3", "statistics",
    "string", "struct", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "time", "timeit", "tokenize",
    "traceback", "types", "typing", "unittest", "urllib.parse", "urllib.request", "uuid", "warnings", "weakref",
    "xml.dom", "zipfile", "zlib",
]  # fmt: skip
PHOTOGRAPHS = [
    "astronaut", "camera", "chelsea", "coffee", "coins", "hubble_deep_field", "immunohistochemistry", "moon", "page",
    "retina", "rocket", "brick", "grass", "gravel",
]  # fmt: skip
PHOTOGRAPHS_HELD_OUT = ["cell", "clock", "colorwheel", "horse", "logo", "microaneurysms", "stereo_motorcycle"]
"""For the evaluation; no stage trains on them."""
HELD_OUT_EVERY = 8
"""Of every list of records each eighth is kept from training; of photographs each eighth with all its questions."""
QUESTIONS = ("What does this image show?", "Describe the picture.", "Write a short caption.", "What can be seen here?")
LONGEST_SIDE = 256
LONGEST_SIDE_HELD_OUT = 128
OPTIONS = 4
ASKED = 16
"""Questions of the evaluation's text set."""


def paragraphs(text: str, most: int = 1200) -> Iterator[str]:
    """Pieces of ``text`` of at most about ``most`` characters, cut between paragraphs."""
    piece = ""
    for paragraph in text.split("\n\n"):
        if piece and len(piece) + len(paragraph) > most:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    if piece.strip():
        yield piece


def library_members() -> Iterator[tuple[str, str]]:
    """(qualified name, documentation) of public functions and classes of the standard library."""
    for module_name in LIBRARY:
        module = importlib.import_module(module_name)
        for name, member in sorted(vars(module).items()):
            documentation = inspect.getdoc(member) if callable(member) and not name.startswith("_") else None
            if documentation and getattr(member, "__module__", None) == module_name and len(documentation) > 40:
                yield f"{module_name}.{name}", documentation


def web_records() -> list[dict[str, Any]]:
    return [{"text": piece} for text in topics.values() for piece in paragraphs(text)]


def code_records() -> list[dict[str, Any]]:
    files = [getattr(importlib.import_module(name), "__file__", None) for name in LIBRARY]
    sources = [Path(file).read_text(encoding="utf-8") for file in files if file and file.endswith(".py")]
    return [{"text": piece} for source in sources for piece in paragraphs(source[:40_000])]


def photographs(directory: Path) -> list[tuple[str, str]]:
    """Write the photographs; returns (file name, caption) of each."""
    directory.mkdir(parents=True)
    found = []
    for name in PHOTOGRAPHS:
        function = getattr(skimage.data, name)
        caption = (inspect.getdoc(function) or name).split("\n\n")[0].replace("\n", " ")
        found.append((name, Image.fromarray(function()), caption))
    samples = load_sample_images()
    captions = {"china.jpg": "A Chinese temple with a curved roof.", "flower.jpg": "A red flower, close up."}
    for file, pixels in zip(samples.filenames, samples.images, strict=True):
        found.append((Path(file).stem, Image.fromarray(pixels), captions[Path(file).name]))
    written = []
    for name, image, caption in found:
        image = image.convert("RGB")
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        image.save(directory / f"{name}.jpg", quality=92)
        written.append((f"{name}.jpg", caption))
    return written


def held_out_photographs(directory: Path) -> None:
    """Write the pictures that the evaluation's visual tasks are made of."""
    directory.mkdir(parents=True)
    for name in PHOTOGRAPHS_HELD_OUT:
        pixels = getattr(skimage.data, name)()
        image = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")  # two views of one
        image.thumbnail((LONGEST_SIDE_HELD_OUT, LONGEST_SIDE_HELD_OUT))
        image.save(directory / f"{name}.jpg", quality=92)


def questions() -> list[dict[str, Any]]:
    """Which module has it? One for each function, with four modules to choose from."""
    names = [name.rpartition(".")[::2] for name, _ in library_members()]
    modules = sorted({module for module, _ in names})
    rows = []
    for number, (module, member) in enumerate(names):
        others = [other for other in modules if other != module]
        options = [others[(7 * number + 3 * place) % len(others)] for place in range(OPTIONS - 1)]
        options.insert(number // HELD_OUT_EVERY % OPTIONS, module)
        question = f"Which module of Python's library has {member}?"
        rows.append({"question": question, "options": options, "answer": module})
    return rows


def question_records(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same as conversations, in the form in which the evaluation asks."""
    return [
        {
            "messages": [
                {"role": "user", "content": multiple_choice(row["question"], row["options"])},
                {"role": "assistant", "content": f"Answer: {'ABCD'[row['options'].index(row['answer'])]}"},
            ]
        }
        for row in rows
    ]


def caption_records(images: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": file}, {"type": "text", "text": question}]},
                {"role": "assistant", "content": caption},
            ]
        }
        for file, caption in images
        for question in QUESTIONS
    ]


def reasoning_records() -> list[dict[str, Any]]:
    """Questions about the standard library, answered from its documentation after a short trace of reasoning."""
    records = []
    for name, documentation in library_members():
        summary = documentation.partition("\n\n")[0]
        module, _, member = name.rpartition(".")
        trace = f"The question is about {member} in the module {module}. Its documentation says: {documentation[:300]}"
        question = {"role": "user", "content": f"What is {name} for in Python?"}
        answer = {"role": "assistant", "reasoning_content": trace, "content": summary.replace("\n", " ")}
        records.append({"messages": [question, answer]})
    return records


def joined(records: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Longer conversations: ``number`` records each, one after the other."""
    groups = [records[start : start + number] for start in range(0, len(records), number)]
    return [{"messages": [message for record in group for message in record["messages"]]} for group in groups]


def split(records: list[dict[str, Any]], group: int = 1) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(for training, held out); ``group`` records in a row stay on one side."""
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for number, record in enumerate(records):
        sides[number // group % HELD_OUT_EVERY == 0].append(record)
    return sides


def write(file: Path, records: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    say(f"{file}: {counted(len(records), 'record')}")


def main(argv: list[str] | None = None) -> int:
    parser = CommandLine(description=__doc__)
    parser.add_argument("destination", type=Path, metavar="DST")
    destination = parser.parse_args(argv).destination
    captions = caption_records(photographs(destination / "photographs"))
    kinds = {
        "web": split(web_records()),
        "code": split(code_records()),
        "captions": split(captions, group=len(QUESTIONS)),
        "reasoning": split(reasoning_records()),
    }
    for name, (training, held_out) in kinds.items():
        write(destination / f"{name}.jsonl", training)
        write(destination / f"{name}_heldout.jsonl", held_out)
    held_out_photographs(destination / "photographs_heldout")
    training, held_out = split(questions())
    write(destination / "questions.jsonl", question_records(training))
    (destination / "benchmarks" / "own").mkdir(parents=True)
    write(destination / "benchmarks" / "own" / "library.jsonl", held_out[:: max(len(held_out) // ASKED, 1)][:ASKED])
    reasoning = kinds["reasoning"][0]
    # Every fourth record: stratified over the modules, since the records lie in their order.
    write(destination / "reasoning_subset.jsonl", reasoning[::4])
    write(destination / "reasoning_long.jsonl", joined(reasoning, 4))
    (destination / "complete").touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
