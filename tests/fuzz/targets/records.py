"""Raw files through preparation: JSON, Parquet, saved data sets; every record becomes a document or is counted."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import zstandard

from ..byte_changes import change_bytes
from ..case import Target, Wrong
from ..file_changes import Changes, change_json, copy_honest
from ..json_changes import change_value, write_json
from ..records import RECORD_NAMES, compare_texts, honest_records, prepared, use_tokenizer, write_model

_PACKED = {"": bytes, ".gz": lambda data: gzip.compress(data, mtime=0), ".zst": zstandard.compress}


class RawFiles(Target):
    """What all targets of raw files share: the tokenizer, and records with changed values."""

    def make(self, directory: Path) -> None:
        write_model(directory / "model")

    def open(self, directory: Path) -> None:
        super().open(directory)
        self.table = use_tokenizer(directory / "model")

    @staticmethod
    def records(random: Random, changes: int) -> tuple[list[Any], str]:
        """Honest records of one format, so many of their values changed."""
        kind = random.choice(("text", "messages", "conversations"))
        records: Any = list(honest_records()[kind])
        done = []
        for _ in range(changes):
            if not isinstance(records, list):
                break
            records, what = change_value(random, records, RECORD_NAMES)
            done.append(what)
        return records if isinstance(records, list) else [records], f"{kind}: {'; '.join(done)}"


class JsonFiles(RawFiles):
    """One JSON object a line, or one array of objects; plain, gzip or zstd."""

    name = "json"
    about = "raw records as JSON lines or arrays, plain, .gz or .zst"
    guided = "records.json"

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        inside = random.randint(0, changes)
        records, said = self.records(random, inside)
        suffix = random.choice(("", "", ".gz", ".zst"))
        name = random.choice((".jsonl", ".json", ".ndjson"))
        options: dict[str, Any] = {"ensure_ascii": random.random() < 0.7}
        if random.random() < 0.5:
            text = "".join(write_json(record, **options) + random.choice(("\n", "\r\n")) for record in records)
        else:
            text = write_json(records, indent=random.choice((None, 1)), **options)
        data = text.encode("utf-8", "surrogatepass")
        for _ in range(changes - inside):
            if suffix and random.random() < 0.4:
                break
            data, what = _changed_text(random, data)
            said += f"; {what}"
        packed = _PACKED[suffix](data)
        if suffix and changes > inside and random.random() < 0.6:
            packed, what = _changed_packing(random, packed, data, suffix)
            said += f"; packed: {what}"
        (directory / f"records{name}{suffix}").write_bytes(packed)
        return said

    def check(self, directory: Path) -> None:
        (file,) = (path for path in directory.iterdir() if path.name.startswith("records"))
        result = prepared([file], directory / "corpus")
        if (records := self._independent(file)) is not None:
            compare_texts(result, self.table, records)

    @staticmethod
    def _independent(file: Path) -> list[tuple[str, Any]] | None:
        """Places and values of the records, by the libraries alone."""
        raw = file.read_bytes()
        try:
            if file.suffix == ".gz":
                raw = gzip.decompress(raw)
            elif file.suffix == ".zst":
                raw = (
                    zstandard.ZstdDecompressor(max_window_size=2**31)
                    .stream_reader(io.BytesIO(raw), read_across_frames=True)
                    .read()
                )
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise Wrong(f"a file was read that cannot be decompressed: {error}") from None
        raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.lstrip(b" \t\r\n").startswith(b"["):
            text = raw.decode("utf-8", "surrogateescape")
            try:
                return [(f"{file}: record {number}", value) for number, value in enumerate(json.loads(text), start=1)]
            except RecursionError:  # as a whole it lies one deeper than each of its records by itself
                return None
        found = []
        for number, line in enumerate(raw.split(b"\n"), start=1):
            if line.strip():
                found.append((f"{file}:{number}", _json_or_none(line)))
        return found


def _json_or_none(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def _changed_text(random: Random, data: bytes) -> tuple[bytes, str]:
    """Lines and arrays as they come damaged or out of other programs."""
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    match random.randrange(8):
        case 0:
            return b"\xef\xbb\xbf" + data, "a byte order mark"
        case 1:
            lines.insert(
                place,
                random.choice(
                    (
                        b"",
                        b"   ",
                        b"[]",
                        b"{}",
                        b"1",
                        b"null",
                        b"\x00",
                        b"[",
                        b"]",
                        b",",
                        b"\xff",
                        b"\x1a",
                        b"\x0c",
                        b"\x85",
                    )
                ),
            )
            return b"\n".join(lines), f"a strange line {place + 1}"
        case 2:
            return data.rstrip() + random.choice(
                (b"", b"]", b"\n[]", b"\0" * 20, b" x", b"\n{}", data)
            ), "something else at the end"
        case 3:
            return data.replace(
                random.choice((b",", b":", b'"', b"{", b"}")), random.choice((b"", b";", b"''")), 1
            ), "a mark replaced"
        case 4:
            return data.decode("utf-8", "replace").encode(
                random.choice(("utf-16", "utf-32", "latin-1", "utf-7")), "replace"
            ), "another encoding"
        case 5:
            return random.choice(
                (b"[" * 5000, b'{"a":' * 5000, b'[{"text":' * 2000, b" " * 70000)
            ) + data, "deep, or a lot of nothing"
    return change_bytes(random, data)


def _changed_packing(random: Random, packed: bytes, data: bytes, suffix: str) -> tuple[bytes, str]:
    """Compressed streams in several parts, with something between or behind them, cut, or damaged."""
    pack = _PACKED[suffix]
    place = random.randint(0, len(data))
    match random.randrange(5):
        case 0:
            return pack(data[:place]) + pack(data[place:]), "in two parts"
        case 1:
            return pack(data[:place]) + random.choice((b"\0" * 100, b"x", pack(b""))) + pack(
                data[place:]
            ), "something between two parts"
        case 2:
            return packed + random.choice(
                (b"\0" * 512, b"\0", b"garbage", packed[:10], b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18\x04\0\0\0abcd")
            ), "something behind"
        case 3:
            if suffix == ".gz":  # the size and the checksum made good after the deflated data are cut or extended
                inner = change_bytes(random, packed[10:-8])[0]
                end = zlib.crc32(data).to_bytes(4, "little") + (len(data) % 2**32).to_bytes(4, "little")
                return packed[:10] + inner + end, "the deflated data changed"
            parameters = zstandard.ZstdCompressionParameters(
                window_log=random.choice((10, 27, 30)), write_content_size=False
            )
            return zstandard.ZstdCompressor(compression_params=parameters).compress(data), "another window"
    return change_bytes(random, packed)


class Tables(RawFiles):
    """Parquet files of any columns and encodings."""

    name = "parquet"
    about = "raw records as Parquet"

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        inside = random.randint(0, changes)
        records, said = self.records(random, inside)
        table = _table(records)
        if inside and random.random() < 0.4:
            table, what = _retyped(random, table)
            said += f"; {what}"
        buffer = io.BytesIO()
        try:
            pyarrow.parquet.write_table(
                table,
                buffer,
                row_group_size=random.choice((1, 2, 100)),
                compression=random.choice(("none", "snappy", "zstd", "gzip")),
                use_dictionary=random.random() < 0.5,
                data_page_version=random.choice(("1.0", "2.0")),
                write_page_checksum=random.random() < 0.3,
                store_schema=random.random() < 0.8,
            )
        except (pyarrow.ArrowException, TypeError) as error:
            said += f"; no Parquet: {error}"
            pyarrow.parquet.write_table(_table(honest_records()["text"]), buffer)
        data = buffer.getvalue()
        for _ in range(changes - inside):
            if random.random() < 0.6 and len(data) > 12:  # the footer holds the metadata: most of what is believed
                length = int.from_bytes(data[-8:-4], "little")
                footer, what = change_bytes(random, data[-8 - length : -8])
                data = data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + data[-4:]
                said += f"; footer: {what}"
            else:
                data, what = change_bytes(random, data)
                said += f"; {what}"
        (directory / "records.parquet").write_bytes(data)
        return said

    def check(self, directory: Path) -> None:
        file = directory / "records.parquet"
        result = prepared([file], directory / "corpus")
        with pyarrow.parquet.ParquetFile(file) as whole:
            rows = whole.metadata.num_rows
            texts: list[Any] = [None] * rows
            if result.summary.inputs[0].record_format == "text":
                try:
                    columns = [name for name in ("text", "images", "image") if name in whole.schema_arrow.names]
                    texts = whole.read(columns=columns, use_threads=False).to_pylist()
                except (UnicodeDecodeError, ValueError):  # a row that is no text is a bad record of its own
                    if len(result.summary.lengths) + result.summary.problems.count != rows:
                        raise Wrong(f"{rows} rows, and another number of records") from None
                    return
        compare_texts(result, self.table, [(f"{file}: row {number}", value) for number, value in enumerate(texts)])


def _table(records: list[Any]) -> Any:
    """The records as a table, where Arrow can tell the columns' types; else each value as JSON text."""
    rows = [record if isinstance(record, dict) else {"text": record} for record in records] or [{"text": "x"}]
    rows = [{str.__str__(name): value for name, value in row.items()} for row in rows]
    try:
        return pyarrow.Table.from_pylist(rows, schema=None if len(rows) > 1 else pyarrow.Table.from_pylist(rows).schema)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError, UnicodeError, AttributeError):
        texts = []
        for row in rows:
            text = write_json(row).encode("utf-8", "replace").decode()
            texts.append(text if len(text) < 100_000 else text[:100])
        return pyarrow.table({"text": texts})


