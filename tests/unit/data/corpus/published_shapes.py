"""Records in the shapes of public data sets and peers' formats, each with what must become of it.

The words are made up; fields and nesting are those of the sets that are named. ``red.png``, ``green.png`` and
``blue.png`` lie beside every file.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from tests.unit.data.corpus.written_documents import Written, chat, plain, png, result, said, system, user

IMAGE = {"bytes": png("red"), "path": None}
GREEN = {"bytes": png("green"), "path": "x/green.png"}
TIDE = {"type": "function", "function": {"name": "tide", "description": "d", "parameters": {"type": "object"}}}
BARE_TIDE = {"name": "tide", "description": "d", "parameters": {"place": {"type": "string"}}}
HOEK, DELFT = '{"place": "Hoek"}', '{"place": "Delft"}'


@dataclass(frozen=True)
class Published:
    """A set: its records, what they become, and which fields the summary says were not used.

    Attributes:
        records: lines, or rows of a Parquet file.
        documents: what becomes of each.
        unused: paths with counts, where that is what the case shows.
        parquet: whether the records are rows.
        arguments: of the reading: pairs of --map.
    """

    records: list[dict[str, Any]]
    documents: list[Written]
    unused: dict[str, int] | None = None
    parquet: bool = False
    maps: tuple[str, ...] = field(default_factory=tuple)


def one(record: dict[str, Any], document: Written, unused: dict[str, int] | None = None, **more: Any) -> Published:
    return Published([record], [document], unused, **more)


def calls(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [
        {"id": identity, "type": "function", "function": {"name": "tide", "arguments": arguments}}
        for identity, arguments in pairs
    ]


ASKED, ANSWERED = "Which colour?", "Red."
QUESTION_AND_ANSWER = chat(user(ASKED), said(ANSWERED))
SEEN = chat(user(f"[IMG]\n{ASKED}"), said(ANSWERED), images=("red",))
REASONED = chat(user("6+6?"), said("12", "Six and six make twelve."))
WEATHER = chat(user("Tide at Hoek?"), said(calls=[("tide", HOEK)]), result("low"), said("It is low."), tools=[TIDE])


def reasoned(answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "6+6?"}, {"role": "assistant", "content": answer, **more}]}


PUBLISHED = {
    # ------------------------------------------------------------------------------------------------- pictures
    "LLaVA-Instruct": one(
        {
            "id": "1",
            "image": "red.png",
            "conversations": [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": ANSWERED}],
        },
        SEEN,
        {"id": 1},
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
    # ----------------------------------------------------------------------------------------------- conversations
    "UltraChat": one(
        {"prompt": ASKED, "prompt_id": "x",
         "messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]},
        QUESTION_AND_ANSWER,
        {"prompt": 1, "prompt_id": 1},
    ),
    "UltraChat, the first edition": one(
        {"id": "0", "data": [ASKED, ANSWERED, "Sure?", "Yes."]},
        chat(user(ASKED), said(ANSWERED), user("Sure?"), said("Yes.")),
        {"id": 1},
    ),
    "OpenHermes": one(
        {"system_prompt": "Be brief.", "custom_instruction": None, "source": "own",
         "conversations": [{"from": "human", "value": ASKED, "weight": None}, {"from": "gpt", "value": ANSWERED}]},
        chat(system("Be brief."), user(ASKED), said(ANSWERED)),
        {"source": 1},
    ),
    "SlimOrca": one(
        {"conversations": [{"from": "system", "value": "Be brief.", "weight": None},
                           {"from": "human", "value": ASKED, "weight": 0.0},
                           {"from": "gpt", "value": ANSWERED, "weight": 1.0}]},
        chat(system("Be brief."), user(ASKED), said(ANSWERED)),
        {},
        parquet=True,
    ),
    "mistral-finetune": one(
        {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "Blue.", "weight": 0},
                      {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Red.", "weight": 1}]},
        chat(user(ASKED), said("Blue.", learned=False), user("Sure?"), said("Red.")),
        {},
    ),
    "ms-swift's loss, the last turn not learned": one(
        {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "Red.", "loss": True},
                      {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "No.", "loss": False}]},
        chat(user(ASKED), said("Red."), user("Sure?"), said("No.", learned=False)),
    ),
    "axolotl's train": one(
        {"conversations": [{"role": "user", "content": ASKED, "train": False},
                           {"role": "assistant", "content": "Blue.", "train": False},
                           {"role": "user", "content": "Sure?", "train": False},
                           {"role": "assistant", "content": "Red.", "train": True}]},
        chat(user(ASKED), said("Blue.", learned=False), user("Sure?"), said("Red.")),
    ),
    "ms-swift's ShareGPT": one(
        {"system": "Be brief.", "conversation": [{"human": ASKED, "assistant": ANSWERED}]},
        chat(system("Be brief."), user(ASKED), said(ANSWERED)),
    ),
    "ms-swift's query and history": one(
        {"system": "Be brief.", "query": "Sure?", "response": "Yes.", "history": [[ASKED, ANSWERED]]},
        chat(system("Be brief."), user(ASKED), said(ANSWERED), user("Sure?"), said("Yes.")),
        {},
    ),
    "Alpaca": one(
        {"instruction": "Add.", "input": "6 6", "output": "12", "text": "Below is an instruction ..."},
        chat(user("Add.\n6 6"), said("12")),
        {"text": 1},
    ),
    "Alpaca without input": one({"instruction": "Hi.", "input": "", "output": "Ho."}, chat(user("Hi."), said("Ho."))),
    "Dolly": one(
        {"instruction": "Who?", "context": "Ann sings.", "response": "Ann.", "category": "qa"},
        chat(user("Who?\nAnn sings."), said("Ann.")),
        {"category": 1},
    ),
    "OpenOrca": one(
        {"id": "a", "system_prompt": "Be brief.", "question": ASKED, "response": ANSWERED},
        chat(system("Be brief."), user(ASKED), said(ANSWERED)),
        {"id": 1},
    ),
    "prompt and completion (TRL)": one(
        {"prompt": [{"role": "user", "content": ASKED}], "completion": [{"role": "assistant", "content": ANSWERED}]},
        QUESTION_AND_ANSWER,
        {},
    ),
    "prompt and completion as texts": one({"prompt": ASKED, "completion": ANSWERED}, QUESTION_AND_ANSWER, {}),
    "Nemotron post-training": one(
        {"input": [{"role": "user", "content": "6+6?"}], "output": "<think>\nSix and six make twelve.\n</think>\n\n12",
         "reasoning": "on", "system_prompt": "detailed thinking on", "used_in_training": "yes"},
        chat(system("detailed thinking on"), user("6+6?"), said("12", "Six and six make twelve.")),
        {"reasoning": 1, "used_in_training": 1},
    ),
    "SmolTalk 2": one(
        {"messages": [{"role": "user", "content": "Tide?"}, {"role": "assistant", "content": "Laag."}],
         "chat_template_kwargs": {"custom_instructions": "Answer in Dutch.", "enable_thinking": False,
                                  "python_tools": [], "xml_tools": [json.dumps(BARE_TIDE)]}, "source": "own"},
        chat(system("Answer in Dutch."), user("Tide?"), said("Laag."), tools=[BARE_TIDE]),
        {"source": 1, "chat_template_kwargs.enable_thinking": 1},
        parquet=True,
    ),
    "a struct of lists": one(
        {"conversations": {"from": ["human", "gpt"], "value": [ASKED, ANSWERED]}}, QUESTION_AND_ANSWER, parquet=True
    ),
    "Anthropic's system parts": one(
        {"system": [{"type": "text", "text": "Be brief."}],
         "messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]},
        chat(system("Be brief."), user(ASKED), said(ANSWERED)),
        {},
    ),
    "Bedrock's parts without a type": one(
        {"schemaVersion": "x", "system": [{"text": "Be brief."}],
         "messages": [{"role": "user", "content": [{"text": ASKED}]},
                      {"role": "assistant", "content": [{"text": ANSWERED}]}]},
        chat(system("Be brief."), user(ASKED), said(ANSWERED)),
        {"schemaVersion": 1},
    ),
    "Gemini's contents": one(
        {"systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
         "contents": [{"role": "user", "parts": [{"text": ASKED}]}, {"role": "model", "parts": [{"text": ANSWERED}]}]},
        chat(system("Be brief."), user(ASKED), said(ANSWERED)),
        {},
    ),
    "M3IT": one(
        {"instruction": "Look.", "inputs": ASKED, "outputs": ANSWERED,
         "image_base64_str": [base64.b64encode(png("red")).decode()]},
        chat(user(f"[IMG]\nLook.\n{ASKED}"), said(ANSWERED), images=("red",)),
        {},
    ),
    "Firefly": one({"kind": "x", "input": ASKED, "target": ANSWERED}, QUESTION_AND_ANSWER, {"kind": 1}),
    "LIMO": one(
        {"question": "6+6?", "solution": "Six and six make twelve.", "answer": "12"},
        chat(user("6+6?"), said("Six and six make twelve.")),
        {"answer": 1},
    ),
    "OpenMathReasoning": one(
        {"problem": "6+6?", "generated_solution": "<think>\nSix and six make twelve.\n</think>\n12",
         "expected_answer": "12"},
        REASONED,
        {"expected_answer": 1},
    ),
    "NeMo's capital speakers": one(
        {"conversations": [{"from": "User", "value": ASKED}, {"from": "Assistant", "value": ANSWERED}]},
        QUESTION_AND_ANSWER,
    ),
    "names of its own": one(
        {"dialog": [{"who": "Visitor", "words": ASKED}, {"who": "Guide", "words": ANSWERED}]},
        QUESTION_AND_ANSWER,
        {},
        maps=("dialog=messages", "dialog.who=role", "dialog.words=content", "role:Visitor=user",
              "role:Guide=assistant"),
    ),
    "names of its own, deep": one(
        {"qa": {"title": ASKED, "body": ANSWERED, "votes": 3}},
        QUESTION_AND_ANSWER,
        {"qa.votes": 1},
        maps=("qa.title=prompt", "qa.body=response"),
    ),
    # ---------------------------------------------------------------------------------------------------- reasoning
    "OpenThoughts": one(
        {"system": "Think.",
         "conversations": [{"from": "user", "value": "6+6?"},
                           {"from": "assistant",
                            "value": "<|begin_of_thought|>\n\nSix and six make twelve.\n\n<|end_of_thought|>\n\n"
                                     "<|begin_of_solution|>\n\n12\n\n<|end_of_solution|>"}]},
        chat(system("Think."), user("6+6?"), said("12", "Six and six make twelve.")),
    ),
    "DeepSeek's tags": one(reasoned("<think>\nSix and six make twelve.\n</think>\n\n12"), REASONED),
    "only the closing tag": one(reasoned("Six and six make twelve.\n</think>\n\n12"), REASONED),
    "Magistral": one(reasoned("[THINK]Six and six make twelve.[/THINK]12"), REASONED),
    "reasoning and answer tags": one(
        reasoned("<reasoning>\nSix and six make twelve.\n</reasoning>\n<answer>\n12\n</answer>"), REASONED
    ),
    "Kimi": one(reasoned("◁think▷Six and six make twelve.◁/think▷12"), REASONED),
    "Cohere": one(
        reasoned("<|START_THINKING|>Six and six make twelve.<|END_THINKING|><|START_RESPONSE|>12<|END_RESPONSE|>"),
        REASONED,
    ),
    "Seed": one(reasoned("<seed:think>Six and six make twelve.</seed:think>12"), REASONED),
    "gpt-oss": one(
        reasoned("<|channel|>analysis<|message|>Six and six make twelve.<|end|><|start|>assistant<|channel|>final"
                 "<|message|>12<|return|>"),
        REASONED,
    ),
    "HuatuoGPT-o1": one(
        reasoned("## Thinking\n\nSix and six make twelve.\n\n## Final Response\n\n12"), REASONED
    ),
    "Granite": one(
        reasoned("Here is my thought process: Six and six make twelve.\n\nHere is my response: 12"), REASONED
    ),
    "s1's text": one(
        reasoned("<|im_start|>think\nSix and six make twelve.\n<|im_start|>answer\n12<|im_end|>"), REASONED
    ),
    "Apertus": one(reasoned("<|inner_prefix|>Six and six make twelve.<|inner_suffix|>12"), REASONED),
    "Unsloth's GRPO": one(
        reasoned("<start_working_out>Six and six make twelve.<end_working_out><SOLUTION>12</SOLUTION>"), REASONED
    ),
    "scratchpad and answer": one(
        reasoned("<scratchpad>Six and six make twelve.</scratchpad><answer>12</answer>"), REASONED
    ),
    "analysis and answer": one(
        reasoned("<analysis>Six and six make twelve.</analysis>\n<answer>12</answer>"), REASONED
    ),
    "small letters in brackets": one(reasoned("[think]Six and six make twelve.[/think]12"), REASONED),
    "tags with spaces": one(reasoned("< think >Six and six make twelve.</ think >12"), REASONED),
    "an empty element": one(reasoned("<think/>12"), chat(user("6+6?"), said("12"))),
    "LLaVA-CoT": one(
        reasoned("<SUMMARY>Add.</SUMMARY>\n\n<CAPTION>Two sixes.</CAPTION>\n\n<REASONING>Twelve.</REASONING>\n\n"
                 "<CONCLUSION>12</CONCLUSION>"),
        chat(user("6+6?"), said("12", "Add.\n\nTwo sixes.\n\nTwelve.")),
    ),
    "Mistral's parts": one(
        {"messages": [{"role": "user", "content": "6+6?"},
                      {"role": "assistant", "content": [
                          {"type": "thinking", "thinking": [{"type": "text", "text": "Six and six make twelve."}],
                           "closed": True},
                          {"type": "text", "text": "12"}]}]},
        REASONED,
        {},
    ),
    "vLLM's field and tags": one(
        reasoned("<think>Six and six make twelve.</think>12", reasoning_content="Six and six make twelve."), REASONED
    ),
    "OpenRouter's field": one(reasoned("12", reasoning="Six and six make twelve."), REASONED, {}),
    "OpenRouter's details": one(
        reasoned("12", reasoning_details=[{"type": "reasoning.text", "text": "Six and six make twelve.", "index": 0}]),
        REASONED,
        {},
    ),
    "LiteLLM's blocks": one(
        reasoned("12", thinking_blocks=[{"type": "thinking", "thinking": "Six and six make twelve."}]),
        REASONED,
        {},
    ),
    "reasoning steps of a record": one(
        {"question": "6+6?", "reasoning_steps": ["Six and six", "make twelve."], "answer": "12"},
        chat(user("6+6?"), said("12", "Six and six\n\nmake twelve.")),
        {},
    ),
    "behind a preamble": one(
        reasoned("Gladly! <think>Six and six make twelve.</think>12"),
        chat(user("6+6?"), said("Gladly!\n12", "Six and six make twelve.")),
    ),
    "s1K": one(
        {"question": "6+6?", "solution": "12", "thinking_trajectories": ["Six and six make twelve."], "attempt": "12",
         "cot_type": "math"},
        REASONED,
        {"solution": 1, "cot_type": 1},
    ),
    "medical-o1": one(
        {"Question": "6+6?", "Complex_CoT": "Six and six make twelve.", "Response": "12"}, REASONED, {}
    ),
    "reasoning beside messages": one(
        {**reasoned("12"), "reasoning": "Six and six make twelve."}, REASONED, {}
    ),
    "reasoning of an earlier turn is not shown": one(
        {"messages": [{"role": "user", "content": "5+5?"},
                      {"role": "assistant", "content": "<think>Five and five.</think>10"},
                      {"role": "user", "content": "6+6?"}, {"role": "assistant", "content": "12"}]},
        chat(user("5+5?"), said("10"), user("6+6?"), said("12")),
    ),
    "NuminaMath": one(
        {"source": "own", "problem": "6+6?", "solution": "12",
         "messages": [{"role": "user", "content": "6+6?"}, {"role": "assistant", "content": "12"}]},
        chat(user("6+6?"), said("12")),
        {"source": 1, "problem": 1, "solution": 1},
    ),
    # -------------------------------------------------------------------------------------------------------- tools
    "OpenAI tools": one(
        {"messages": [{"role": "user", "content": "Tide at Hoek?"},
                      {"role": "assistant", "content": None, "tool_calls": calls(("abc", HOEK))},
                      {"role": "tool", "tool_call_id": "abc", "content": "low"},
                      {"role": "assistant", "content": "It is low."}], "tools": [TIDE]},
        WEATHER,
        {},
    ),
    "OpenAI functions": one(
        {"messages": [{"role": "user", "content": "Tide at Hoek?"},
                      {"role": "assistant", "content": None, "function_call": {"name": "tide", "arguments": HOEK}},
                      {"role": "function", "name": "tide", "content": "low"},
                      {"role": "assistant", "content": "It is low."}], "functions": [BARE_TIDE]},
        chat(user("Tide at Hoek?"), said(calls=[("tide", HOEK)]), result("low"), said("It is low."),
             tools=[BARE_TIDE]),
        {},
    ),
    "results in the other order": one(
        {"messages": [{"role": "user", "content": "Tides?"},
                      {"role": "assistant", "content": "", "tool_calls": calls(("a", HOEK), ("b", DELFT))},
                      {"role": "tool", "tool_call_id": "b", "content": "high"},
                      {"role": "tool", "tool_call_id": "a", "content": "low"},
                      {"role": "assistant", "content": "Low, high."}], "tools": [TIDE]},
        chat(user("Tides?"), said(calls=[("tide", HOEK), ("tide", DELFT)]), result("low"), result("high"),
             said("Low, high."), tools=[TIDE]),
    ),
    "LLaMA-Factory's and APIGen-MT's roles": one(
        {"conversations": [{"from": "human", "value": "Tide at Hoek?"},
                           {"from": "function_call", "value": '{"name": "tide", "arguments": {"place": "Hoek"}}'},
                           {"from": "observation", "value": "low"}, {"from": "gpt", "value": "It is low."}],
         "tools": json.dumps([TIDE]), "system": "Be brief."},
        chat(system("Be brief."), user("Tide at Hoek?"), said(calls=[("tide", HOEK)]), result("low"),
             said("It is low."), tools=[TIDE]),
    ),
    "ms-swift's parallel calls": one(
        {"messages": [{"role": "user", "content": "Tides?"},
                      {"role": "assistant", "content": "One moment."},
                      {"role": "tool_call", "content": '{"name": "tide", "arguments": {"place": "Hoek"}}'},
                      {"role": "tool_call", "content": '{"name": "tide", "arguments": {"place": "Delft"}}'},
                      {"role": "tool_response", "content": "low"}, {"role": "tool_response", "content": "high"},
                      {"role": "assistant", "content": "Low, high."}], "tools": json.dumps([TIDE])},
        chat(user("Tides?"), said("One moment.", calls=[("tide", HOEK), ("tide", DELFT)]), result("low"),
             result("high"), said("Low, high."), tools=[TIDE]),
    ),
    "Hermes": one(
        {"conversations": [{"from": "system", "value": "Call functions."}, {"from": "human", "value": "Tide?"},
                           {"from": "gpt", "value": '<tool_call>\n{"arguments": {"place": "Hoek"}, "name": "tide"}\n'
                                                    "</tool_call>"},
                           {"from": "tool", "value": "<tool_response>\nlow\n</tool_response>"},
                           {"from": "gpt", "value": "It is low."}], "tools": json.dumps([TIDE])},
        chat(system("Call functions."), user("Tide?"), said(calls=[("tide", HOEK)]), result("low"),
             said("It is low."), tools=[TIDE]),
    ),
    "Mistral's calls in the text": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": '[TOOL_CALLS][{"name": "tide", "arguments": {}}]'}]},
        chat(user("Tide?"), said(calls=[("tide", "{}")])),
    ),
    "Mistral's calls since version 11": one(
        {"messages": [{"role": "user", "content": "Tides?"},
                      {"role": "assistant",
                       "content": '[TOOL_CALLS]tide[ARGS]{"place": "Hoek"}[TOOL_CALLS]tide[ARGS]{"place": "Delft"}'}]},
        chat(user("Tides?"), said(calls=[("tide", HOEK), ("tide", DELFT)])),
    ),
    "Nemotron's calls and results (When2Call)": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant",
                       "content": '<TOOLCALL>[{"name": "tide", "arguments": {"place": "Hoek"}}]</TOOLCALL>'},
                      {"role": "user", "content": "<TOOL_RESPONSE>low</TOOL_RESPONSE>"},
                      {"role": "assistant", "content": "It is low."}]},
        chat(user("Tide?"), said(calls=[("tide", HOEK)]), result("low"), said("It is low.")),
    ),
    "Granite's calls": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant",
                       "content": '<|tool_call|>[{"name": "tide", "arguments": {"place": "Hoek"}}]'}]},
        chat(user("Tide?"), said(calls=[("tide", HOEK)])),
    ),
    "Kimi's calls": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant",
                       "content": "One moment.<|tool_calls_section_begin|><|tool_call_begin|>functions.tide:0"
                                  '<|tool_call_argument_begin|>{"place": "Hoek"}<|tool_call_end|>'
                                  "<|tool_calls_section_end|>"}]},
        chat(user("Tide?"), said("One moment.", calls=[("tide", HOEK)])),
    ),
    "DeepSeek's calls": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant",
                       "content": "<|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|>tide\n```json\n"
                                  '{"place": "Hoek"}\n```<|tool_call_end|><|tool_calls_end|>'
                                  .replace("|", "\uff5c").replace("_", "\u2581")}]},
        chat(user("Tide?"), said(calls=[("tide", HOEK)])),
    ),
    "results with the ids of their calls": one(
        {"messages": [{"role": "user", "content": "Tides?"},
                      {"role": "assistant", "content": "", "tool_calls": calls(("a", HOEK), ("b", DELFT))},
                      {"role": "tool", "id": "b", "content": "high"}, {"role": "tool", "id": "a", "content": "low"},
                      {"role": "assistant", "content": "Low, high."}]},
        chat(user("Tides?"), said(calls=[("tide", HOEK), ("tide", DELFT)]), result("low"), result("high"),
             said("Low, high.")),
        {},
    ),
    "results with call_id": one(
        {"messages": [{"role": "user", "content": "Tides?"},
                      {"role": "assistant", "content": "", "tool_calls": calls(("a", HOEK), ("b", DELFT))},
                      {"role": "tool", "call_id": "b", "content": "high"},
                      {"role": "tool", "call_id": "a", "content": "low"},
                      {"role": "assistant", "content": "Low, high."}]},
        chat(user("Tides?"), said(calls=[("tide", HOEK), ("tide", DELFT)]), result("low"), result("high"),
             said("Low, high.")),
        {},
    ),
    "a result that is an object": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": "", "tool_calls": calls(("a", HOEK))},
                      {"role": "tool", "tool_call_id": "a", "content": {"tide": "low", "at": [6, 18]}},
                      {"role": "assistant", "content": "It is low."}]},
        chat(user("Tide?"), said(calls=[("tide", HOEK)]), result('{"tide": "low", "at": [6, 18]}'),
             said("It is low.")),
        {},
    ),
    "Llama's calls in the text": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": '<function=tide>{"place": "Hoek"}</function>'}]},
        chat(user("Tide?"), said(calls=[("tide", HOEK)])),
    ),
    "xLAM": one(
        {"id": 0, "query": "Tide at Hoek?", "tools": json.dumps([BARE_TIDE]),
         "answers": '[{"name": "tide", "arguments": {"place": "Hoek"}}]'},
        chat(user("Tide at Hoek?"), said(calls=[("tide", HOEK)]), tools=[BARE_TIDE]),
        {"id": 0 + 1},
    ),
    "Anthropic's parts": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": [
                          {"type": "thinking", "thinking": "Ask.", "signature": "x"},
                          {"type": "text", "text": "One moment."},
                          {"type": "tool_use", "id": "t1", "name": "tide", "input": {"place": "Hoek"}}]},
                      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "low"}]},
                      {"role": "assistant", "content": "It is low."}]},
        chat(user("Tide?"), said("One moment.", calls=[("tide", HOEK)]), result("low"), said("It is low.")),
        {},
    ),
    "a call without arguments": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": None, "tool_calls": calls(("a", ""))}], "tools": [TIDE]},
        chat(user("Tide?"), said(calls=[("tide", "{}")]), tools=[TIDE]),
    ),
    # --------------------------------------------------------------------------------------------------- plain text
    "FineWeb": one(
        {"text": "A heron waits.", "id": "1", "dump": "x", "url": "https://a.example/p", "score": 3.5},
        plain("A heron waits."),
        {"id": 1, "dump": 1, "url": 1, "score": 1},
        parquet=True,
    ),
    "Fast-LLM's spans": one(
        {"text": "Q: legs?\nA: 4 legs", "loss_masking_spans": [[0, 11]]},
        plain(("Q: legs?\nA: ", False), ("4 legs", True), ends=True),
        {},
    ),
    "Fast-LLM's spans, another name": one(
        {"text": "abcdef", "spans": [[4, 5], [0, 1]]}, plain(("ab", False), ("cd", True), ("ef", False)), {}
    ),
    "Fast-LLM's positions": one(
        {"text": "Look: a door, a wall.", "images": ["green.png", "red.png"], "image_positions": [14, 6]},
        plain("Look: [IMG]a door, [IMG]a wall.", images=("red", "green")),
        {},
    ),
}  # fmt: skip
