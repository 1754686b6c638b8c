"""From a folder of raw images to a directory of samples, checked one by one.

    DST/records.jsonl                  one record per sample: messages, task, variant, difficulty, answer, ...
    DST/images/00000/00000017-1.jpg    second picture of sample 17
    DST/manifest.json                  what was asked for, what was found, what was made, what was rejected

Sample i is a function of the seed, of i, of the options and of the images in the order of their sorted paths: not of
the number of workers, nor of how many samples are asked for. More samples continue fewer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.visual_tasks.coco import Annotations, read_annotations
from megatron_apriel.data.visual_tasks.difficulty import FULL_RANGE, Range
from megatron_apriel.data.visual_tasks.pixels import decoded, encoded
from megatron_apriel.data.visual_tasks.raw_images import Header, RawImages, image_files, read_header
from megatron_apriel.data.visual_tasks.refusals import Ambiguous, Unfit, Unreadable, WrongAnswer, all_wrong, unfit
from megatron_apriel.data.visual_tasks.sample import Draw, Sample
from megatron_apriel.data.visual_tasks.tasks import TASKS, Menu, Variant
from megatron_apriel.errors import ConfigError, DataError
from megatron_apriel.outputs import check_destination, whole_directory
from megatron_apriel.progress import progress
from megatron_apriel.workers import Workers

MANIFEST = "manifest.json"
RECORDS = "records.jsonl"
MARKERS = (MANIFEST, RECORDS)
"""Files that distinguish an earlier result from a folder of somebody's: many have a manifest."""
FORMATS = {"jpeg": "jpg", "png": "png"}
MIN_MAX_SIDE, MAX_MAX_SIDE = 128, 4096
ATTEMPTS = 100
"""Pictures tried for one sample before the folder is called unfit."""

_FOLDER = 1_000  # samples whose pictures share a folder
_SAMPLES = 8  # per piece of work
_HEADERS = 256  # of files per piece of work
_LESS_MEMORY = "Use fewer --workers, or a smaller --max-side."
_KEPT = 1000  # problems listed one by one
_TRIED = 8  # samples that a dry run makes
_WRONG_AT_MOST = 10  # samples whose check fails, before their share counts
_WRONG = "its pictures give another answer"


@dataclass(frozen=True)
class Options:
    """What to make.

    Attributes:
        samples: how many.
        seed: of everything random, at least 0.
        difficulty: one, or a range.
        tasks: some of ``tasks.TASKS``.
        weights: share of each task, or None for equal ones.
        max_side: longer side of the pictures, pixels.
        image_format: one of ``FORMATS``.
        quality: of JPEG.
        workers: processes.
        limits: on the raw images that are read.
        max_wrong: share of the samples whose pictures may give another answer; those are drawn again.
        leaves_out: variants that the images do not suit are left out, and others made in their place.
    """

    samples: int
    seed: int = 0
    difficulty: Range = FULL_RANGE
    tasks: tuple[str, ...] = TASKS
    weights: tuple[float, ...] | None = None
    max_side: int = 512
    image_format: str = "jpeg"
    quality: int = 92
    workers: int = 1
    limits: ReadLimits = DEFAULT_LIMITS
    max_wrong: float = 0.01
    leaves_out: bool = False

    def check(self) -> None:
        """Raise ConfigError for numbers that cannot be."""
        for name, value, low, high in (
            ("samples", self.samples, 1, 10**9),
            ("seed", self.seed, 0, 2**63 - 1),
            ("max-side", self.max_side, MIN_MAX_SIDE, MAX_MAX_SIDE),
            ("quality", self.quality, 50, 100),
            ("workers", self.workers, 1, 4096),
            ("max-pixels", self.limits.pixels, 1, 2**40),
        ):
            if not low <= value <= high:
                raise ConfigError(f"--{name} {value} is outside of {low} to {high}.")
        if self.image_format not in FORMATS:
            raise ConfigError(f"--image-format {self.image_format!r} is unknown.", fix=f"One of {', '.join(FORMATS)}.")


