"""Why a picture gives no sample, so that another is drawn, and what is said where none of many gives one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from megatron_apriel.errors import DataError


class Ambiguous(Exception):
    """This picture cannot give a sample with one answer: draw again. The message is the reason, without numbers."""


class Unreadable(Ambiguous):
    """A raw image that turned out damaged when its pixels were read."""

    def __init__(self, name: str, damage: str) -> None:
        super().__init__("the image file is damaged")
        self.name, self.damage = name, damage


class Unfit(DataError):
    """The images give no samples of some variants.

    Attributes:
        reasons: by a variant's label, why it is left out, in words to stand behind "because"; none where it is no
            matter of single variants.
    """

    def __init__(self, what: str, why: str = "", fix: str = "", reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(what, why, fix)
        self.reasons = dict(reasons or {})


class WrongAnswer(Unfit):
    """Checks do not find the answers of too many samples: something is wrong with the folder, or with this program."""


def all_wrong(variant: str, name: str, attempts: int, failed: int, first: str) -> WrongAnswer:
    """Of a sample of which every one that could be drawn fails its check; ``first`` says how."""
    what = f"its check fails on every sample that {attempts} attempts gave, {failed} in all"
    return WrongAnswer(
        f"{name}: {what}.",
        f"The first: {first}.",
        "Something is wrong with this program, or with the images it names. Leave the task out with --tasks.",
        {variant: f"{what}; the first: {first}"},
    )


def unfit(
    variant: str, name: str, attempts: int, images: int, rejected: Mapping[str, int], damaged: Mapping[str, str]
) -> Unfit:
    """Of a sample for which no picture is fit, with the reasons by how often they were met."""
    most = Counter(rejected).most_common(4)
    reasons = ", ".join(f"{text.partition(': ')[2]} ({count})" for text, count in most)
    first = next(iter(damaged.items()), None)
    what = f"none of {attempts} pictures drawn from {images} gives a question with one answer"
    return Unfit(
        f"{name}: {what}.",
        f"Reasons: {reasons}." + (f" Damaged, for example: {first[0]}: {first[1]}." if first else ""),
        "Uniform, very small or repeated images cannot be used: add others, leave the task out with --tasks, or "
        "change --difficulty.",
        {variant: f"{what}: {reasons}"},
    )
