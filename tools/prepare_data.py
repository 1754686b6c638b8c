"""Turn raw files into a prepared corpus that any stage can read."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from megatron_apriel.command_line import CommandLine, above_zero, bytes_above_zero, count_above_zero, fraction
from megatron_apriel.data.raw.fields.envelopes import ROLES
from megatron_apriel.data.raw.fields.meanings import MAPPABLE
from megatron_apriel.data.raw.file_kinds import IMAGE_SUFFIXES
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.raw.reading import parse_reading
from megatron_apriel.data.raw.records.conversion import FORMATS
from megatron_apriel.data.raw.records.shapes import SHAPES
from megatron_apriel.errors import run_command
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import note, quiet_libraries, say

if TYPE_CHECKING:
    from megatron_apriel.data.corpus.prepare import PrepareSummary
    from megatron_apriel.data.raw.problems import ProblemTally

EXAMPLES = """
examples:
  plain text, from compressed JSON lines
    python tools/prepare_data.py data/web --input raw/web-*.jsonl.gz --model models/pixtral-12b
  conversations with images, their paths relative to one directory
    python tools/prepare_data.py data/llava --input llava.jsonl --image-root coco/train2017 --model models/pixtral-12b
  a data set saved by Hugging Face's datasets, its split "train", with eight processes
    python tools/prepare_data.py data/docs --input raw/docvqa --split train --workers 8 --model models/pixtral-12b
  see what the first thousand records would become, and write nothing
    python tools/prepare_data.py data/sft --input raw/sft.parquet --model models/pixtral-12b --limit 1000 --dry-run
  see three documents as the model sees them, with what is learned marked, and write nothing
    python tools/prepare_data.py --input raw/sft.parquet --model models/pixtral-12b --show 3
  a data set with names of its own
    python tools/prepare_data.py data/faq --input faq.jsonl --map title=prompt body=response --model models/pixtral-12b

inputs:
  JSON lines or one array (.jsonl, .json), .csv, .tsv, each also .gz, .zst, .xz, .bz2; Parquet; directories of
  datasets.save_to_disk; WebDataset tars; snapshots of hub repositories, image folders, and other directories of these.
  Images: paths, data URLs, base64, embedded bytes. URLs are never fetched. See docs/data.md.

shapes of records, each found out from the first ones of a file:
{shapes}

fields that --map can give:
{fields}

roles that --map role:THEIRS=OURS can give: {roles}
"""

SHOWN_FIELDS = 50
"""Fields that were not used, listed in the summary; corpus.json has all."""
SHOWN_PROBLEMS = 5
"""Bad records named in the summary."""
SHOWN_INPUTS = 20
"""Inputs listed one by one at the end; corpus.json has all."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = CommandLine(description=__doc__, epilog=_epilog(), allow_abbrev=False)
    result.add_argument(
        "destination",
        metavar="DST",
        type=Path,
        nargs="?",
        help="directory of the corpus; complete or absent. May be left out with --show or --dry-run",
    )
    what = result.add_argument_group("what is read")
    what.add_argument("--input", nargs="+", type=Path, required=True, metavar="PATH", help="files and directories")
    what.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="Hugging Face directory: tokenizer, config.json"
    )
    what.add_argument(
        "--format", choices=("auto", *FORMATS), default="auto", help="shape of the records, see below (default: auto)"
    )
    what.add_argument(
        "--map",
        nargs="+",
        action="extend",
        default=[],
        metavar="THEIRS=OURS",
        help="read the field THEIRS, a name or a dotted path, as the field OURS of the lists below; "
        "role:THEIRS=OURS for a speaker",
    )
    what.add_argument(
        "--ignore",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="dotted paths of fields that are as if they were not there, as meta or messages.weight",
    )
    what.add_argument("--strict", action="store_true", help="a field that is not used is an error")
    what.add_argument("--text-field", default="text", metavar="NAME", help="field of plain text (default: text)")
    what.add_argument("--split", default="", metavar="NAME", help="split of a data set that has several")
    what.add_argument("--subset", default="", metavar="NAME", help="subset of a repository whose card has several")
    what.add_argument(
        "--limit", type=count_above_zero, default=0, metavar="N", help="only the first N records, as 1000 or 10K"
    )
    images = result.add_argument_group("images")
    images.add_argument(
        "--image-root",
        type=Path,
        metavar="DIR",
        help="paths are relative to it and stay inside (default: input's)",
    )
    images.add_argument(
        "--rounding",
        choices=("floor", "round"),
        default="floor",
        help="patch grid of transformers, or of mistral-common",
    )
    _add_limits(result)
    how = result.add_argument_group("how")
    how.add_argument(
        "--workers",
        type=above_zero,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes (default: all cores); the corpus does not depend on it",
    )
    how.add_argument(
        "--max-bad", type=fraction, default=0.001, metavar="F", help="tolerated share of bad records (default: 0.1%%)"
    )
    how.add_argument(
        "--bad-records", type=Path, metavar="FILE",
        help="list all bad records there, as JSON lines, also where too many are bad or nothing else is written",
    )  # fmt: skip
    how.add_argument(
        "--correct-word-pattern",
        action="store_true",
        help="split text by Tekken's word pattern where the tokenizer has the faulty one of older conversions; "
        "the model needs the same (tools/convert_checkpoint.py)",
    )
    how.add_argument(
        "--held-out",
        type=_share,
        default=0.0,
        metavar="F",
        help="keep this share of the documents, as 2%%, out of DST and write them to DST-held-out, for a stage's "
        "validation; a hash of a document's text and images decides, so copies stay together",
    )
    how.add_argument("--overwrite", action="store_true", help="replace an existing corpus at DST, and FILE")
    how.add_argument("--dry-run", action="store_true", help="read and check everything, write nothing")
    how.add_argument(
        "--show",
        type=above_zero,
        default=0,
        metavar="N",
        help="print the first N documents as the model sees them, with what is learned marked; without DST and "
        "--dry-run no more is read than that takes",
    )
    return result