@dataclass
class Summary:
    """What was found and made.

    Attributes:
        files: image files in the folder.
        others: other files there.
        unusable: files passed over and why, damaged ones found later included.
        usable: images that can be used.
        annotated: images with annotations.
        annotation_problems: what of the annotations was passed over.
        made: samples of each "task variant".
        pictures: files written.
        rejected: pictures drawn in vain, by "task variant: reason".
        wrong: samples that were drawn again because their pictures gave another answer.
        left_out: variants that the images do not suit, with the reasons.
    """

    files: int = 0
    others: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    usable: int = 0
    annotated: int = 0
    annotation_problems: dict[str, int] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    pictures: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """A finished sample: the record, its encoded pictures by name, and what happened on the way."""

    record: dict[str, Any]
    files: dict[str, bytes]
    rejected: Counter[str]
    damaged: dict[str, str]
    wrong: list[str]


@dataclass(frozen=True)
class Generator:
    """Makes any sample by its number."""

    images: RawImages
    annotations: Annotations | None
    menu: Menu
    options: Options

    def make(self, index: int) -> Made:
        """Sample ``index``, encoded and checked; where the check fails, it is drawn again.

        Raises:
            WrongAnswer: every sample that could be drawn has an answer that its check does not find.
            Unfit: no picture of many gives such a sample.
        """
        which = self._random(index, 0)
        offset = float(np.random.default_rng([self.options.seed]).random())
        difficulty = self.options.difficulty.at(float(which.random()))
        variant = self.menu.variant(index, offset, float(which.random()))
        rejected: Counter[str] = Counter()
        damaged: dict[str, str] = {}
        wrong: list[str] = []
        for attempt in range(ATTEMPTS):
            rng, choices = self._random(index, 2 + attempt), self._random(index, 1)
            draw = Draw(self.images, self.annotations, difficulty, rng, choices, damaged=damaged)
            try:
                sample = variant.make(draw)
            except Ambiguous as reason:
                rejected[f"{variant.label}: {reason}"] += 1
                if isinstance(reason, Unreadable):
                    damaged[reason.name] = reason.damage
                continue
            data = [encoded(picture, self.options.image_format, self.options.quality) for picture in sample.pictures]
            found = sample.check([decoded(one) for one in data])
            if found == sample.answer:
                record, names = self._record(index, variant, difficulty, sample, draw.used)
                return Made(record, dict(zip(names, data, strict=True)), rejected, damaged, wrong)
            rejected[f"{variant.label}: {_WRONG}"] += 1
            wrong = wrong or [
                f"sample {index} of seed {self.options.seed} ({variant.label}, difficulty {difficulty}, "
                f"from {', '.join(draw.used)}) has the answer {sample.answer!r}, but its pictures give {found!r}"
            ]
        name = f"sample {index} ({variant.label}, difficulty {difficulty})"
        if wrong:
            raise all_wrong(variant.label, name, ATTEMPTS, rejected[f"{variant.label}: {_WRONG}"], wrong[0])
        raise unfit(variant.label, name, ATTEMPTS, len(self.images), rejected, damaged)

    def _random(self, index: int, stream: int) -> np.random.Generator:
        """Streams of one sample: 0 what it is, 1 its answer, 2 and on one for each attempt."""
        return np.random.default_rng([self.options.seed, index, stream])

    def _record(
        self, index: int, variant: Variant, difficulty: float, sample: Sample, used: list[str]
    ) -> tuple[dict[str, Any], list[str]]:
        """The record of a sample, and the names of its pictures."""
        suffix = FORMATS[self.options.image_format]
        names = [f"images/{index // _FOLDER:05}/{index:08}-{number}.{suffix}" for number in range(len(sample.pictures))]
        record = {
            "messages": [
                {"role": "user", "content": list(_content(sample, names))},
                {"role": "assistant", "content": sample.reply},
            ],
            "task": variant.task,
            "variant": variant.name,
            "difficulty": difficulty,
            "answer": sample.answer,
            "sources": list(dict.fromkeys(used)),
            "construction": sample.construction,
            "seed": self.options.seed,
            "index": index,
        }
        return record, names


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
            _account(generator.make(index), summary, options.max_wrong)
        return summary
    while True:
        try:
            with whole_directory(destination, overwrite, MARKERS, inputs) as partial:
                _write(generator, partial, summary)
                manifest = _manifest(images, annotations, options, summary)
                (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            return summary
        except Unfit as error:
            generator = replace(generator, menu=_without(generator.menu, error, options, summary))
            summary.made, summary.pictures, summary.rejected, summary.wrong = Counter(), 0, Counter(), []


def _without(menu: Menu, error: Unfit, options: Options, summary: Summary) -> Menu:
    """The menu without what the images do not suit. Raises the error where nothing may be left out, or all would be."""
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
        progress("looking at images", len(names), "images") as step,
    ):
        for headers in workers.in_order(_headers, pieces):
            step(len(headers))
            usable += [header for header in headers if not header.problem]
            summary.unusable |= {header.name: header.problem for header in headers if header.problem}
    summary.usable = len(usable)
    found = f"Of {summary.files} image files, {len(summary.unusable)} cannot be used{_examples(summary.unusable)}."
    if not usable:
        raise DataError(f"no image of {images} can be used.", found)
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
        menu.check_images(len(raw), options.difficulty, found)
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
        progress("making samples", samples, "samples") as step,
        (directory / RECORDS).open("w", encoding="utf-8") as file,
    ):
        for piece in workers.in_order(_make_some, pieces):
            for made in piece:
                file.write(json.dumps(made.record, ensure_ascii=False) + "\n")
                _account(made, summary, generator.options.max_wrong)
            step(len(piece))


