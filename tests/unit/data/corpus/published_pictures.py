"""Published sets with pictures: in columns, in turns, in parts and by markers in the text."""

from __future__ import annotations

import base64

from tests.unit.data.corpus.published_set import ANSWERED, ASKED, QUESTION_AND_ANSWER, Published, one
from tests.unit.data.corpus.written_documents import chat, plain, png, said, user

IMAGE = {"bytes": png("red"), "path": None}
GREEN = {"bytes": png("green"), "path": "x/green.png"}
SEEN = chat(user(f"[IMG]\n{ASKED}"), said(ANSWERED), images=("red",))

PICTURES: dict[str, Published] = {
    "LLaVA-Instruct": one(
        {
            "id": "1",
            "image": "red.png",
            "conversations": [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": ANSWERED}],
        },
        SEEN,
        {"id": 1},
    ),
    "a page that shows its pictures": one(
        {"text": "Is ![a door](red.png) or <img src='green.png'> red?", "images": ["red.png", "green.png"]},
        plain("Is [IMG] or [IMG] red?", images=("red", "green")),
    ),
    "a question that shows its picture": one(
        {
            "messages": [
                {"role": "user", "content": "Say what ![](red.png) is."},
                {"role": "assistant", "content": ANSWERED},
            ],
            "images": ["red.png"],
        },
        chat(user("Say what [IMG] is."), said(ANSWERED), images=("red",)),
    ),
    "LLaVA-OneVision": Published(
        [
            {
                "id": "1",
                "image": IMAGE,
                "conversations": [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": ANSWERED}],
                "data_source": "own",
            },
            {
                "id": "2",
                "image": None,
                "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}],
                "data_source": "own",
            },
        ],
        [SEEN, QUESTION_AND_ANSWER],
        {"id": 2, "data_source": 2},
        parquet=True,
    ),
    "the Cauldron": one(
        {"images": [IMAGE], "texts": [{"user": ASKED, "assistant": ANSWERED, "source": "own"}]},
        SEEN,
        {"texts.source": 1},
        parquet=True,
    ),
    "FineVision": one(
        {
            "images": [IMAGE, GREEN],
            "texts": [{"user": ASKED, "assistant": ANSWERED}, {"user": "Sure?", "assistant": "Yes."}],
            "source": "own",
            "relevance_ratings": [5, 4],
            "relevance_min": 4,
        },
        chat(user(f"[IMG]\n[IMG]\n{ASKED}"), said(ANSWERED), user("Sure?"), said("Yes."), images=("red", "green")),
        {"source": 1, "relevance_ratings": 1, "relevance_min": 1},
        parquet=True,
    ),
    "Docmatix as a sequence": one(
        {"images": [IMAGE], "texts": {"user": [ASKED], "assistant": [ANSWERED], "source": ["own"]}}, SEEN, parquet=True
    ),
    "OBELICS": one(
        {
            "images": [None, "red.png", None, "green.png"],
            "texts": ["First.", None, "Second.", None],
            "general_metadata": '[{"url": "https://a.example"}]',
        },
        plain("First.[IMG]Second.[IMG]", images=("red", "green")),
        {"general_metadata": 1},
    ),
    "Mantis": one(
        {
            "id": "1",
            "images": [IMAGE, GREEN],
            "conversation": [
                {"role": "user", "content": "Is <image> or <image> red?"},
                {"role": "assistant", "content": "The first."},
            ],
        },
        chat(user("Is [IMG] or [IMG] red?"), said("The first."), images=("red", "green")),
        parquet=True,
    ),
    "image and text columns": one(
        {"image": IMAGE, "text": "A red door."}, plain("[IMG]\nA red door.", images=("red",)), {}, parquet=True
    ),
    "image folder": Published(
        [{"file_name": "red.png", "text": "A red door."}, {"file_name": "green.png", "text": "A green door."}],
        [plain("[IMG]\nA red door.", images=("red",)), plain("[IMG]\nA green door.", images=("green",))],
        {},
    ),
    "captions of img2dataset": one(
        {"image": "red.png", "caption": "A red door.", "width": 32, "NSFW": "no"},
        plain("[IMG]\nA red door.", images=("red",)),
        {"width": 1, "NSFW": 1},
    ),
    "a table with null among images": one(
        {"messages": [{"role": "user", "content": f"<image>{ASKED}"}, {"role": "assistant", "content": ANSWERED}],
         "images": [None, IMAGE]},
        chat(user(f"[IMG]{ASKED}"), said(ANSWERED), images=("red",)),
        parquet=True,
    ),
    "parts with an index (TRL)": one(
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "index": 1, "text": None},
                                             {"type": "text", "index": None, "text": "and"},
                                             {"type": "image", "index": 0, "text": None}]},
                {"role": "assistant", "content": [{"type": "text", "index": None, "text": "Seen."}]},
            ],
            "images": [IMAGE, GREEN],
        },
        chat(user("[IMG]and[IMG]"), said("Seen."), images=("green", "red")),
        parquet=True,
    ),
    "parts with an idx of text": one(
        {"messages": [{"role": "user", "content": [{"type": "image", "idx": "1"}, {"type": "image", "idx": "0"}]},
                      {"role": "assistant", "content": "Seen."}], "images": ["red.png", "green.png"]},
        chat(user("[IMG][IMG]"), said("Seen."), images=("green", "red")),
        {},
    ),
    "OpenAI image_url with detail": one(
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": ASKED},
                                             {"type": "image_url", "image_url": {"url": "red.png", "detail": "low"}}]},
                {"role": "assistant", "content": ANSWERED},
            ]
        },
        chat(user(f"{ASKED}[IMG]"), said(ANSWERED), images=("red",)),
        {"messages.content.image_url.detail": 1},
    ),
    "numbered markers (Phi, MMMU)": one(
        {"image_1": "red.png", "image_2": "green.png", "image_3": None,
         "messages": [{"role": "user", "content": "Is <|image_2|> or <|image_1|> red?"},
                      {"role": "assistant", "content": "The second."}]},
        chat(user("Is [IMG] or [IMG] red?"), said("The second."), images=("green", "red")),
    ),
    "markers that are keys (MiniCPM-V)": one(
        {"image": {"<image_00>": "red.png", "<image_01>": "green.png"},
         "conversations": [{"role": "user", "content": "<image_01> <image_00>?"},
                           {"role": "assistant", "content": "Yes."}]},
        chat(user("[IMG] [IMG]?"), said("Yes."), images=("green", "red")),
    ),
    "Qwen-VL's paths in the text": one(
        {"conversations": [{"from": "user", "value": "Picture 1: <img>red.png</img>\nWhich colour?"},
                           {"from": "assistant", "value": ANSWERED}]},
        chat(user("Picture 1: [IMG]\nWhich colour?"), said(ANSWERED), images=("red",)),
    ),
    "images of turns": one(
        {"messages": [{"role": "user", "content": ASKED, "images": ["red.png"]},
                      {"role": "assistant", "content": ANSWERED},
                      {"role": "user", "content": "And <image>?", "images": ["green.png"]},
                      {"role": "assistant", "content": "Green."}]},
        chat(user(f"[IMG]\n{ASKED}"), said(ANSWERED), user("And [IMG]?"), said("Green."), images=("red", "green")),
    ),
    "Qwen's parts without a type": one(
        {"messages": [{"role": "user", "content": [{"image": "red.png"}, {"text": ASKED}]},
                      {"role": "assistant", "content": [{"text": ANSWERED}]}]},
        chat(user(f"[IMG]{ASKED}"), said(ANSWERED), images=("red",)),
    ),
    "M3IT": one(
        {"instruction": "Look.", "inputs": ASKED, "outputs": ANSWERED,
         "image_base64_str": [base64.b64encode(png("red")).decode()]},
        chat(user(f"[IMG]\nLook.\n{ASKED}"), said(ANSWERED), images=("red",)),
        {},
    ),
    "PixMo's questions": one(
        {"image": "red.png", "image_id": "x",
         "questions": {"question": [ASKED, "Sure?"], "answer": [ANSWERED, "Yes."]}},
        chat(user(f"[IMG]\n{ASKED}"), said(ANSWERED), user("Sure?"), said("Yes."), images=("red",)),
        {"image_id": 1},
    ),
    "ChartQA": one(
        {"image": "red.png", "query": ASKED, "label": [ANSWERED], "human_or_machine": 0}, SEEN, {"human_or_machine": 1}
    ),
    "DocVQA with one answer": one(
        {"image": "red.png", "question": ASKED, "answers": [ANSWERED, ANSWERED], "docId": 1}, SEEN, {"docId": 1}
    ),
}  # fmt: skip
