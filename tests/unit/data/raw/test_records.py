"""Raw records of every shape, and what is refused with which reason."""

import base64

import pytest

from megatron_apriel.data.raw.pictures.image_references import ImageLoader
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.reading import Reading
from megatron_apriel.data.raw.records.conversion import parse_record, recognise

QUESTION = {"from": "human", "value": "<image>\nWhat is it?"}
ANSWER = {"from": "gpt", "value": "A cat."}
USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello."}
CHAT = "conversations"


def test_formats_are_recognised():
    assert recognise({"text": "x", "messages": [USER]}) == "messages"
    assert recognise({"text": "x", "messages": None}) == "text"
    assert recognise({"conversations": [], "id": 1}) == CHAT
    assert recognise({"body": "x"}) is None
    assert recognise({"body": "x"}, Reading({("body",): "text"})) == "text"


def test_text_with_images_between():
    document = parse_record({"text": "<image>A <image> B", "images": ["a.png", b"1"]}, "text")
    assert document.parts == (None, "A ", None, " B")
    assert document.images == ("a.png", b"1")
    assert parse_record({"text": "a <image> tag"}, "text").parts == ("a <image> tag",)


def test_llava_conversation():
    turns = [QUESTION, ANSWER, {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes, <image> is a tag."}]
    document = parse_record({"conversations": turns, "image": "cat.jpg", "system": "Be kind."}, CHAT)
    assert document.images == ("cat.jpg",)
    assert document.messages == (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhat is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes, <image> is a tag."},
    )


def test_images_of_parts_and_of_the_record_keep_their_order():
    parts = [
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "x", "image_url": None},
        {"type": "image", "image": {"bytes": b"2", "path": None}},
        {"type": "image_url", "image_url": "c.png"},
        {"type": "image", "path": "d.png"},
    ]
    record = {"messages": [{"role": "user", "content": parts}, REPLY], "images": ["first.png"]}
    document = parse_record(record, "messages")
    assert document.images == (
        "first.png",
        "data:image/png;base64,AAAA",
        {"bytes": b"2", "path": None},
        "c.png",
        "d.png",
    )
    assert [part["type"] for part in document.messages[0]["content"]] == [
        "image",
        "image",
        "text",
        "image",
        "image",
        "image",
    ]


def test_markers_in_messages_count_only_beside_images():
    with_images = {"messages": [{"role": "user", "content": "<image>x"}, REPLY], "images": [b"1"]}
    assert parse_record(with_images, "messages").messages[0]["content"][0] == {"type": "image"}
    without = {"messages": [{"role": "user", "content": "the <image> tag"}, REPLY], "images": None}
    assert parse_record(without, "messages").messages[0]["content"] == "the <image> tag"


def test_fields_that_a_table_fills_with_none_are_ignored():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    record = {
        "messages": [
            {**USER, "tool_calls": None, "reasoning_content": None, "name": None},
            {"role": "assistant", "content": None, "thinking": "Hm.", "tool_calls": [call]},
        ],
        "tools": '[{"name": "f"}]',
        "image": None,
    }
    document = parse_record(record, "messages")
    assert document.messages == (
        USER,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm.",
            "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
        },
    )
    assert document.tools == ({"name": "f"},)


@pytest.mark.parametrize("fields", [{"images": [], "image": "a"}, {"images": ["a"], "image": ""}])
def test_an_empty_field_of_images_leaves_the_other(fields):
    assert parse_record({"conversations": [QUESTION, ANSWER], **fields}, CHAT).images == ("a",)


def conversation(*turns, **fields):
    return {"conversations": list(turns), **fields}, CHAT


def chat(*messages, **fields):
    return {"messages": list(messages), **fields}, "messages"


