"""The one writer of results: JSON for programs and Markdown for people, under a name that says what, on what and when.

A benchmark hands over a record, which is kept whole as JSON, and the :class:`Page` that it makes of that record. Pages
come from the JSON alone and begin with the same lines, so that ``index.py`` can make every stored one again.

The keys of a record that all benchmarks share are made by :func:`benchmarks.versions.facts`.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
GIB = 2**30

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """What a benchmark says of one of its records.

    Attributes:
        title: what was measured.
        question: what that answers.
        configuration: how it was measured, as far as another run could differ.
        measured: names of the single measurements. A result is superseded when later ones have all of its names.
        body: tables and remarks, as Markdown.
    """

    title: str
    question: str
    configuration: str
    measured: Sequence[str]
    body: str


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [list(headings), ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def listed(lines: Sequence[str]) -> str:
    """A list of Markdown below a table; nothing where there are no lines."""
    return "".join(f"\n- {line}" for line in lines)


def machine(record: Record) -> str:
    """The hardware of a record in words, as ``2 x NVIDIA H200 of one host, 139.8 GiB``."""
    hardware = record["hardware"]
    if hardware["device"] == "CPU":
        return f"{hardware['model']}, {hardware['cores']} cores" if "model" in hardware else "CPU"
    count = hardware["count"]
    parts = [f"{count} x {hardware['device']} of one host" if count > 1 else hardware["device"]]
    if "memory_gib" in hardware:
        parts.append(f"{hardware['memory_gib']} GiB")
    if "driver" in hardware:
        parts.append(f"driver {hardware['driver']}")
    if "nvlink_multicast" in hardware:
        parts.append(f"NVLink multicast {hardware['nvlink_multicast']}")
    return ", ".join(parts)


def kind_of_machine(record: Record) -> str:
    """The hardware of a record as a word for file names: ``h200``, ``2xh200``, ``cpu``."""
    hardware = record["hardware"]
    if hardware["device"] == "CPU":
        return "cpu"
    words = hardware["device"].replace("-", " ").lower().split()
    name = next((word for word in words if any(letter.isdigit() for letter in word)), words[-1])
    return f"{hardware['count']}x{name}" if hardware["count"] > 1 else name


def name_of(record: Record) -> str:
    """The beginning of a result's file names, before the time: benchmark, hardware and commit."""
    return f"{record['benchmark']}-{kind_of_machine(record)}-{record['commit'][:7]}"


def text_of(record: Record, page: Page) -> str:
    """A result for people."""
    facts = {
        "question": page.question,
        "hardware": machine(record),
        "configuration": page.configuration,
        "commit": record["commit"] + " with changes that are not committed" * record.get("dirty", False),
        "date": record["date"],
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
    }
    lines = [f"# {page.title}", "", *(f"- {name}: {value}" for name, value in facts.items()), "", page.body.strip(), ""]
    return "\n".join(lines)


def write(directory: Path, record: Record, page: Page, begun: datetime.datetime) -> Path:
    """Keep a result as JSON and as Markdown; returns the path of both without the ending."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name_of(record)}-{begun:%Y%m%d-%H%M%S}"
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text_of(record, page), encoding="utf-8")
    return path
