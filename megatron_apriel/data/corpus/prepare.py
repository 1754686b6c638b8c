"""From raw files to a corpus: read, understand, decode, tokenise, write; bad records counted, nothing half-written.

One process reads blocks of raw records and writes documents; worker processes do all the work between: parsing, image
decoding, rendering the chat format, tokenisation. Results are written in the order of the input, whichever worker
finished first, so the corpus is the same byte for byte whatever the number of workers. Only a few blocks are under way
at any time, which bounds memory by their size and not by the input's.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_apriel.data.corpus.bad_records import bad_records_in, check_list
from megatron_apriel.data.corpus.chat import exported_template_digest
from megatron_apriel.data.corpus.format import MANIFEST_FILE, CorpusManifest, UsageRecord
from megatron_apriel.data.corpus.held_out import HeldOutCounts, directories, note_earlier
from megatron_apriel.data.corpus.image_size import Rounding, image_tokens
from megatron_apriel.data.corpus.on_disk import CorpusWriter
from megatron_apriel.data.corpus.record_encoder import BlockTask, PreparedDocument, RecordEncoder
from megatron_apriel.data.corpus.shown_document import ShownDocument, shown_document
from megatron_apriel.data.corpus.special_tokens import other_ends
from megatron_apriel.data.corpus.tokens import TokenTable
from megatron_apriel.data.raw.fields.taken import described
from megatron_apriel.data.raw.fields.usage import Usage
from megatron_apriel.data.raw.files.finding import Inputs, find_inputs, refuse_twins
from megatron_apriel.data.raw.files.readers import RawInput, SavedDataset
from megatron_apriel.data.raw.problems import KEPT_PROBLEMS, Problem, ProblemTally, printable, shortened
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.raw.reading import Reading
from megatron_apriel.data.raw.records.conversion import FORMATS, recognise, why_unknown
from megatron_apriel.errors import DataError
from megatron_apriel.formats.word_pattern import NOTHING_TO_CORRECT, WAY_OUT
from megatron_apriel.outputs import whole_directory
from megatron_apriel.progress import progress
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import note
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
        reading: what the user says about the names of fields.
        strict: fields that are not used are an error.
        split: of a data set that has several.
        subset: of a hub repository whose card has several.
        image_root: directory that image paths are relative to; the input's own directory if None.
        rounding: of the patch grid.
        correct_words: give a tokenizer with a faulty word pattern the right one.
        limits: on what is read.
        max_bad: fraction of bad records that is tolerated.
        bad_records: a file for all of them.
        limit: read the first so many records only; 0 means all.
        held_out: share of the documents that become a corpus of their own, beside the other.
        show: how many of the first documents the summary has in full.
        only_shown: read until those are there and no further; bad records before them are not judged.
        workers: processes; 1 does everything in this one.
    """

    record_format: str = "auto"
    reading: Reading = field(default_factory=Reading)
    strict: bool = False
    split: str = ""
    subset: str = ""
    image_root: Path | None = None
    rounding: Rounding = "floor"
    correct_words: bool = False
    limits: ReadLimits = DEFAULT_LIMITS
    max_bad: float = 0.001
    bad_records: Path | None = None
    limit: int = 0
    held_out: float = 0.0
    show: int = 0
    only_shown: bool = False
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
    """What preparation did.

    ``lengths`` are tokens per document, ``passed`` the files of directories not read, ``shown`` the first documents.
    Everything counts held-out documents, too; ``held_out`` counts them alone.
    """

    inputs: list[InputSummary]
    passed: list[str] = field(default_factory=list)
    problems: ProblemTally = field(default_factory=ProblemTally)
    usage: Usage = field(default_factory=Usage)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    response_tokens: int = 0
    images: int = 0
    image_tokens: int = 0
    shown: list[ShownDocument] = field(default_factory=list)
    held_out: HeldOutCounts = field(default_factory=HeldOutCounts)

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
        destination: directory of the corpus, and the beginning of the held-out one's name; None reads and checks
            everything and writes nothing.
        inputs: files and directories, see :func:`~megatron_apriel.data.raw.files.finding.find_inputs`.
        model: Hugging Face directory whose tokenizer and ``config.json`` the corpus is made for.
        options: see :class:`PrepareOptions`.
        overwrite: replace an existing corpus, and an existing list of bad records.

    Raises:
        DataError: an input cannot be read or recognised, or too many records are bad; nothing is written but the list
            of these.
        OutputError: the destination may not be written.
    """
    found = find_inputs(inputs, options.split, options.limits, options.subset)
    places = directories(Path(destination), options.held_out) if destination is not None else []
    if destination is not None and not options.held_out:
        note_earlier(Path(destination))
    if options.bad_records is not None:
        check_list(options.bad_records, overwrite, [*inputs, model], places)
    with ExitStack() as outputs:
        written = [
            outputs.enter_context(whole_directory(place, overwrite, MANIFEST_FILE, [*inputs, model]))
            for place in places
        ]
        table = TokenTable.from_directory(model, options.rounding)
        _see_to_words(table, model, options.correct_words)
        for other in other_ends(Path(model), {"bos_token_id": table.bos_id, "eos_token_id": table.eos_id}):
            note(f"warning: {model} says {other}: a server would not stop, or begin, where documents do")
        encoder = RecordEncoder(table, options.reading, options.limits, options.record_format == "auto")
        with Workers(encoder, options.workers, "Use fewer --workers, or a lower --max-pixels.") as workers:
            summary = PrepareSummary(
                _recognise_all(found, options),
                passed=[printable(str(one)) for one in found.passed],
                held_out=HeldOutCounts(options.held_out),
            )
            results = workers.in_order(_encoded, _tasks(found, summary.inputs, options))
            manifest = CorpusManifest(
                tokenizer=table.record, images=table.images, chat_template=exported_template_digest()
            )
            with ExitStack() as files:
                writers = [files.enter_context(CorpusWriter(directory, manifest)) for directory in written]
                with bad_records_in(options.bad_records, summary.problems):
                    _collect(results, summary, options, table, writers)
                usage = UsageRecord(**summary.usage.record(), passed_over=summary.passed[:KEPT_PROBLEMS])
                totals = {"inputs": [vars(one) for one in summary.inputs], "usage": usage}
                for writer, part in zip(writers, summary.held_out.parts(), strict=False):
                    writer.manifest = writer.manifest.model_copy(update={**totals, "part": part})
                    writer.close(_problems(summary.problems))
    return summary


def _see_to_words(table: TokenTable, model: str | Path, correct: bool) -> None:
    """Say that the tokenizer's word pattern is faulty, or correct it and say so."""
    fault = table.word_fault
    if fault is None:
        if correct:
            note(f"note: {NOTHING_TO_CORRECT}")
    elif correct:
        table.correct_words()
        note(
            f"note: the tokenizer in {model} {fault}; it was corrected for this corpus. Correct the model's too, before"
            " it is trained: tools/convert_checkpoint.py or tools/upscale_layers.py --correct-word-pattern"
        )
    else:
        note(f"warning: the tokenizer in {model} {fault}. {WAY_OUT}")