def call(**function):
    return chat(USER, {"role": "assistant", "content": "", "tool_calls": [{"function": function}]})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (({"text": " \n"}, "text"), "the text is empty"),
        (({"text": 5}, "text"), "field 'text' is a int, not a string"),
        (({"txt": "x"}, "text"), "field 'text' is missing"),
        (({"text": "a\ud800"}, "text"), "half of a surrogate pair"),
        (({"text": "<image>", "images": ["a", "b"]}, "text"), "1 place for images .* but 2 images"),
        (conversation(), "'conversations' is not a list of turns"),
        (({"text": "x", "messages": None}, "messages"), "it has no messages, as other .* do; its fields: text"),
        (conversation(QUESTION, ANSWER), "1 place for images .* but 0 images"),
        (conversation(QUESTION, ANSWER, images=["a", "b"]), "1 place for images .* but 2 images"),
        (conversation(ANSWER, image="a"), "no place for 1 image: there is no turn of the user"),
        (conversation({"from": "wizard", "value": "x"}), "turn 1: unknown speaker 'wizard'; known: user, human,"),
        (conversation({"from": "human", "value": None}), "turn 1: value is missing; the turn's fields: from, value"),
        (
            conversation({"from": "system", "value": "<image>"}, ANSWER, image="a"),
            "an image in a turn of the system",
        ),
        (chat("x"), "turn 1 of field 'messages' is not an object"),
        (
            chat({"role": "wizard", "content": "x"}),
            "turn 1: unknown role 'wizard'; known: user, .*assistant.*--map role:THEIRS=OURS",
        ),
        (chat(USER), "no turn is the assistant's"),
        (chat(USER, {"role": "assistant", "content": " "}), "turn 2: the assistant says nothing"),
        (chat(USER, {"role": "assistant", "content": "", "reasoning": "Hm."}), "turn 2: the assistant only thinks"),
        (chat(USER, {"role": "assistant", "content": "<think>Hm.</think>\n"}), "turn 2: the assistant only thinks"),
        (chat(USER, {"role": "assistant", "content": "Hm.\n</think>"}), "turn 2: the assistant only thinks"),
        (
            chat(USER, {"role": "assistant", "content": "Hm.\n[BEGIN FINAL RESPONSE]\n[END FINAL RESPONSE]"}),
            "turn 2: the assistant only thinks, and says nothing",
        ),
        (
            chat(USER, {"role": "assistant", "content": "<think>\nIt goes on"}),
            "'<think>' has no '</think>'; it was cut",
        ),
        (
            conversation({"from": "gpt", "value": "Here are my reasoning steps:\nIt goes"}),
            "has no '.BEGIN FINAL RESPONSE.'; it was cut off",
        ),
        (chat({"role": "user", "content": 5}, REPLY), "turn 1: content is neither a string nor a list"),
        (
            chat({"role": "user", "content": [{"type": "audio"}]}, REPLY),
            "a part of type 'audio'; known: text",
        ),
        (chat({"role": "user", "content": [{"type": "image"}]}, REPLY), "1 place for images .* but 0 images"),
        (chat({"role": "user", "content": [{"type": "image", "image": 5}]}, REPLY), "image of an image part is a int"),
        (chat(USER, REPLY, image=5), "an image is a int; known: path"),
        (chat(USER, REPLY, tools="{"), "field 'tools' is not valid JSON"),
        (chat(USER, REPLY, tools=[1]), "field 'tools' is not a list of JSON schemas"),
        (call(name=""), "turn 2: a tool call without the function's name"),
        (call(name="f", arguments="{"), "turn 2: arguments of f is not valid JSON"),
        (call(name="f", arguments=[1]), "turn 2: the arguments of f are not a JSON object"),
        (call(name="f", arguments={"x": "\ud800"}), "turn 2: the call of f holds half of a surrogate pair"),
        (call(name="f\ud800", arguments={}), "holds half of a surrogate pair"),
        (call(name="f", arguments='{"x": NaN}'), "turn 2: the call of f holds NaN or an infinity"),
        (chat(USER, REPLY, tools=[{"most": float("inf")}]), "field 'tools' holds NaN or an infinity"),
        (
            chat(USER, {"role": "assistant", "tool_calls": [{"function": "f"}]}),
            "turn 2: the function of a tool call is a str, not an object",
        ),
    ],
)
def test_refused_records(record, message):
    with pytest.raises(BadRecord, match=message):
        parse_record(*record)


PNG = b"\x89PNG\r\n\x1a\n" + bytes(60)


def test_every_form_of_an_image_gives_its_bytes(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(PNG)
    loader = ImageLoader(tmp_path, {"in/tar.png": PNG})
    encoded = base64.b64encode(PNG).decode()
    for value in (
        PNG,
        "sub/a.png",
        "sub/../sub/a.png",
        str(tmp_path / "sub" / "a.png"),
        encoded,
        f"data:image/png;base64,{encoded[:40]}\n{encoded[40:]}",
        {"bytes": PNG, "path": "elsewhere.png"},
        {"bytes": encoded},
        {"bytes": None, "path": "sub/a.png"},
        {"url": f"data:image/png;base64,{encoded}"},
        f"{encoded[:76]}\n{encoded[76:]}\n",
        "in/tar.png",
    ):
        assert loader.load(value) == PNG


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("http://example.com/a.png", "is a URL: images are never fetched"),
        ({"url": "https://example.com/a.png"}, "is a URL: images are never fetched"),
        ("file:///etc/passwd", "leads out of the image root"),
        ("file://host/a.png", "leads out of the image root"),
        ("../secret.png", "leads out of the image root"),
        ("a/../../secret.png", "leads out of the image root"),
        ("/etc/passwd", "leads out of the image root"),
        ("link.png", "leads out of the image root"),
        ("absent.png", "does not exist under"),
        ("x" * 5000, "cannot be read"),
        ("a\0b", "cannot be read"),
        (".", "cannot be read"),
        ("data:image/png,xyz", "is not base64"),
        ("data:image/png;base64,@@@", "base64 of an image is damaged"),
        ({"bytes": 5}, "the bytes of an image are a int"),
        ({"path": None, "id": 1}, "neither bytes nor path, only path, id"),
    ],
)
def test_refused_images(value, message, tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PNG)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(BadRecord, match=message):
        ImageLoader(root).load(value)
