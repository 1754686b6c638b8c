"""The list of tasks and their variants, how many images each needs, and which of them a sample becomes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_apriel.data.visual_tasks import annotated, count, detect, match, reconstruct
from megatron_apriel.data.visual_tasks import difficulty as knobs
from megatron_apriel.data.visual_tasks.coco import Annotations
from megatron_apriel.data.visual_tasks.difficulty import Range
from megatron_apriel.data.visual_tasks.refusals import Unfit
from megatron_apriel.data.visual_tasks.sample import Draw, Sample
from megatron_apriel.errors import ConfigError, DataError
from megatron_apriel.quantities import counted

TASKS = ("reconstruct", "match", "detect", "count")

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Variant:
    """One kind of question.

    Attributes:
        task: one of ``TASKS``.
        name: unique among all variants.
        make: makes one sample.
        images: how many different images it needs at a difficulty.
        annotated: whether it needs annotations.
    """

    task: str
    name: str
    make: Callable[[Draw], Sample]
    images: Callable[[float], int] = lambda difficulty: 1
    annotated: bool = False

    @property
    def label(self) -> str:
        """Task and variant."""
        return f"{self.task} {self.name}"


def _patch_images(difficulty: float) -> int:
    wrong = knobs.PATCH_CANDIDATES.count(difficulty) - 1
    return 1 + wrong - round(knobs.PATCH_OWN.at(difficulty) * wrong)


VARIANTS = (
    Variant("reconstruct", "patch", reconstruct.patch, _patch_images),
    Variant("reconstruct", "shuffle", reconstruct.shuffle),
    Variant("reconstruct", "turn", reconstruct.turn),
    Variant("reconstruct", "turned_piece", reconstruct.turned_piece),
    Variant("match", "point", match.point),
    Variant("match", "retrieval", match.retrieval, knobs.RETRIEVAL_CANDIDATES.count),
    Variant("match", "different", match.different),
    Variant("detect", "presence", detect.presence),
    Variant("detect", "location", detect.location),
    Variant("detect", "inset", detect.inset),
    Variant("detect", "category_presence", annotated.category_presence, annotated=True),
    Variant("detect", "category_location", annotated.category_location, annotated=True),
    Variant("count", "total", count.total),
    Variant("count", "kind", count.kind),
    Variant("count", "category_count", annotated.category_count, annotated=True),
    Variant("count", "pair_count", annotated.pair_count, annotated=True),
)


@dataclass(frozen=True)
class Menu:
    """What samples are made of: tasks with their shares, and the variants of each, which are equally likely.

    Attributes:
        tasks: some of ``TASKS``.
        weights: share of each, adding up to 1.
        variants: of each task.
    """

    tasks: tuple[str, ...]
    weights: tuple[float, ...]
    variants: tuple[tuple[Variant, ...], ...]

    @classmethod
    def of(cls, tasks: Sequence[str], weights: Sequence[float] | None, annotations: Annotations | None) -> Menu:
        """Check the tasks and weights asked for.

        Raises:
            ConfigError: an unknown or repeated task, weights that are no shares.
            DataError: annotations that nothing can be asked about.
        """
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks or len(set(tasks)) != len(tasks):
            raise ConfigError(
                f"the tasks {','.join(tasks) or '(none)'} are not a choice of different tasks"
                + (f": {unknown[0]!r} is unknown." if unknown else "."),
                fix=f"Choose from {', '.join(TASKS)}.",
            )
        given = [1.0] * len(tasks) if weights is None else list(weights)
        if len(given) != len(tasks) or not all(np.isfinite(w) and w > 0 for w in given):
            raise ConfigError(
                f"weights {', '.join(f'{w:g}' for w in given)} do not fit {counted(len(tasks), 'task')},"
                f" {','.join(tasks)}.",
                "Each task needs one number above 0; leave a task out with --tasks.",
            )
        possible = {} if annotations is None else annotated.available(annotations)
        wants = [v for v in VARIANTS if v.annotated and v.task in tasks]
        if annotations is not None and wants and not any(possible[v.name] for v in wants):
            raise DataError(
                f"the annotations of {counted(len(annotations.images), 'image')} hold nothing that can be asked about.",
                "Crowds, tiny boxes and empty ones are never asked for, and presence needs images without a category.",
                "Give annotations of more images, or leave --annotations out.",
            )
        offered = [v for v in VARIANTS if not v.annotated or possible.get(v.name)]
        variants = tuple(tuple(v for v in offered if v.task == task) for task in tasks)
        return cls(tuple(tasks), tuple(w / sum(given) for w in given), variants)

    def without(self, labels: Collection[str]) -> Menu:
        """This menu without some variants, and without tasks that have no others; their shares go to the rest."""
        left = [
            (task, weight, rest)
            for task, weight, own in zip(self.tasks, self.weights, self.variants, strict=True)
            if (rest := tuple(variant for variant in own if variant.label not in labels))
        ]
        total = sum(weight for _, weight, _ in left)
        return Menu(
            tuple(task for task, _, _ in left), tuple(weight / total for _, weight, _ in left),
            tuple(rest for _, _, rest in left),
        )  # fmt: skip

    def variant(self, index: int, offset: float, share: float) -> Variant:
        """What sample ``index`` is.

        Tasks follow a golden-ratio sequence and not dice: after any number of samples each task has its share within
        a few samples.

        Args:
            index: number of the sample.
            offset: where the sequence begins, in [0, 1); depends on the seed only.
            share: of the way through the task's variants, in [0, 1).
        """
        place = (offset + (index + 1) * _GOLDEN) % 1.0
        bounds = np.cumsum(self.weights)
        task = min(int(np.searchsorted(bounds, place, side="right")), len(self.tasks) - 1)
        return self.variants[task][int(share * len(self.variants[task]))]

    def check_images(self, usable: int, difficulty: Range, found: str) -> None:
        """Raise Unfit if there are too few images for a variant anywhere in the range of difficulties.

        Args:
            usable: number of images.
            difficulty: of the samples.
            found: what the folder holds, for the message.
        """
        steps = [difficulty.at(step / 20) for step in range(21)]
        needed = {v.name: max(v.images(step) for step in steps) for group in self.variants for v in group}
        lacking = [v for group in self.variants for v in group if needed[v.name] > usable]
        if lacking:
            listed = ", ".join(f"{v.task} ({v.name}) needs {needed[v.name]}" for v in lacking)
            raise Unfit(
                f"{counted(usable, 'usable image is', 'usable images are')} too few at difficulty {difficulty}:"
                f" {listed}.",
                f"Wrong answers come from other images. {found}",
                "Add images, leave these tasks out with --tasks, or change --difficulty.",
                {v.label: f"it needs {counted(needed[v.name], 'image')}, and {usable} can be used" for v in lacking},
            )
