"""Limits on raw data: what they hold, what raises them, and that nothing is refused that they allow."""

import base64
import gzip
import json
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hostile_files import MIB
from image_files_in_memory import file_of

from megatron_apriel.data.corpus import record_encoder
from megatron_apriel.data.corpus.record_encoder import BlockTask, RecordEncoder
from megatron_apriel.data.corpus.stored_images import encode_for_corpus
from megatron_apriel.data.raw.files import blocks, json_arrays, readers
from megatron_apriel.data.raw.files.blocks import RawRecord
from megatron_apriel.data.raw.files.finding import find_inputs
from megatron_apriel.data.raw.pictures.image_references import ImageLoader
from megatron_apriel.data.raw.problems import BadRecord, Problem
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.raw.records.conversion import recognise
from megatron_apriel.errors import DataError


def problem_of(path: Path, table, limits: ReadLimits) -> str:
    """Of the one record of a file; "" if it becomes a document."""
    (given,) = find_inputs([path], limits=limits).readable
    (block,) = given.blocks()
    (raw,) = block.records(limits)
    (result,) = RecordEncoder(table, limits=limits).encode_block(
        BlockTask(0, block, recognise(raw.value) or "text", path.parent)
    )
    return result.reason if isinstance(result, Problem) else ""


def test_images_of_a_record_are_bounded_together(table, tmp_path, small_photograph):
    data = file_of(small_photograph, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "<image>" * 3, "images": ["a.png"] * 3}))
    assert not problem_of(tmp_path / "a.jsonl", table, ReadLimits(record_bytes=3 * len(data)))
    problem = problem_of(tmp_path / "a.jsonl", table, ReadLimits(record_bytes=3 * len(data) - 1))
    assert problem == f"its images have more than {3 * len(data) - 1:,} bytes in all; --max-record allows more"


@pytest.mark.parametrize("form", ["path", "bytes", "base64", "data URL", "attachment"])
def test_an_image_file_is_bounded_whatever_form_it_has(form, tmp_path, small_photograph):
    data = file_of(small_photograph, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    value = {"bytes": data, "base64": {"bytes": text}, "data URL": f"data:image/png;base64,{text}"}.get(form, "a.png")
    attachments = {"sample.a.png": b"", "a.png": data} if form == "attachment" else {}
    root = tmp_path if form == "path" else tmp_path / "absent"
    assert ImageLoader(root, attachments, ReadLimits(record_bytes=len(data))).load(value) == data
    with pytest.raises(BadRecord, match="--max-record allows more"):
        ImageLoader(root, attachments, ReadLimits(record_bytes=len(data) - 1)).load(value)


def test_what_no_longer_fits_into_memory_names_its_record(table, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    encoder = RecordEncoder(table)
    (given,) = find_inputs([tmp_path / "a.jsonl"]).readable
    (block,) = given.blocks()
    task = BlockTask(0, block, "text", tmp_path)

    def no_memory(*arguments: object, **named: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(record_encoder, "encode_text", no_memory)
        (problem,) = encoder.encode_block(task)
    assert str(problem) == f"{tmp_path / 'a.jsonl'}:1: there is not enough memory for it"
    with monkeypatch.context() as patched:
        patched.setattr(blocks, "parse_json_object", no_memory)
        (problem,) = encoder.encode_block(task)
    assert str(problem) == f"{tmp_path / 'a.jsonl'}:1: there is not enough memory for it"
    monkeypatch.setattr(readers, "bounded_lines", no_memory)
    with pytest.raises(DataError, match=r"a\.jsonl: there is not enough memory to read on \(after line 0\)"):
        list(given.blocks())


def test_reasons_and_places_of_any_length_are_cut():
    problem = Problem("place" * 10_000, str(BadRecord(f"unknown role {'x' * 10**7!r}")))
    assert len(str(problem)) < 3000
    assert problem.reason.startswith("unknown role 'xxx") and problem.reason.endswith("...")


class TestMoreIsAllowedBySettings:
    """What is refused with the limits as they are is read with higher ones."""

    def test_expansion(self, tmp_path):
        text = "a" * 20 * MIB
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": text}).encode()))
        with pytest.raises(DataError, match=r"a\.jsonl\.gz is not read to its end(?s:.*)raise --max-expansion"):
            self.read(tmp_path / "a.jsonl.gz", DEFAULT_LIMITS)
        (raw,) = self.read(tmp_path / "a.jsonl.gz", ReadLimits(expansion=2000))
        assert raw.value == {"text": text}

    def test_a_page_of_a_table(self, tmp_path):
        text = "a" * 17 * MIB
        pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), tmp_path / "a.parquet", compression="zstd")
        with pytest.raises(DataError, match=r"a\.parquet is not read to its end(?s:.*)raise --max-expansion"):
            self.read(tmp_path / "a.parquet", DEFAULT_LIMITS)
        (raw,) = self.read(tmp_path / "a.parquet", ReadLimits(expansion=10**6))
        assert raw.value == {"text": text}

    def test_text(self, table, tmp_path):
        (tmp_path / "a.jsonl").write_text(json.dumps({"text": "word " * 20}))
        assert not problem_of(tmp_path / "a.jsonl", table, ReadLimits(text_characters=100))
        problem = problem_of(tmp_path / "a.jsonl", table, ReadLimits(text_characters=99))
        assert problem == "it has 100 characters, more than 99; --max-text allows more"
        messages = [{"role": "user", "content": "word " * 20}, {"role": "assistant", "content": "word"}]
        (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
        problem = problem_of(tmp_path / "a.jsonl", table, ReadLimits(text_characters=99))
        assert problem.endswith("more than 99; --max-text allows more")

    def test_a_sample_of_a_tar(self, tmp_path):
        for number in (1, 2):
            (tmp_path / f"{number}.txt").write_text("word" * number)
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for number in (1, 2):
                tar.add(tmp_path / f"{number}.txt", f"{number}.txt")
        first, second = self.read(tmp_path / "a.tar", ReadLimits(record_bytes=7))
        assert first.value == {"text": "word"}
        assert "its members have 8 bytes and more, over 7; --max-record allows more" in second.problem
        assert [raw.problem for raw in self.read(tmp_path / "a.tar", ReadLimits(record_bytes=8))] == ["", ""]

    def test_a_row_of_a_table(self, tmp_path):
        table = pyarrow.table({"text": ["word", "wordword", "word"]})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        first, second, third = self.read(tmp_path / "a.parquet", ReadLimits(record_bytes=7))
        assert first.value == third.value == {"text": "word"}
        assert second.place.endswith("a.parquet: row 1") and third.place.endswith("a.parquet: row 2")
        assert "the row has 8 bytes" in second.problem

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_pixels(self, kind, small_photograph):
        data = file_of(small_photograph.convert("RGBA"), kind, **({"lossless": True} if kind == "WEBP" else {}))
        pixels = 60 * 40 * (2 if kind == "PNG" else 5)
        assert encode_for_corpus(data, ReadLimits(pixels=pixels)).height == 40
        with pytest.raises(BadRecord, match="more than 4 for each of the allowed"):
            encode_for_corpus(data, ReadLimits(pixels=pixels - 1))

    @staticmethod
    def read(path: Path, limits: ReadLimits) -> list[RawRecord]:
        (given,) = find_inputs([path], limits=limits).readable
        return [raw for block in given.blocks() for raw in block.records(limits)]


def test_reading_lines_and_arrays_takes_time_in_proportion(tmp_path, monkeypatch):
    """Counted in characters that the parser of arrays is given and bytes that are read, not in seconds."""
    looked_at = 0
    original = json.JSONDecoder.raw_decode

    def counting(self: json.JSONDecoder, text: str, idx: int = 0) -> tuple[object, int]:
        nonlocal looked_at
        value, stop = 0, len(text)
        try:
            value, stop = original(self, text, idx)
        finally:
            looked_at += stop - idx
        return value, stop

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counting)
    monkeypatch.setattr(json_arrays, "_READ_BYTES", 64)
    for longest in (10, 1000, 100_000):
        texts = ["x" * (number * 7919 % longest) for number in range(300)]
        (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts]))
        looked_at = 0
        (given,) = find_inputs([tmp_path / "a.json"]).readable
        found = [raw.value["text"] for block in given.blocks() for raw in block.records()]
        assert found == texts
        # Once to parse, and at most three times as much to find the ends.
        assert looked_at < 5 * (tmp_path / "a.json").stat().st_size + 300 * 64


