"""Settings of ``config.json`` and ``params.json`` as pydantic models: known, harmless, or refused by name.

A setting that is read past changes the model in silence: attention that sees a window, a norm that is left out. So a
model of these files names every key that it understands and those that change nothing; any other key that is set is an
error. What the implementation cannot compute is a field that takes the one value it can: ``causal: Literal[True]``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from megatron_apriel.errors import CheckpointError, shown
from megatron_apriel.formats.other_tools import untied

MOST_LAYERS = 10_000
"""What is refused beyond: tables of names are made for all layers before any tensor is looked at."""
MOST_SIZE = 2**40
"""Of any other number in a config; products of several are still numbers that can be computed with."""
_MOST_NAMED = 8
"""Keys of one object that are not understood, in a message; a file may have a million."""

Count = Annotated[int, Field(ge=1, le=MOST_SIZE)]
LayerCount = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _only(supported: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value != supported:
            raise PydanticCustomError("literal_error", "not supported", {"expected": repr(supported)})
        return value

    return check


def _unset(value: Any) -> Any:
    if value:
        raise PydanticCustomError("literal_error", "not supported", {"expected": "None"})
    return value


Zero = Annotated[float, AfterValidator(_only(0.0))]
One = Annotated[float, AfterValidator(_only(1.0))]
Unset = Annotated[Any, AfterValidator(_unset)]
"""Null, false or empty: what is not there."""


class Settings(BaseModel):
    """One object of such a file. A key that is null and not known is taken for absent."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())

    harmless: ClassVar[frozenset[str]] = frozenset()
    """Keys that change nothing of what the model computes, whatever their value."""

    @model_validator(mode="before")
    @classmethod
    def _known_or_set(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = (name for name in given if name not in known | cls.harmless and given[name] is not None)
        kept = known.union(itertools.islice(unknown, _MOST_NAMED))
        return {name: value for name, value in given.items() if name in kept}

    @classmethod
    def read(cls, given: Mapping[str, Any], origin: str) -> Self:
        """Take the settings of a file.

        Args:
            given: what the file holds.
            origin: its name, for messages.

        Raises:
            CheckpointError: a setting is missing, impossible, not supported or not understood.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise _explained(error, origin) from None


def _explained(error: ValidationError, origin: str) -> CheckpointError:
    """The first mistake; where there is none other, all the keys that are not understood."""
    mistakes = error.errors(include_url=False)
    unknown = [mistake for mistake in mistakes if mistake["type"] == "extra_forbidden"]
    if others := [mistake for mistake in mistakes if mistake["type"] != "extra_forbidden"]:
        # What kind of model it is comes before what that kind has no setting for.
        return _mistake(min(others, key=lambda mistake: mistake["loc"][-1:] != ("model_type",)), origin)
    many = len(unknown) > 1
    return CheckpointError(
        f"{origin}: {', '.join(map(_named, unknown))} {'are' if many else 'is'} not understood.",
        next((_REASONS[name] for mistake in unknown if (name := str(mistake["loc"][-1])) in _REASONS), _REASON),
        f"Remove {'those' if many else 'it'} if the model was trained without {'them' if many else 'it'}.",
    )


_REASON = "A setting may change what the model computes, and this one would be read past."
_REASONS = {
    "auto_map": "The model is computed by code of its own, which is not run.",
    "lora": "The weights may be adapters, or lack what adapters add: merge them into the weights first.",
    "causal": "Every token of a document sees those before it here, and no others.",
    "per_layer_config": "All decoder layers are alike here.",
    "layer_types": "Attention sees the whole document in every layer here.",
    "tie_word_embeddings": "Embedding and head are two matrices here, each with gradients of its own.",
}
_WAYS_OUT = {"tie_word_embeddings": f"Give the head a copy of its own: {untied('MODEL')}"}
_SUPPORTED = "The implementation is of Pixtral-12B's and Mistral-Nemo's architecture."


def _named(mistake: ErrorDetails) -> str:
    *sections, key = [part for part in mistake["loc"] if isinstance(part, str)]
    number = "".join(f"[{part}]" for part in mistake["loc"] if isinstance(part, int))
    return f"{''.join(f'{section}: ' for section in sections)}{key}{number}={shown(mistake['input'])}"


def _mistake(mistake: ErrorDetails, origin: str) -> CheckpointError:
    kind, context = mistake["type"], mistake.get("ctx", {})
    if kind == "missing":
        *sections, key = map(str, mistake["loc"])
        place = "".join(f": {section}" for section in sections)
        return CheckpointError(f"{origin}{place} has no {key}.", "The model cannot be known without it.")
    if kind == "literal_error":
        supported = str(context["expected"]).replace(" or ", ", ").replace(", None", "")
        reason = next((_REASONS[part] for part in map(str, mistake["loc"]) if part in _REASONS), _SUPPORTED)
        fix = _WAYS_OUT.get(str(mistake["loc"][-1]), f"Supported: {supported}.")
        return CheckpointError(f"{origin}: {_named(mistake)} is not supported.", reason, fix)
    if kind == "less_than_equal":
        return CheckpointError(
            f"{origin}: {_named(mistake)} is too large: no model has such a size.",
            f"At most {context['le']:,} is taken.",
            "The file is damaged or of something else.",
        )
    return CheckpointError(f"{origin}: {_named(mistake)} is not {_EXPECTED.get(kind, 'a value that it can have')}.")


_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing_size", "greater_than_equal"), "a positive whole number"),
    **dict.fromkeys(("float_type", "greater_than", "finite_number"), "a positive number"),
    "bool_type": "true or false",
    "list_type": "a list",
    "string_type": "text",
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "an object"),
}
