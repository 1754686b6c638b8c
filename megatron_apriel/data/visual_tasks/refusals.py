"""Why a picture gives no sample: nothing is wrong with the program, and another picture is drawn."""

from __future__ import annotations


class Ambiguous(Exception):
    """This picture cannot give a sample with one answer: draw again. The message is the reason, without numbers."""


class Unreadable(Ambiguous):
    """A raw image that turned out damaged when its pixels were read."""

    def __init__(self, name: str, damage: str) -> None:
        super().__init__("the image file is damaged")
        self.name, self.damage = name, damage
