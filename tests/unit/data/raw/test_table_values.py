"""A table's values given back as the records had them, and refused where that cannot be known."""

import datetime
import decimal
import json

import pyarrow
import pyarrow.parquet
import pytest

from megatron_apriel.data.corpus.prepare import prepare
from megatron_apriel.data.raw.files.finding import find_inputs
from megatron_apriel.data.raw.files.table_rows import UnreadableColumn, row_costs
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.conversion import parse_record
from megatron_apriel.errors import DataError


def back(tmp_path, table):
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (given,) = find_inputs([tmp_path / "a.parquet"]).readable
    return [raw for block in given.blocks() for raw in block.records()]


def calls(arguments):
    call = {"type": "function", "function": {"name": "tide", "arguments": arguments}}
    return [{"role": "user", "content": "Tide?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]


def parsed(tmp_path, *arguments, kind=None):
    rows = [{"messages": calls(one)} for one in arguments]
    schema = None
    if kind is not None:
        function = pyarrow.struct([("name", pyarrow.string()), ("arguments", kind)])
        call = pyarrow.struct([("type", pyarrow.string()), ("function", function)])
        turn = [("role", pyarrow.string()), ("content", pyarrow.string()), ("tool_calls", pyarrow.list_(call))]
        schema = pyarrow.schema([("messages", pyarrow.list_(pyarrow.struct(turn)))])
    found = back(tmp_path, pyarrow.Table.from_pylist(rows, schema=schema))
    documents = [parse_record(raw.value, "messages") for raw in found]
    return [document.messages[1]["tool_calls"][0]["function"]["arguments"] for document in documents]


@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2031, 5, 4),
        datetime.date(2031, 5, 4),
        datetime.time(12, 30),
        datetime.timedelta(seconds=5),
        decimal.Decimal("1.50"),
        b"bytes",
    ],
)
def test_values_that_json_does_not_have_are_refused_by_their_kind(value, tmp_path):
    with pytest.raises(BadRecord, match=f"{type(value).__name__}.*which JSON does not have"):
        parsed(tmp_path, {"day": value})


def test_a_column_that_is_not_used_may_be_of_any_kind(tmp_path):
    table = pyarrow.Table.from_pylist([{"text": "a", "when": datetime.datetime(2031, 5, 4), "n": 1.0}])
    (raw,) = back(tmp_path, table)
    assert parse_record(raw.value, "text").remarks.unused == {"when": 1, "n": 1}