def _share(text: str) -> float:
    """A part of a whole that is neither nothing nor all of it."""
    if not 0 < (share := fraction(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0% and below 100%")
    return share


def _epilog() -> str:
    """The examples, and what is read, from the tables that reading follows."""
    shapes = "\n".join(f"  {shape.name:14}{shape.published}\n{'':16}{shape.example}" for shape in SHAPES)
    fields = wrap(", ".join(MAPPABLE), 118, initial_indent="  ", subsequent_indent="  ")
    return (
        EXAMPLES.replace("{shapes}", shapes).replace("{fields}", "\n".join(fields)).replace("{roles}", ", ".join(ROLES))
    )


def _add_limits(result: argparse.ArgumentParser) -> None:
    limits = result.add_argument_group(
        "limits", "What is larger is refused before it takes memory or time; raise one for data that is meant so."
    )
    limits.add_argument(
        "--max-pixels",
        type=count_above_zero,
        default=DEFAULT_LIMITS.pixels,
        metavar="N",
        help="height x width of an image that takes 4 bytes a pixel to decode; one that takes more, as with "
        "transparency, 16 bits, WebP or progressive JPEG, is held to as many fewer (default: 100M)",
    )
    limits.add_argument(
        "--max-record",
        type=bytes_above_zero,
        default=DEFAULT_LIMITS.record_bytes,
        metavar="B",
        help="bytes of a record, of an image file, and of all stored images of a record; a record's values are held to "
        "one for every 512 of them (default: 256MiB)",
    )
    limits.add_argument(
        "--max-text",
        type=count_above_zero,
        default=DEFAULT_LIMITS.text_characters,
        metavar="N",
        help="characters of a document; turning them into tokens takes some 500 bytes of memory each (default: 4M)",
    )
    limits.add_argument(
        "--max-expansion",
        type=count_above_zero,
        default=DEFAULT_LIMITS.expansion,
        metavar="N",
        help="how many times its size a packed file may unpack to, 16 MiB being free (default: 100)",
    )
    limits.add_argument(
        "--max-window",
        type=bytes_above_zero,
        default=DEFAULT_LIMITS.window_bytes,
        metavar="B",
        help="window of a .zst file; those packed with zstd --long=31 need 2GiB (default: 128MiB)",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = parser().parse_args(argv)
    only_shown = arguments.show > 0 and arguments.destination is None and not arguments.dry_run
    if arguments.destination is None and not (arguments.show or arguments.dry_run):
        parser().error("the following arguments are required: DST; --show N or --dry-run go without it")
    quiet_libraries()
    # Only now: the imports take seconds, and --help should not.
    from megatron_apriel.data.corpus.held_out import directories
    from megatron_apriel.data.corpus.prepare import PrepareOptions, prepare

    try:
        reading = parse_reading(arguments.map, arguments.ignore, MAPPABLE, tuple(ROLES), arguments.text_field)
    except ValueError as error:
        parser().error(f"argument --map: {error}")
    options = PrepareOptions(
        record_format=arguments.format,
        reading=reading,
        strict=arguments.strict,
        split=arguments.split,
        subset=arguments.subset,
        image_root=arguments.image_root,
        rounding=arguments.rounding,
        correct_words=arguments.correct_word_pattern,
        limits=ReadLimits(
            record_bytes=arguments.max_record,
            expansion=arguments.max_expansion,
            window_bytes=arguments.max_window,
            text_characters=arguments.max_text,
            pixels=arguments.max_pixels,
        ),
        max_bad=arguments.max_bad,
        bad_records=arguments.bad_records,
        limit=arguments.limit,
        held_out=arguments.held_out,
        show=arguments.show,
        only_shown=only_shown,
        workers=arguments.workers,
    )
    destination = None if arguments.dry_run else arguments.destination
    summary = prepare(destination, arguments.input, arguments.model, options, overwrite=arguments.overwrite)
    show_documents(summary)
    if only_shown:
        _note_problems(summary, written=False)
        return 0
    show(summary, written=destination is not None)
    if destination is not None:
        say(*(f"wrote {place}" for place in directories(destination, options.held_out)))
    else:
        say(f"dry run: {arguments.destination or 'nothing'} was {'not ' if arguments.destination else ''}written")
    return 0


def show_documents(summary: PrepareSummary) -> None:
    """Print the first documents as the model sees them."""
    from megatron_apriel.data.corpus.shown_document import LEGEND, lines
    from megatron_apriel.tables import plain, standard_output

    console = standard_output()
    for number, document in enumerate(summary.shown, start=1):
        console.print(plain(document.heading(number), "bold"), soft_wrap=True)
        for line in lines(document):
            console.print(line, soft_wrap=True)
        console.print()
    if summary.shown:
        console.print(plain(LEGEND, "dim"), soft_wrap=True)


def show(summary: PrepareSummary, *, written: bool) -> None:
    """Print what was read and what became of it."""
    from megatron_apriel.tables import Table, standard_output

    console = standard_output(240)  # wide enough in a file that no path is broken
    inputs = Table("input", "kind", "format", "records", "documents", title="inputs")
    for one in summary.inputs[:SHOWN_INPUTS]:
        inputs.add_row(one.path, one.kind, one.record_format, f"{one.records:,}", f"{one.documents:,}")
    if rest := summary.inputs[SHOWN_INPUTS:]:
        records, documents = sum(one.records for one in rest), sum(one.documents for one in rest)
        inputs.add_row(f"... and {len(rest):,} more", "", "", f"{records:,}", f"{documents:,}")
    p50, p90, p99, longest = summary.percentiles((50, 90, 99, 100))
    usage = summary.usage
    share = summary.response_tokens / max(summary.tokens, 1)
    corpus = Table(title="corpus", show_header=False)
    for name, value in (
        ("documents", f"{summary.documents:,}"),
        ("tokens", f"{summary.tokens:,}"),
        ("response tokens", f"{summary.response_tokens:,} ({share:.1%})"),
        ("images", f"{summary.images:,}"),
        ("image tokens", f"{summary.image_tokens:,}"),
        ("tokens per document", f"median {p50:,}, 90% {p90:,}, 99% {p99:,}, longest {longest:,}"),
        ("bad records", f"{summary.problems.count:,} of {summary.problems.records:,}"),
        ("with reasoning", _reasoning(summary)),
        *([("held out of these", _held_out(summary))] if summary.held_out.share else []),
    ):
        corpus.add_row(name, value)
    console.print(inputs)
    console.print(corpus)
    if usage.unused:
        note(f"fields that were not used: {usage.listed(SHOWN_FIELDS)}. --ignore FIELD says that one may be left out")
    if summary.passed:
        note(_passed_over(summary.passed))
    if usage.marked:
        note(f"{counted(usage.marked, 'document says', 'documents say')} which words are learned: use loss: responses")
    _note_problems(summary, written=written)


def _note_problems(summary: PrepareSummary, *, written: bool) -> None:
    """The first bad records, and where all of them are listed."""
    problems = summary.problems
    for problem in problems.first[:SHOWN_PROBLEMS]:
        note(f"bad record: {problem}")
    if problems.count > SHOWN_PROBLEMS:
        note(f"... and {problems.count - SHOWN_PROBLEMS:,} more{_listed(problems, written=written)}")


def _listed(problems: ProblemTally, *, written: bool) -> str:
    from megatron_apriel.data.raw.problems import KEPT_PROBLEMS

    if problems.listed_in is not None:
        return f"; all are listed in {problems.listed_in}"
    if written and problems.count <= KEPT_PROBLEMS:
        return ", listed in corpus.json"
    kept = f", the first {KEPT_PROBLEMS:,} of all listed in corpus.json" if written else ""
    return f"{kept}; --bad-records FILE lists all"


def _held_out(summary: PrepareSummary) -> str:
    held_out = summary.held_out
    share = held_out.documents / summary.documents
    return f"{counted(held_out.documents, 'document')} ({share:.2%}), {counted(held_out.tokens, 'token')}"


def _passed_over(paths: Sequence[str]) -> str:
    others = [path for path in paths if not path.lower().endswith(IMAGE_SUFFIXES)]
    listed = ", ".join(Path(path).name for path in others[:SHOWN_INPUTS])
    listed += f" and {len(others) - SHOWN_INPUTS:,} more" if len(others) > SHOWN_INPUTS else ""
    said = f"files of the directories that were passed over: {len(others):,}" + (f" ({listed})" if listed else "")
    pictures = len(paths) - len(others)
    return said + (
        f"; {counted(pictures, 'picture is', 'pictures are')} read where records name them" if pictures else ""
    )


def _reasoning(summary: PrepareSummary) -> str:
    usage = summary.usage
    parts = [counted(usage.reasoning, "document")]
    if usage.hidden_reasoning:
        parts.append(f"{counted(usage.hidden_reasoning, 'earlier turn')} had some, which is not shown")
    if usage.unrecognised:
        parts.append(
            f"{counted(usage.unrecognised, 'document looks', 'documents look')} as if theirs was not recognised"
        )
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(run_command(main))
