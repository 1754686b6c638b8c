"""Image reconstruction: put a damaged picture together again, and say how.

=============  =========================================================================================================
patch          a square is greyed out; which of several patches fills it? Wrong ones come from other pictures (easy) or
               from the same picture, ever nearer to the hole, in the end overlapping it (hard)
shuffle        a picture is cut into pieces that are put back in the wrong order; which piece belongs where?
turn           a picture, and (a part of) it turned or mirrored; how? The upright picture is always shown: a photograph
               of gravel has no other upright, and one of a face no other left
turned_piece   one piece of a grid is turned by a half in its place; which?
=============  =========================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from megatron_apriel.data.visual_tasks import difficulty as knobs
from megatron_apriel.data.visual_tasks.pixels import (
    GREY,
    Box,
    Picture,
    Pixels,
    correlation,
    cut_square,
    distance,
    exact_distance,
    pixels_of,
    random_box,
    recoloured,
    require_best,
    require_distinct,
    require_texture,
)
from megatron_apriel.data.visual_tasks.refusals import Ambiguous
from megatron_apriel.data.visual_tasks.sample import LETTERS, Draw, Sample, cell_name, lettered

PATCH_QUESTIONS = (
    "A square of this picture has been covered in grey. Which of the patches below belongs there? "
    "Answer with the letter only.",
    "Which patch fills the grey hole in the first picture? Reply with one letter.",
    "The grey square hides a part of the picture. Choose the patch that was there. Give only its letter.",
)
SHUFFLE_QUESTIONS = (
    "This picture was cut into {pieces} pieces (rows: {rows}, columns: {columns}), which were mixed up. Number the "
    "pieces as they are shown, from left to right and top to bottom, beginning with 1. In which order do they restore "
    "the picture? Answer with the {pieces} numbers in the restored reading order, separated by spaces.",
    "The {pieces} pieces of this picture (rows: {rows}, columns: {columns}) are out of order. Counting the shown "
    "pieces row by row from 1, list the pieces in the order in which they give the original picture, row by row. "
    "Answer with numbers separated by spaces.",
)
TURN_QUESTIONS = (
    "The second picture was made from the first{part}. What was done to it?\n{options}\nAnswer with the letter only.",
    "Compare the two pictures: the second comes from the first{part}. Which change was applied?\n{options}\n"
    "Reply with one letter.",
)
TURNED_QUESTIONS = (
    "This picture consists of {side} rows and {side} columns of equal pieces. One piece has been turned by 180 degrees "
    "in its place. Which one? Answer as: row R, column C.",
    "Divide the picture into a grid of {side} by {side}. The content of one cell stands on its head. Name the cell, "
    "counting from the top left, as: row R, column C.",
)

TURNS: dict[str, Image.Transpose | None] = {
    "it was not turned": None,
    "turned by 90 degrees clockwise": Image.Transpose.ROTATE_270,
    "turned by 180 degrees": Image.Transpose.ROTATE_180,
    "turned by 90 degrees counter-clockwise": Image.Transpose.ROTATE_90,
    "mirrored left to right": Image.Transpose.FLIP_LEFT_RIGHT,
    "mirrored top to bottom": Image.Transpose.FLIP_TOP_BOTTOM,
    "mirrored along the diagonal from top left to bottom right": Image.Transpose.TRANSPOSE,
    "mirrored along the diagonal from top right to bottom left": Image.Transpose.TRANSVERSE,
}
"""What can be done to a square without leaving it; the first four are rotations."""

LAYOUTS = ((1, 3), (2, 2), (2, 3), (3, 3))
"""Rows and columns of shuffled pieces, by difficulty."""

MIN_PATCH = 24
"""Smallest side of a hole, pixels."""

_GAP = 3
_LEAST_EDGE = 10


def patch(draw: Draw) -> Sample:
    """Which patch fills the hole."""
    number = knobs.PATCH_CANDIDATES.count(draw.difficulty)
    truth = int(draw.choices.integers(number))
    picture = draw.picture()
    side = max(round(knobs.PATCH_SIZE.at(draw.difficulty) * min(picture.size)), MIN_PATCH)
    hole = _random_square(picture, side, draw.rng)
    right = picture.crop(hole)
    require_texture(right, "what the hole hides")
    own = round(knobs.PATCH_OWN.at(draw.difficulty) * (number - 1))
    boxes = [_square_near(picture, hole, draw) for _ in range(own)]
    wrong = [picture.crop(box) for box in boxes]
    strangers = draw.others(number - 1 - own)
    if len(strangers) + own < number - 1:
        raise Ambiguous("there are too few other pictures")
    wrong += [stranger.crop(_random_square(stranger, side, draw.rng)) for stranger in strangers]
    require_distinct([right, *wrong], "two patches")
    # Shuffled, since those of the same picture come first.
    candidates = [wrong[int(index)] for index in draw.rng.permutation(number - 1)]
    candidates.insert(truth, right)
    damaged = picture.copy()
    damaged.paste(GREY, hole)
    intact = pixels_of(picture)

    def check(pictures: Sequence[Pixels]) -> str:
        left, top, right_edge, bottom = hole
        hidden = intact[top:bottom, left:right_edge]
        return LETTERS[int(np.argmin([exact_distance(hidden, one) for one in pictures[1:]]))]

    return Sample(
        (damaged, "\n" + draw.phrase(PATCH_QUESTIONS), *lettered(candidates)),
        LETTERS[truth],
        LETTERS[truth],
        {"candidates": number, "hole": hole, "same_picture": own, "boxes": boxes},
        check,
    )


def shuffle(draw: Draw) -> Sample:
    """Which order restores the picture."""
    rows, columns = LAYOUTS[knobs.SHUFFLE_LAYOUT.count(draw.difficulty)]
    pieces = rows * columns
    order = draw.choices.permutation(pieces)
    while (order == np.arange(pieces)).all():
        order = draw.choices.permutation(pieces)
    picture = draw.picture()
    # Room for the gaps: with them the pieces are no larger than the picture was.
    room = (picture.width - (columns - 1) * _GAP, picture.height - (rows - 1) * _GAP)
    picture = _whole_pieces(picture.crop((0, 0, *room)), rows, columns)
    boxes = _grid(picture, rows, columns)
    cut = [picture.crop(box) for box in boxes]
    for one in cut:
        require_texture(one, "a piece")
    require_distinct(cut, "two pieces")
    # order[k] is the shown place (counted from 0) of the piece that belongs at place k.
    shown: list[Picture] = [cut[0]] * pieces
    for place, piece in zip(order, cut, strict=True):
        shown[int(place)] = piece
    mixed = _assemble(shown, rows, columns)

    def check(pictures: Sequence[Pixels]) -> list[int]:
        seen = [Image.fromarray(pictures[0]).crop(box) for box in _grid_with_gaps(cut[0].size, rows, columns)]
        return [1 + int(np.argmin([distance(piece, one) for one in seen])) for piece in cut]

    answer = [int(place) + 1 for place in order]
    question = draw.phrase(SHUFFLE_QUESTIONS, rows=rows, columns=columns, pieces=pieces)
    construction = {"rows": rows, "columns": columns, "order": answer}
    return Sample((mixed, "\n" + question), " ".join(map(str, answer)), answer, construction, check)


def turn(draw: Draw) -> Sample:
    """How the second picture was turned."""
    number = knobs.TURN_OPTIONS.count(draw.difficulty)
    names = list(TURNS)[:number]
    options = [names[int(index)] for index in draw.choices.permutation(number)]
    truth = int(draw.choices.integers(number))
    picture = cut_square(draw.picture(), draw.rng)
    part = knobs.TURN_SHOWN.at(draw.difficulty)
    box = _random_square(picture, round(part * picture.width), draw.rng)
    piece = picture.crop(box)
    require_texture(piece, "the turned picture")
    require_distinct([_turned(piece, name) for name in TURNS], "two ways of turning the picture")
    changed = recoloured(_turned(piece, options[truth]), knobs.TURN_COLOUR.at(draw.difficulty), draw.rng)

    def likeness(original: Picture, after: Pixels) -> list[float]:
        return [correlation(pixels_of(_turned(original, name)), after) for name in options]

    require_best(likeness(piece, pixels_of(changed)), truth, "the way of turning")

    def check(pictures: Sequence[Pixels]) -> str:
        return LETTERS[int(np.argmax(likeness(Image.fromarray(pictures[0]).crop(box), pictures[1])))]

    listed = "\n".join(f"{letter}: {name}" for letter, name in zip(LETTERS, options, strict=False))
    words = " (a part of it)" if part < 1 else ""
    question = draw.phrase(TURN_QUESTIONS, part=words, options=listed)
    return Sample(
        (picture, "\n", changed, "\n" + question),
        LETTERS[truth],
        LETTERS[truth],
        {"options": number, "shown": part, "box": box, "turn": options[truth]},
        check,
    )


def turned_piece(draw: Draw) -> Sample:
    """Which piece of a grid stands on its head."""
    side = knobs.TURNED_GRID.count(draw.difficulty)
    truth = int(draw.choices.integers(side * side))
    picture = _whole_pieces(draw.picture(), side, side)
    boxes = _grid(picture, side, side)
    piece = picture.crop(boxes[truth])
    upside_down = piece.transpose(Image.Transpose.ROTATE_180)
    require_texture(piece, "the turned piece")
    require_distinct([piece, upside_down], "a piece and itself turned")
    damaged = picture.copy()
    damaged.paste(upside_down, boxes[truth][:2])
    if _seam(damaged, boxes[truth]) < _seam(picture, boxes[truth]) + _LEAST_EDGE:
        raise Ambiguous("the turned piece fits in as well as before")

    def check(pictures: Sequence[Pixels]) -> list[int]:
        after = Image.fromarray(pictures[0])
        changes = [distance(picture.crop(box), after.crop(box)) for box in boxes]
        return [int(np.argmax(changes)) // side + 1, int(np.argmax(changes)) % side + 1]

    row, column = divmod(truth, side)
    question = draw.phrase(TURNED_QUESTIONS, side=side)
    construction = {"grid": side, "box": boxes[truth]}
    return Sample(
        (damaged, "\n" + question), cell_name(row, column).capitalize(), [row + 1, column + 1], construction, check
    )


def _random_square(picture: Picture, side: int, rng: np.random.Generator) -> Box:
    side = min(side, *picture.size)
    return random_box(picture, side, side, rng)


def _square_near(picture: Picture, hole: Box, draw: Draw) -> Box:
    """A square as large as the hole, its centre as far away as the difficulty says (or as the picture allows)."""
    side = hole[2] - hole[0]
    reach = knobs.PATCH_REACH.at(draw.difficulty)
    for _ in range(50):
        angle, length = draw.rng.uniform(0, 2 * np.pi), side * draw.rng.uniform(reach, 1.3 * reach)
        left, top = round(hole[0] + length * np.cos(angle)), round(hole[1] + length * np.sin(angle))
        if 0 <= left <= picture.width - side and 0 <= top <= picture.height - side:
            return left, top, left + side, top + side
        reach = max(reach * 0.97, 0.7)
    raise Ambiguous("the picture has no room for another patch")


def _turned(picture: Picture, name: str) -> Picture:
    method = TURNS[name]
    return picture if method is None else picture.transpose(method)


def _whole_pieces(picture: Picture, rows: int, columns: int) -> Picture:
    """The picture cut at the right and at the bottom so that its pieces are equal."""
    return picture.crop((0, 0, picture.width // columns * columns, picture.height // rows * rows))


def _grid(picture: Picture, rows: int, columns: int) -> list[Box]:
    width, height = picture.width // columns, picture.height // rows
    return [(c * width, r * height, (c + 1) * width, (r + 1) * height) for r in range(rows) for c in range(columns)]


def _grid_with_gaps(size: tuple[int, int], rows: int, columns: int) -> list[Box]:
    width, height = size
    corners = [(c * (width + _GAP), r * (height + _GAP)) for r in range(rows) for c in range(columns)]
    return [(left, top, left + width, top + height) for left, top in corners]


def _assemble(pieces: Sequence[Picture], rows: int, columns: int) -> Picture:
    boxes = _grid_with_gaps(pieces[0].size, rows, columns)
    sheet = Image.new("RGB", boxes[-1][2:], GREY)
    for piece, box in zip(pieces, boxes, strict=True):
        sheet.paste(piece, box[:2])
    return sheet


def _seam(picture: Picture, box: Box) -> float:
    """Mean step in grey levels across those edges of a piece that lie inside the picture."""
    values = pixels_of(picture).astype(np.float64)
    left, top, right, bottom = box
    steps = []
    if left > 0:
        steps.append(values[top:bottom, left] - values[top:bottom, left - 1])
    if right < picture.width:
        steps.append(values[top:bottom, right] - values[top:bottom, right - 1])
    if top > 0:
        steps.append(values[top, left:right] - values[top - 1, left:right])
    if bottom < picture.height:
        steps.append(values[bottom, left:right] - values[bottom - 1, left:right])
    return float(np.abs(np.concatenate(steps)).mean())
