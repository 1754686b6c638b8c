"""From raw files to a corpus: read, understand, decode, tokenise, write; bad records counted, nothing half-written.

One process reads blocks of raw records and writes documents; worker processes do all the work between: parsing, image
decoding, rendering the chat format, tokenisation. Results are written in the order of the input, whichever worker
finished first, so the corpus is the same byte for byte whatever the number of workers. Only a few blocks are under way
at any time, which bounds memory by their size and not by the input's.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_apriel.data.corpus.format import MANIFEST_FILE, CorpusManifest
from megatron_apriel.data.corpus.image_size import Rounding, image_tokens
from megatron_apriel.data.corpus.on_disk import CorpusWriter
from megatron_apriel.data.corpus.record_encoder import BlockTask, PreparedDocument, RecordEncoder
from megatron_apriel.data.corpus.tokens import TokenTable
from megatron_apriel.data.raw.files import SavedDataset, Source, find_sources
from megatron_apriel.data.raw.problems import Problem, ProblemTally, printable, shortened
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.raw.records import columns_of, recognise
from megatron_apriel.errors import DataError
from megatron_apriel.outputs import whole_directory
from megatron_apriel.progress import progress
from megatron_apriel.workers import Workers

HOPELESS_RECORDS = 10_000
"""If all of the first so many records are bad, the options are wrong and the rest is not looked at."""

_SNIFFED_RECORDS = 1000
_FIELDS_SHOWN = 1000  # characters of their names


@dataclass(frozen=True)
class PrepareOptions:
    """How records are read.

    Attributes:
        record_format: ``auto``, or one of ``records.FORMATS``.
        text_field: field of plain text.
        split: split of a saved ``DatasetDict``.
        image_root: directory that image paths are relative to; the input's own directory if None.
        rounding: of the patch grid.
        limits: on what is read.
        max_bad: fraction of bad records that is tolerated.
        limit: read the first so many records only; 0 means all.
        workers: processes; 1 does everything in this one.
    """

    record_format: str = "auto"
    text_field: str = "text"
    split: str = ""
    image_root: Path | None = None
    rounding: Rounding = "floor"
    limits: ReadLimits = DEFAULT_LIMITS
    max_bad: float = 0.001
    limit: int = 0
    workers: int = 1


@dataclass
class InputSummary:
    """One input file: what it was taken for and what became of it."""

    path: str
    kind: str
    record_format: str
    records: int = 0
    documents: int = 0


@dataclass
class PrepareSummary:
    """What preparation did; lengths are tokens per document."""

    inputs: list[InputSummary]
    problems: ProblemTally = field(default_factory=ProblemTally)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    response_tokens: int = 0
    images: int = 0
    image_tokens: int = 0

    @property
    def documents(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def percentiles(self, points: Sequence[float]) -> list[int]:
        """Document lengths below which so many percent of the documents lie."""
        if not self.lengths:
            return [0] * len(points)
        return np.percentile(np.frombuffer(self.lengths, dtype=np.int64), points, method="lower").tolist()


def prepare(
    destination: str | Path | None,
    inputs: Sequence[str | Path],
    model: str | Path,
    options: PrepareOptions = PrepareOptions(),
    *,
    overwrite: bool = False,
) -> PrepareSummary:
    """Prepare a corpus.

    Args:
        destination: directory of the corpus; None reads and checks everything and writes nothing.
        inputs: files and directories, see :func:`~megatron_apriel.data.raw.files.find_sources`.
        model: Hugging Face directory whose tokenizer and ``config.json`` the corpus is made for.
        options: see :class:`PrepareOptions`.
        overwrite: replace an existing corpus.

    Raises:
        DataError: an input cannot be read or recognised, or too many records are bad; nothing is written.
        OutputError: the destination may not be written.
    """
    sources = find_sources(inputs, options.split, options.limits)
    output = (
        whole_directory(destination, overwrite, MANIFEST_FILE, [*inputs, model])
        if destination is not None
        else nullcontext(None)
    )
    with output as directory:
        table = TokenTable.from_directory(model, options.rounding)
        encoder = RecordEncoder(table, options.text_field, options.limits)
        with Workers(encoder, options.workers, "Use fewer --workers, or a lower --max-pixels.") as workers:
            summary = PrepareSummary(_recognise_all(sources, options))
            results = workers.in_order(_encoded, _tasks(sources, summary.inputs, options))
            if directory is None:
                _collect(results, summary, options, None)
                return summary
            with CorpusWriter(directory, CorpusManifest(tokenizer=table.record, images=table.images)) as writer:
                _collect(results, summary, options, writer)
                writer.manifest = writer.manifest.model_copy(update={"inputs": [vars(one) for one in summary.inputs]})
                writer.close(_problems(summary.problems))
    return summary


def _recognise_all(sources: Sequence[Source], options: PrepareOptions) -> list[InputSummary]:
    """What every input is, before any work is done: a wrong one at the end of a long list should not cost hours."""
    return [InputSummary(printable(str(source.path)), source.kind, _format_of(source, options)) for source in sources]


def _format_of(source: Source, options: PrepareOptions) -> str:
    """The format of the first record that has one; "no records" for an empty file."""
    seen, fields, problem = 0, set[str](), ""
    for block in source.blocks(columns_of(options.text_field)):
        for raw in block.records(options.limits):
            found = recognise(raw.value, options.text_field)
            if found and options.record_format in ("auto", found):
                return found
            if not raw.problem and options.record_format != "auto":
                return options.record_format
            seen, problem = seen + 1, problem or raw.problem
            fields.update(raw.value)
        if seen >= _SNIFFED_RECORDS:
            break
    if not seen:
        return "no records"
    raise DataError(
        f"{source.path}: none of its first {seen} records has messages, conversations or {options.text_field}.",
        f"Their fields: {shortened(', '.join(sorted(fields)), _FIELDS_SHOWN)}."
        if fields
        else f"The first one: {problem}.",
        "Name the field of plain text with --text-field, or bring the records into one of these shapes (docs/data.md).",
    )


def _tasks(sources: Sequence[Source], inputs: Sequence[InputSummary], options: PrepareOptions) -> Iterator[BlockTask]:
    left = options.limit or float("inf")
    for number, (source, summary) in enumerate(zip(sources, inputs, strict=True)):
        if summary.record_format == "no records":
            continue
        root = options.image_root or (source.path if isinstance(source, SavedDataset) else source.path.parent)
        for block in source.blocks(columns_of(options.text_field)):
            if left <= 0:
                return
            block = block if len(block) <= left else block.head(int(left))
            left -= len(block)
            yield BlockTask(number, block, summary.record_format, root)


def _encoded(encoder: RecordEncoder, task: BlockTask) -> tuple[int, list[PreparedDocument | Problem]]:
    """Number of the task's source, and its documents: nothing of its raw records is sent back."""
    return task.source, encoder.encode_block(task)