def _content(sample: Sample, names: list[str]) -> Iterator[dict[str, str]]:
    """Parts of the user's turn; neighbouring texts become one."""
    text, waiting = "", iter(names)
    for part in sample.parts:
        if isinstance(part, str):
            text += part
            continue
        if text:
            yield {"type": "text", "text": text}
        text = ""
        yield {"type": "image", "image": next(waiting)}
    if text:
        yield {"type": "text", "text": text}


def _account(made: Made, summary: Summary, max_wrong: float) -> None:
    """Count a sample. Raises WrongAnswer if too many were drawn again because of their answers."""
    summary.made[f"{made.record['task']} {made.record['variant']}"] += 1
    summary.pictures += len(made.files)
    summary.rejected += made.rejected
    summary.unusable |= {name: f"is damaged: {reason}" for name, reason in made.damaged.items()}
    summary.wrong += made.wrong
    samples = summary.made.total()
    if len(summary.wrong) > max(_WRONG_AT_MOST, max_wrong * samples):
        raise WrongAnswer(
            f"of {samples} samples, {len(summary.wrong)} had an answer that their pictures do not give, more than "
            f"{max_wrong:.1%}.",
            f"The last: {summary.wrong[-1]}.",
            "Look at the images it names. Allow more with --max-wrong, or leave the task out with --tasks.",
        )


def _examples(unusable: dict[str, str]) -> str:
    first = [f"{name} {problem}" for name, problem in list(unusable.items())[:3]]
    return f", for example: {'; '.join(first)}" if first else ""


def _manifest(images: Path, annotations: Path | None, options: Options, summary: Summary) -> dict[str, Any]:
    tasks = Counter[str]()
    for name, count in summary.made.items():
        tasks[name.partition(" ")[0]] += count
    return {
        "format": 1,
        "options": {
            "images": str(images),
            "annotations": None if annotations is None else str(annotations),
            "samples": options.samples,
            "seed": options.seed,
            "difficulty": str(options.difficulty),
            "tasks": list(options.tasks),
            "weights": None if options.weights is None else list(options.weights),
            "max_side": options.max_side,
            "image_format": options.image_format,
            "quality": options.quality,
            "max_pixels": options.limits.pixels,
            "max_wrong": options.max_wrong,
        },
        "images": {
            "files": summary.files,
            "usable": summary.usable,
            "other_files": summary.others,
            "unusable": len(summary.unusable),
            "first_unusable": dict(sorted(summary.unusable.items())[:_KEPT]),
            "annotated": summary.annotated,
            "annotation_problems": summary.annotation_problems,
        },
        "made": {"samples": options.samples, "pictures": summary.pictures, "tasks": dict(sorted(tasks.items()))},
        "variants": dict(sorted(summary.made.items())),
        "rejected": dict(sorted(summary.rejected.items())),
        "wrong": {"samples": len(summary.wrong), "first": summary.wrong[:_KEPT]},
        "left_out": summary.left_out,
    }