def _retyped(random: Random, table: Any) -> tuple[Any, str]:
    """The table with one column of another type, name or order."""
    if not table.num_columns:
        return table, "nothing: there is no column"
    place = random.randrange(table.num_columns)
    name = table.schema.names[place]
    kinds: list[Any] = [
        pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view(),
        pyarrow.int64(), pyarrow.null(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), pyarrow.list_(pyarrow.string()), pyarrow.float16(),
        pyarrow.timestamp("ns"),
        pyarrow.decimal128(38, 10), pyarrow.duration("s"), pyarrow.map_(pyarrow.string(), pyarrow.string()),
        pyarrow.json_(), pyarrow.bool_(),
    ]  # fmt: skip
    match random.randrange(4):
        case 0:
            return table.rename_columns(
                [*table.schema.names[:place], random.choice(RECORD_NAMES), *table.schema.names[place + 1 :]]
            ), f"rename {name}"
        case 1:
            return table.append_column(random.choice(RECORD_NAMES), table.column(place)), f"{name} again"
    kind = random.choice(kinds)
    try:
        column = table.column(place).cast(kind)
    except (pyarrow.ArrowException, ValueError):
        column = pyarrow.nulls(table.num_rows, kind)
    return table.set_column(place, name, column), f"{name} as {kind}"


