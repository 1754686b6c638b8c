"""A table's values as the records that they came from had them.

A column has one type for all rows, so what wrote the table changed some values: absent fields became empty ones, texts
that look like dates became timestamps, whole numbers among others became fractions, texts that look like numbers lost
their quotes. What can be given back is; what cannot is marked, and refused where it would be learned
(``fields.check_text``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from megatron_apriel.data.raw.fields.taken import DoubtfulNumber, DoubtfulText
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.read_limits import ReadLimits

_METADATA = b"huggingface"


def json_columns(schema: Any) -> frozenset[str]:
    """Dotted paths of the texts that ``datasets`` wrote as JSON, by its description of the columns in the schema.

    It gives such columns a type of Arrow's own as well, which other tools drop when they write the table again.
    """
    try:
        features = json.loads((schema.metadata or {}).get(_METADATA, b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return frozenset()
    found: set[str] = set()
    waiting = [("", features)]
    while waiting:
        path, feature = waiting.pop()
        if isinstance(feature, list):
            waiting += [(path, one) for one in feature]
        elif isinstance(feature, dict) and feature.get("_type") == "Json":
            found.add(path)
        elif isinstance(feature, dict) and isinstance(feature.get("_type"), str):
            waiting.append((path, feature.get("feature")))
        elif isinstance(feature, dict):
            waiting += [(f"{path}.{name}" if path else str(name), one) for name, one in feature.items()]
    return frozenset(found)


def as_json(value: Any, kind: Any, limits: ReadLimits, texts: frozenset[str] = frozenset(), path: str = "") -> Any:
    """A value of the Arrow type ``kind`` as the JSON that it came from had it.

    All rows of a table have the fields of any: the arguments of one tool would stand, empty, in the calls of all
    others. What is empty is therefore taken for absent, inside a column. Columns of JSON texts are parsed, maps are
    objects again.

    Args:
        value: as Arrow gives it to Python.
        kind: its type.
        limits: on JSON texts.
        texts: paths of those.
        path: of this value.
    """
    import pyarrow

    types = pyarrow.types
    if value is None:
        return None
    if isinstance(value, str) and path in texts:
        return _of_datasets(value, limits, f"column {path}")
    if isinstance(kind, pyarrow.BaseExtensionType):
        if kind.extension_name == "arrow.json":
            return parsed_json(value, limits.record_values, "a column's text")
        return as_json(value, kind.storage_type, limits, texts, path)
    if types.is_struct(kind):
        inner = {part.name: as_json(value[part.name], part.type, limits, texts, f"{path}.{part.name}") for part in kind}
        return {name: part for name, part in inner.items() if part is not None}
    if types.is_map(kind):
        pairs = [(key, as_json(one, kind.item_type, limits, texts, f"{path}.{key}")) for key, one in value]
        named = len({key for key, _ in pairs}) == len(pairs) and all(isinstance(key, str) for key, _ in pairs)
        return dict(pairs) if named else [list(pair) for pair in pairs]
    if hasattr(kind, "value_type") and isinstance(value, list):
        return [as_json(part, kind.value_type, limits, texts, path) for part in value]
    if isinstance(value, float) and (not types.is_float64(kind) or value.is_integer()):
        return DoubtfulNumber(value)
    return value


def _of_datasets(text: str, limits: ReadLimits, what: str) -> Any:
    """What stood in a JSON column before ``datasets`` wrote it.

    It writes a text between quotes, unless the text is JSON for a lenient parser: 7, 007, true and null stay as they
    are, and are read as numbers and nothing by ``datasets`` itself. Where nothing stood, it writes nothing.
    """
    if text.lstrip()[:1] in ('"', "[", "{"):
        return parsed_json(text, limits.record_values, what)
    return DoubtfulText(text)


def row_as_json(row: Mapping[str, Any], schema: Any, limits: ReadLimits, texts: frozenset[str]) -> dict[str, Any]:
    """A row of a table as the record that it came from. Raises BadRecord for a text that is no JSON."""
    return {column.name: as_json(row[column.name], column.type, limits, texts, column.name) for column in schema}
