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


class WrongAnswer(DataError):
    """Checks do not find the answers of too many samples: something is wrong with the folder, or with this program."""


def all_wrong(name: str, attempts: int, failed: int, first: str) -> WrongAnswer:
    """Of a sample of which every one that could be drawn fails its check; ``first`` says how."""
    return WrongAnswer(
        f"{name}: none of the {failed} samples that {attempts} attempts gave passes its check.",
        f"The first: {first}.",
        "Something is wrong with this program, or with the images it names. Leave the task out with --tasks.",
    )


def unfit(name: str, attempts: int, images: int, rejected: Mapping[str, int], damaged: Mapping[str, str]) -> DataError:
    """Of a sample for which no picture is fit, with the reasons by how often they were met."""
    most = Counter(rejected).most_common(4)
    reasons = ", ".join(f"{text.partition(': ')[2]} ({count})" for text, count in most)
    first = next(iter(damaged.items()), None)
    return DataError(
        f"{name}: none of {attempts} pictures drawn from {images} gives a question with one answer.",
        f"Reasons: {reasons}." + (f" Damaged, for example: {first[0]}: {first[1]}." if first else ""),
        "Uniform, very small or repeated images cannot be used: add others, leave the task out with --tasks, or "
        "change --difficulty.",
    )
