"""The schema as a tree of names: which settings exist at a place, and which one a mistyped name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.section import Section
from megatron_apriel.config.yaml_text import Location
from megatron_apriel.errors import brief


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, be it alone, in a list or optional; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) is Annotated:
        return section_of(get_args(annotation)[0])
    found = [section_of(argument) for argument in get_args(annotation)]
    return next((section for section in found if section is not None), None)


def holds_list(annotation: Any) -> bool:
    """Whether a field holds a list of sections rather than one."""
    return get_origin(annotation) is list or any(holds_list(argument) for argument in get_args(annotation))


def section_at(location: Location, whole: type[Section] = StageConfig) -> type[Section] | None:
    """The section at a place of a configuration; list positions are passed over."""
    section: type[Section] | None = whole
    for key in location:
        if isinstance(key, int):
            continue
        if section is None or key not in section.model_fields:
            return None
        section = section_of(section.model_fields[key].annotation)
    return section


def all_settings(section: type[Section] = StageConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting with its dotted name, sections before their parts; items of lists are written ``[]``."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        inner = section_of(field.annotation)
        # The policy of kept checkpoints is written as one word and number, not as a section.
        if inner is not None and name != "keep":
            brackets = "[]" if holds_list(field.annotation) else ""
            yield from all_settings(inner, f"{prefix}{name}{brackets}.")


def nearest_setting(location: Location, whole: type[Section] = StageConfig) -> str | None:
    """Dotted name of the setting that a wrong name most resembles: in its own section first, then anywhere."""
    *parents, wrong = location
    section = section_at(tuple(parents), whole)
    here = list(section.model_fields) if section is not None else []
    elsewhere: dict[str, str] = {}
    for name, _ in all_settings(whole):
        elsewhere.setdefault(name.rpartition(".")[2], name)

    def close(names: list[str], likeness: float) -> str | None:
        return next(iter(difflib.get_close_matches(str(wrong), names, n=1, cutoff=likeness)), None)

    # A setting put into the wrong section is likelier than a name mistyped beyond recognition.
    own = close(here, 0.75) or (None if wrong in elsewhere else close(here, 0.6))
    if own is not None:
        return dotted((*parents, own))
    other = close(list(elsewhere), 0.85)
    return elsewhere[other] if other is not None else None


def dotted(location: Location) -> str:
    """``("mixture", 0, "weight")`` -> ``mixture.0.weight``; printable, long names cut."""
    return ".".join(map(brief, location))
