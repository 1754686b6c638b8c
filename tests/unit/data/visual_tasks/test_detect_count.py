"""Constructed scenes: shapes are found again by comparing the picture with the photograph under them."""

import numpy as np
import pytest
from PIL import Image
from skimage.measure import label

from megatron_apriel.data.visual_tasks import count, detect
from megatron_apriel.data.visual_tasks.scene import COLOURS, SHAPES, Kind, Scene, shape_mask

SAMPLES = range(4)


def blots(picture):
    """(colour, centre) of every connected area of one of the palette's colours; for opaque shapes that do not touch."""
    found = []
    for name, colour in COLOURS.items():
        areas = label(np.abs(picture.astype(int) - colour).max(axis=2) < 14)
        for number in range(1, areas.max() + 1):
            rows, columns = np.nonzero(areas == number)
            if len(rows) > 300:  # smaller ones are of the photograph
                middle = ((rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2)
                found.append((name, middle))
    return found


@pytest.fixture
def plain_photograph(images, monkeypatch):
    """A photograph without any of the palette's colours, so that ``blots`` finds shapes only."""
    values = np.asarray(images.load(0).convert("L").resize((256, 192)), dtype=float)
    grey = 110 + (values - values.min()) / np.ptp(values) * 40
    picture = Image.fromarray(np.repeat(grey[..., None], 3, axis=2).astype(np.uint8))
    monkeypatch.setattr(images, "load", lambda index: picture)


@pytest.mark.parametrize("number", SAMPLES)
def test_as_many_shapes_are_seen_as_answered(one_sample, plain_photograph, number):
    sample, (picture,) = one_sample(count.total, 0.0, number)
    assert len(blots(picture)) == sample.answer == int(sample.reply)


@pytest.mark.parametrize("number", range(12))
def test_as_many_shapes_of_the_kind_are_seen_as_answered(one_sample, plain_photograph, number):
    sample, (picture,) = one_sample(count.kind, 0.0, number)
    colour, _, what = sample.construction["what"].partition(" ")
    if colour in COLOURS and what == "shapes":
        assert sum(name == colour for name, _ in blots(picture)) == sample.answer
    listed = [one[0].split() for one in sample.construction["objects"]]
    by_name = [
        one for one in listed if (not what or one[0] == colour) and (what or colour).startswith((one[1], "shapes"))
    ]
    assert len(by_name) == sample.answer == int(sample.reply)
    assert sample.construction["what"] in "".join(part for part in sample.parts if isinstance(part, str))


def test_every_shape_stays_visible_as_far_as_promised(one_sample, difficulty):
    for number in SAMPLES:
        sample, _ = one_sample(count.total, difficulty, number)
        assert min(sample.construction["shown"]) >= (1.0, 0.8, 0.6)[round(2 * difficulty)] - 0.001


@pytest.mark.parametrize("number", SAMPLES)
def test_the_shape_is_seen_in_the_answered_cell(one_sample, plain_photograph, number):
    sample, (picture,) = one_sample(detect.location, 0.0, number)
    colour, grid = sample.construction["kind"].split()[0], sample.construction["grid"]
    # Easy: no other shape has its colour.
    ((row, column),) = [middle for name, middle in blots(picture) if name == colour]
    assert [int(row / picture.shape[0] * grid) + 1, int(column / picture.shape[1] * grid) + 1] == sample.answer
    assert sample.reply == "Row {}, column {}".format(*sample.answer)


@pytest.mark.parametrize("number", SAMPLES)
def test_the_colour_is_seen_exactly_if_the_answer_is_yes(one_sample, plain_photograph, number):
    sample, (picture,) = one_sample(detect.presence, 0.0, number)
    assert (sample.construction["kind"].split()[0] in {name for name, _ in blots(picture)}) is sample.answer
    assert sample.reply == ("Yes" if sample.answer else "No")


def test_hard_scenes_need_both_colour_and_shape(one_sample):
    for number in SAMPLES:
        sample, _ = one_sample(detect.location, 1.0, number)
        colour, shape = sample.construction["kind"].split()
        kinds = [one[0].split() for one in sample.construction["objects"]]
        assert kinds.count([colour, shape]) == 1
        assert all(one[0] == colour or one[1] == shape for one in kinds)


@pytest.mark.parametrize("number", SAMPLES)
def test_the_patch_is_found_where_its_answer_says(one_sample, difficulty, number):
    sample, (scene, patch) = one_sample(detect.inset, difficulty, number)
    side, grid = patch.shape[0], sample.construction["grid"]
    template = np.asarray(Image.fromarray(patch).convert("L"), dtype=float)
    whole = np.asarray(Image.fromarray(scene).convert("L"), dtype=float)
    # Every place in steps of two pixels, then the best one: no knowledge of the box.
    windows = np.lib.stride_tricks.sliding_window_view(whole, (side, side))[::2, ::2, ::3, ::3]
    small = template[::3, ::3] - template[::3, ::3].mean()
    centred = windows - windows.mean(axis=(2, 3), keepdims=True)
    scores = (centred * small).sum(axis=(2, 3)) / (np.sqrt((centred**2).sum(axis=(2, 3))) + 1e-6)
    top, left = (2 * int(at) for at in np.unravel_index(scores.argmax(), scores.shape))
    found = [
        int((top + side / 2) / scene.shape[0] * grid) + 1,
        int((left + side / 2) / scene.shape[1] * grid) + 1,
    ]
    near = abs(top - sample.construction["box"][1]) <= 2 and abs(left - sample.construction["box"][0]) <= 2
    assert near
    box = sample.construction["box"]
    cell = [
        int((box[1] + box[3]) / 2 / scene.shape[0] * grid) + 1,
        int((box[0] + box[2]) / 2 / scene.shape[1] * grid) + 1,
    ]
    assert cell == sample.answer
    assert found == sample.answer or not near


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_their_square_and_differ(shape):
    mask = np.asarray(shape_mask(shape, 40)).astype(float)
    assert (mask.max(axis=0) > 0).sum() >= 36
    for other in set(SHAPES) - {shape}:
        assert np.abs(mask - np.asarray(shape_mask(other, 40))).mean() > 15


def test_a_shape_is_never_put_where_it_would_not_stand_out():
    scene = Scene(Image.new("RGB", (200, 200), COLOURS["red"]))
    with pytest.raises(Exception, match="no place was found"):
        scene.place(Kind("circle", "red"), 40, np.random.default_rng(0))
    scene.place(Kind("circle", "white"), 40, np.random.default_rng(0))
