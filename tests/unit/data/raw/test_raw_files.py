"""Readers of raw files: same records from every container, places named, damage never taken for the end."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_apriel.data.raw.files import blocks, json_arrays, readers
from megatron_apriel.data.raw.files.finding import find_inputs
from megatron_apriel.data.raw.files.table_rows import row_blocks, row_costs
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.errors import DataError

COLUMNS = ("text", "images")
TEXTS = [f"line {number} \u2028 ü" for number in range(300)]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode()


def read(path: Path, limits: ReadLimits = DEFAULT_LIMITS, **options) -> list[blocks.RawRecord]:
    inputs = find_inputs([path], limits=limits, **options).readable
    return [raw for given in inputs for block in given.blocks() for raw in block.records(limits)]


def texts(path: Path, **options) -> list[str]:
    return [raw.value["text"] for raw in read(path, **options)]


def packed(name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(LINES[:500]) + gzip.compress(LINES[500:])  # two members, as from `cat a.gz b.gz`
    if name.endswith(".zst"):
        return zstandard.compress(LINES[:500]) + zstandard.compress(LINES[500:])
    return LINES


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "A.JSONL.ZST"])
def test_json_lines(name, tmp_path):
    (tmp_path / name).write_bytes(packed(name.lower()))
    assert texts(tmp_path / name) == TEXTS
    assert read(tmp_path / name)[123].place == f"{tmp_path / name}:124"


def test_bad_lines_have_a_place_and_a_reason(tmp_path):
    lines = [b'{"text": "ok"}', b"", b'{"text": "b\xff"}', b"[1]", b'{"text": ', b"   ", b"\x00", b'{"text": "end"}']
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    found = {raw.place.rpartition(":")[2]: raw.problem or raw.value for raw in read(tmp_path / "a.jsonl")}
    assert found["1"] == {"text": "ok"} and found["8"] == {"text": "end"}
    assert "2" not in found and "6" not in found
    assert "not valid UTF-8" in found["3"] and "0xff" in found["3"]
    assert found["4"] == "a JSON list, not an object"
    assert "not valid JSON" in found["5"] and "not valid JSON" in found["7"]


def test_deep_nesting_and_long_numbers_are_bad_records(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ' + "[" * 100_000 + "\n" + '{"n": ' + "9" * 5000 + "}\n")
    assert all("not valid JSON" in raw.problem for raw in read(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(("most", "length"), [(100, 150), (2 * 2**20, 3 * 2**20)])
def test_an_overlong_line_is_skipped_without_being_held(most, length, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "1"}\n' + "x" * length + '\n{"text": "3"}\n')
    first, second, third = read(tmp_path / "a.jsonl", ReadLimits(record_bytes=most))
    assert (first.value, third.value) == ({"text": "1"}, {"text": "3"})
    assert second.place.endswith(":2") and "the line is longer than" in second.problem


ARRAY = [{"text": text, "n": [-1.5e-7, True, None, {"]": "[,"}]} for text in (*TEXTS, 'quote " and \\ "', "\U0001f600")]


@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("piece", [1, 7, 2**20])
def test_a_json_array_is_read_element_by_element(name, style, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(json_arrays, "_READ_BYTES", piece)
    data = b"\xef\xbb\xbf \n" + json.dumps(ARRAY, **style).encode() + b"\n\n"
    pack = {"gz": gzip.compress, "st": zstandard.compress}.get(name[-2:], bytes)
    (tmp_path / name).write_bytes(pack(data))
    records = read(tmp_path / name)
    assert [raw.value for raw in records] == ARRAY
    assert records[123].place == f"{tmp_path / name}: record 124"


def test_bad_elements_of_an_array_have_a_place_and_a_reason(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"text": "ok"}, [1], 12, {"text": "b\xff"}, null , {"text": "end"}]')
    records = read(tmp_path / "a.json")
    assert [raw.place.rpartition(" ")[2] for raw in records] == list("123456")
    assert [raw.value.get("text") for raw in records] == ["ok", None, None, None, None, "end"]
    problems = [raw.problem for raw in records]
    assert problems[1:3] == ["a JSON list, not an object", "a JSON int, not an object"]
    assert "not valid UTF-8" in problems[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"}, {"text": "b"', r"ends in the middle of a record \(after record 1\)"),
        ('[{"text": "a"}, {"te', r"ends in the middle of a record"),
        ('[{"text": "a"}', r"',' is expected and the end of the file found"),
        ('[{"text": "a"} {"text": "b"}]', r"',' is expected and '{' found \(after record 1\)"),
        ('[{"text": tru}]', "Expecting value"),
        ('[{"text": "a"},]', "Expecting value"),
        ('[{"text" "a", "filler": "................................"}]', "Expecting ':' delimiter"),
        ('[{"text": "a"}]\n{"text": "b"}', "something follows the array's end"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_broken_array_is_an_error_of_the_file(text, message, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=rf"a.json cannot be read to its end: .*{message}"):
        read(tmp_path / "a.json")


def test_an_array_of_nothing_has_no_records(tmp_path):
    (tmp_path / "a.json").write_text(" [ ] ")
    assert read(tmp_path / "a.json") == []


def test_an_endless_element_of_an_array_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(json_arrays, "_READ_BYTES", 100)
    (tmp_path / "a.json").write_text('[{"text": "' + "x" * 5000)
    with pytest.raises(DataError, match=r"a record is longer than 1,000 bytes(?s:.*)raise --max-record"):
        read(tmp_path / "a.json", ReadLimits(record_bytes=1000))


def test_parquet(tmp_path):
    table = pyarrow.table({"text": TEXTS, "other": list(range(300)), "images": [[{"bytes": b"1", "path": None}]] * 300})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    found = read(tmp_path / "a.parquet")
    assert [raw.value["text"] for raw in found] == TEXTS
    assert found[200].place.endswith("a.parquet: row 200")
    assert found[0].value == {"text": TEXTS[0], "other": 0, "images": [{"bytes": b"1"}]}
    (given,) = find_inputs([tmp_path / "a.parquet"]).readable
    (first, *_) = given.blocks({"other"})
    assert first.table.schema.names == ["text", "images"], "what is ignored is not read"


def test_parquet_with_views_of_strings(tmp_path):
    """As newer writers make them."""
    columns = {
        "text": pyarrow.array(TEXTS, pyarrow.string_view()),
        "images": pyarrow.array([b"1"] * len(TEXTS), pyarrow.binary_view()),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert "view" in str(pyarrow.parquet.read_schema(tmp_path / "a.parquet"))
    found = [raw.value for raw in read(tmp_path / "a.parquet")]
    assert [value["text"] for value in found] == TEXTS
    assert {value["images"] for value in found} == {b"1"}


def test_views_of_strings_inside_messages():
    """Arrow does not write these to Parquet, but it reads them where others did."""
    message = pyarrow.struct([("role", pyarrow.string_view()), ("content", pyarrow.string_view())])
    messages = [[{"role": "user", "content": text}] for text in TEXTS]
    table = pyarrow.table({"messages": pyarrow.array(messages, pyarrow.list_(message))})
    (batch,) = table.to_batches()
    blocks = row_blocks("a", 0, batch, row_costs(batch), DEFAULT_LIMITS, 2**20)
    assert [raw.value["messages"] for block in blocks for raw in block.records()] == messages


def test_parquet_with_a_string_that_is_no_utf8(tmp_path):
    raw = pyarrow.array([b"ok", b"\xff\xfe", b"fine"]).cast(pyarrow.binary())
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": strings}), tmp_path / "a.parquet")
    first, second, third = read(tmp_path / "a.parquet")
    assert first.value["text"] == "ok" and third.value["text"] == "fine"
    assert "not valid UTF-8" in second.problem and second.place.endswith("row 1")


def tool_record(name, arguments, properties):
    function = {"name": name, "parameters": {"type": "object", "properties": properties}}
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "do it"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "ok"},
        ],
        "tools": [{"type": "function", "function": function}],
    }


TOOL_RECORDS = [
    tool_record("weather", {"city": "Paris"}, {"city": {"type": "string"}}),
    tool_record("add", {"a": 1, "b": 2}, {"a": {"type": "integer"}, "b": {"type": "integer"}}),
]


@pytest.mark.parametrize("form", ["parquet", "saved", "saved from JSON"])
def test_tools_in_tables_are_those_of_the_json(form, tmp_path):
    """A table's rows have the arguments of all tools, empty; a newer data set keeps such columns as JSON texts."""
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(TOOL_RECORDS), tmp_path / "a.parquet")
    elif form == "saved":
        datasets.Dataset.from_list(TOOL_RECORDS).save_to_disk(tmp_path / "a")
    else:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, TOOL_RECORDS)))
        saved = datasets.Dataset.from_json(str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"))
        saved.save_to_disk(tmp_path / "a")
    (given,) = find_inputs([tmp_path / ("a.parquet" if form == "parquet" else "a")]).readable
    found = [raw for block in given.blocks() for raw in block.records()]
    assert [raw.value for raw in found] == TOOL_RECORDS


def test_damaged_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:-50])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read to its end"):
        read(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "b.parquet")
    (given,) = find_inputs([tmp_path / "b.parquet"]).readable
    with pytest.raises(DataError, match="no column that is not ignored; it has body"):
        next(given.blocks({"body"}))


