"""Make questions with known answers from raw images: reconstruction, matching, detection, counting."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_apriel.command_line import CommandLine, above_zero, count_above_zero, fraction, number_list, word_list
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.errors import ExitCode, run_command
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import note, say

if TYPE_CHECKING:
    from megatron_apriel.data.visual_tasks.summary import Summary

EXAMPLES = """\
examples:
  # ten thousand samples of all four tasks, from easy to hard
  python tools/make_visual_tasks.py data/visual_raw --images photographs --samples 10K --seed 1

  # with COCO's annotations, detection and counting also ask about the photographs themselves
  python tools/make_visual_tasks.py data/visual_raw --images coco/train2017 \\
      --annotations coco/annotations/instances_train2017.json --samples 1M --workers 32

  # the ablation without counting, and twice as much matching as the others
  python tools/make_visual_tasks.py data/no_counting --images photographs --samples 10K \\
      --tasks reconstruct,match,detect --weights 1,2,1

  # only hard ones; look at the folder and make a few samples, but write nothing
  python tools/make_visual_tasks.py data/hard --images photographs --samples 1K --difficulty 0.7..1 --dry-run

then:
  python tools/prepare_data.py corpora/visual --input data/visual_raw --image-root data/visual_raw --model MODEL

The answer of every sample is found again before it is written: from its finished pictures, or, where it is about
what annotations say of a photograph, from these alone. The same seed gives the same samples with any number of workers,
and more samples continue fewer. See docs/visual_tasks.md.
"""
SHOWN = 5
"""Of a kind of remark, as about images that cannot be used."""


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES, allow_abbrev=False)
    parser.add_argument("destination", metavar="DST", type=Path, help="directory to be made; complete or absent")
    given = parser.add_argument_group("what is given")
    given.add_argument("--images", type=Path, required=True, metavar="DIR", help="raw images, also in folders below")
    given.add_argument("--annotations", type=Path, metavar="FILE", help="COCO instances (JSON) of images in the folder")
    made = parser.add_argument_group("what is made")
    made.add_argument("--samples", type=count_above_zero, required=True, metavar="N", help="how many, as 500 or 10K")
    made.add_argument("--seed", type=int, default=0, metavar="S", help="of everything random (default: 0)")
    made.add_argument(
        "--difficulty",
        default="easy..hard",
        metavar="D",
        help="easy, medium, hard, a number from 0 to 1, or a range such as 0.2..0.8 (default: %(default)s)",
    )
    made.add_argument(
        "--tasks",
        type=word_list,
        default=("reconstruct", "match", "detect", "count"),
        metavar="LIST",
        help="some of reconstruct,match,detect,count (default: all)",
    )
    made.add_argument("--weights", type=number_list, metavar="LIST", help="share of each task (default: equal)")
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument(
        "--max-side", type=int, default=512, metavar="PX", help="longer side of pictures, pixels (default: 512)"
    )
    pictures.add_argument(
        "--image-format", choices=("jpeg", "png"), default="jpeg", help="of all pictures (default: jpeg)"
    )
    pictures.add_argument("--quality", type=int, default=92, metavar="Q", help="of JPEG, 50 to 100 (default: 92)")
    given.add_argument(
        "--max-pixels",
        type=count_above_zero,
        default=DEFAULT_LIMITS.pixels,
        metavar="N",
        help="pass over images of more pixels, and of fewer where decoding takes more than 4 bytes each, as with "
        "transparency, 16 bits or WebP (default: 100M)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--workers",
        type=above_zero,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes (default: all cores); the result does not depend on it",
    )
    how.add_argument(
        "--max-wrong",
        type=fraction,
        default=0.01,
        metavar="SHARE",
        help="a sample whose pictures give another answer is drawn again; more than this share is an error "
        "(default: 1%%, and always ten samples)",
    )
    how.add_argument("--overwrite", action="store_true", help="replace an earlier result at DST")
    how.add_argument("--dry-run", action="store_true", help="check everything, make a few samples, write nothing")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0 only when the result is whole."""
    arguments = _parser().parse_args(argv)
    # Only now: the imports take a while, and --help should not.
    from megatron_apriel.data.visual_tasks.difficulty import Range
    from megatron_apriel.data.visual_tasks.generate import generate
    from megatron_apriel.data.visual_tasks.options import Options

    options = Options(
        samples=arguments.samples,
        seed=arguments.seed,
        difficulty=Range.parse(arguments.difficulty),
        tasks=arguments.tasks,
        weights=arguments.weights,
        max_side=arguments.max_side,
        image_format=arguments.image_format,
        quality=arguments.quality,
        workers=arguments.workers,
        limits=ReadLimits(pixels=arguments.max_pixels),
        max_wrong=arguments.max_wrong,
    )
    destination = None if arguments.dry_run else arguments.destination
    summary = generate(destination, arguments.images, options, arguments.annotations, overwrite=arguments.overwrite)
    _show(summary, written=not arguments.dry_run)
    if arguments.dry_run:
        asked_for = counted(arguments.samples, "sample was", "samples were")
        say(f"dry run: {arguments.destination} was not written; {asked_for} asked for")
    else:
        say(f"wrote {counted(arguments.samples, 'sample')} to {arguments.destination}")
    return ExitCode.OK


def _show(summary: Summary, *, written: bool) -> None:
    """Print what was found and made."""
    from megatron_apriel.tables import Table, standard_output

    usable = f"{summary.usable:,} of {counted(summary.files, 'file')}"
    say(f"images: {usable} can be used; {counted(summary.others, 'other file')}")
    if summary.annotated:
        say(f"annotations: of {counted(summary.annotated, 'image')}")
    for reason, count in summary.annotation_problems.items():
        note(f"  passed over: {count:,} {reason}")
    table = Table("task", "variant", "samples", "drawn again")
    for name, count in sorted(summary.made.items()):
        again = sum(number for reason, number in summary.rejected.items() if reason.startswith(f"{name}: "))
        table.add_row(*name.split(" "), f"{count:,}", f"{again:,}")
    standard_output().print(table, soft_wrap=True)
    made = counted(summary.made.total(), "sample")
    say(f"{made} with {counted(summary.pictures, 'picture')}; {_checked(summary)}")
    _note_first("drawn again", summary.wrong, written=written)
    unusable = [f"{file} {problem}" for file, problem in sorted(summary.unusable.items())]
    _note_first("unusable image", unusable, written=written)


def _note_first(what: str, found: Sequence[str], *, written: bool) -> None:
    """The first few, and where more of them are listed: in the manifest, if one was written."""
    from megatron_apriel.data.visual_tasks.summary import KEPT

    for one in found[:SHOWN]:
        note(f"{what}: {one}")
    if len(found) > SHOWN:
        kept = "" if len(found) <= KEPT else f"the first {KEPT:,} of all "
        note(f"... and {len(found) - SHOWN:,} more{f', {kept}listed in manifest.json' if written else ''}")


def _checked(summary: Summary) -> str:
    """How the answers were checked: nobody can count the people on a photograph again, but the boxes around them."""
    from megatron_apriel.data.visual_tasks.tasks import VARIANTS

    marked = {f"{variant.task} {variant.name}" for variant in VARIANTS if variant.annotated}
    annotated = sum(count for name, count in summary.made.items() if name in marked)
    drawn = sum(summary.made.values()) - annotated
    parts = []
    if drawn or not annotated:
        parts.append(f"{counted(drawn, 'answer was', 'answers were')} found again in the finished pictures")
    parts += [f"{counted(annotated, 'was', 'were')} compared with the annotations alone"] if annotated else []
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(run_command(main))
