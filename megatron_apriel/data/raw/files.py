"""Raw files as a stream of small blocks: JSON, Parquet, Hugging Face datasets on disk, WebDataset tars.

The process that reads does as little as possible: it cuts a file into blocks of a few dozen records and hands them on
unparsed, so that parsing, image decoding and tokenisation all happen in the workers. No file is held in memory as a
whole, and none grows beyond its limits (``read_limits``). A file that cannot be read to its end is not one bad record:
the documents that are missing cannot be counted, so it raises DataError.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_apriel.data.raw.blocks import Block, JsonBlock, SampleBlock, TarSample
from megatron_apriel.data.raw.compressed import READ_ERRORS, bounded_lines, decompressed, open_raw
from megatron_apriel.data.raw.json_arrays import BrokenArray, array_elements, is_array
from megatron_apriel.data.raw.parquet_footer import read_footer
from megatron_apriel.data.raw.parquet_pages import reading_plan
from megatron_apriel.data.raw.problems import shortened
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, LimitExceeded, ReadLimits
from megatron_apriel.data.raw.saved_datasets import INFO_FILE, SPLITS_FILE, STATE_FILE, record_batches, split_names
from megatron_apriel.data.raw.table_rows import row_blocks, row_costs
from megatron_apriel.data.raw.tars import TAR_ERRORS, tar_samples
from megatron_apriel.errors import DataError
from megatron_apriel.inputs import open_input

BLOCK_RECORDS = 64
BLOCK_BYTES = 4 * 2**20

JSON = tuple(f"{name}{packed}" for packed in ("", ".gz", ".zst") for name in (".jsonl", ".ndjson", ".json"))
PARQUET = (".parquet",)
TARS = (".tar", ".tar.gz", ".tgz")
MANIFEST, RECORDS = "manifest.json", "records.jsonl"
"""What ``make_visual_tasks.py`` writes; the first describes the second, and is no record."""

_DEPTH = 100
"""Directories in directories that are searched."""
_NAMES_SHOWN = 500
"""Characters of a list of names in a message."""


class Source(ABC):
    """One input: a file, or a data set directory that is read as a whole."""

    kind: str

    def __init__(self, path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> None:
        self.path, self.limits = path, limits

    @abstractmethod
    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        """Its records in order, from the beginning.

        Args:
            columns: fields that are wanted, where the format can leave out others.

        Raises:
            DataError: the file is damaged or cut short, or grows beyond the limits.
        """


class JsonRecords(Source):
    """One JSON object per line, where blank lines do not count as records; or one JSON array of objects."""

    kind = "JSON"

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        records: list[tuple[int, bytes | None]] = []
        size = number = 0
        split: Callable[[Any, ReadLimits], Iterator[tuple[int, bytes | None]]] = self._lines
        place, counted = f"{self.path}:", "line"
        try:
            with decompressed(self.path, self.limits) as stream:
                if is_array(stream):
                    split, place, counted = array_elements, f"{self.path}: record ", "record"
            with decompressed(self.path, self.limits) as stream:
                for number, record in split(stream, self.limits):
                    records.append((number, record))
                    size += len(record or b"")
                    if len(records) == BLOCK_RECORDS or size >= BLOCK_BYTES:
                        yield JsonBlock(place, records)
                        records, size = [], 0
        except (BrokenArray, LimitExceeded, MemoryError, *READ_ERRORS) as error:
            raise _unreadable(self.path, f"after {counted} {number}", error) from None
        if records:
            yield JsonBlock(place, records)

    @staticmethod
    def _lines(stream: Any, limits: ReadLimits) -> Iterator[tuple[int, bytes | None]]:
        for number, line in bounded_lines(stream, limits.record_bytes):
            if number == 1 and line is not None:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line is None or number > 1 or line.strip():
                yield number, line


class Parquet(Source):
    """A Parquet file; only the wanted columns are read."""

    kind = "Parquet"

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        import pyarrow
        import pyarrow.parquet

        row = 0
        try:
            with open_raw(self.path, self.limits) as file:
                groups = read_footer(file, self.limits)
                parquet = pyarrow.parquet.ParquetFile(file)
                wanted = [name for name in parquet.schema_arrow.names if name in columns]
                if not wanted:
                    raise _no_column(self.path, columns, parquet.schema_arrow.names)
                rows = _Rows(str(self.path), self.limits)
                for group in groups:
                    plan = reading_plan(file, parquet.schema, group, wanted, BLOCK_RECORDS, self.limits)
                    rows.packed += plan.packed_bytes
                    reader = parquet
                    if plan.references:
                        reader = pyarrow.parquet.ParquetFile(
                            file, metadata=parquet.metadata, read_dictionary=plan.references
                        )
                    for batch in reader.iter_batches(batch_size=plan.rows, row_groups=[group.number], columns=wanted):
                        yield from rows.blocks(batch)
                        row = rows.number
        except (pyarrow.ArrowException, LimitExceeded, MemoryError, OSError, ValueError) as error:
            raise _unreadable(self.path, f"after row {row}", error) from None


class SavedDataset(Source):
    """A directory written by ``datasets.Dataset.save_to_disk``; images are not decoded here."""

    kind = "Hugging Face dataset"

    def __init__(self, path: Path, split: str = "", limits: ReadLimits = DEFAULT_LIMITS) -> None:
        super().__init__(path, limits)
        self.split = split

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        import pyarrow

        row = 0
        try:
            rows = _Rows(str(self.path), self.limits)
            for batch in record_batches(self.path / self.split, self.limits):
                wanted = [name for name in batch.schema.names if name in columns]
                if not wanted:
                    raise _no_column(self.path, columns, batch.schema.names)
                batch = batch.select(wanted)
                rows.packed += batch.nbytes
                for start in range(0, batch.num_rows, BLOCK_RECORDS):
                    yield from rows.blocks(batch.slice(start, BLOCK_RECORDS))
                    row = rows.number
        except (pyarrow.ArrowException, LimitExceeded, MemoryError, OSError, ValueError) as error:
            raise _unreadable(self.path, f"after row {row}", error) from None


class WebDataset(Source):
    """A tar whose members share a name up to its first dot: one ``.json`` (or ``.txt``) and its images."""

    kind = "WebDataset tar"

    def blocks(self, columns: Sequence[str]) -> Iterator[Block]:
        samples: list[TarSample] = []
        size, key = 0, ""
        try:
            for sample in tar_samples(self.path, self.limits):
                samples.append(sample)
                key = sample.key
                size += sum(len(data or b"") for data in sample.members.values())
                if len(samples) == BLOCK_RECORDS or size >= BLOCK_BYTES:
                    yield SampleBlock(str(self.path), samples)
                    samples, size = [], 0
        except (LimitExceeded, MemoryError, *TAR_ERRORS) as error:
            raise _unreadable(self.path, f"after sample {shortened(key, _NAMES_SHOWN)!r}", error) from None
        if samples:
            yield SampleBlock(str(self.path), samples)


class _Rows:
    """The rows of a file's record batches, counted, and held to the limit on growth before they are handed on."""

    def __init__(self, file: str, limits: ReadLimits) -> None:
        self._file, self._limits = file, limits
        self.number = self.packed = self._unpacked = 0

    def blocks(self, batch: Any) -> Iterator[Block]:
        costs = row_costs(batch)
        self._unpacked += int(costs[0].sum())
        self._limits.check_growth(self.packed, self._unpacked)
        yield from row_blocks(self._file, self.number, batch, costs, self._limits, BLOCK_BYTES)
        self.number += batch.num_rows


