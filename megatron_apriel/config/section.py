"""What every section of a stage's configuration is made of: its base, and the kinds of values that a setting can have.

Several findings about one section are raised together, one a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from megatron_apriel.quantities import LARGEST, parse_bytes, parse_count, parse_fraction, parse_path, spelled


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Settings by the names that they no longer have: what to write instead, as a sentence."""


def not_a_flag(value: Any) -> Any:
    """Refuse ``true`` where a number is meant; it would otherwise count as 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number")
    return value


Whole = Annotated[int, BeforeValidator(not_a_flag), Field(ge=-LARGEST, le=LARGEST)]
Number = Annotated[float, BeforeValidator(not_a_flag)]
Count = Annotated[int, BeforeValidator(parse_count)]
ByteCount = Annotated[int, BeforeValidator(parse_bytes)]
Fraction = Annotated[float, BeforeValidator(parse_fraction)]
PathValue = Annotated[Path, BeforeValidator(parse_path), PlainSerializer(spelled, return_type=str, when_used="json")]


def raise_all(problems: Iterable[str]) -> None:
    """Raise what was found about one section together, one a line; nothing if that is nothing. Raises ValueError."""
    found = list(problems)
    if found:
        raise ValueError("\n".join(found))
