"""A raw record of any published shape turned into one of two kinds of document: plain text, or a conversation.

``shapes`` says which shapes there are, ``meanings`` what becomes of every field. Nothing is read or decoded here:
images stay what the record gives. Whatever does not fit raises BadRecord with the reason: a record is understood whole
or not used, and what was not used of one that is understood is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_apriel.data.raw.documents import Conversation, TextDocument
from megatron_apriel.data.raw.fields.meanings import REPLIES
from megatron_apriel.data.raw.fields.refused import refuse_known
from megatron_apriel.data.raw.fields.taken import Fields, Leftover
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.raw.reading import Reading
from megatron_apriel.data.raw.records.shapes import SHAPES
from megatron_apriel.data.raw.turns.replies import holds_reply
from megatron_apriel.quantities import counted

FORMATS = tuple(shape.name for shape in SHAPES)
"""Names of the shapes, in the order in which a record's fields are looked for."""

_AS_PUBLISHED = Reading()


def recognise(record: Mapping[str, Any], reading: Reading = _AS_PUBLISHED) -> str | None:
    """Which of ``FORMATS`` the record has, or None."""
    fields = Fields(record, reading)
    return next((shape.name for shape in SHAPES if shape.fits(fields)), None)


def parse_record(
    record: Mapping[str, Any],
    record_format: str,
    reading: Reading = _AS_PUBLISHED,
    limits: ReadLimits = DEFAULT_LIMITS,
    *,
    found_out: bool = False,
) -> TextDocument | Conversation:
    """The document of a raw record.

    Args:
        record: parsed JSON object or table row.
        record_format: one of ``FORMATS``.
        reading: what the user says about its names.
        limits: on JSON texts in its fields.
        found_out: whether the shape is that of the file's first record, and nobody asked for it. Then a record of
            another shape is refused: read as that one it could lose its turns.

    Raises:
        BadRecord: the record does not have that shape, or holds what would change the lesson and is not followed.
    """
    if found_out and (own := recognise(record, reading)) not in (None, record_format):
        raise BadRecord(
            f"its shape is {own!r}, and that of its file's first record {record_format!r}: give each shape a file of "
            f"its own, or read all as one with --format; its fields: {', '.join(map(str, record))}"
        )
    shape = next(shape for shape in SHAPES if shape.name == record_format)
    return shape.read(Fields(record, reading), limits.record_values)


def why_unknown(record: Mapping[str, Any], reading: Reading = _AS_PUBLISHED) -> str:
    """Why a record has no known shape, where one of its fields shows that, as of preference data; else ""."""
    for name, value in record.items():
        try:
            refuse_known(Leftover("record", str(name), str(name).lower(), value))
        except BadRecord as problem:
            return str(problem)
    for name, value in record.items():
        rows = value if isinstance(value, list) and all(isinstance(one, Mapping) for one in value) else []
        if rows and (shape := recognise(rows[0], reading)) not in (None, "text"):
            return (
                f"field {name!r} is a list of {counted(len(rows), 'record')} of the shape {shape}: give the list itself"
            )
    for name in REPLIES.names:
        if holds_reply(record.get(name), DEFAULT_LIMITS.record_values):
            return f"field {name!r} holds an answer, and no field the request that it answers: put both into one record"
    return ""
