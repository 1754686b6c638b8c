"""From a folder of raw images to a directory of samples, checked one by one.

    DST/records.jsonl                  one record per sample: messages, task, variant, difficulty, answer, ...
    DST/images/00000/00000017-1.jpg    second picture of sample 17
    DST/manifest.json                  what was asked for, what was found, what was made, what was rejected

Sample i is a function of the seed, of i, of the options and of the images in the order of their sorted paths: not of
the number of workers, nor of how many samples are asked for. More samples continue fewer.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from megatron_apriel.data.raw.read_limits import ReadLimits
from megatron_apriel.data.visual_tasks.coco import read_annotations
from megatron_apriel.data.visual_tasks.generator import Generator, Made
from megatron_apriel.data.visual_tasks.options import Options
from megatron_apriel.data.visual_tasks.raw_images import Header, RawImages, image_files, read_header
from megatron_apriel.data.visual_tasks.refusals import Unfit
from megatron_apriel.data.visual_tasks.summary import Summary
from megatron_apriel.data.visual_tasks.tasks import Menu
from megatron_apriel.errors import DataError
from megatron_apriel.outputs import check_destination, whole_directory
from megatron_apriel.progress import progress
from megatron_apriel.workers import Workers

MANIFEST = "manifest.json"
RECORDS = "records.jsonl"
MARKERS = (MANIFEST, RECORDS)
"""Files that distinguish an earlier result from a folder of somebody's: many have a manifest."""

_SAMPLES = 8  # per piece of work
_HEADERS = 256  # of files per piece of work
_LESS_MEMORY = "Use fewer --workers, or a smaller --max-side."
_TRIED = 8  # samples that a dry run makes


def generate(
    destination: Path | None,
    images: Path,
    options: Options,
    annotations: Path | None = None,
    overwrite: bool = False,
) -> Summary:
    """Make samples and write them.

    Args:
        destination: directory to be made, or None to look at everything, make a few samples and write nothing.
        images: folder of raw images; folders below it are searched.
        options: what to make.
        annotations: COCO instances of images in the folder.
        overwrite: replace an earlier result.

    Raises:
        ConfigError, DataError, OutputError: before anything is written, or with everything removed again.
    """
    options.check()
    inputs = [images] if annotations is None else [images, annotations]
    if destination is not None:
        check_destination(destination, overwrite, MARKERS, inputs)
    summary = Summary()
    generator = prepare_generator(images, annotations, options, summary)
    if destination is None:
        for index in range(min(options.samples, _TRIED)):
            summary.take(generator.make(index), options.max_wrong)
        return summary
    while True:
        try:
            with whole_directory(destination, overwrite, MARKERS, inputs) as partial:
                _write(generator, partial, summary)
                manifest = summary.manifest(images, annotations, options)
                (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            return summary
        except Unfit as error:
            generator = replace(generator, menu=_without(generator.menu, error, options, summary))
            summary.forget_samples()


def _without(menu: Menu, error: Unfit, options: Options, summary: Summary) -> Menu:
    """The menu without what gave no samples. Raises the error where nothing may be left out, or all would be."""
    rest = menu.without(error.reasons)
    if not (options.leaves_out and error.reasons and rest.tasks):
        raise error
    summary.left_out |= error.reasons
    return rest


def prepare_generator(images: Path, annotations: Path | None, options: Options, summary: Summary) -> Generator:
    """Look at the folder and the annotations, and check that they suffice; fills in ``summary``."""
    names, summary.others = image_files(images)
    summary.files = len(names)
    usable = []
    pieces = (names[start : start + _HEADERS] for start in range(0, len(names), _HEADERS))
    number = min(options.workers, -(-len(names) // _HEADERS))
    with (
        Workers((images, options.limits), number, _LESS_MEMORY) as workers,
        progress("looking at images", len(names), "image") as step,
    ):
        for headers in workers.in_order(_headers, pieces):
            step(len(headers))
            usable += [header for header in headers if not header.problem]
            summary.unusable |= {header.name: header.problem for header in headers if header.problem}
    summary.usable = len(usable)
    if not usable:
        raise DataError(f"no image of {images} can be used.", summary.found)
    raw = RawImages(
        images, [h.name for h in usable], [(h.width, h.height) for h in usable], options.max_side, options.limits
    )
    known = None
    if annotations is not None:
        known = read_annotations(
            annotations, {name: number for number, name in enumerate(raw.names)}, dict(enumerate(raw.sizes))
        )
        summary.annotated, summary.annotation_problems = len(known.images), known.problems
    menu = Menu.of(options.tasks, options.weights, known)
    try:
        menu.check_images(len(raw), options.difficulty, summary.found)
    except Unfit as error:
        menu = _without(menu, error, options, summary)
    return Generator(raw, known, menu, options)


def _headers(shared: tuple[Path, ReadLimits], names: list[str]) -> list[Header]:
    images, limits = shared
    return [read_header(images, name, limits) for name in names]


def _make_some(shared: tuple[Generator, Path], numbers: range) -> list[Made]:
    """Make samples and write their pictures; records go back to the process that writes them in order."""
    generator, directory = shared
    made = []
    for index in numbers:
        one = generator.make(index)
        for name, data in one.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        made.append(replace(one, files=dict.fromkeys(one.files, b"")))
    return made


def _write(generator: Generator, directory: Path, summary: Summary) -> None:
    samples = generator.options.samples
    pieces = (range(start, min(start + _SAMPLES, samples)) for start in range(0, samples, _SAMPLES))
    number = min(generator.options.workers, -(-samples // _SAMPLES))
    with (
        Workers((generator, directory), number, _LESS_MEMORY) as workers,
        progress("making samples", samples, "sample") as step,
        (directory / RECORDS).open("w", encoding="utf-8") as file,
    ):
        for piece in workers.in_order(_make_some, pieces):
            for made in piece:
                file.write(json.dumps(made.record, ensure_ascii=False) + "\n")
                summary.take(made, generator.options.max_wrong)
            step(len(piece))
