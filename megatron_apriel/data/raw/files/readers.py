"""Every kind of raw file as a stream of small blocks: JSON, Parquet, Hugging Face datasets on disk, WebDataset tars.

The process that reads does as little as possible: it cuts a file into blocks of a few dozen records and hands them on
unparsed, so that parsing, image decoding and tokenisation all happen in the workers. No file is held in memory as a
whole, and none grows beyond its limits (``read_limits``). A file that cannot be read to its end is not one bad record:
the documents that are missing cannot be counted, so it raises DataError.
"""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_apriel.data.raw.files.blocks import Block, JsonBlock, RefusedBlock, SampleBlock
from megatron_apriel.data.raw.files.compressed import READ_ERRORS, bounded_lines, decompressed, open_raw
from megatron_apriel.data.raw.files.folder_samples import folder_samples
from megatron_apriel.data.raw.files.json_arrays import BrokenArray, array_elements, is_array, object_members
from megatron_apriel.data.raw.files.parquet_footer import read_footer
from megatron_apriel.data.raw.files.parquet_pages import reading_plan
from megatron_apriel.data.raw.files.saved_datasets import record_batches
from megatron_apriel.data.raw.files.table_rows import row_blocks, row_costs
from megatron_apriel.data.raw.files.tar_records import TarSample
from megatron_apriel.data.raw.files.tars import TAR_ERRORS, tar_samples
from megatron_apriel.data.raw.files.text_tables import BrokenTable, table_rows
from megatron_apriel.data.raw.problems import names_shown, shortened
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, LimitExceeded, ReadLimits
from megatron_apriel.errors import DataError, words_of

BLOCK_RECORDS = 64
BLOCK_BYTES = 4 * 2**20
_KEY_SHOWN = 500
"""Characters of a sample's name in a message."""


_WORD = re.compile(r"[a-z]+")
_DESCRIBING = frozenset(
    ("stats", "statistics", "manifest", "index", "meta", "metadata", "info", "schema", "checksums", "license",
     "licenses", "provenance", "languages", "vocab", "attributes", "signals", "duplicates", "minhash", "urls",
     "filelist", "categories", "classes")
)  # fmt: skip
"""Words in names of files, and of their directories, that describe data and hold none (RedPajama, Dolma, LLaVA)."""


class RawInput(ABC):
    """One input: a file, or a data set directory that is read as a whole."""

    kind: str
    found = False
    """Whether it was found in a directory, where files may lie that only describe others."""

    def __init__(self, path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> None:
        self.path, self.limits = path, limits

    def is_description(self) -> bool:
        """Whether the file was found beside others and is named as what describes them: statistics, indexes, lists.

        Asked of a file without a record of a known shape: what looks like records is read, whatever it is called.
        """
        words = {word for name in self.path.parts[-4:] for word in _WORD.findall(name.lower())}
        return self.found and not words.isdisjoint(_DESCRIBING)

    @abstractmethod
    def blocks(self, ignored: Container[str] = ()) -> Iterator[Block]:
        """Its records in order, from the beginning.

        Args:
            ignored: fields that are not wanted, where the format can leave them out.

        Raises:
            DataError: the file is damaged or cut short, or grows beyond the limits.
        """


class JsonRecords(RawInput):
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
            if split == self._lines and self._is_one_record():
                split = self._whole
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

    @staticmethod
    def _whole(stream: Any, limits: ReadLimits) -> Iterator[tuple[int, bytes | None]]:
        data = stream.read(limits.record_bytes + 1)
        yield 1, data.removeprefix(codecs.BOM_UTF8) if len(data) <= limits.record_bytes else None

    def _is_one_record(self) -> bool:
        """Whether the file is one object over several lines, as people look at it."""
        if ".json" not in self.path.suffixes[-2:]:
            return False
        with decompressed(self.path, self.limits) as stream:
            first = next(iter(bounded_lines(stream, self.limits.record_bytes)), (0, None))[1]
        begins = (first or b"").removeprefix(codecs.BOM_UTF8).strip()
        return begins.startswith(b"{") and not begins.endswith(b"}") and self._is_object()

    def is_description(self) -> bool:
        """Whether the file was found beside others and is one JSON object or a list of plain values, or named so."""
        alone = self.found and self.path.suffix == ".json" and (self._is_object() or self._is_list_of_values())
        return alone or super().is_description()

    def _is_list_of_values(self) -> bool:
        try:
            with decompressed(self.path, self.limits) as stream:
                first = next((value for _, value in array_elements(stream, self.limits)), b"{}")
        except (BrokenArray, LimitExceeded, *READ_ERRORS):
            return False
        return first is not None and not first.lstrip().startswith((b"{", b"["))

    def _is_object(self) -> bool:
        try:
            with decompressed(self.path, self.limits) as stream:
                for _ in object_members(stream, self.limits):
                    pass
        except (BrokenArray, LimitExceeded, *READ_ERRORS):
            return False
        return True


class TextTable(RawInput):
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


class Parquet(RawInput):
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


class SavedDataset(RawInput):
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


class WebDataset(RawInput):
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
            raise _unreadable(self.path, f"after sample {shortened(key, _KEY_SHOWN)!r}", error) from None
        if samples:
            yield SampleBlock(str(self.path), samples)


class ImageFolder(RawInput):
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
        f"{path} cannot be read to its end: {words_of(error)} ({where}).",
        "What is missing cannot be counted, so this is not one bad record.",
        "Copy or download the file again, or leave it out.",
    )


def _no_column(path: Path, present: Sequence[str]) -> DataError:
    return DataError(
        f"{path} has no column that is not ignored; it has {names_shown(present) or 'none'}.", fix="Change --ignore."
    )