def test_large_rows_travel_in_small_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 10_000)
    rows = [[{"bytes": bytes(5000), "path": str(number)}] for number in range(100)]
    pyarrow.parquet.write_table(pyarrow.table({"images": rows}), tmp_path / "a.parquet")
    (given,) = find_inputs([tmp_path / "a.parquet"]).readable
    blocks = list(given.blocks())
    assert max(block.table.get_total_buffer_size() for block in blocks) < 20_000
    assert [raw.value["images"][0]["path"] for block in blocks for raw in block.records()] == [
        str(number) for number in range(100)
    ]


def test_saved_datasets(tmp_path, photographs):
    columns = {"text": TEXTS[:5], "image": [{"bytes": photographs["china.jpg"], "path": "a.jpg"}] * 5}
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    saved = datasets.Dataset.from_dict(columns, features=features).select([4, 0, 2])
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(tmp_path / "both")
    (given,) = find_inputs([tmp_path / "one"]).readable
    found = [raw for block in given.blocks() for raw in block.records()]
    assert [raw.value["text"] for raw in found] == [TEXTS[4], TEXTS[0], TEXTS[2]]
    assert found[1].value["image"]["bytes"] == photographs["china.jpg"]
    assert texts(tmp_path / "both", split="test") == [TEXTS[4]]
    with pytest.raises(DataError, match="has the splits train, test, and split '' was asked for"):
        find_inputs([tmp_path / "both"])
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "single")
    assert len(texts(tmp_path / "single")) == len(texts(tmp_path / "single", split="train")) == 3
    with pytest.raises(DataError, match="has the splits train, and split 'test' was asked for"):
        find_inputs([tmp_path / "single"], "test")
    with pytest.raises(DataError, match="split 'test' was asked for, and no input has splits"):
        find_inputs([tmp_path / "one"], "test")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"damaged")
    with pytest.raises(DataError, match="one cannot be read to its end"):
        read(tmp_path / "one")
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ')
    with pytest.raises(DataError, match=r"dataset_dict\.json cannot be read"):
        find_inputs([tmp_path / "both"])


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_webdataset_tars(name, tmp_path):
    members = {
        "d/1.json": b'{"text": "<image> one"}',
        "d/1.png": b"png",
        "d/2.page9.jpg": b"first",
        "d/2.page10.jpg": b"second",
        "d/2.txt": "zwei ü".encode(),
        "d/3.json": b'{"text": "three", "images": ["3.png"]}',
        "d/3.png": b"named",
        "d/4.cls": b"1",
        "d/5.json": b"{",
    }
    write_tar(tmp_path / name, members)
    found = read(tmp_path / name)
    assert found[0].value == {"text": "<image> one", "images": [b"png"]}
    assert found[1].value == {"text": "zwei ü", "images": [b"first", b"second"]}
    assert found[2].value["images"] == ["3.png"] and found[2].attachments == {"d/3.png": b"named"}
    assert found[3].problem == "no .json and no .txt among d/4.cls"
    assert found[4].place.endswith("sample d/5") and "not valid JSON" in found[4].problem
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 3] if name == "a.tar.gz" else data[:5000])
    with pytest.raises(DataError, match="cannot be read to its end"):
        read(tmp_path / name)


