"""Visual matching: answers found again from the pictures, with array arithmetic of this file's own."""

import numpy as np
import pytest
from PIL import Image

from megatron_apriel.data.visual_tasks import match
from megatron_apriel.data.visual_tasks.sample import LETTERS

SAMPLES = range(3)


def grey(pixels):
    return np.asarray(Image.fromarray(pixels).convert("L"), dtype=float)


def seen_through(view, picture, shape):
    """Grey values of ``picture`` at the places that a view of ``shape`` shows; NaN outside. Nearest pixel."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    (a, b, c), (d, e, f) = view
    x, y = np.floor(a * columns + b * rows + c).astype(int), np.floor(d * columns + e * rows + f).astype(int)
    inside = (x >= 0) & (x < picture.shape[1]) & (y >= 0) & (y < picture.shape[0])
    values = np.full(shape, np.nan)
    values[inside] = grey(picture)[y[inside], x[inside]]
    return values


def likeness(first, second):
    """Rank correlation, which changes of colour that keep dark below bright leave alone."""
    both = np.isfinite(first) & np.isfinite(second)
    ranks = [one[both].argsort().argsort() for one in (first, second)]
    return np.corrcoef(*ranks)[0, 1]


@pytest.mark.parametrize("number", SAMPLES)
def test_the_second_view_shows_the_marked_spot_in_the_answered_cell(one_sample, difficulty, number):
    sample, (first, second) = one_sample(match.point, difficulty, number)
    view, grid = sample.construction["view"], sample.construction["grid"]
    expected = seen_through(view, first, second.shape[:2])
    assert np.isfinite(expected).mean() > 0.98  # no empty corners
    assert likeness(expected, grey(second)) > 0.9  # the view is what the pictures show
    matrix = np.vstack([view, [0, 0, 1]])
    x, y, _ = np.linalg.inv(matrix) @ [*sample.construction["spot"], 1]
    assert [int(y / second.shape[0] * grid) + 1, int(x / second.shape[1] * grid) + 1] == sample.answer
    assert sample.reply == "Row {}, column {}".format(*sample.answer)


@pytest.mark.parametrize("number", SAMPLES)
def test_the_ring_is_drawn_around_the_spot(one_sample, images, number):
    sample, (first, _) = one_sample(match.point, 0.5, number)
    values = first.astype(int)
    x, y = sample.construction["spot"]
    radius = max(min(first.shape[:2]) / 32, 4)
    rows, columns = np.mgrid[: first.shape[0], : first.shape[1]] + 0.5
    away = np.hypot(columns - x, rows - y)
    redness = values[..., 0] - values[..., 1:].max(axis=2)
    on_ring = np.abs(away - radius) < 1
    assert (
        redness[on_ring].mean() > redness[(away < radius - 3) | ((away > radius + 4) & (away < radius + 8))].mean() + 30
    )


@pytest.mark.parametrize("number", SAMPLES)
def test_only_the_answered_candidate_looks_like_the_anchor(one_sample, difficulty, number):
    sample, (anchor, *candidates) = one_sample(match.retrieval, difficulty, number)
    alike = []
    for one in candidates:
        picture = np.asarray(Image.fromarray(one).resize(anchor.shape[1::-1]))
        alike.append(likeness(seen_through(sample.construction["view"], picture, anchor.shape[:2]), grey(anchor)))
    assert LETTERS[int(np.argmax(alike))] == sample.answer == sample.reply
    assert max(alike) > 0.8 > sorted(alike)[-2]


@pytest.mark.parametrize("number", SAMPLES)
def test_the_shape_of_the_anchor_does_not_tell_the_candidate(one_sample, difficulty, number):
    _, (anchor, *candidates) = one_sample(match.retrieval, difficulty, number)
    assert len({one.shape for one in candidates}) == 1
    assert anchor.shape[0] / anchor.shape[1] == candidates[0].shape[0] / candidates[0].shape[1]


@pytest.mark.parametrize("number", SAMPLES)
def test_all_copies_but_the_answered_one_are_equal(one_sample, difficulty, number):
    sample, copies = one_sample(match.different, difficulty, number)
    truth = LETTERS.index(sample.answer)
    rest = [one for index, one in enumerate(copies) if index != truth]
    assert all((one == rest[0]).all() for one in rest)
    left, top, right, bottom = sample.construction["box"]
    change = np.abs(copies[truth].astype(float) - rest[0]).max(axis=2)
    assert change[top:bottom, left:right].mean() > 10
    change[max(top - 8, 0) : bottom + 8, max(left - 8, 0) : right + 8] = 0
    assert change.mean() < 1


def test_the_same_photograph_twice_in_a_folder_is_no_choice(images, one_sample, monkeypatch):
    picture = images.load(0)
    monkeypatch.setattr(images, "load", lambda index: picture)
    with pytest.raises(AssertionError, match="gave no sample"):
        one_sample(match.retrieval, 0.5, 0)


@pytest.mark.parametrize("number", SAMPLES)
def test_another_cut_of_the_same_photograph_is_no_wrong_answer(images, one_sample, monkeypatch, number):
    """Each photograph stands twice in the folder."""
    pictures = [images.load(index) for index in range(len(images))]
    monkeypatch.setattr(images, "load", lambda index: pictures[index // 2])
    cut: list[Image.Image] = []
    cut_square = match.cut_square
    monkeypatch.setattr(match, "cut_square", lambda picture, rng: (cut.append(picture), cut_square(picture, rng))[1])
    drawn: list[int] = []
    others = match.Draw.others
    monkeypatch.setattr(match.Draw, "others", lambda draw, wanted: (drawn.append(len(cut)), others(draw, wanted))[1])
    one_sample(match.retrieval, 0.5, number)
    right, *wrong = cut[drawn[-1] - 1 :]
    assert wrong and not any(np.array_equal(np.asarray(one), np.asarray(right)) for one in wrong)