def _collect(
    results: Iterator[tuple[int, list[PreparedDocument | Problem]]],
    summary: PrepareSummary,
    options: PrepareOptions,
    writer: CorpusWriter | None,
) -> None:
    """Write and count the documents in the order of the input, then judge the number of bad records."""
    problems = summary.problems
    with progress("preparing", total=options.limit or None, unit="records") as step:
        for number, documents in results:
            source = summary.inputs[number]
            source.records += len(documents)
            problems.records += len(documents)
            for document in documents:
                if isinstance(document, Problem):
                    problems.add(source.path, document)
                    continue
                source.documents += 1
                summary.lengths.append(len(document.encoded.tokens))
                summary.response_tokens += int(document.encoded.responses.sum())
                summary.images += len(document.images)
                summary.image_tokens += sum(image_tokens(image.rows, image.columns) for image in document.images)
                if writer is not None:
                    writer.add(document.encoded.tokens, document.encoded.responses, document.images)
            step(len(documents))
            if problems.count == problems.records >= HOPELESS_RECORDS:
                problems.check(options.max_bad)
    problems.check(options.max_bad)
    if not summary.documents:
        raise DataError("the inputs hold no documents.", fix="Check --input and --limit.")


def _problems(tally: ProblemTally) -> dict[str, Any]:
    return {
        "records": tally.records,
        "bad": tally.count,
        "files": dict(sorted(tally.files.items())),
        "first": [{"place": problem.place, "reason": problem.reason} for problem in tally.first],
    }