def test_samples_of_a_tar_are_understood_whole_or_not_used(tmp_path):
    members = {
        "1.jfif": b"jpeg",
        "1.txt": b"one",
        "2.raw": b"?",
        "2.txt": b"two",
        "photo v1.5.jpg": b"5",
        "photo v1.5.txt": b"five",
        "photo v1.6.jpg": b"6",
        "photo v1.6.txt": b"six",
        "3.jpg": b"img2dataset",
        "3.json": b'{"url": "https://x", "caption": "three"}',
        "3.txt": b"three",
    }
    write_tar(tmp_path / "a.tar", members)
    first, second, third, fourth = read(tmp_path / "a.tar")
    assert first.value == {"text": "one", "images": [b"jpeg"]}
    assert "a caption beside 2.raw, which may be its image" in second.problem
    assert third.problem.startswith("photo v1.5.txt and photo v1.6.txt are one sample")
    assert fourth.value["text"] == "three" and fourth.value["images"] == [b"img2dataset"]


def test_links_in_a_tar_are_bad_records(tmp_path):
    """GNU tar writes one for the second name of a file."""
    (tmp_path / "1.jpg").write_bytes(b"jpeg")
    (tmp_path / "2.jpg").hardlink_to(tmp_path / "1.jpg")
    for number in (1, 2):
        (tmp_path / f"{number}.txt").write_text("x")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.jpg", "1.txt", "2.jpg", "2.txt"):
            tar.add(tmp_path / name, name)
    first, second = read(tmp_path / "a.tar")
    assert first.value["images"] == [b"jpeg"]
    assert "2.jpg: a link to another member" in second.problem


