"""Image reconstruction: every answer is found again from the pictures alone, by a way that the maker does not use."""

import re

import numpy as np
import pytest
from PIL import Image

from megatron_apriel.data.visual_tasks import reconstruct
from megatron_apriel.data.visual_tasks.pixels import GREY
from megatron_apriel.data.visual_tasks.sample import LETTERS

SAMPLES = range(4)


def text_of(sample) -> str:
    return "".join(part for part in sample.parts if isinstance(part, str))


@pytest.mark.parametrize("number", SAMPLES)
def test_the_answered_patch_continues_the_picture_around_the_hole(one_sample, difficulty, number):
    sample, (damaged, *candidates) = one_sample(reconstruct.patch, difficulty, number)
    # The hole as a reader sees it: the largest grey square.
    grey = (np.abs(damaged.astype(int) - GREY[0]).max(axis=2) <= 3).astype(int)
    side = candidates[0].shape[0]
    sums = np.pad(grey.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    full = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(full.argmax(), full.shape)
    assert full.max() > 0.85 * side * side
    steps = []
    for one in candidates:
        one, ring = one.astype(float), []
        if top > 0:
            ring.append(one[0] - damaged[top - 1, left : left + side])
        if top + side < damaged.shape[0]:
            ring.append(one[-1] - damaged[top + side, left : left + side])
        if left > 0:
            ring.append(one[:, 0] - damaged[top : top + side, left - 1])
        if left + side < damaged.shape[1]:
            ring.append(one[:, -1] - damaged[top : top + side, left + side])
        steps.append(np.abs(np.concatenate(ring)).mean())
    assert LETTERS[int(np.argmin(steps))] == sample.answer == sample.reply


@pytest.mark.parametrize("number", SAMPLES)
def test_the_answered_order_gives_the_smoothest_picture(one_sample, difficulty, number):
    sample, (shown,) = one_sample(reconstruct.shuffle, difficulty, number)
    rows, columns = sample.construction["rows"], sample.construction["columns"]
    gap = 3
    height, width = (shown.shape[0] + gap) // rows - gap, (shown.shape[1] + gap) // columns - gap
    pieces = [
        shown[r * (height + gap) :, c * (width + gap) :][:height, :width].astype(float)
        for r in range(rows)
        for c in range(columns)
    ]

    def roughness(order):
        placed = [pieces[index - 1] for index in order]
        across = [
            np.abs(placed[k][:, -1] - placed[k + 1][:, 0]).mean() for k in range(rows * columns) if (k + 1) % columns
        ]
        down = [np.abs(placed[k][-1] - placed[k + columns][0]).mean() for k in range((rows - 1) * columns)]
        return sum(across + down)

    order = [int(word) for word in sample.reply.split()]
    assert order == sample.answer
    assert sorted(order) == list(range(1, rows * columns + 1))
    assert order != sorted(order)
    # Exchanging any two pieces of the answer makes the picture rougher, and so do random orders.
    others = []
    for first in range(len(order)):
        for second in range(first):
            other = order.copy()
            other[first], other[second] = other[second], other[first]
            others.append(roughness(other))
    rng = np.random.default_rng(number)
    random = [rng.permutation(order).tolist() for _ in range(50)]
    others += [roughness(other) for other in random if other != order]
    assert np.mean(np.array(others) > roughness(order)) > 0.97


@pytest.mark.parametrize("number", SAMPLES)
def test_the_answered_turn_undone_gives_the_first_picture(one_sample, difficulty, number):
    sample, (before, after) = one_sample(reconstruct.turn, difficulty, number)
    options = dict(re.findall(r"^([A-H]): (.+)$", text_of(sample), re.MULTILINE))
    assert len(options) == len(set(options.values())) == (4, 6, 8)[round(2 * difficulty)]
    # Written with numpy: array axes, not PIL's names. Each gives what the turned picture should be.
    done = {
        "it was not turned": lambda a: a,
        "turned by 90 degrees clockwise": lambda a: np.rot90(a, -1),
        "turned by 180 degrees": lambda a: a[::-1, ::-1],
        "turned by 90 degrees counter-clockwise": lambda a: np.rot90(a, 1),
        "mirrored left to right": lambda a: a[:, ::-1],
        "mirrored top to bottom": lambda a: a[::-1],
        "mirrored along the diagonal from top left to bottom right": lambda a: a.transpose(1, 0, 2),
        "mirrored along the diagonal from top right to bottom left": lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    }
    left, top, right, bottom = sample.construction["box"]
    piece = before[top:bottom, left:right]
    errors = {}
    for letter, name in options.items():
        # Rank correlation: unmoved by any change of colour that keeps dark below bright.
        pair = [np.asarray(Image.fromarray(np.ascontiguousarray(one)).convert("L").resize((24, 24))).ravel() for one in
                (done[name](piece), after)]  # fmt: skip
        ranks = [one.argsort().argsort() for one in pair]
        errors[letter] = -np.corrcoef(*ranks)[0, 1]
    assert min(errors, key=errors.__getitem__) == sample.answer == sample.reply


@pytest.mark.parametrize("number", SAMPLES)
def test_the_answered_piece_alone_has_seams_that_turning_it_heals(one_sample, difficulty, number):
    sample, (shown,) = one_sample(reconstruct.turned_piece, difficulty, number)
    side = sample.construction["grid"]
    height, width = shown.shape[0] // side, shown.shape[1] // side

    def seam(picture, row, column):
        top, left, bottom, right = row * height, column * width, (row + 1) * height, (column + 1) * width
        steps = []
        for inside, outside, axis in (
            (top, top - 1, 0),
            (bottom - 1, bottom, 0),
            (left, left - 1, 1),
            (right - 1, right, 1),
        ):
            if 0 <= outside < picture.shape[axis]:
                line = (lambda at: picture[at, left:right]) if axis == 0 else (lambda at: picture[top:bottom, at])
                steps.append(line(inside).astype(float) - line(outside))
        return np.abs(np.concatenate(steps)).mean()

    gains = {}
    for row in range(side):
        for column in range(side):
            healed = shown.copy()
            window = (slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
            healed[window] = healed[window][::-1, ::-1]
            gains[row + 1, column + 1] = seam(shown, row, column) - seam(healed, row, column)
    assert list(max(gains, key=gains.__getitem__)) == sample.answer
    assert sample.reply == "Row {}, column {}".format(*sample.answer)


def test_a_picture_without_content_gives_no_sample(images, one_sample, monkeypatch):
    monkeypatch.setattr(images, "load", lambda index: Image.new("RGB", (256, 200), (90, 120, 40)))
    for maker in (reconstruct.patch, reconstruct.shuffle, reconstruct.turn, reconstruct.turned_piece):
        with pytest.raises(AssertionError, match="gave no sample"):
            one_sample(maker, 0.5, 0)


def test_a_symmetric_picture_is_not_asked_how_it_was_turned(images, one_sample, monkeypatch):
    rng = np.random.default_rng(0)
    quarter = np.asarray(Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((128, 128)))
    half = np.concatenate([quarter, quarter[:, ::-1]], axis=1)
    picture = Image.fromarray(np.concatenate([half, half[::-1]]))
    monkeypatch.setattr(images, "load", lambda index: picture)
    with pytest.raises(AssertionError, match="gave no sample"):
        one_sample(reconstruct.turn, 0.0, 0)
