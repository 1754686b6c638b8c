"""Pictures that a text shows in Markdown or HTML stand there, if they are the record's; all others stay text."""

import pytest

from megatron_apriel.data.raw.pictures.places import Pictures, Place
from megatron_apriel.data.raw.pictures.shown import place_shown
from megatron_apriel.data.raw.problems import BadRecord

SHOWN = {
    "![](a.png)": "a.png",
    "![A cat.](a.png)": "a.png",
    '![A cat.](./a.png "A title")': "a.png",
    "![A cat.](<a.png>)": "a.png",
    "![A cat.](my%20cat.png)": "my cat.png",
    '<img src="a.png">': "a.png",
    "<img alt='A cat.' width=3 src = 'a.png' />": "a.png",
    '<IMG SRC="a.png"/>': "a.png",
    "![](a.png) ": "images/deep/a.png",
}


@pytest.mark.parametrize("text", SHOWN)
def test_a_picture_of_the_record_stands_where_it_is_shown(text):
    for image in (SHOWN[text], {"path": SHOWN[text], "bytes": b"x"}):
        pieces = [f"See {text.strip()} and say."]
        assert not place_shown([pieces], Pictures([image])).present
        assert pieces == ["See ", Place(image), " and say."]


@pytest.mark.parametrize(
    "text",
    ["![](other.png)", "[a.png](a.png)", "`a.png`", '<a src="a.png">', "![](http://x.org/a.png)", "!(a.png)", "a.png"],
)
def test_anything_else_stays_text(text):
    pieces, pictures = [text], Pictures(["a.png"])
    assert place_shown([pieces], pictures) is pictures and pieces == [text]


def test_all_pictures_are_shown_or_none():
    with pytest.raises(BadRecord, match=r"shows a\.png in its place, and b\.png nowhere"):
        place_shown([["![](a.png)"]], Pictures(["a.png", "b.png"]))
    with pytest.raises(BadRecord, match="not all images of the record have paths"):
        place_shown([["![](a.png)"]], Pictures(["a.png", b"bytes"]))
    pieces = ["![](b.png) then ", "![](a.png) then ![](b.png)"]
    assert not place_shown([pieces], Pictures(["a.png", "b.png"])).present
    assert pieces == [Place("b.png"), " then ", Place("a.png"), " then ", Place("b.png")]


def test_a_last_name_that_two_pictures_have_names_none():
    pictures = Pictures(["x/a.png", "y/a.png"])
    assert place_shown([["![](a.png)"]], pictures) is pictures


def test_openings_without_an_end_are_text():
    for opening in ("![", "<img ", "![a](", '<img src="'):
        pieces = [opening * 20_000]
        place_shown([pieces], Pictures(["a.png"]))
        assert pieces == [opening * 20_000]
