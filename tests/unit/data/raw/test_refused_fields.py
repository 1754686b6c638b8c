"""Fields that change the lesson and are not followed are refused by name; what only looks like one is read."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from small_chats import ANSWERED, ASKED, answer, asked, chat, check_refused

from megatron_apriel.data.raw.reading import Reading
from megatron_apriel.data.raw.records.conversion import parse_record, recognise


def calling(*calls: dict[str, Any], results: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    made = {"role": "assistant", "content": None, "tool_calls": [{"function": call, **more(call)} for call in calls]}
    return chat(ASKED, made, *({"role": "tool", "content": "x", **one} for one in results), ANSWERED)


def more(call: dict[str, Any]) -> dict[str, Any]:
    return {"id": call.pop("_id")} if "_id" in call else {}


def call(name: str = "f", identity: str | None = None, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments, **({"_id": identity} if identity else {})}


REFUSED = {
    # what is learned
    "weight of a half": (answer(weight=0.5), "weight is 0.5"),
    "weight of two": (answer(weight=2), "weight is 2"),
    "loss as a word": (answer(loss="last_round"), "loss is 'last_round'"),
    "weight and loss disagree": (answer(weight=1, loss=False), "messages.weight and messages.loss disagree"),
    "a user's turn to be learned": (asked("Hi", train=True), "messages.train says to learn a turn of the user"),
    "mask of a turn": (answer(mask=True), "'messages.mask' says which words are learned"),
    "loss mask of a turn": (answer(loss_mask=[0, 1]), "messages.loss_mask"),
    "spans of a turn": (answer(spans=[[0, 1]]), "messages.spans"),
    "detail of a turn": (answer(train_detail=[{"begin_offset": 0}]), "messages.train_detail"),
    "weight of a part": (answer([{"type": "text", "text": "x", "weight": 0}]), "messages.content.weight"),
    "weight of a record": (chat(weight=0), "'weight' says that the record is not to be learned"),
    "sample weight of a record": (chat(sample_weight=0.3), "'sample_weight' is 0.3"),
    "loss scale of a record": (chat(loss_scale=0.3), "'loss_scale'"),
    "spans beside turns": (chat(loss_masking_spans=[[0, 3]]), "'loss_masking_spans'"),
    "token ids": (chat(input_ids=[1, 2], labels=[-100, 2]), "'input_ids'|'labels'"),
    "nothing left to learn": (answer(weight=0), "no turn of the assistant is to be learned"),
    "spans that are no pairs": ({"text": "abc", "spans": [[0, 1, 2]]}, "'spans' is not pairs"),
    "spans beyond the text": ({"text": "abc", "spans": [[0, 3]]}, "'spans' is not pairs"),
    "spans over each other": ({"text": "abcd", "spans": [[0, 2], [2, 3]]}, "spans over each other"),
    "spans over everything": ({"text": "abc", "spans": [[0, 1], [2, 2]]}, "its spans leave nothing"),
    "spans of names": ({"text": "abc", "spans": [{"start": 0, "end": 1}]}, "'spans' is not pairs"),
    # the half of what is learned
    "half a pair": (
        {"history": [{"ask": "Is it green?", "response": "No."}], "query": "Which?", "response": "Red."},
        "field 'history.ask' may be the other",
    ),
    "several conversations in one": (
        {"messages": [[ASKED, ANSWERED], [ASKED, ANSWERED]]},
        "'messages' lists 2 conversations",
    ),
    "turns that are numbers": ({"messages": [ASKED, 3]}, "turn 2 of field 'messages' is not an object, but a int"),
    "another prompt that was not filled in": (
        {"instruction": "Add.", "output": "12", "prompt": "Be a pirate. Add."},
        "field 'prompt' holds a text",
    ),
    # preferences
    "chosen and rejected": (chat(chosen={"role": "assistant"}, rejected={}), "'chosen' is preference data"),
    "a rejected response": (chat(rejected_response="Blue."), "'rejected_response' is preference data"),
    "a good label": (chat(label=True), "'label' is a label"),
    "a label of KTO": (chat(kto_tag=False), "'kto_tag' is preference data"),
    "a label as a number": ({"prompt": "a", "completion": "b", "label": 0}, "'label' is a label"),
    "labels of steps": ({"prompt": "a", "response": "b", "labels": [True, False]}, "'labels' is a label"),
    "a label as a word": ({"prompt": "a", "completion": "b", "label": "good"}, "'label' is a label"),
    "a label of a turn": (answer(label=0), "'messages.label' is a label"),
    "a text that is good or bad": ({"text": "Good film.", "label": True}, "'label' is a label"),
    "a caption that is good or bad": ({"image": "a.png", "caption": "A cat.", "label": False}, "'label' is a label"),
    "an answer that is wrong": (chat(is_correct=False), "'is_correct' says that the answer is bad"),
    "a turn that was deleted": (answer(deleted=True), "'messages.deleted' says that the answer is bad"),
    "a turn that is no target": (answer(target=False), "'messages.target' says which words are learned"),
    "a turn that is ignored": (answer(ignore=True), "'messages.ignore' says which words are learned"),
    "a record of the test split": (chat(split="test"), "'split' says that the record is held out"),
    "preferences as JSON text (RLHF-V)": (
        {"image": "a.png", "text": '{"question": "q", "chosen": "a", "rejected": "b"}'},
        "'text' is the JSON text of preference data",
    ),
    "OpenAI's preferred output": (chat(preferred_output=[]) | {"non_preferred_output": [1]}, "non_preferred_output"),
    # context
    "another system turn": (
        chat({"role": "system", "content": "Be long."}, ASKED, ANSWERED, system="Be brief."),
        "'system' holds another system turn",
    ),
    "two system texts": (chat(system="Be brief.", system_prompt="Be long."), "different system turns"),
    "an instruction that no turn holds": (chat(instruction="Answer in Dutch."), "'instruction' holds a text"),
    "documents that no turn holds": (chat(documents=[{"text": "Ann sings."}]), "'documents' holds a text"),
    "contexts that no turn holds": ({"question": "q", "contexts": ["Ann sings."], "answer": "a"}, "'contexts' holds"),
    "the definition of a task": ({"definition": "Add.", "inputs": "6 6", "targets": "12"}, "'definition' holds"),
    "a system turn inside of metadata": (chat(metadata={"system_prompt": "Be brief."}), "'metadata.system_prompt'"),
    "tools inside of metadata": (chat(extra={"deep": {"tools": [{"name": "f"}]}}), "'extra.deep.tools'"),
    "choices in fields of their own": (
        {"question": "Which?", "A": "red", "B": "blue", "answer": "A"},
        "'A' holds a text",
    ),
    "choices in numbered fields": (
        {"question": "Which?", "option_a": "red", "option_b": "blue", "answer": "a"},
        "'option_a' holds",
    ),
    "an answer beside a question": (
        chat(ASKED, ANSWERED, ASKED, answer="Blue."),
        "'answer' may hold the answer to the last turn",
    ),
    "answers beside a question": (chat(ASKED, ANSWERED, ASKED, answers=["Blue."]), "'answers' may hold the answer"),
    "a system turn with an image": (
        chat(system=[{"type": "image", "image": "a.png"}]),
        "'system' holds an image",
    ),
    "a system turn of a user": (chat(system={"role": "user", "content": "Hi"}), "'system' is a turn, and not the"),
    "earlier turns that stand beside": (chat(history=[["Hi", "Ho"]]), "'history' holds a text"),
    "choices that no turn holds": ({"question": "Which?", "choices": ["red", "blue"], "answer": "red"}, "'choices'"),
    "a setting of another template": (chat(chat_template_kwargs={"mood": "sad"}), "'chat_template_kwargs.mood'"),
    "tools that run as Python": (chat(chat_template_kwargs={"python_tools": ["f"]}), "chat_template_kwargs.python_to"),
    "thinking off beside thoughts": (
        answer(reasoning="Hm.") | {"chat_template_kwargs": {"enable_thinking": False}},
        "enable_thinking' is false, and the assistant reasons",
    ),
    "thinking off beside thoughts, without other settings": (
        answer(reasoning="Hm.") | {"enable_thinking": False},
        "'enable_thinking' is false, and the assistant reasons",
    ),
    "a choice of tools": (chat(tool_choice="none"), "'tool_choice' is a setting"),
    "a form of the answer": (chat(response_format={"type": "json_object"}), "'response_format' is a setting"),
    "two lists of tools": (chat(tools=[{"name": "f"}], functions=[{"name": "g"}]), "offer different tools"),
    "a prefix": (answer(prefix=True), "'messages.prefix'"),
    "a refusal": (answer(refusal="I cannot."), "'messages.refusal'"),
    "a channel": (answer(channel="commentary"), "'messages.channel'"),
    "calls of a user": (asked("x", tool_calls=[{"name": "f"}]), "'messages.tool_calls'"),
    # media
    "a film": (chat(videos=["a.mp4"]), "'videos' names a film"),
    "a sound": (chat(audio={"bytes": b"RIFF", "path": None}), "'audio' names a film or a sound"),
    "a sound of another kind": (chat(clip="geese.aac"), "'clip' names a film or a sound"),
    "a film's address among attachments": (
        chat(attachments=["https://a.b/geese.mp4?x=1"]),
        "'attachments' names a film or a sound",
    ),
    "a doctor's picture": (chat(scan="a.nii.gz"), "'scan' names a picture, 'a.nii.gz'"),
    "points in space": (chat(cloud="a.ply"), "'cloud' names a picture, 'a.ply'"),
    "a film under another name": (chat(clip="geese.mp4"), "'clip' names a film"),
    "the marker of a film": (asked("<video>How many?"), "the marker <video>"),
    "the marker of a sound": (asked("<|AUDIO|>What?"), "the marker <.AUDIO.>"),
    "a part of a film": (asked([{"type": "video", "video": "a.mp4"}]), "a part of type 'video'"),
    "a part of a sound": (asked([{"type": "input_audio", "input_audio": {}}]), "a part of type 'input_audio'"),
    "a picture by its number in a set": ({"question": "q", "image_id": 139, "answer": "a"}, "'image_id' names a pict"),
    "a picture by its name in a set": (chat(meta={"imageName": "n16"}), "'meta.imageName' names a picture"),
    "a document's pages": (chat(pdf="a.pdf"), "'pdf' names a document whose pages"),
    "a document's bytes": (chat(source=b"%PDF-1.7"), "'source' holds a document"),
    "the marker of Llama": (asked("<|image|>Which?"), "the marker <.image.>"),
    "the marker of another reader": (asked("Who? <ImageHere>"), "the marker <ImageHere>"),
    "the beginning of a turn": (asked("<img>\nWhich?"), "the marker <img>"),
    "an id of an image that is not here": (
        asked([{"type": "image", "image_id": "x"}]) | {"images": [{"id": "x", "path": "a.png"}]},
        "image_id='x' of an image part",
    ),
    "objects": (chat(objects={"ref": ["goose"], "bbox": [[1, 2, 3, 4]]}), "'objects'"),
    "boxes": (chat(gt_bboxes=[[1, 2, 3, 4]]), "'gt_bboxes'"),
    "a placeholder of a box": (answer("<bbox>"), "the marker <bbox>"),
    "a placeholder of an object": (asked("Where is the <ref-object>?"), "the marker <ref-object>"),
    "the marker of an image": (asked("<image>Which?"), "the marker <image>"),
    "a picture under another name": (chat(thumbnail="a.png"), "'thumbnail' names a picture"),
    "a picture's bytes": (chat(depth=b"\x89PNG\r\n\x1a\nx"), "'depth' holds a picture"),
    "a picture deep inside": (chat(meta={"extra": {"pic": "x/a.jpg"}}), "'meta.extra.pic' names a picture"),
    "a second picture": (
        {"images": ["a.png"], "mask_image": "m.png", "messages": [ASKED, ANSWERED]},
        "'mask_image' says which words|'mask_image' names",
    ),
    "another view of a picture": ({"image": "a.png", "depth_map": "b.png", **chat()}, "'depth_map' names a picture"),
    "a part of a picture": (
        chat(images=[{"path": "a.png", "crop": [0, 0, 9, 9]}]),
        "'images.crop' changes the picture",
    ),
    "a picture that is turned": (
        asked([{"type": "image", "image": "a.png", "rotation": 90}]),
        "'messages.content.rotation' changes the picture",
    ),
    "another picture": ({"image": "a.png", "photo2": "b.png", "messages": [ASKED, ANSWERED]}, "'photo2' names"),
    "the address of a picture": ({"text": "A door.", "image_address": "https://a.example/a.png"}, "'image_address'"),
    "a caption of nothing": ({"text": "A door.", "URL": "https://a/b.jpg", "width": 5, "height": 5}, "'URL'"),
    "an index and no image": (
        asked([{"type": "image", "index": 2}]) | {"images": ["a.png", "b.png"]},
        "index 2; the record has 2 images",
    ),
    "an image without an index": (
        asked([{"type": "image", "index": 0}]) | {"images": ["a.png", "b.png"]},
        "no image part has index 1",
    ),
    "index and none": (
        asked([{"type": "image", "index": 0}, {"type": "image"}]) | {"images": ["a.png", "b.png"]},
        "some image parts have an index",
    ),
    "a number and no image": (asked("<image_3>?") | {"images": ["a.png"]}, "a marker names image 3"),
    "an image of the assistant": (answer("<image>") | {"images": ["a.png"]}, "an image in a turn of the assistant"),
    "positions beyond the text": ({"text": "ab", "images": ["a"], "image_positions": [3]}, "image_positions"),
    "too few positions": ({"text": "ab", "images": ["a", "b"], "image_positions": [0]}, "1 image_positions, but 2"),
    "a text and an image in one place": ({"texts": ["a"], "images": ["a.png"]}, "place 0 has a text and an image"),
    "texts and images that do not fit": ({"texts": ["a", None], "images": ["a.png"]}, "not lists of one length"),
    "an image of a part and another": (
        asked([{"type": "image", "image": "a.png"}]) | {"images": ["b.png"]},
        "1 place for images .* but 2 images",
    ),
    "the marker of an image inside": (asked("In this <image> who waits?"), "the marker <image>"),
    "pages that number themselves otherwise": (
        asked("<image><image>") | {"images": [{"path": "b.png", "page": 2}, {"path": "a.png", "page": 1}]},
        "'images.page' numbers them otherwise",
    ),
    "turns that number themselves otherwise": (
        chat({**ASKED, "turn": 2}, {**ANSWERED, "turn": 1}),
        "'messages.turn' numbers them otherwise",
    ),
    "turns that number themselves in words": (
        chat({**ASKED, "turn_number": "10"}, {**ANSWERED, "turn_number": "2"}),
        "'messages.turn_number' numbers them otherwise",
    ),
    "parts that number themselves otherwise": (
        asked([{"type": "text", "text": "b", "order": 2}, {"type": "text", "text": "a", "order": 1}]),
        "'messages.content.order' numbers them otherwise",
    ),
    "calls that number themselves otherwise": (
        answer(None, tool_calls=[{"index": 1, **call("f")}, {"index": 0, **call("g")}]),
        "'messages.tool_calls.index' numbers them otherwise",
    ),
    # reasoning
    "reasoning without an end": (answer("<think>So"), "has no '</think>'; it was cut off"),
    "[THINK] without an end": (answer("[THINK]So"), r"has no '\[/THINK\]'; it was cut off"),
    "a thought without an end": (answer("<|begin_of_thought|>So"), r"has no '<\|end_of_thought\|>'; it was cut off"),
    "a solution without an end": (
        answer("<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>b"),
        "the answer opened by .* has no end",
    ),
    "a part that is not closed": (
        answer([{"type": "thinking", "thinking": "a", "closed": False}, {"type": "text", "text": "b"}]),
        "not closed",
    ),
    "reasoning in two places": (answer("<think>a</think>b<think>c</think>d"), "stands in the answer"),
    "reasoning in a field of another name": (
        {"question": "q", "teacher_reasoning": "It is so.", "answer": "a"},
        "'teacher_reasoning' may hold the reasoning of the answer",
    ),
    "reasoning in a turn's field of another name": (answer(cot_text="It is so."), "'messages.cot_text' may hold the"),
    "two fields of reasoning": (answer(reasoning="a", thinking="b"), "messages.reasoning and .* different reasoning"),
    "a field and tags that differ": (answer("<think>a</think>b", reasoning="c"), "differ"),
    "hidden reasoning": (answer([{"type": "redacted_thinking", "data": "x"}]), "redacted_thinking"),
    # tools
    "an id of no call": (calling(call(identity="a"), results=({"tool_call_id": "b"},)), "tool_call_id 'b'"),
    "an id that is there twice": (
        calling(call(identity="a"), call(identity="b"), results=({"tool_call_id": "a"},) * 2),
        "tool_call_id is there twice",
    ),
    "a result that is missing": (
        calling(call(identity="a"), call(identity="b"), results=({"tool_call_id": "a"},)),
        "1 result of 2 calls",
    ),
    "results that nothing distinguishes": (calling(call(), call(), results=({},)), "1 result of 2 calls"),
    "a result inside of its call": (
        answer(None, tool_calls=[{"name": "f", "arguments": {}, "result": "x"}]),
        "'messages.tool_calls.result' is the result of a call",
    ),
    "results in the turn of the calls": (
        answer(None, tool_calls=[{"name": "f", "arguments": {}}], tool_results=["x"]),
        "'messages.tool_results' is the result of a call",
    ),
    "the special token of a call": (answer("<|tool_call>call:f{}<tool_call|>"), "spelling that is not known"),
    "two kinds of calls": (answer(tool_calls=[call()], function_call=call()), "tool_calls and function_call"),
    "a custom call": (answer(None, tool_calls=[{"type": "custom", "name": "f"}]), "a tool call of type 'custom'"),
    "words behind a call": (answer('<tool_call>{"name": "f"}</tool_call> Done.'), "words stand behind a tool call"),
    "a call that is none": (answer("<tool_call>f(x)</tool_call>"), "a tool call is not valid JSON"),
    # values of tables
    "a timestamp": (
        answer(None, tool_calls=[call(day=datetime.datetime(2031, 5, 4))]),
        "holds a timestamp .datetime., which JSON does not have",
    ),
    "a date among the tools": (chat(tools=[{"name": "f", "since": datetime.date(2031, 5, 4)}]), "holds a date"),
    "a number as a path": (chat(image={"path": 5, "bytes": None}), "the path of an image is a int"),
    "a number as bytes": (chat(image={"bytes": 5}), "the bytes of an image is a int"),
    "the bytes of a text": (answer(b"Red."), "content is neither a string nor a list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    check_refused(*REFUSED[name])


ACCEPTED = {
    "fields that a table leaves empty": asked(
        "Hi", tool_calls=[], tools=None, reasoning_content="", images=[], weight=None, refusal=None
    ),
    "labels that are no marks": chat(label={"ability": ["counting"]}, labels=["sums"]),
    "a text about tags": answer("Close `<think>` with `</think>`, and write <image> where a picture stands."),
    "a text about films": asked("What does a <video> element of HTML do?"),
    "HTML": asked("<video>\n<source src='a.mp4'>\n</video>"),
    "a picture's name once more": {"images": [{"path": "d/a.png", "bytes": b"1"}], "image_name": "a.png", **chat()},
    "what a picture is called elsewhere": {"images": [{"bytes": b"1"}], "filename": "b.jpg", "raw": "c.jpg", **chat()},
    "where a picture came from": {"images": ["a.png"], "image_source": "https://a.example/b.png", **chat()},
    "numbers about a film": chat(video_seconds=3.5, has_audio=False),
    "the same system turn twice": chat({"role": "system", "content": "Be brief."}, ASKED, ANSWERED, system="Be brief."),
    "images of parts, listed once more": asked([{"type": "image", "image": "a.png"}]) | {"images": ["a.png"]},
    "turns that number themselves": chat({**ASKED, "turn": 1}, {**ANSWERED, "turn": 2}),
    "choices that the question holds": {"question": "Red or blue?", "choices": ["Red", "blue"], "answer": "red"},
    "the same tools twice": chat(tools=[{"name": "f"}], functions=[{"name": "f"}]),
    "an instruction that a turn holds": chat(instruction="Which colour?"),
    "calls without ids, results in order": calling(call(), call(name="g"), results=({}, {})),
    "a weight of the record": chat(weight=1.0, train=True),
    "an answer in tags that are not reasoning's": answer("<b>Red.</b> It is [reason] enough."),
    "what is only about reasoning": chat(cot_type="long chain", reasoning_tokens=5, thinking_mode="very long"),
    "reasoning of another model beside reasoning": {
        "question": "q",
        "deepseek_thinking_trajectory": "So.",
        "gemini_thinking_trajectory": "It is so.",
        "deepseek_attempt": "a",
    },
    "a picture that is not turned": chat(images=[{"path": "a.png", "rotation": 0, "flip": False}]),
    "an image's name and no picture": chat(image_id=None, image_name="", image_count=0),
    "a class that is the word correct": chat(correct=1, target="x"),
    "a split to train on": chat(split="train"),
    "numbers that are identities": chat({**ASKED, "number": "9" * 20}, {**ANSWERED, "number": "1" * 20}),
    "the name of a system": chat(metadata={"system": "linux", "tools": ["bash"]}),
    "fields of one letter": {"question": "q", "answer": "a", "b": "Bern"},
    "pages that are about images": asked("Why is [IMAGE] left, and what is the <img> tag?"),
    "HTML that has an element of reasons": answer("<analysis>\nGood.\n</analysis>\n<verdict>Buy.</verdict>"),
    "a question without an answer": chat(ASKED, ANSWERED, ASKED),
    "a word about calls": answer("Mistral writes `[TOOL_CALLS]` before them."),
    "the address of a document": chat(pdf_url="https://a.example/a.pdf"),
    "prompts about tags": asked("Think between <reasoning> and </reasoning>, please."),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_only_looks_like_it_is_read(name: str) -> None:
    record = ACCEPTED[name]
    shape = recognise(record)
    assert shape is not None
    assert parse_record(record, shape)


@pytest.mark.parametrize("label", [0, 1, 207, -1, 0.5, "tabby cat", [3, 5], ["cat", "indoors"]], ids=str)
@pytest.mark.parametrize("name", ["label", "labels", "Label"])
def test_a_class_beside_a_text_or_a_caption_is_counted(name: str, label: Any) -> None:
    """Sets of classes (ImageNet, IMDB) have one in every row; there is no answer that it could judge."""
    for record in ({"image": "a.png", "caption": "A cat."}, {"text": "Good film."}, {"texts": ["a"], "images": [None]}):
        shape = recognise(record | {name: label})
        assert shape is not None
        assert parse_record(record | {name: label}, shape).remarks.unused == {name: 1}


def test_what_is_ignored_is_as_if_it_were_not_there() -> None:
    record = chat(ASKED, {**ANSWERED, "weight": 0.5}, label=False, meta={"weight": 3, "id": 1})
    reading = Reading(ignored=frozenset(("messages.weight", "label", "meta.id")))
    document = parse_record(record, "messages", reading)
    assert document.remarks.unused == {"meta.weight": 1}
    assert document == parse_record(chat(), "messages")
