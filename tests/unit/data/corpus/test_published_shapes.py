"""Every published shape gives the words, loss flags and pictures that it means, and the summary says what is left."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_apriel.data.corpus.prepare import PrepareOptions
from megatron_apriel.data.raw.fields.envelopes import ROLES
from megatron_apriel.data.raw.fields.meanings import MAPPABLE
from megatron_apriel.data.raw.reading import parse_reading
from tests.unit.data.corpus.published_shapes import PUBLISHED, TABLES
from tests.unit.data.corpus.written_documents import COLOURS, png, prepared


def test_forty_shapes_and_more_are_published():
    assert len(PUBLISHED) >= 40
    assert len(PUBLISHED) == sum(map(len, TABLES)), "a name stands in two tables"


@pytest.mark.parametrize("name", PUBLISHED)
def test_words_flags_and_pictures(name: str, model: Path, tmp_path: Path) -> None:
    case = PUBLISHED[name]
    for colour in COLOURS:
        (tmp_path / f"{colour}.png").write_bytes(png(colour))
    if case.parquet:
        file = tmp_path / "data.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(case.records), file)
    else:
        file = tmp_path / "data.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in case.records))
    options = PrepareOptions(reading=parse_reading(case.maps, (), MAPPABLE, tuple(ROLES)))
    found, summary = prepared([file], model, tmp_path / "out", options)
    assert [document.text for document in found] == [document.text for document in case.documents]
    assert [document.learned for document in found] == [document.learned for document in case.documents]
    assert [document.colours for document in found] == [document.colours for document in case.documents]
    if case.unused is not None:
        assert dict(summary.usage.unused) == case.unused
    assert summary.problems.count == 0
