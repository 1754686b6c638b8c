"""Raw files as a stream of small blocks: JSON, Parquet, Hugging Face datasets on disk, WebDataset tars.

The process that reads does as little as possible: it cuts a file into blocks of a few dozen records and hands them on
unparsed, so that parsing, image decoding and tokenisation all happen in the workers. No file is held in memory as a
whole, and none grows beyond its limits (``read_limits``). A file that cannot be read to its end is not one bad record:
the documents that are missing cannot be counted, so it raises DataError.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_apriel.data.raw.blocks import Block, JsonBlock, RefusedBlock, SampleBlock
from megatron_apriel.data.raw.compressed import PACKINGS, READ_ERRORS, bounded_lines, decompressed, open_raw
from megatron_apriel.data.raw.folder_samples import folder_samples
from megatron_apriel.data.raw.folders import Listing, list_directory
from megatron_apriel.data.raw.json_arrays import BrokenArray, array_elements, is_array, object_members
from megatron_apriel.data.raw.parquet_footer import read_footer
from megatron_apriel.data.raw.parquet_pages import reading_plan
from megatron_apriel.data.raw.problems import shortened
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, LimitExceeded, ReadLimits
from megatron_apriel.data.raw.saved_datasets import SPLITS_FILE, record_batches, split_names
from megatron_apriel.data.raw.splits import ALL_SPLITS, EXCLUDED, splits_of
from megatron_apriel.data.raw.table_rows import row_blocks, row_costs
from megatron_apriel.data.raw.tar_records import TarSample
from megatron_apriel.data.raw.tars import TAR_ERRORS, tar_samples
from megatron_apriel.data.raw.text_tables import BrokenTable, table_rows
from megatron_apriel.errors import DataError
from megatron_apriel.inputs import open_input

BLOCK_RECORDS = 64
BLOCK_BYTES = 4 * 2**20

JSON = tuple(f"{name}{packed}" for packed in PACKINGS for name in (".jsonl", ".ndjson", ".json"))
TABLES = tuple(f"{name}{packed}" for packed in PACKINGS for name in (".csv", ".tsv"))
PARQUET = (".parquet",)
TARS = (".tar", ".tar.gz", ".tgz")
_NAMES_SHOWN = 500
"""Characters of a list of names in a message."""


class Source(ABC):
    """One input: a file, or a data set directory that is read as a whole."""

    kind: str
    found = False
    """Whether it was found in a directory, where files may lie that only describe others."""

    def __init__(self, path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> None:
        self.path, self.limits = path, limits

    @abstractmethod
    def blocks(self, ignored: Container[str] = ()) -> Iterator[Block]:
        """Its records in order, from the beginning.

        Args:
            ignored: fields that are not wanted, where the format can leave them out.

        Raises:
            DataError: the file is damaged or cut short, or grows beyond the limits.
        """


class JsonRecords(Source):
    """One JSON object per line, where blank lines do not count as records; or one JSON array of objects."""

    kind = "JSON"

    def blocks(self, ignored: Container[str] = ()) -> Iterator[Block]:
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

    def is_description(self) -> bool:
        """Whether the file is one JSON object, as what describes other files is, and was found beside them."""
        if not self.found or self.path.suffix != ".json":
            return False
        try:
            with decompressed(self.path, self.limits) as stream:
                for _ in object_members(stream, self.limits):
                    pass
        except (BrokenArray, LimitExceeded, *READ_ERRORS):
            return False
        return True


class TextTable(Source):
    """A table as text: names in the first line, values separated by commas or tabs. What is empty is absent."""

    kind = "CSV"

    def blocks(self, ignored: Container[str] = ()) -> Iterator[Block]:
        row = 0
        texts: list[tuple[int, bytes | None]] = []
        place = f"{self.path}: row "
        try:
            with decompressed(self.path, self.limits) as stream:
                tabs = ".tsv" in self.path.suffixes[-2:]
                for row, record, problem in table_rows(stream, "\t" if tabs else ",", self.limits):
                    if problem:
                        if texts:
                            yield JsonBlock(place, texts)
                            texts = []
                        yield RefusedBlock(f"{place}{row}", problem)
                        continue
                    texts.append((row, record))
                    if len(texts) == BLOCK_RECORDS or sum(len(text or b"") for _, text in texts) >= BLOCK_BYTES:
                        yield JsonBlock(place, texts)
                        texts = []
        except (BrokenTable, LimitExceeded, MemoryError, *READ_ERRORS) as error:
            raise _unreadable(self.path, f"after row {row}", error) from None
        if texts:
            yield JsonBlock(place, texts)


class Parquet(Source):
    """A Parquet file; columns that are ignored are not read."""

    kind = "Parquet"

    def blocks(self, ignored: Container[str] = ()) -> Iterator[Block]:
        import pyarrow
        import pyarrow.parquet

        row = 0
        try:
            with open_raw(self.path, self.limits) as file:
                groups = read_footer(file, self.limits)
                parquet = pyarrow.parquet.ParquetFile(file)
                wanted = [name for name in parquet.schema_arrow.names if name not in ignored]
                if not wanted:
                    raise _no_column(self.path, parquet.schema_arrow.names)
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

    def blocks(self, ignored: Container[str] = ()) -> Iterator[Block]:
        import pyarrow

        row = 0
        try:
            rows = _Rows(str(self.path), self.limits)
            for batch in record_batches(self.path / self.split, self.limits):
                wanted = [name for name in batch.schema.names if name not in ignored]
                if not wanted:
                    raise _no_column(self.path, batch.schema.names)
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

    def blocks(self, ignored: Container[str] = ()) -> Iterator[Block]:
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


class ImageFolder(Source):
    """A directory of images, each with its caption in a ``.txt`` beside it."""

    kind = "image folder"

    def blocks(self, ignored: Container[str] = ()) -> Iterator[Block]:
        samples: list[TarSample] = []
        size = 0
        for sample in folder_samples(self.path, self.limits):
            samples.append(sample)
            size += sum(len(data or b"") for data in sample.members.values())
            if len(samples) == BLOCK_RECORDS or size >= BLOCK_BYTES:
                yield SampleBlock(str(self.path), samples)
                samples, size = [], 0
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


@dataclass
class Inputs:
    """What the given files and directories hold.

    Attributes:
        sources: to be read, in a fixed order.
        passed: files of the directories that are not read.
    """

    sources: list[Source] = field(default_factory=list)
    passed: list[Path] = field(default_factory=list)


def find_inputs(inputs: Sequence[str | Path], split: str = "", limits: ReadLimits = DEFAULT_LIMITS) -> Inputs:
    """The sources that the given files and directories hold.

    Args:
        inputs: files; directories written by ``save_to_disk``; other directories, which are searched for files of the
            known kinds in alphabetical order. Hidden entries are passed over, and so is a directory that was already
            searched under another name.
        split: of a data set that has several; ``train+test`` for two, ``all`` for all.
        limits: on what is read of them.

    Raises:
        DataError: a path that does not exist, is a pipe or a device, is of no known kind, holds nothing, or has not
            the split, or several and none was asked for.
    """
    result, chosen = Inputs(), False
    for path in map(Path, inputs):
        if path.is_dir():
            found = list_directory(path, lambda name: _reader_of(name) is not None)
            chosen |= _read_directory(path, found, split, limits, result)
            if not found.files and not found.folders and not found.saved:
                raise DataError(f"{path} holds no file that can be read.", fix=f"Known: {_known_suffixes()}.")
            continue
        _check_openable(path)
        reader = _reader_of(path.name)
        if reader is None:
            raise DataError(f"{path}: unknown kind of file.", fix=f"Known: {_known_suffixes()}.")
        result.sources.append(reader(path, limits))
    if split and not chosen:
        raise DataError(
            f"split {split!r} was asked for, and no input has splits: neither a saved DatasetDict nor a directory "
            "whose files are named for them.",
            fix="Leave --split out, and give the files of that split as inputs.",
        )
    return result


def find_sources(inputs: Sequence[str | Path], split: str = "", limits: ReadLimits = DEFAULT_LIMITS) -> list[Source]:
    """Only the sources of :func:`find_inputs`."""
    return find_inputs(inputs, split, limits).sources


def _read_directory(path: Path, found: Listing, split: str, limits: ReadLimits, result: Inputs) -> bool:
    """Add the sources of a directory; whether it had splits to choose from."""
    splits = splits_of(path, [*found.files, *found.folders])
    names = tuple(dict.fromkeys(split for split in splits.values() if split != EXCLUDED))
    wanted = _wanted(path, names, split)
    chosen = bool(splits and split)
    for entry in sorted([*found.files, *found.folders, *found.saved]):
        if entry in found.saved:
            chosen |= _read_saved(entry, split, limits, result)
        elif splits and splits[entry] not in wanted:
            result.passed.append(entry)
        elif entry in found.folders:
            result.sources.append(ImageFolder(entry, limits))
        else:
            _check_openable(entry)
            reader = _reader_of(entry.name)
            assert reader is not None, "the listing was made by it"
            result.sources.append(reader(entry, limits))
            result.sources[-1].found = True
    result.passed += found.passed
    return chosen


def _read_saved(path: Path, split: str, limits: ReadLimits, result: Inputs) -> bool:
    if not (path / SPLITS_FILE).is_file():
        result.sources.append(SavedDataset(path, limits=limits))
        return False
    splits = _splits(path)
    result.sources += [SavedDataset(path, one, limits) for one in _wanted(path, splits, split)]
    return bool(split)


def _wanted(path: Path, splits: Sequence[str], split: str) -> list[str]:
    """Those of the splits that are to be read. Raises DataError where there are several and none was asked for."""
    wanted = [one for name in split.split("+") for one in (splits if name == ALL_SPLITS else [name])]
    if splits and not split and len(splits) == 1:
        return list(splits)
    if splits and (not split or any(one not in splits for one in wanted)):
        raise DataError(
            f"{path} has the splits {_listed(splits)}, and split {split!r} was asked for.",
            "Splits are kept apart: what a model is tested on must not be trained on.",
            f"Choose with --split {'train' if 'train' in splits else splits[0]}; for several, {ALL_SPLITS!r} or names "
            "with + between.",
        )
    return wanted


def _check_openable(path: Path) -> None:
    try:
        open_input(path).close()
    except FileNotFoundError:
        raise DataError(f"input {path} does not exist.") from None
    except OSError as error:
        raise DataError(f"input {path} cannot be read: {error.strerror}.") from None


def _known_suffixes() -> str:
    return ", ".join((*JSON, *TABLES, *PARQUET, *TARS)) + ", and directories of datasets.save_to_disk"


def _reader_of(name: str) -> type[JsonRecords | TextTable | Parquet | WebDataset] | None:
    readers: tuple[tuple[tuple[str, ...], type[JsonRecords | TextTable | Parquet | WebDataset]], ...] = (
        (JSON, JsonRecords),
        (TABLES, TextTable),
        (PARQUET, Parquet),
        (TARS, WebDataset),
    )
    return next((reader for suffixes, reader in readers if name.lower().endswith(suffixes)), None)


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


def _no_column(path: Path, present: Sequence[str]) -> DataError:
    return DataError(
        f"{path} has no column that is not ignored; it has {_listed(present) or 'none'}.", fix="Change --ignore."
    )


def _listed(names: Sequence[str]) -> str:
    return shortened(", ".join(names[:_NAMES_SHOWN]), _NAMES_SHOWN)