class SavedDatasets(RawFiles):
    """Directories of ``datasets.save_to_disk``, with and without splits."""

    name = "datasets"
    about = "raw records as a directory of datasets.save_to_disk"

    def make(self, directory: Path) -> None:
        super().make(directory)
        for kind in ("text", "messages"):
            rows = datasets.Dataset.from_list(_table(honest_records()[kind]).to_pylist())
            rows.save_to_disk(directory / kind)
            datasets.DatasetDict({"train": rows}).save_to_disk(directory / f"{kind}-splits")

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        kind = random.choice(("text", "messages", "text-splits", "messages-splits"))
        copy_honest(self.honest / kind, directory / kind)
        done = Changes(random, directory / kind)
        for _ in range(changes):
            if random.random() < 0.1:
                done.files()
                continue
            files = sorted(
                str(path.relative_to(directory / kind)) for path in (directory / kind).rglob("*") if path.is_file()
            )
            if files:
                name = random.choice(files)
                change = change_json if name.endswith(".json") else change_bytes
                done.file(name, lambda data: change(random, data))  # noqa: B023
        return f"{kind}: {done.finish()}"

    def check(self, directory: Path) -> None:
        (saved,) = (path for path in directory.iterdir() if path.name != "corpus")
        result = prepared([saved], directory / "corpus")
        place = saved / "train" if saved.name.endswith("splits") else saved
        state = json.loads((place / "state.json").read_bytes())
        rows = 0
        for entry in state["_data_files"]:
            with pyarrow.memory_map(str(place / entry["filename"])) as source:
                rows += pyarrow.ipc.open_stream(source).read_all().num_rows
        if not state.get("_indices_files") and rows != result.summary.problems.records:
            raise Wrong(f"{result.summary.problems.records} records were counted, and there are {rows}")