def _recognise_all(found: Inputs, options: PrepareOptions) -> list[InputSummary]:
    """What every input is, before any work is done: a wrong one at the end of a long list should not cost hours.

    A file of a directory that is one JSON object and no record describes others; it is moved to what is not read.
    Then no directory may hold the same records in two forms.
    """
    result, readable, first = [], [], None
    for given in found.readable:
        try:
            record_format = _format_of(given, options)
        except DataError as error:
            if not given.is_description():
                raise
            first = first or error
            found.passed.append(given.path)
            continue
        readable.append(given)
        result.append(InputSummary(printable(str(given.path)), given.kind, record_format))
    if first is not None and not readable:
        raise first  # it is no description of others: there are none
    refuse_twins(readable)
    found.readable = readable
    return result


def _format_of(given: RawInput, options: PrepareOptions) -> str:
    """The format of the first record that has one; "no records" for an empty file."""
    seen, fields, problem = 0, set[str](), ""
    for block in given.blocks(options.reading.ignored_columns):
        for raw in block.records(options.limits):
            found = recognise(raw.value, options.reading)
            if found and options.record_format in ("auto", found):
                return found
            if not raw.problem and options.record_format != "auto":
                return options.record_format
            seen, problem = seen + 1, problem or raw.problem or why_unknown(raw.value, options.reading)
            fields.update(map(described, raw.value.items()))
        if seen >= _SNIFFED_RECORDS:
            break
    if not seen:
        return "no records"
    none = "its only record has no" if seen == 1 else f"none of its first {counted(seen, 'record')} has a"
    raise DataError(
        f"{given.path}: {none} known shape: {', '.join(FORMATS)}.",
        " ".join(
            [
                *([f"Their fields: {shortened(', '.join(sorted(fields)), _FIELDS_SHOWN)}."] if fields else []),
                *([f"The first one: {problem}."] if problem else []),
            ]
        ),
        "Say what the fields are with --map THEIRS=OURS (--help shows ours), or name the field of plain text with "
        "--text-field (docs/data.md).",
    )


