"""Any sample by its number: drawn, encoded, checked by what its pictures give when read back, else drawn again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_apriel.data.visual_tasks.coco import Annotations
from megatron_apriel.data.visual_tasks.options import FORMATS, Options
from megatron_apriel.data.visual_tasks.pixels import decoded, encoded
from megatron_apriel.data.visual_tasks.raw_images import RawImages
from megatron_apriel.data.visual_tasks.refusals import Ambiguous, Unreadable, all_wrong, unfit
from megatron_apriel.data.visual_tasks.sample import Draw, Sample
from megatron_apriel.data.visual_tasks.tasks import Menu, Variant

ATTEMPTS = 100
"""Pictures tried for one sample before the folder is called unfit."""

_FOLDER = 1_000  # samples whose pictures share a folder
_WRONG = "its pictures give another answer"


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
