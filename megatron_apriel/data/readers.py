"""Raw files as a stream of small chunks: JSON, Parquet, Hugging Face datasets on disk, WebDataset tars.

The process that reads does as little as possible: it cuts a file into chunks of a few dozen records and hands them on
unparsed, so that parsing, image decoding and tokenisation all happen in the workers. No file is held in memory as a
whole. A file that cannot be read to its end is not one bad record: the documents that are missing cannot be counted, so
it raises DataError.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

from megatron_apriel.data.compressed import READ_ERRORS, bounded_lines, decompressed
from megatron_apriel.data.json_arrays import BrokenArray, array_elements, is_array
from megatron_apriel.data.raw_chunks import Chunk, JsonChunk, SampleChunk, TableChunk
from megatron_apriel.errors import DataError

CHUNK_RECORDS = 64
CHUNK_BYTES = 4 * 2**20

JSON = tuple(f"{name}{packed}" for packed in ("", ".gz", ".zst") for name in (".jsonl", ".ndjson", ".json"))
PARQUET = (".parquet",)
TARS = (".tar", ".tar.gz", ".tgz")
MANIFEST, RECORDS = "manifest.json", "records.jsonl"
"""What ``make_visual_tasks.py`` writes; the first describes the second, and is no record."""


class Source(ABC):
    """One input: a file, or a data set directory that is read as a whole."""

    kind: str

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        """Its records in order, from the beginning.

        Args:
            columns: fields that are wanted, where the format can leave out others.

        Raises:
            DataError: the file is damaged or cut short.
        """


class JsonRecords(Source):
    """One JSON object per line, where blank lines do not count as records; or one JSON array of objects."""

    kind = "JSON"

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        records: list[tuple[int, bytes | None]] = []
        size = number = 0
        split: Callable[[io.BufferedIOBase], Iterator[tuple[int, bytes | None]]] = self._lines
        place, counted = f"{self.path}:", "line"
        try:
            with decompressed(self.path) as stream:
                if is_array(stream):
                    split, place, counted = array_elements, f"{self.path}: record ", "record"
            with decompressed(self.path) as stream:
                for number, record in split(stream):
                    records.append((number, record))
                    size += len(record or b"")
                    if len(records) == CHUNK_RECORDS or size >= CHUNK_BYTES:
                        yield JsonChunk(place, records)
                        records, size = [], 0
        except (BrokenArray, *READ_ERRORS) as error:
            raise _unreadable(self.path, f"after {counted} {number}", error) from None
        if records:
            yield JsonChunk(place, records)

    @staticmethod
    def _lines(stream: io.BufferedIOBase) -> Iterator[tuple[int, bytes | None]]:
        for number, line in bounded_lines(stream):
            if number == 1 and line is not None:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line is None or line.strip():
                yield number, line


class Parquet(Source):
    """A Parquet file; only the wanted columns are read."""

    kind = "Parquet"

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        import pyarrow
        import pyarrow.parquet

        row = 0
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                wanted = [name for name in file.schema_arrow.names if name in columns]
                if not wanted:
                    raise _no_column(self.path, columns, file.schema_arrow.names)
                for batch in file.iter_batches(batch_size=CHUNK_RECORDS, columns=wanted):
                    table = pyarrow.Table.from_batches([batch])
                    for piece in _bounded_tables(table):
                        yield TableChunk(str(self.path), row, piece)
                        row += piece.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(self.path, f"after row {row}", error) from None


class SavedDataset(Source):
    """A directory written by ``datasets.Dataset.save_to_disk``; images are not decoded here."""

    kind = "Hugging Face dataset"

    def __init__(self, path: Path, split: str = "") -> None:
        super().__init__(path)
        self.split = split

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        import datasets
        import pyarrow

        row = 0
        try:
            dataset = datasets.load_from_disk(str(self.path))
            if isinstance(dataset, datasets.DatasetDict):
                dataset = dataset[self.split]
            wanted = [name for name in dataset.column_names if name in columns]
            if not wanted:
                raise _no_column(self.path, columns, dataset.column_names)
            for table in dataset.select_columns(wanted).with_format("arrow").iter(batch_size=CHUNK_RECORDS):
                for piece in _bounded_tables(table):
                    yield TableChunk(str(self.path), row, piece)
                    row += piece.num_rows
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(self.path, f"after row {row}", error) from None


class WebDataset(Source):
    """A tar whose members share a name up to its first dot: one ``.json`` (or ``.txt``) and its images."""

    kind = "WebDataset tar"

    def chunks(self, columns: Sequence[str]) -> Iterator[Chunk]:
        samples: list[tuple[str, dict[str, bytes | None]]] = []
        size, key = 0, ""
        try:
            with (
                _unzipped(self.path) as stream,
                tarfile.open(fileobj=stream, mode="r|*", tarinfo=_SoundHeader) as tar,
            ):
                for key, members in _tar_samples(tar):
                    samples.append((key, members))
                    size += sum(len(data or b"") for data in members.values())
                    if len(samples) == CHUNK_RECORDS or size >= CHUNK_BYTES:
                        yield SampleChunk(str(self.path), samples)
                        samples, size = [], 0
        except (tarfile.TarError, *READ_ERRORS) as error:
            raise _unreadable(self.path, f"after sample {key!r}", error) from None
        if samples:
            yield SampleChunk(str(self.path), samples)


def find_sources(inputs: Sequence[str | Path], split: str = "") -> list[Source]:
    """The sources that the given files and directories hold, in a fixed order.

    Args:
        inputs: files; directories written by ``save_to_disk``; other directories, which are searched for files of the
            known kinds in alphabetical order. Hidden entries are passed over, and so is a directory that was already
            searched under another name.
        split: which split of a saved ``DatasetDict`` is meant.

    Raises:
        DataError: a path that does not exist, is of no known kind, holds nothing, or has not the split.
    """
    sources: list[Source] = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = _in_directory(path, split, set())
            if not found:
                raise DataError(f"{path} holds no file that can be read.", fix=f"Known: {_known_suffixes()}.")
            sources += found
        elif path.is_file():
            reader = _reader_of(path)
            if reader is None:
                raise DataError(f"{path}: unknown kind of file.", fix=f"Known: {_known_suffixes()}.")
            sources.append(reader(path))
        else:
            raise DataError(f"input {path} does not exist.")
    if split and not any(isinstance(source, SavedDataset) and source.split for source in sources):
        raise DataError(
            f"split {split!r} was asked for, and no input is a saved DatasetDict, which alone has splits.",
            fix="Leave --split out, and give the files of that split as inputs.",
        )
    return sources


def _known_suffixes() -> str:
    return ", ".join((*JSON, *PARQUET, *TARS)) + ", and directories of datasets.save_to_disk"


def _reader_of(path: Path) -> type[Source] | None:
    readers = ((JSON, JsonRecords), (PARQUET, Parquet), (TARS, WebDataset))
    return next((reader for suffixes, reader in readers if path.name.lower().endswith(suffixes)), None)


def _in_directory(path: Path, split: str, seen: set[Path]) -> list[Source]:
    place = path.resolve()
    if place in seen:
        return []
    seen.add(place)
    if (path / "dataset_dict.json").is_file():
        splits = _splits(path / "dataset_dict.json")
        if split not in splits and (split or len(splits) != 1):
            raise DataError(
                f"{path} has the splits {', '.join(splits)}, and split {split!r} was asked for.",
                fix=f"Choose with --split {splits[0] if splits else ''}.",
            )
        return [SavedDataset(path, split or splits[0])]
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return [SavedDataset(path)]
    found: list[Source] = []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or (entry.name == MANIFEST and (path / RECORDS).is_file()):
            continue
        reader = _reader_of(entry)
        if entry.is_dir():
            found += _in_directory(entry, split, seen)
        elif reader is not None:
            found.append(reader(entry))
    return found


def _splits(file: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} cannot be read: {error!r}.", "It names the splits of the data set.", "Save the data set again."
        ) from None


def _unreadable(path: Path, where: str, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read to its end: {error or type(error).__name__} ({where}).",
        "What is missing cannot be counted, so this is not one bad record.",
        "Copy or download the file again, or leave it out.",
    )


def _no_column(path: Path, columns: Sequence[str], present: Sequence[str]) -> DataError:
    return DataError(
        f"{path} has none of the columns {', '.join(columns)}; it has {', '.join(present)}.",
        fix="Name the column of plain text with --text-field, or rename the columns.",
    )


def _bounded_tables(table: Any) -> Iterator[Any]:
    """The table in pieces of about CHUNK_BYTES: rows with images are large.

    A piece is a copy of its rows; a slice would take all of its parent's memory along on the way to a worker.
    """
    import pyarrow

    schema = pyarrow.schema([field.with_type(_without_views(field.type)) for field in table.schema])
    table = table if schema.equals(table.schema) else table.cast(schema)
    pieces = min(max(1, table.nbytes // CHUNK_BYTES), max(1, table.num_rows))
    step = -(-table.num_rows // pieces) or 1
    for start in range(0, table.num_rows, step):
        yield table.take(pyarrow.array(range(start, min(start + step, table.num_rows))))


def _without_views(kind: Any) -> Any:
    """The Arrow type with its strings in one run of bytes: rows of the newer views cannot be picked out (Arrow 26)."""
    import pyarrow

    if pyarrow.types.is_string_view(kind):
        return pyarrow.large_string()
    if pyarrow.types.is_binary_view(kind):
        return pyarrow.large_binary()
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([field.with_type(_without_views(field.type)) for field in kind])
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        value = kind.value_field.with_type(_without_views(kind.value_type))
        return kind if value == kind.value_field else pyarrow.large_list(value)
    return kind


def _unzipped(path: Path) -> BinaryIO:
    """A tar's bytes, gzip taken off whatever the name; ``tarfile`` itself reads no further than gzip's first part."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else path.open("rb")  # type: ignore[return-value]


class _SoundHeader(tarfile.TarInfo):
    """A member's header. Where it is damaged, or missing before the mark of the archive's end, it is an error.

    ``tarfile`` takes both for the end, and the members behind them would be lost without a word.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the mark of the end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}, before the archive's end") from None


def _tar_samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    current, members = "", dict[str, bytes | None]()
    for member in tar:
        if member.isdir():
            continue
        path = PurePosixPath(member.name)
        key = str(path.with_name(path.name.partition(".")[0] or path.name))
        if key != current:
            if members:
                yield current, members
            current, members = key, {}
        # What a link points to may lie behind, and a stream is read once.
        stream = tar.extractfile(member) if member.isfile() else None
        members[member.name] = None if stream is None else stream.read()
    if members:
        yield current, members
    while block := tar.fileobj.read(2**20):  # type: ignore[union-attr]
        if block.strip(b"\0"):
            raise tarfile.ReadError("something follows the archive's end: archives cannot be joined by appending")
