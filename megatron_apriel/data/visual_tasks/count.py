"""Counting in constructed scenes: all objects, or those of one kind.

=====  =================================================================================================================
total  how many shapes are there?
kind   how many of a colour, of a shape, or of both are there? Zero is an answer too
=====  =================================================================================================================

Easy scenes hold few objects that do not touch. Hard ones hold many, small and partly covered, but what stays visible of
each is never less than ``COUNT_VISIBLE``. The number is drawn first and uniformly, so that no number is a good guess.
The same questions about annotated photographs are in :mod:`annotated`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from megatron_apriel.data.visual_tasks import difficulty as knobs
from megatron_apriel.data.visual_tasks.pixels import Pixels
from megatron_apriel.data.visual_tasks.refusals import Ambiguous
from megatron_apriel.data.visual_tasks.sample import Draw, Sample
from megatron_apriel.data.visual_tasks.scene import COLOURS, KINDS, PLURALS, SHAPES, Kind, Scene

TOTAL_QUESTIONS = (
    "Shapes in plain colours have been drawn on this photograph. How many are there in all? Answer with a number.",
    "Count all the coloured shapes that were added to this picture. Reply with the number only.",
    "How many plain shapes lie on the picture, whatever their colour? Give a number.",
)
KIND_QUESTIONS = (
    "Shapes have been drawn on this photograph. How many {what} are there? Answer with a number; it may be 0.",
    "Count the {what} drawn on the picture. Reply with the number only, 0 if there are none.",
    "How many {what} were added to this picture? Give a number, or 0.",
)

Test = Callable[[Kind], bool]


def total(draw: Draw) -> Sample:
    """How many shapes there are."""
    number = int(draw.choices.integers(1, knobs.COUNT_OBJECTS.count(draw.difficulty) + 1))
    kinds = [KINDS[int(draw.rng.integers(len(KINDS)))] for _ in range(number)]
    return _counted(draw, kinds, lambda kind: True, number, draw.phrase(TOTAL_QUESTIONS), "shapes")


def kind(draw: Draw) -> Sample:
    """How many shapes of a kind there are."""
    number = int(draw.choices.integers(knobs.COUNT_OBJECTS.count(draw.difficulty) + 1))
    shape = SHAPES[int(draw.choices.integers(len(SHAPES)))]
    colour = list(COLOURS)[int(draw.choices.integers(len(COLOURS)))]
    by = ("colour", "shape", "both")[int(draw.choices.integers(3))]
    what = {"colour": f"{colour} shapes", "shape": PLURALS[shape], "both": f"{colour} {PLURALS[shape]}"}[by]

    def asked(one: Kind) -> bool:
        return (by == "shape" or one.colour == colour) and (by == "colour" or one.shape == shape)

    others = int(draw.rng.integers(1, knobs.COUNT_OTHERS.count(draw.difficulty) + 1))
    pools = [[one for one in KINDS if asked(one)]] * number + [[one for one in KINDS if not asked(one)]] * others
    kinds = [pool[int(draw.rng.integers(len(pool)))] for pool in pools]
    return _counted(draw, kinds, asked, number, draw.phrase(KIND_QUESTIONS, what=what), what)


def _counted(draw: Draw, kinds: list[Kind], asked: Test, number: int, question: str, what: str) -> Sample:
    visible = knobs.COUNT_VISIBLE.at(draw.difficulty)
    scene = Scene(draw.picture(), knobs.COUNT_OPACITY.at(draw.difficulty), visible)
    size = round(knobs.COUNT_SIZE.at(draw.difficulty) * min(scene.background.size))
    # In a random order, so that the counted ones are neither all below nor all above the others.
    for index in draw.rng.permutation(len(kinds)):
        _place(scene, kinds[int(index)], round(size * draw.rng.uniform(0.85, 1.15)), draw)
    if any(scene.shown(index) < visible for index in range(len(kinds))):
        raise Ambiguous("an object is hidden by two others together")
    scene.require_visible()

    def check(pictures: Sequence[Pixels]) -> int | None:
        seen = [scene.objects[index].kind for index in range(len(scene.objects)) if scene.shown(index) >= visible]
        return sum(map(asked, seen)) if scene.seen_in(pictures[0]) else None

    construction = {
        "what": what,
        "objects": scene.described(),
        "shown": [round(scene.shown(index), 3) for index in range(len(kinds))],
        "opacity": round(scene.opacity, 3),
    }
    return Sample((scene.picture, "\n" + question), str(number), number, construction, check)


def _place(scene: Scene, kind: Kind, size: int, draw: Draw) -> None:
    """Put an object beside or partly over an earlier one, as often as the difficulty says, and else anywhere."""
    if scene.objects and draw.rng.random() < knobs.COUNT_CROWDED.at(draw.difficulty):
        near = scene.objects[int(draw.rng.integers(len(scene.objects)))]
        reach = 0.85 * near.size
        with suppress(Ambiguous):
            scene.place(kind, size, draw.rng, (near.x - reach, near.y - reach, near.x + reach, near.y + reach))
            return
    scene.place(kind, size, draw.rng)