def find_sources(inputs: Sequence[str | Path], split: str = "", limits: ReadLimits = DEFAULT_LIMITS) -> list[Source]:
    """The sources that the given files and directories hold, in a fixed order.

    Args:
        inputs: files; directories written by ``save_to_disk``; other directories, which are searched for files of the
            known kinds in alphabetical order. Hidden entries are passed over, and so is a directory that was already
            searched under another name.
        split: which split of a saved ``DatasetDict`` is meant.
        limits: on what is read of them.

    Raises:
        DataError: a path that does not exist, is a pipe or a device, is of no known kind, holds nothing, or has not
            the split.
    """
    sources: list[Source] = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = _in_directory(path, split, limits, set())
            if not found:
                raise DataError(f"{path} holds no file that can be read.", fix=f"Known: {_known_suffixes()}.")
            sources += found
            continue
        _check_openable(path)
        reader = _reader_of(path)
        if reader is None:
            raise DataError(f"{path}: unknown kind of file.", fix=f"Known: {_known_suffixes()}.")
        sources.append(reader(path, limits))
    if split and not any(isinstance(source, SavedDataset) and source.split for source in sources):
        raise DataError(
            f"split {split!r} was asked for, and no input is a saved DatasetDict, which alone has splits.",
            fix="Leave --split out, and give the files of that split as inputs.",
        )
    return sources