def test_hidden_entries_and_folders_searched_before_are_passed_over(tmp_path):
    for name in ("a.jsonl", ".b.jsonl", ".partial/c.jsonl", "sub/d.jsonl", "sub/manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(packed("x.jsonl"))
    (tmp_path / "sub" / "back").symlink_to(tmp_path)
    (tmp_path / "zz").symlink_to(tmp_path / "sub")
    made = tmp_path / "tasks"
    made.mkdir()
    for name in ("manifest.json", "records.jsonl"):
        (made / name).write_bytes(packed("x.jsonl"))
    names = [str(given.path.relative_to(tmp_path)) for given in find_inputs([tmp_path]).readable]
    assert names == ["a.jsonl", "sub/d.jsonl", "sub/manifest.json", "tasks/records.jsonl"]


def test_directories_are_searched_in_a_fixed_order(tmp_path):
    for name in ("b/2.jsonl", "a.jsonl", "b/1.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(packed(name))
    (tmp_path / "b" / "readme.txt").write_text("x")
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "c")
    names = [str(given.path.relative_to(tmp_path)) for given in find_inputs([tmp_path]).readable]
    assert names == ["a.jsonl", "b/1.jsonl.gz", "b/2.jsonl", "c"]


def test_unknown_inputs(tmp_path):
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"a\.xlsx: unknown kind of file(?s:.*)\.jsonl, .*\.parquet"):
        find_inputs([tmp_path / "a.xlsx"])
    with pytest.raises(DataError, match="holds no file that can be read"):
        find_inputs([tmp_path])
    with pytest.raises(DataError, match=r"input .*absent does not exist"):
        find_inputs([tmp_path / "absent"])


@pytest.mark.parametrize(("name", "said"), [("a.png", True), ("a.JPG", True), ("a.xlsx", False)])
def test_a_folder_of_pictures_alone(name, said, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="holds no file that can be read") as caught:
        find_inputs([tmp_path])
    assert ("each needs its caption beside it (a.jpg and a.txt)" in str(caught.value)) == said


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("book.txt", "Make each document a line of a .jsonl file"),
        ("page.MD", "Make each document a line of a .jsonl file"),
        ("all.zip", "Unpack it"),
        ("a.arrow", "Write it as Parquet or as JSON lines"),
        ("a.xlsx", "Write it as Parquet or as JSON lines"),
        ("a.bin", "Known: .jsonl"),
    ],
)
def test_what_is_not_read_says_what_to_give_instead(name, instead, tmp_path):
    (tmp_path / name).write_text("x")
    (tmp_path / "README.md").write_text("# A data set")
    for given in (tmp_path, tmp_path / name):
        with pytest.raises(DataError) as caught:
            find_inputs([given])
        assert f"\n  {instead}" in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_line_that_was_cut_is_no_control_character(end, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "cut her' + end, newline="")
    (record,) = read(tmp_path / "a.jsonl")
    assert record.problem.startswith("not valid JSON: Unterminated string")


def tar_of(numbers) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in numbers:
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = 5
            tar.addfile(info, io.BytesIO(b"hello"))
    return buffer.getvalue()  # 1024 bytes each


def test_tars_that_end_too_early_are_errors_of_the_file(tmp_path):
    """``tarfile`` alone takes all of these for shorter archives."""
    whole = tar_of(range(5))
    damaged = bytearray(whole)
    damaged[2 * 1024 + 150] ^= 1
    for data in (bytes(damaged), whole[: 3 * 1024], whole[: 3 * 1024 + 100], whole + tar_of([5]), whole + b"x" * 600):
        (tmp_path / "a.tar").write_bytes(data)
        with pytest.raises(DataError, match=r"cannot be read to its end: .*archive's end"):
            read(tmp_path / "a.tar")


def test_a_tar_of_several_gzip_parts_is_read_to_its_end(tmp_path):
    whole = tar_of(range(5))
    for name, data in (("a.tar.gz", gzip.compress(whole[:2048]) + gzip.compress(whole[2048:])), ("b.tar.gz", whole)):
        (tmp_path / name).write_bytes(data)
        assert len(read(tmp_path / name)) == 5


@pytest.mark.parametrize("nothing", ["null", "[]"])
def test_an_empty_field_of_images_leaves_those_of_the_tar(nothing, tmp_path):
    write_tar(tmp_path / "a.tar", {"1.json": f'{{"text": "<image>", "images": {nothing}}}'.encode(), "1.png": b"png"})
    assert read(tmp_path / "a.tar")[0].value["images"] == [b"png"]


def test_parquet_with_a_date_beyond_pythons(tmp_path):
    dates = pyarrow.array([0, 2**62], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "images": dates}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert found[0].value["text"] == "a" and "a value cannot be read" in found[1].problem


def test_a_saved_dataset_whose_description_is_damaged(tmp_path):
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "c")
    (tmp_path / "c" / "dataset_info.json").write_text("[]")
    with pytest.raises(DataError, match="cannot be read to its end"):
        read(tmp_path / "c")
