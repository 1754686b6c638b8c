"""One number from 0 (easy) to 1 (hard), turned into every setting of every task.

Each setting is a knob with a value at both ends and a straight line between them; whole numbers are rounded. So every
setting is monotone in the difficulty, and a curriculum is a range. The table in docs/visual_tasks.md is this file's
(``table()``; a test compares them). Sizes are fractions of a picture's shorter side unless said otherwise.

The published recipe says only that difficulty is "set by controlled augmentation"; what is varied and how far are this
project's choices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_apriel.errors import ConfigError

NAMED = {"easy": 0.0, "medium": 0.5, "hard": 1.0}
"""Difficulties that have names."""


@dataclass(frozen=True)
class Knob:
    """A setting of a task.

    Attributes:
        task: which task it belongs to.
        name: the sample's property that it sets.
        easy, hard: its values at difficulty 0 and 1.
        whole: rounded to a whole number.
    """

    task: str
    name: str
    easy: float
    hard: float
    whole: bool = False

    def at(self, difficulty: float) -> float:
        """The value at a difficulty in [0, 1]."""
        value = self.easy + (self.hard - self.easy) * difficulty
        return math.floor(value + 0.5) if self.whole else value

    def count(self, difficulty: float) -> int:
        """The value of a knob that is a whole number."""
        return int(self.at(difficulty))


PATCH_CANDIDATES = Knob("reconstruct", "patches to choose from", 3, 6, whole=True)
PATCH_SIZE = Knob("reconstruct", "side of the hole", 0.42, 0.22)
PATCH_OWN = Knob("reconstruct", "share of wrong patches from the same picture", 0.0, 1.0)
PATCH_REACH = Knob("reconstruct", "distance of such a patch from the hole, in its sides", 2.5, 0.7)
SHUFFLE_LAYOUT = Knob("reconstruct", "shuffled pieces: place in 3, 4, 6, 9", 0, 3, whole=True)
TURN_OPTIONS = Knob("reconstruct", "turns and mirrorings to choose from", 4, 8, whole=True)
TURN_SHOWN = Knob("reconstruct", "part of the picture that is shown turned", 1.0, 0.5)
TURN_COLOUR = Knob("reconstruct", "change of colours of the turned part", 0.0, 0.4)
TURNED_GRID = Knob("reconstruct", "pieces per side, one of them turned", 2, 5, whole=True)

POINT_GRID = Knob("match", "cells per side for the spot's place", 2, 5, whole=True)
VIEW_SIZE = Knob("match", "part of each side that the other view shows", 0.9, 0.45)
VIEW_ANGLE = Knob("match", "rotation of the other view, at most, degrees", 0, 35)
VIEW_COLOUR = Knob("match", "change of colours of the other view", 0.1, 0.5)
RETRIEVAL_CANDIDATES = Knob("match", "pictures to choose from", 3, 6, whole=True)
RETRIEVAL_POOL = Knob("match", "pictures drawn per wrong one; the most similar are used", 1, 4, whole=True)
EDIT_PANELS = Knob("match", "pictures of which one differs", 3, 6, whole=True)
EDIT_SIZE = Knob("match", "side of the place that differs", 0.40, 0.16)
EDIT_STRENGTH = Knob("match", "how much of the difference is blended in", 1.0, 0.6)

SCENE_OBJECTS = Knob("detect", "objects in a constructed scene, at most", 3, 10, whole=True)
SCENE_ALIKE = Knob("detect", "share of other objects with the same colour or shape", 0.0, 1.0)
SCENE_SIZE = Knob("detect", "size of the object", 0.26, 0.11)
SCENE_OPACITY = Knob("detect", "opacity of the object", 1.0, 0.75)
SCENE_GRID = Knob("detect", "cells per side for its place", 2, 5, whole=True)
INSET_SIZE = Knob("detect", "size of a pasted patch", 0.40, 0.18)
INSET_COLOUR = Knob("detect", "change of colours of a pasted patch", 0.0, 0.4)
BOX_SIZE = Knob("detect", "wanted size of an annotated object (square root of its share of the picture)", 0.6, 0.1)

COUNT_OBJECTS = Knob("count", "objects of the counted kind, at most", 4, 12, whole=True)
COUNT_OTHERS = Knob("count", "objects of other kinds, at most", 2, 8, whole=True)
COUNT_SIZE = Knob("count", "size of an object", 0.20, 0.11)
COUNT_VISIBLE = Knob("count", "part of every object that stays visible, at least", 1.0, 0.6)
COUNT_CROWDED = Knob("count", "share of objects put where they may cover another in part", 0.0, 0.6)
COUNT_OPACITY = Knob("count", "opacity of an object", 1.0, 0.8)
COUNT_ANNOTATED = Knob("count", "annotated objects, at most", 3, 15, whole=True)

KNOBS = tuple(value for value in list(globals().values()) if isinstance(value, Knob))
"""All of them, in the order of this file."""


@dataclass(frozen=True)
class Range:
    """Difficulties from ``low`` to ``high``, drawn uniformly; one difficulty if they are equal."""

    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> Range:
        """``easy``, ``0.3``, ``0.2..0.8`` or ``easy..hard``. Raises ConfigError for anything else."""
        ends = [_value(part, text) for part in text.split("..")]
        if len(ends) > 2 or ends[0] > ends[-1]:
            raise _not_a_difficulty(text)
        return cls(ends[0], ends[-1])

    def at(self, share: float) -> float:
        """The difficulty at a share in [0, 1) of the way, in steps of a thousandth so that a record shows all of it."""
        return round(self.low + (self.high - self.low) * share, 3)

    def __str__(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g}..{self.high:g}"


FULL_RANGE = Range(0.0, 1.0)


def table() -> list[tuple[str, ...]]:
    """Rows (task, setting, easy, medium, hard) for people."""
    return [(knob.task, knob.name, *(f"{knob.at(NAMED[name]):.3g}" for name in NAMED)) for knob in KNOBS]


def _value(part: str, text: str) -> float:
    if part.strip() in NAMED:
        return NAMED[part.strip()]
    try:
        value = float(part)
    except ValueError:
        raise _not_a_difficulty(text) from None
    if not 0 <= value <= 1:
        raise _not_a_difficulty(text)
    return value


def _not_a_difficulty(text: str) -> ConfigError:
    return ConfigError(
        f"difficulty {text!r} is neither a name, a number from 0 to 1, nor a range of them from low to high.",
        fix=f"Give one of {', '.join(NAMED)}, for example 0.3, or a range such as 0.2..0.8 or easy..hard.",
    )
