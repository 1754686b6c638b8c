"""Where an image stands is said in many spellings: each is its place, and none of them stays among the words."""

from __future__ import annotations

from typing import Any

import pytest
from small_chats import ANSWERED, chat, check_refused

from megatron_apriel.data.raw.records.conversion import parse_record

SPELLED = (
    "<image>", "<image></image>", "<image>\n</image>", "<image>./</image>", "<img><image></img>", "<<image>>",
    "<image/>", "<image />", "<img/>", "<img></img>", "{image}", "{{ image }}", "[image]", "[Image]", "[img]",
    "[[IMAGE]]", "<picture>", "<photo>", "<pic>", "<IMAGE_PLACEHOLDER>", "<|IMAGE|>", "<image_token>",
    "<image>a.png</image>", "<image: a.png>", "[image: a.png]", "<|image_1|>", "<image:1>", "[IMG_1]", "{image_1}",
)  # fmt: skip


def asked(text: str, *images: str) -> dict[str, Any]:
    return chat({"role": "user", "content": text}, ANSWERED, images=list(images))


@pytest.mark.parametrize("marker", SPELLED)
def test_each_spelling_is_a_place(marker: str) -> None:
    document = parse_record(asked(f"Is {marker} red?", "a.png"), "messages")
    assert document.images == ("a.png",)
    assert document.messages[0]["content"] == [
        {"type": "text", "text": "Is "}, {"type": "image"}, {"type": "text", "text": " red?"},
    ]  # fmt: skip


def test_numbers_say_which_image_is_meant() -> None:
    for text in (
        "{image_2} or {image_1}?", "<image:2> or <image:1>?", "[IMG_2] or [IMG_1]?", "<image#2> or <image #1>?",
        "[Image #2] or [Image #1]?", "<figure_2> or <figure_1>?", "<page 2> or <page 1>?", "<photo2> or <photo1>?",
    ):  # fmt: skip
        assert parse_record(asked(text, "a.png", "b.png"), "messages").images == ("b.png", "a.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<image>2</image> Which?", "the marker '<image>2</image>' holds words"),
        ("<vision_start><image><vision_end>Which?", "<vision_start> stands around another model's images"),
        ("{image_2}?", "a marker names image 2"),
    ],
)
def test_markers_that_do_not_fit_are_refused(text: str, message: str) -> None:
    check_refused(asked(text, "a.png"), message)


@pytest.mark.parametrize("text", ["What is `{image}` for?", "Why <picture>\n<img src='b.png'>\n</picture>?"])
def test_words_about_markers_stay(text: str) -> None:
    """The image stands before them, as it does where nothing says its place."""
    document = parse_record(asked(text, "a.png"), "messages")
    assert document.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": f"\n{text}"}]


@pytest.mark.parametrize("text", ["Print {image} and [image].", "<picture> of {{image}}"])
def test_words_of_a_record_without_images_stay(text: str) -> None:
    assert parse_record(asked(text), "messages").messages[0]["content"] == text
