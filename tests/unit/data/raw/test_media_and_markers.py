"""A record that speaks of a picture, a film or a document is not learned without it, however it spells that."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from small_chats import ANSWERED, ASKED, asked, chat, check_refused

from megatron_apriel.data.raw.file_kinds import kind_of_base64, kind_of_bytes
from megatron_apriel.data.raw.records.conversion import parse_record, recognise

JPEG, PNG = b"\xff\xd8\xff\xe0" + bytes(40), b"\x89PNG\r\n\x1a\n" + bytes(40)
FLAC, MP4, PDF = b"fLaC" + bytes(40), bytes(4) + b"ftypisom" + bytes(40), b"%PDF-1.7" + bytes(40)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


REFUSED = {
    # the file itself
    "base64 of a picture": (chat(screenshot=b64(PNG)), "'screenshot' holds a picture"),
    "base64 of a large picture": (chat(x=b64(JPEG + bytes(9000))), "'x' holds a picture"),
    "base64 inside of an object": (chat(meta={"shot": b64(JPEG)}), "'meta.shot' holds a picture"),
    "base64 beside a text": ({"text": "What is this?", "x": b64(PNG)}, "'x' holds a picture"),
    "base64 of a sound": (chat(clip=b64(FLAC)), "'clip' holds a film or a sound"),
    "bytes of a sound": (chat(clip=FLAC), "'clip' holds a film or a sound"),
    "bytes of a film": (chat(clip=MP4), "'clip' holds a film or a sound"),
    "base64 of a document": (chat(scan=b64(PDF)), r"'scan' holds a document \(PDF\)"),
    "another picture as base64": (chat(image="a.png", x=b64(PNG)), "'x' holds a picture"),
    # that there is one
    "pixels": (chat(pixel_values=[[0.1, 0.2]]), "'pixel_values' names a picture"),
    "an embedding": (chat(image_embedding=[0.1]), "'image_embedding' names a picture"),
    "a size": (chat(image_size=[640, 480]), "'image_size' names a picture"),
    "a width": (chat(img_width=640), "'img_width' names a picture"),
    "a flag": (chat(has_image=True), "'has_image' names a picture"),
    "a number of pictures": (chat(num_images=2), "'num_images' names a picture"),
    "a modality": (chat(modality="image+text"), "'modality' names a picture"),
    "a caption": (chat(image_caption="A door."), "'image_caption' names a picture"),
    "an address without an ending": (chat(photo_url="https://x.org/a?id=1"), "'photo_url' names a picture"),
    "a number of frames": (chat(num_frames=8), "'num_frames' names a picture"),
    "a film's length": (chat(meta={"video_duration": 2.5}), "'meta.video_duration' names a picture"),
    "a kind of data": (chat(data_type="video"), "'data_type' names a picture"),
    "a form of file": (chat(file_type="image/png"), "'file_type' names a picture"),
    "a kind of attachment": (chat(media={"type": "video", "path": "clip"}), "'media.type' names a picture"),
    "a film inside of an object": (chat(meta={"video": "clip_001"}), "'meta.video' names a picture, a film"),
    "a picture inside of an object": (chat(meta={"image": "img_001"}), "'meta.image' names a picture"),
    "pictures in a JSON text": (chat(meta='{"images": ["a"]}'), "'meta.images' names a picture"),
    "what describes a picture": (chat(image_info={"id": "1"}), "'image_info.id' names a picture"),
    "places beside turns": (chat(image="a.png", image_positions=[3]), "'image_positions' says where images stand"),
    "a document": (chat(file_name="1.pdf"), "'file_name' names a document"),
    "a document of words": (chat(file="report.docx"), "'file' names a document"),
    # captions of pictures that were not downloaded
    "sizes before": ({"url": "http://x/a", "text": "A.", "original_width": 1, "original_height": 2}, "'url' is"),
    "figures of pictures": ({"url": "http://x/a", "text": "A.", "punsafe": 0.1, "pwatermark": 0.2}, "'url' is the"),
    "a picture's ending": ({"url": "http://x/a.jpg", "text": "A door."}, "'url' is the address"),
    # what is done to it
    "a crop": (chat(image="a.png", crop=[0, 0, 9, 9]), "'crop' changes the picture"),
    "a rotation": (chat(image="a.png", rotation=90), "'rotation' changes the picture"),
}  # fmt: skip
READ = {
    "empty names inside of an object": chat(meta={"image": "None", "video": False, "images": [], "audio": None}),
    "an image of Docker": chat(image_name="swebench/sweb.eval.x86_64.django_1776_django-11099:latest"),
    "one inside of an object": chat(meta={"image": "python:3.11"}),
    "a speaker's picture": chat(author={"avatar_image": "https://x.org/a.png"}),
    "no pictures": chat(num_images=0, has_image=False, image_size=None, modality="text"),
    "a picture with what is known of it": chat(
        image="a.png", image_size=[1, 2], has_image=True, num_images=1, filename="a.png", modality="image"
    ),
    "the same in two forms": chat(image_path="a.png", image_base64=b64(PNG), thumbnail=b64(JPEG)),
    "not turned": chat(image="a.png", rotation=0, flip=False, crop="maize"),
    "a page of a picture's name": {"url": "https://x.org/wiki/File:A.jpg", "text": "A page."},
    "a long page of such an address": {"url": "https://x.org/a.jpg", "text": "A page. " * 50},
    "a text of a document": {"file_name": "1.pdf", "source": "1.pdf", "text": "A report."},
    "a source of turns": chat(source="report.pdf"),
    "letters that are no file": chat(hash="QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_words_without_what_they_are_about_are_refused(name):
    record, message = REFUSED[name]
    check_refused(record, message)


@pytest.mark.parametrize("name", READ)
def test_records_that_only_say_so_are_read(name):
    record: dict[str, Any] = READ[name]
    parse_record(record, recognise(record) or "")


def test_files_are_known_by_how_they_begin():
    kinds = {JPEG: "a picture", PNG: "a picture", FLAC: "a film or a sound", MP4: "a film or a sound", b"abc": ""}
    for data, kind in {**kinds, PDF: "a document (PDF)"}.items():
        assert kind_of_bytes(data) == kind and kind_of_base64(b64(data)) == kind
    assert kind_of_base64("data:video/mp4;base64,AAAA") == "a film or a sound"
    assert kind_of_base64(b64(PNG)[:16]) == kind_of_base64("A long text, with words in it, and no file.") == ""


PLACES = (
    "[image]", "{image}", "{{image}}", "<image/>", "<image />", "<Img>", "<picture>", "[PHOTO]", "<screenshot>",
    "<image:1>", "<image></image>", "(<image>./</image>)", "<image_token>", "<|image_token|>", "<__media__>",
    "<|begin_of_image|><|image|><|end_of_image|>", "<|image_start|><|patch|><|image_end|>", "<|media_pad|>",
    "<|media_start|>image<|media_content|><|media_pad|><|media_end|>", "[IMAGE_PLACEHOLDER]",
    "<|IMAGE_START|><|image@placeholder|><|IMAGE_END|>", "<image>a.png</image>", "<img>a.png</img>",
)  # fmt: skip


@pytest.mark.parametrize("marker", PLACES)
def test_a_marker_is_the_place_of_the_picture(marker):
    record = {**asked(f"Here: {marker}\nWhich colour?"), "images": ["a.png"]}
    first = parse_record(record, "messages").messages[0]  # type: ignore[union-attr]
    assert first["content"] == [
        {"type": "text", "text": "Here: "}, {"type": "image"}, {"type": "text", "text": "\nWhich colour?"},
    ]  # fmt: skip


def test_words_are_places_only_where_they_are_as_many_as_pictures():
    record = {**asked("[image] or [photo]?"), "images": ["a.png"]}
    first = parse_record(record, "messages").messages[0]  # type: ignore[union-attr]
    assert first["content"] == [{"type": "image"}, {"type": "text", "text": "\n[image] or [photo]?"}]
    both = parse_record({**record, "images": ["a.png", "b.png"]}, "messages")
    assert both.messages[0]["content"][0] == both.messages[0]["content"][2] == {"type": "image"}  # type: ignore[union-attr]


@pytest.mark.parametrize("marker", [marker for marker in PLACES if "a.png" not in marker])
def test_a_marker_without_a_picture_is_refused(marker):
    for text in (f"{marker}\nWhich colour?", f"Which colour?\n{marker}"):
        check_refused(asked(text), "stands for an image, and the record has none")


@pytest.mark.parametrize(
    "marker",
    ["<video_1>", "<|audio_1|>", "<VIDEO>", "<Audio>", "<sound>", "[video]", "<SpeechHere>", "<point>", "<ts><ts/>",
     "<graph>", "<region1>", "<mask><pos>", "<|begin_of_video|>", "<bbox_1>", "<|speech|>", "<3d>"],
)  # fmt: skip
def test_a_marker_of_what_is_not_read_is_refused(marker):
    check_refused(asked(f"{marker}\nWhat is this?"), "stands for what is not read")


@pytest.mark.parametrize(
    "text",
    ["What does <img/> do?", "Fill in: the <mask> sat.", "Use {image} in an f-string.", "<graph>\n<a>b</a>\n</graph>",
     "Is it [photo] or [picture]?", "What is the `<video_1>` token?", "Plot <point> and <scene> in 3d.", "[image]"],
)  # fmt: skip
def test_words_that_look_like_markers_are_words(text):
    parse_record(asked(text), "messages")


@pytest.mark.parametrize(
    "field",
    ["filename", "image_name", "image_filename", "image_file_name", "filepath", "file_path", "path", "file"],
)
def test_names_of_files_are_pictures_where_they_name_some(field):
    record: dict[str, Any] = {field: "a.png", "caption": "A door."}
    assert recognise(record) == "caption" and parse_record(record, "caption").images == ("a.png",)
    assert parse_record(chat(**{field: ["a.png", "b.jpg"]}), "messages").images == ("a.png", "b.jpg")
    if "image" in field:
        check_refused(chat(**{field: "notes.txt"}), f"'{field}' names a picture")
    else:
        assert parse_record(chat(**{field: "notes.txt"}), "messages").images == ()


@pytest.mark.parametrize("field", ["image_path", "image_url", "img", "image_paths"])
def test_a_turn_names_its_picture_as_a_record_does(field):
    record = chat({**ASKED, field: "a.png"}, ANSWERED)
    assert parse_record(record, "messages").images == ("a.png",)


@pytest.mark.parametrize("key", ["src", "file", "filename", "image_path", "local_path"])
def test_an_object_names_its_picture(key):
    assert parse_record(chat(image={key: "a.png"}), "messages").images == ("a.png",)
