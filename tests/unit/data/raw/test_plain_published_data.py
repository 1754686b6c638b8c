"""Published records whose meaning is plain are read: a name or a word alone does not make them doubtful."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small_chats import ASKED, answer, asked, chat, check_refused

from megatron_apriel.data.raw.fields.meanings import MAPPABLE
from megatron_apriel.data.raw.reading import parse_reading
from megatron_apriel.data.raw.records.conversion import parse_record, recognise

PAGE = {"url": "https://x.org/photo.jpg", "text": "The tide rises."}
TOOL = {"name": "tide", "description": "Tides.", "parameters": {"type": "object", "properties": {}}}
PERSONA = "A chemist who studies dyes."

READ = {
    # pages of the web whose address ends as a picture's does
    "C4": {**PAGE, "timestamp": "2019-04-25T12:57:54Z"},
    "CulturaX": {**PAGE, "timestamp": "2019/04/21", "source": "mC4"},
    "FineWeb": {**PAGE, "dump": "CC-MAIN-2013-20", "file_path": "s3://x/a.warc.gz", "language": "en", "token_count": 4},
    "Nemotron-CC": {**PAGE, "warc_record_id": "a", "language": "eng"},
    # a text, and the film that it was written down from
    "YouTube-Commons": {"text": "Hello everyone.", "video_id": "a1", "video_link": "https://youtube.com/watch?v=a1"},
    # names with words that mean something else in them
    "KodCode": chat(
        trials={"trial_0": {"coverage": 1}}, chosen_trial="trial_0", benchmark_instruction="Write another function."
    ),
    "DataComp": {"image": "a.png", "caption": "A door.", "face_bboxes": [[0.1, 0.1, 0.2, 0.2]]},
    "titles of films": {"text": "A long one.", "movie_title": "Heat", "movie_genre": "crime"},
    "games": chat(video_game="Pong", meta={"video_games": ["Pong"]}),
    "acts of speech": chat(speech_act="question"),
    "earnings of films": chat(box_office="12 million"),
    "PersonaHub": chat(input_persona=PERSONA),
    # images of containers
    "CoderForge": chat(image="docker.io/swerebench/sweb.eval.x86_64.a_1776_b-1:latest", reward=1.0),
    "SWE-smith": chat(image_name="jyangballin/swesmith.x86_64.a_1776_b.c0ffee", docker_image="x/y:1"),
    "a digest": chat(image="registry.org:5000/team/env@sha256:0a1b", metadata={"image_name": "team/env:v2"}),
    # values that say nothing
    "OpenMathInstruct": {"question": "1+1?", "generated_solution": "2", "error_message": "<not_executed>"},
    "no error": chat(error="None", errors=[], exception="n/a"),
    "a form that is plain text": chat(response_format="text"),
}  # fmt: skip
REFUSED = {
    "a caption with an address": (PAGE, "'url' is the address of a picture"),
    "a caption with a size": ({**PAGE, "date": "2020", "width": 4, "height": 3}, "'url' is the address of a picture"),
    "a picture without an ending": (chat(image_name="coco/000001"), "'image_name' names a picture"),
    "another chosen one": (chat(chosen_answer="Red."), "'chosen_answer' is preference data"),
    "boxes": (chat(image="a.png", door_bboxes=[[0, 0, 1, 1]]), "'door_bboxes' holds objects or boxes"),
    "a persona": (chat(persona=PERSONA), "'persona' holds a text that no turn holds"),
    "an error": (chat(error_message="timeout"), "'error_message' says that the request failed"),
    "a form": (chat(response_format="json_object"), "'response_format' is a setting"),
    "a sound": ({"text": "Hello.", "audio": "a1"}, "'audio' names a film"),
    "a film beside turns": (chat(video_id="a1"), "'video_id' names a film"),
    "a film": (chat(movie="0001_Heat"), "'movie' names a film"),
}


@pytest.mark.parametrize("name", READ)
def test_plain_records_are_read(name):
    record: dict[str, Any] = READ[name]
    parse_record(record, recognise(record) or "")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_like_them_and_not_plain_is_refused(name):
    record, message = REFUSED[name]
    check_refused(record, message)


@pytest.mark.parametrize(
    "text",
    ["What is List<Image> in Java?", "Map it to Option<Video>.", "std::vector<Image> a;", "useState<Image>(null)",
     "Dear {name},\nhere it is:\n{image}", "What is <box> beside\n<mask>", "[photo]\nYours, [name]"],
)  # fmt: skip
def test_types_and_slots_of_templates_are_words(text):
    assert parse_record(asked(text), "messages").messages[0]["content"] == text  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["Which colour? <Image>", "colour<Image>", "{photo}\n{image}", "<image>\n<graph>"])
def test_markers_beside_other_words_stay_markers(text):
    check_refused(asked(text), "stands for")


def test_tools_in_json_text_are_read_where_the_user_says_so():
    record = chat(metadata=json.dumps({"tools": [TOOL], "source": "x"}))
    check_refused(record, "--map metadata.tools=tools reads it")
    read = parse_record(record, "messages", parse_reading(["metadata.tools=tools"], [], MAPPABLE, []))
    assert read.tools == (TOOL,)  # type: ignore[union-attr]
    assert read.remarks.unused == {"metadata.source": 1}
    no_object = parse_record(chat(metadata="{x"), "messages", parse_reading(["metadata.tools=tools"], [], MAPPABLE, []))
    assert no_object.remarks.unused == {"metadata": 1}


def test_words_that_a_turn_keeps_twice_are_no_reasoning():
    """Turns of SWE-agent's trajectories have the words before their call as ``thought``, too."""
    call = "<function=bash>\n<parameter=command>ls</parameter>\n</function>"
    for content in ("I look around.", f"I look around.\n\n{call}"):
        read = parse_record(answer(content, thought="I look around."), "messages")
        assert "reasoning_content" not in read.messages[-1]  # type: ignore[union-attr]
    kept = parse_record(chat(ASKED, {"role": "assistant", "content": "I look up.", "thought": "I look"}), "messages")
    assert kept.messages[-1]["reasoning_content"] == "I look"  # type: ignore[union-attr]