def _tasks(found: Inputs, summaries: Sequence[InputSummary], options: PrepareOptions) -> Iterator[BlockTask]:
    left = options.limit or float("inf")
    for number, (given, summary) in enumerate(zip(found.readable, summaries, strict=True)):
        if summary.record_format == "no records":
            continue
        root = options.image_root or (given.path if isinstance(given, SavedDataset) else given.path.parent)
        for block in given.blocks(options.reading.ignored_columns):
            if left <= 0:
                return
            block = block if len(block) <= left else block.head(int(left))
            left -= len(block)
            yield BlockTask(number, block, summary.record_format, root)


def _encoded(encoder: RecordEncoder, task: BlockTask) -> tuple[int, list[PreparedDocument | Problem]]:
    """Number of the task's input, and its documents: nothing of its raw records is sent back."""
    return task.number, encoder.encode_block(task)


def _collect(
    results: Iterator[tuple[int, list[PreparedDocument | Problem]]],
    summary: PrepareSummary,
    options: PrepareOptions,
    table: TokenTable,
    writers: Sequence[CorpusWriter],
) -> None:
    """Write and count the documents in the order of the input, then judge the number of bad records.

    ``writers``: of all documents; or of those to train on and the held-out ones; or none.
    """
    problems = summary.problems
    with progress("preparing", total=options.limit or None, unit="record") as step:
        for number, documents in results:
            of_input = summary.inputs[number]
            of_input.records += len(documents)
            problems.records += len(documents)
            for document in documents:
                if isinstance(document, Problem):
                    problems.add(of_input.path, document)
                    continue
                of_input.documents += 1
                summary.usage.add(document.remarks)
                summary.lengths.append(len(document.encoded.tokens))
                summary.response_tokens += int(document.encoded.responses.sum())
                summary.images += len(document.images)
                summary.image_tokens += sum(image_tokens(image.rows, image.columns) for image in document.images)
                encoded = document.encoded
                held_out = summary.held_out.add(document.number, len(encoded.tokens))
                if writers:
                    writers[held_out].add(encoded.tokens, encoded.responses, document.images)
                if len(summary.shown) < options.show:
                    place = f"{of_input.path}{', held out' if held_out else ''}"
                    summary.shown.append(
                        shown_document(table, encoded.tokens, encoded.responses, document.images, place)
                    )
            step(len(documents))
            if options.only_shown and len(summary.shown) == options.show:
                return
            if options.strict and problems.records >= HOPELESS_RECORDS:
                summary.usage.check()
            if problems.count == problems.records >= HOPELESS_RECORDS:
                problems.check(options.max_bad)
    problems.check(options.max_bad)
    if options.strict:
        summary.usage.check()
    if not summary.documents:
        raise DataError("the inputs hold no documents.", _why_none(summary), "Check --input and --limit.")
    if not options.only_shown:
        summary.held_out.check(summary.documents)


def _why_none(summary: PrepareSummary) -> str:
    """What was there instead of documents."""
    problems, passed = summary.problems, [Path(one).name for one in summary.passed]
    said = []
    if problems.count:
        said.append(f"{problems.spelled}; the first: {problems.first[0]}.")
    if passed:
        said.append(f"Files that were passed over: {shortened(', '.join(passed), _FIELDS_SHOWN)}.")
    return " ".join(said)


def _problems(tally: ProblemTally) -> dict[str, Any]:
    return {
        "records": tally.records,
        "bad": tally.count,
        "files": dict(sorted(tally.files.items())),
        "first": [{"place": problem.place, "reason": problem.reason} for problem in tally.first],
    }