def _check_openable(path: Path) -> None:
    try:
        open_input(path).close()
    except FileNotFoundError:
        raise DataError(f"input {path} does not exist.") from None
    except OSError as error:
        raise DataError(f"input {path} cannot be read: {error.strerror}.") from None


def _known_suffixes() -> str:
    return ", ".join((*JSON, *PARQUET, *TARS)) + ", and directories of datasets.save_to_disk"


def _reader_of(path: Path) -> type[JsonRecords | Parquet | WebDataset] | None:
    readers: tuple[tuple[tuple[str, ...], type[JsonRecords | Parquet | WebDataset]], ...] = (
        (JSON, JsonRecords),
        (PARQUET, Parquet),
        (TARS, WebDataset),
    )
    return next((reader for suffixes, reader in readers if path.name.lower().endswith(suffixes)), None)


def _in_directory(path: Path, split: str, limits: ReadLimits, seen: set[Path]) -> list[Source]:
    place = path.resolve()
    if place in seen:
        return []
    seen.add(place)
    if (path / SPLITS_FILE).is_file():
        splits = _splits(path)
        if split not in splits and (split or len(splits) != 1):
            raise DataError(
                f"{path} has the splits {_listed(splits)}, and split {split!r} was asked for.",
                fix=f"Choose with --split {splits[0] if splits else ''}.",
            )
        return [SavedDataset(path, split or splits[0], limits)]
    if (path / STATE_FILE).is_file() and (path / INFO_FILE).is_file():
        return [SavedDataset(path, limits=limits)]
    if len(place.parts) > _DEPTH:
        raise DataError(f"{path}: directories are searched to a depth of {_DEPTH}.", fix="Give the files as inputs.")
    found: list[Source] = []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith("."):
            continue
        reader = _reader_of(entry)
        if entry.is_dir():
            found += _in_directory(entry, split, limits, seen)
        elif reader is not None:
            _check_openable(entry)
            if entry.name != MANIFEST or not (path / RECORDS).is_file():
                found.append(reader(entry, limits))
    return found


def _splits(directory: Path) -> list[str]:
    try:
        return split_names(directory)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{directory / SPLITS_FILE} cannot be read: {error}.",
            "It names the splits of the data set.",
            "Save the data set again.",
        ) from None


def _unreadable(path: Path, where: str, error: Exception) -> DataError:
    if isinstance(error, MemoryError):
        return DataError(
            f"{path}: there is not enough memory to read on ({where}).",
            fix="Use a machine with more memory, or fewer --workers.",
        )
    if isinstance(error, LimitExceeded):
        return DataError(
            f"{path} is not read to its end: {error} ({where}).",
            "A small file that grows without end would fill the memory, or be read for days.",
            f"If it is meant to be like that, raise {error.setting}; otherwise leave it out.",
        )
    return DataError(
        f"{path} cannot be read to its end: {error or type(error).__name__} ({where}).",
        "What is missing cannot be counted, so this is not one bad record.",
        "Copy or download the file again, or leave it out.",
    )


def _no_column(path: Path, columns: Sequence[str], present: Sequence[str]) -> DataError:
    return DataError(
        f"{path} has none of the columns {', '.join(columns)}; it has {_listed(present)}.",
        fix="Name the column of plain text with --text-field, or rename the columns.",
    )


def _listed(names: Sequence[str]) -> str:
    return shortened(", ".join(names[:_NAMES_SHOWN]), _NAMES_SHOWN)