def test_an_answer_that_became_a_timestamp_is_named(model, tmp_path):
    table = pyarrow.Table.from_pylist([{"question": "When?", "answer": datetime.datetime(2031, 5, 4)}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"fields: answer \(a timestamp \(datetime\)\), question"):
        prepare(None, [tmp_path / "a.parquet"], model)


def test_whole_numbers_among_fractions_are_refused(tmp_path):
    assert parsed(tmp_path, {"depth": 1.5}, {"depth": 2.25}) == [{"depth": 1.5}, {"depth": 2.25}]
    assert parsed(tmp_path, {"depth": 1}, {"depth": 2}) == [{"depth": 1}, {"depth": 2}]
    with pytest.raises(BadRecord, match=r"holds 2\.0 out of a table's column of fractions"):
        parsed(tmp_path, {"depth": 1.5}, {"depth": 2.0})
    with pytest.raises(BadRecord, match="column of fractions"):
        parsed(tmp_path, {"depth": 0.1}, kind=pyarrow.struct([("depth", pyarrow.float32())]))


def test_maps_are_objects_again(tmp_path):
    kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
    assert parsed(tmp_path, {"place": "Hoek"}, {"day": None}, kind=kind) == [{"place": "Hoek"}, {"day": None}]
    numbers = pyarrow.map_(pyarrow.int64(), pyarrow.string())
    with pytest.raises(BadRecord, match="arguments of tide are not a JSON object"):
        parsed(tmp_path, [(1, "Hoek")], kind=numbers)


def test_united_objects_have_their_own_fields_again(tmp_path):
    assert parsed(tmp_path, {"place": "Hoek"}, {"day": 4}) == [{"place": "Hoek"}, {"day": 4}]


@pytest.mark.parametrize("kept", [True, False])
def test_json_columns_of_datasets(kept, tmp_path):
    """With Arrow's type for them, and after a tool that dropped it: ``datasets`` describes them in the schema too."""
    import datasets

    lines = [{"messages": calls({"place": "Hoek"})}, {"messages": calls({"days": [1, 2.0, "x"]})}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loaded = datasets.Dataset.from_json(str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"))
    loaded.to_parquet(str(tmp_path / "b.parquet"))
    table = pyarrow.parquet.read_table(tmp_path / "b.parquet")
    assert "arrow.json" in str(table.schema)
    if not kept:
        table = pyarrow.table({"messages": table["messages"].cast(_plain(table.schema.field("messages").type))})
        table = table.replace_schema_metadata(pyarrow.parquet.read_schema(tmp_path / "b.parquet").metadata)
        table = table.replace_schema_metadata({b"huggingface": table.schema.metadata[b"huggingface"]})
    found = [raw.value["messages"][1]["tool_calls"][0]["function"]["arguments"] for raw in back(tmp_path, table)]
    assert [json.dumps(one) for one in found] == ['{"place": "Hoek"}', '{"days": [1, 2.0, "x"]}']


TEXTS = ["3", "007", "1.50", "-0", "true", "null", "NaN", " 8 ", "No.", 'Six, "half a dozen".', "\u00e9t\u00e9\n"]


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_texts_that_datasets_takes_for_numbers(form, tmp_path):
    """A field of texts and lists is a JSON column; findings/datasets_texts_as_json.sh."""
    import datasets

    question = {"role": "user", "content": [{"type": "text", "text": "How many?"}]}
    lines = [{"messages": [question, {"role": "assistant", "content": text}]} for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loaded = datasets.Dataset.from_json(str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert [row["messages"][1]["content"] for row in loaded][:2] == [3, 7]
    if form == "parquet":
        loaded.to_parquet(str(tmp_path / "given.parquet"))
    else:
        loaded.save_to_disk(str(tmp_path / "given.parquet"))
    (given,) = find_inputs([tmp_path / "given.parquet"]).readable
    turns = [parse_record(raw.value, "messages").messages for block in given.blocks() for raw in block.records()]
    assert [question["content"] for question, _ in turns] == ["How many?"] * len(TEXTS)
    assert [answer["content"] for _, answer in turns] == [text.strip() for text in TEXTS]


def test_a_number_of_a_json_column_is_refused_in_a_call(tmp_path):
    """3 and "3" are one there, and a call is learned as it is spelled."""
    import datasets

    lines = [{"messages": calls({"days": one})} for one in (3, "3", ["a"])]
    for line in lines:
        line["messages"][0]["tool_calls"] = None  # turns of the same fields, so that the argument alone is JSON
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loaded = datasets.Dataset.from_json(str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"))
    loaded.to_parquet(str(tmp_path / "b.parquet"))
    *doubtful, known = back(tmp_path, pyarrow.parquet.read_table(tmp_path / "b.parquet"))
    for raw in doubtful:
        with pytest.raises(BadRecord, match=r"holds '3' out of a JSON column of datasets.*is not known"):
            parse_record(raw.value, "messages")
    (call,) = parse_record(known.value, "messages").messages[1]["tool_calls"]
    assert call["function"]["arguments"] == {"days": ["a"]}


def _plain(kind):
    if isinstance(kind, pyarrow.BaseExtensionType):
        return kind.storage_type
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(_plain(kind.value_type))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([field.with_type(_plain(field.type)) for field in kind])
    return kind


def test_a_column_of_a_kind_that_is_not_read_can_be_ignored(tmp_path):
    view = pyarrow.array([[1], [2]], pyarrow.list_view(pyarrow.int64()))
    batch = pyarrow.RecordBatch.from_arrays([pyarrow.array(["a", "b"]), view], names=["text", "odd"])
    with pytest.raises(UnreadableColumn, match=r"column odd: it has the type .*--ignore odd"):
        row_costs(batch)
