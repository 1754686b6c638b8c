"""The difficulty setting: its spelling, and that it changes what is measured in the samples."""

from pathlib import Path

import numpy as np
import pytest

from megatron_apriel.data.visual_tasks import count, detect, match, reconstruct
from megatron_apriel.data.visual_tasks.difficulty import KNOBS, Range, table
from megatron_apriel.data.visual_tasks.pixels import correlation
from megatron_apriel.data.visual_tasks.sample import LETTERS
from megatron_apriel.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("easy", 0, 0),
        ("medium", 0.5, 0.5),
        ("hard", 1, 1),
        ("0.3", 0.3, 0.3),
        ("0.2..0.8", 0.2, 0.8),
        ("easy..hard", 0, 1),
    ],
)
def test_spellings(text, low, high):
    assert Range.parse(text) == Range(low, high)


@pytest.mark.parametrize("text", ["", "simple", "1.5", "-0.1", "0.8..0.2", "0..0.5..1", "nan", "..", "0.3.."])
def test_what_is_no_difficulty_is_refused_with_the_choices(text):
    with pytest.raises(ConfigError, match=r"easy, medium, hard"):
        Range.parse(text)


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: f"{knob.task}: {knob.name}")
def test_every_setting_moves_one_way_only(knob):
    values = np.array([knob.at(step / 50) for step in range(51)])
    steps = np.diff(values) * np.sign(knob.hard - knob.easy)
    assert (steps >= -1e-12).all()
    assert values[0] == knob.easy != knob.hard
    assert values[-1] == pytest.approx(knob.hard)


def test_the_documented_table_is_this_one():
    page = (Path(__file__).parents[4] / "docs" / "visual_tasks.md").read_text(encoding="utf-8")
    documented = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in page.splitlines()]
    assert [
        row for row in documented if len(row) == 5 and row[0] in ("reconstruct", "match", "detect", "count")
    ] == table()


def measured(one_sample, maker, measure, difficulty):
    return np.mean([measure(*one_sample(maker, difficulty, number)) for number in range(6)])


def area(one):
    return one.shape[0] * one.shape[1]


def nearest_wrong_patch(sample, pictures):
    """Difference of mean colours, grey levels."""
    means = [one.mean(axis=(0, 1)) for one in pictures[1:]]
    right = means.pop(LETTERS.index(sample.answer))
    return min(np.abs(one - right).mean() for one in means)


MEASURES = {
    "candidates for the hole": (reconstruct.patch, lambda s, p: len(p) - 1, +1),
    "share of the picture that the hole covers": (reconstruct.patch, lambda s, p: area(p[1]) / area(p[0]), -1),
    "distance of the most alike wrong patch from the right one": (reconstruct.patch, nearest_wrong_patch, -1),
    "shuffled pieces": (reconstruct.shuffle, lambda s, p: len(s.answer), +1),
    "part that is shown turned": (reconstruct.turn, lambda s, p: area(p[1]) / area(p[0]), -1),
    "cells with a turned piece": (reconstruct.turned_piece, lambda s, p: s.construction["grid"], +1),
    "cells for a spot": (match.point, lambda s, p: s.construction["grid"], +1),
    "likeness of the two views": (match.point, lambda s, p: correlation(p[0], p[1]), -1),
    "pictures to choose from": (match.retrieval, lambda s, p: len(p) - 1, +1),
    "pixels that differ": (
        match.different,
        lambda s, p: (np.ptp(np.stack(p).astype(int), axis=0).max(axis=2) > 20).mean(),
        -1,
    ),
    "objects in a scene": (detect.location, lambda s, p: len(s.construction["objects"]), +1),
    "size of the object": (detect.location, lambda s, p: s.construction["size"], -1),
    "size of the pasted patch": (detect.inset, lambda s, p: area(p[1]) / area(p[0]), -1),
    "objects to count": (count.total, lambda s, p: s.answer, +1),
    "visible part of counted objects": (count.total, lambda s, p: min(s.construction["shown"]), -1),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURES)
def test_difficulty_shows_in_the_samples(one_sample, name):
    maker, measure, direction = MEASURES[name]
    easy, medium, hard = (direction * measured(one_sample, maker, measure, at) for at in (0.0, 0.5, 1.0))
    assert easy <= medium <= hard
    assert easy < hard
