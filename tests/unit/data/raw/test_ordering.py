"""Numbers, times and ids in a list say in which order its objects are meant; what stands otherwise is refused."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from small_chats import ANSWERED, ASKED, chat, check_refused

from megatron_apriel.data.raw.records.conversion import parse_record

NOON = datetime.datetime(2031, 5, 4, 12)


def turns(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return chat({**ASKED, **first}, {**ANSWERED, **second})


OTHERWISE = {
    "seconds": (turns({"timestamp": 1_700_000_005}, {"timestamp": 1_700_000_001}), "'messages.timestamp' numbers"),
    "times": (
        turns({"created_at": "2031-05-04T12:00:05Z"}, {"created_at": "2031-05-04T12:00:01Z"}),
        "'messages.created_at' numbers them otherwise",
    ),
    "a table's times": (
        turns({"timestamp": NOON}, {"timestamp": NOON - datetime.timedelta(1)}),
        "'messages.timestamp' numbers",
    ),
    "numbers behind a word": (turns({"turn_id": "turn_10"}, {"turn_id": "turn_9"}), "'messages.turn_id' numbers"),
    "rounds": (turns({"round": 1}, {"round": 0}), "'messages.round' numbers"),
    "ids that only count": (turns({"id": 1}, {"id": 0}), "'messages.id' numbers"),
    "ids that only count, as texts": (turns({"messageId": "2"}, {"messageId": "1"}), "'messages.messageId' numbers"),
    "an answer before its question": (
        turns({"id": "b", "parent_id": "a"}, {"id": "a", "parent_id": None}),
        "'messages.parent_id' says that one follows 'a'",
    ),
    "two answers to one question": (
        chat(
            {**ASKED, "uuid": "a", "parentUuid": None},
            {**ANSWERED, "uuid": "b", "parentUuid": "a"},
            {**ANSWERED, "uuid": "c", "parentUuid": "a"},
        ),
        "'messages.parentUuid' says that one follows 'a', which is not the one before it: give one path",
    ),
    "frames": (
        {"images": [{"path": "b.png", "frame_id": 2}, {"path": "a.png", "frame_id": 1}], **chat()},
        "'images.frame_id' numbers",
    ),
    "ids of images that only count": (
        {"images": [{"path": "b.png", "image_id": 1}, {"path": "a.png", "image_id": 0}], **chat()},
        "'images.image_id' numbers",
    ),
    "a list of images' places": (
        {"images": ["b.png", "a.png"], "image_order": [1, 0], **chat()},
        "'image_order' numbers the images otherwise",
    ),
    "a list of pages": (
        {"images": ["b.png", "a.png"], "pageNumbers": ["page 12", "page 3"], **chat()},
        "'pageNumbers' numbers the images",
    ),
    "a list of ids that only count": (
        {"images": ["b.png", "a.png"], "image_ids": ["1", "0"], **chat()},
        "'image_ids' numbers the images",
    ),
    "speakers that do not take turns": (
        {"dialogue": ["Hi.", "There?", "Yes."], "speakers": ["Ann", "Ann", "Bob"]},
        "'speakers' does not say that two speak in turn",
    ),
    "more speakers than texts": ({"dialogue": ["Hi.", "Ho."], "speakers": ["Ann"]}, "'speakers' does not say"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_another_order_is_refused_by_name(name: str) -> None:
    check_refused(*OTHERWISE[name])


RESULT = {"role": "tool", "content": "x"}
CALLS = [{"id": "2", "function": {"name": "f"}}, {"id": "1", "function": {"name": "g"}}]
AS_IT_STANDS = {
    "times that rise": turns({"ts": "2031-05-04"}, {"ts": "2031-05-05"}),
    "one time for all": turns({"created_at": 5}, {"created_at": 5}),
    "times with and without a zone": turns({"ts": "2031-05-04T12:00"}, {"ts": "2031-05-03T12:00Z"}),
    "words and numbers that differ": turns({"turn_id": "b2"}, {"turn_id": "a1"}),
    "ids of a set": turns({"id": 701}, {"id": 52}),
    "ids that are words": turns({"id": "b"}, {"id": "a"}),
    "no images and no numbers": {"image_ids": [], **chat()},
    "pages that rise": {"images": ["a.png", "b.png"], "page_numbers": [3, 12], **chat()},
    "ids of images in a set": {"images": ["a.png", "b.png"], "image_ids": [701, 52], **chat()},
    "pages of something else": {"images": ["a.png", "b.png"], "page_numbers": [3, 2, 1], **chat()},
    "a chain": turns({"id": "a", "parent": None}, {"id": "b", "parent": "a"}),
    "the end of a longer chain": turns({"id": "d", "parent": "c"}, {"id": "e", "parent": "d"}),
    "results of parallel calls": chat(
        {**ASKED, "id": "a", "parent_id": None},
        {**ANSWERED, "content": "", "id": "b", "parent_id": "a", "tool_calls": CALLS},
        {**RESULT, "tool_call_id": "2", "id": "c", "parent_id": "b"},
        {**RESULT, "tool_call_id": "1", "id": "d", "parent_id": "b"},
        {**ANSWERED, "id": "e", "parent_id": "d"},
    ),
}


@pytest.mark.parametrize("name", AS_IT_STANDS)
def test_what_says_no_other_order_is_read(name: str) -> None:
    assert parse_record(AS_IT_STANDS[name], "messages")
