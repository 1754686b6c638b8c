"""What two runs of the same stage recorded differently: numbers in ``metrics.jsonl``, and the weights they exported.

Numbers are compared as the JSON text that stands in the file. Python writes a float with as many digits as tell it
from every other float, so equal text means equal bits, and NaN equals NaN. Left out are texts, and what a clock or the
machine says (seconds, rates, memory), which is another in every run. Every other number is compared wherever both runs
have it, whatever it is called. Fields and kinds of records that only one run has are named: versions record different
things.

Weights are compared by the SHA-256 of each tensor and not of the files, which may be cut or described in another way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors

REQUIRED = {"step": ("loss", "loss_by_source", "gradient_norm", "lr"), "validation": ("loss", "loss_by_source")}
"""Fields by kind of record without which nothing is proved: one that was not compared is a difference."""

MEASURED = re.compile(r"second|time|wait|flops|memory")
"""In the names of fields that a clock or the machine fills in."""


SINCE_LAST = "since_last."
"""What a step's record has under this are figures too, of several steps."""


class Number(str):
    """A number as it is written in a JSON file."""

    __slots__ = ()


Key = tuple[str, int, int]
"""Kind of a record, its step, and how many such records came before it: a resumed run repeats steps."""
Numbers = Mapping[str, Number]
"""Of one record, by field; those of a nested object under ``field.name``."""


@dataclass
class Comparison:
    """What comparing two runs of a stage has found.

    Attributes:
        steps: records of steps that both have.
        numbers: how many numbers were compared.
        tensors: how many exported tensors were compared.
        differences: one line each, with both values, in the order of the run; the first is where to look.
        one_sided: what only one of them has and is therefore not compared.
    """

    steps: int = 0
    numbers: int = 0
    tensors: int = 0
    differences: list[str] = field(default_factory=list)
    one_sided: list[str] = field(default_factory=list)


def compare(before: Path, after: Path, renamed: Mapping[str, str] | None = None) -> Comparison:
    """Compare the output directories of two runs.

    Args:
        before, after: with ``metrics.jsonl`` and the export in ``final``.
        renamed: names of fields in ``before`` to what they are called in ``after``.
    """
    found = Comparison()
    old_names = {new: old for old, new in (renamed or {}).items()}
    _compare_records(read_numbers(before / "metrics.jsonl"), read_numbers(after / "metrics.jsonl", old_names), found)
    _compare_weights(weights(before / "final"), weights(after / "final"), found)
    return found


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a run, in order, with every number as its text; none where there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line, parse_float=Number, parse_int=Number, parse_constant=Number) for line in lines]


def read_numbers(file: Path, names: Mapping[str, str] | None = None) -> dict[Key, Numbers]:
    """The numbers of a run that do not depend on the machine's speed, by record.

    A field in ``names`` is taken for the one that it gives, and what the file has under that name is left out.
    """
    names = names or {}
    found: dict[Key, Numbers] = {}
    seen: Counter[tuple[str, int]] = Counter()
    for record in read_records(file):
        place = (str(record["kind"]), int(record["step"]))
        taken = {name: value for name, value in record.items() if name in names or name not in names.values()}
        named = {names.get(name, name): value for name, value in taken.items()}
        found[(*place, seen[place])] = {
            name: number for name, number in _flat(named) if not MEASURED.search(_field(name.removeprefix(SINCE_LAST)))
        }
        seen[place] += 1
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Number]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield from _flat({str(place): entry for place, entry in enumerate(value)}, f"{prefix}{name}.")
        elif isinstance(value, Number):
            yield prefix + name, value


def weights(directory: Path) -> dict[str, str]:
    """SHA-256 of every tensor (type, shape, values) of a Hugging Face directory; empty where there is none."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in safetensors.deserialize(file.read_bytes()):
            described = f"{tensor['dtype']} {list(tensor['shape'])} ".encode()
            found[name] = hashlib.sha256(described + tensor["data"]).hexdigest()
    return dict(sorted(found.items()))


def digest(tensors: Mapping[str, str]) -> str:
    """One SHA-256 of all tensors, as :func:`weights` gives them."""
    return hashlib.sha256(json.dumps(sorted(tensors.items())).encode()).hexdigest()


def _compare_records(before: Mapping[Key, Numbers], after: Mapping[Key, Numbers], found: Comparison) -> None:
    one_sided: dict[str, None] = {}
    for key in [*before, *(key for key in after if key not in before)]:
        if key in before and key in after:
            one_sided |= dict.fromkeys(_compare_numbers(key, before[key], after[key], found))
            continue
        side = "before only" if key in before else "after only"
        if key[0] in REQUIRED:
            found.differences.append(f"{_shown(key)}: recorded {side}")
        else:
            one_sided[f"record {_shown(key)} ({side})"] = None
    found.one_sided += one_sided
    both = {kind for kind, *_ in before.keys() & after.keys()}
    found.differences += [f"{kind}: no record to compare" for kind in REQUIRED if kind not in both]


def _compare_numbers(key: Key, before: Numbers, after: Numbers, found: Comparison) -> list[str]:
    """Compare one record that both have; returns the fields that only one has and that may be missing."""
    both = [name for name in before if name in after]
    found.steps += key[0] == "step"
    found.numbers += len(both)
    found.differences += [
        f"{_shown(key)}: {name} {before[name]} before, {after[name]} after"
        for name in both
        if before[name] != after[name]
    ]
    required, one_sided = REQUIRED.get(key[0], ()), []
    for name, side in _one_sided(before, after):
        # Losses by source must be of the same sources.
        if _field(name) in required:
            found.differences.append(f"{_shown(key)}: {name} recorded {side}")
        else:
            one_sided.append(f"{key[0]}.{name} ({side})")
    recorded = {_field(name) for name in (*before, *after)}
    found.differences += [f"{_shown(key)}: no {name} recorded" for name in required if name not in recorded]
    return one_sided


def _field(name: str) -> str:
    """The field of the record itself that a number stands in."""
    return name.partition(".")[0]


def _compare_weights(before: Mapping[str, str], after: Mapping[str, str], found: Comparison) -> None:
    both = [name for name in before if name in after]
    found.tensors = len(both)
    if not both:
        found.differences.append(f"export: no tensor to compare, {len(before)} before and {len(after)} after")
        return
    found.differences += [f"export: {name} is there {side}" for name, side in _one_sided(before, after)]
    changed = [name for name in both if before[name] != after[name]]
    if changed:
        values = f"SHA-256 {digest(before)[:12]} before, {digest(after)[:12]} after"
        found.differences.append(f"export: {len(changed)} of {len(both)} tensors, first {changed[0]}; {values}")


def _one_sided(before: Any, after: Any) -> list[tuple[str, str]]:
    """Names that are in one of two collections, and in which."""
    return [
        *((name, "before only") for name in sorted(set(before) - set(after))),
        *((name, "after only") for name in sorted(set(after) - set(before))),
    ]


def _shown(key: Key) -> str:
    kind, step, occurrence = key
    return (f"step {step}" if kind == "step" else f"{kind} at step {step}") + " again" * occurrence