@pytest.mark.parametrize(("values", "refused"), [(400, False), (9000, True)])
def test_a_long_element_does_not_let_the_next_be_parsed_at_once(values, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(json_arrays, "_READ_BYTES", 1000)
    limits = ReadLimits(record_bytes=100_000)
    (tmp_path / "a.json").write_text(json.dumps(["x" * 50_000, [[]] * values, {"text": "a"}]))
    (given,) = find_inputs([tmp_path / "a.json"], limits=limits).readable
    if refused:
        with pytest.raises(DataError, match=r"a record has too many values \(after record 1\)"):
            list(given.blocks())
    else:
        found = [raw for block in given.blocks() for raw in block.records(limits)]
        assert [raw.problem for raw in found] == ["a JSON str, not an object", "a JSON list, not an object", ""]


def test_many_small_elements_behind_a_long_one_are_not_its_values(tmp_path, monkeypatch):
    monkeypatch.setattr(json_arrays, "_READ_BYTES", 1000)
    records = [{"text": "x" * 50_000}, *[{"text": "a", "images": [[]] * 3}] * 5000, {"text": "y" * 50_000}] * 2
    (tmp_path / "a.json").write_text(json.dumps(records))
    limits = ReadLimits(record_bytes=100_000)
    (given,) = find_inputs([tmp_path / "a.json"], limits=limits).readable
    assert [raw.value for block in given.blocks() for raw in block.records(limits)] == records


def test_headers_of_a_tar_are_not_kept(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(500):
            tar.addfile(tarfile.TarInfo(f"{number}.txt"))
    kept = []
    original = tarfile.TarFile.next

    def counting(self: tarfile.TarFile) -> tarfile.TarInfo | None:
        member = original(self)
        kept.append(len(self.members))
        return member

    monkeypatch.setattr(tarfile.TarFile, "next", counting)
    (given,) = find_inputs([tmp_path / "a.tar"]).readable
    assert sum(map(len, given.blocks())) == 500
    assert max(kept) <= 2
