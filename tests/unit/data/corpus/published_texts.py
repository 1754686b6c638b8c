"""Published sets of texts alone: conversations, instructions, documents."""

from __future__ import annotations

import json

from tests.unit.data.corpus.published_set import ANSWERED, ASKED, BARE_TIDE, QUESTION_AND_ANSWER, Published, one
from tests.unit.data.corpus.written_documents import chat, plain, said, system, user

TEXTS: dict[str, Published] = {
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
    "CodeExercise": one(
        {"chat_rounds": [{"id": 0, "role": "human", "content": ASKED}, {"id": 1, "role": "bot", "content": ANSWERED}]},
        QUESTION_AND_ANSWER,
    ),
    "SWE-rebench's trajectories": one(
        {"instance_id": "x", "resolved": 1, "exit_status": "submit",
         "trajectory": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]},
        QUESTION_AND_ANSWER,
    ),
    "Blossom, with the bare answer beside the worked one": one(
        {"id": "x", "query": ASKED, "output": "It is red.", "answer": "red", "dataset": "own"},
        chat(user(ASKED), said("It is red.")),
        {"id": 1, "answer": 1, "dataset": 1},
    ),
    "Gemini's tuning data": one({"text_input": ASKED, "output": ANSWERED}, QUESTION_AND_ANSWER, {}),
    "Vertex AI's tuning data": one({"input_text": ASKED, "output_text": ANSWERED}, QUESTION_AND_ANSWER, {}),
    "python_code_instructions, with the template filled in": one(
        {"instruction": "Add.", "input": "6 6", "output": "12",
         "prompt": "Below is an instruction that describes a task. Write a response that completes it.\n\n"
                   "### Instruction:\nAdd.\n\n### Input:\n6 6\n\n### Output:\n12"},
        chat(user("Add.\n6 6"), said("12")),
        {"prompt": 1},
    ),
    "pairs of query and response": one(
        {"conversation": [{"query": ASKED, "response": ANSWERED}, {"query": "Sure?", "response": "Yes."}]},
        chat(user(ASKED), said(ANSWERED), user("Sure?"), said("Yes.")),
        {},
    ),
    "pairs of prompt and completion in a history": one(
        {"history": [{"prompt": ASKED, "completion": ANSWERED}], "query": "Sure?", "response": "Yes."},
        chat(user(ASKED), said(ANSWERED), user("Sure?"), said("Yes.")),
        {},
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
    "Firefly": one({"kind": "x", "input": ASKED, "target": ANSWERED}, QUESTION_AND_ANSWER, {"kind": 1}),
    "LIMO": one(
        {"question": "6+6?", "solution": "Six and six make twelve.", "answer": "12"},
        chat(user("6+6?"), said("Six and six make twelve.")),
        {"answer": 1},
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
    "NeMo's chat": one(
        {"system": "Be brief.", "mask": "User",
         "conversations": [{"from": "User", "value": ASKED}, {"from": "Assistant", "value": ANSWERED}]},
        chat(system("Be brief."), user(ASKED), said(ANSWERED)),
        {},
    ),
    "Tulu 3's kinds of constraints": one(
        {"prompt": ASKED, "constraints": ["keywords:frequency", "detectable format:number bullet lists"],
         "messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]},
        QUESTION_AND_ANSWER,
        {"prompt": 1, "constraints": 1},
    ),
    "Magpie": one(
        {"input": ASKED, "output": ANSWERED, "intent": "The user asks for a colour.", "difficulty": "easy",
         "knowledge": "One needs to know the names of colours.", "input_quality": "good",
         "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]},
        QUESTION_AND_ANSWER,
        {"input": 1, "output": 1, "intent": 1, "difficulty": 1, "knowledge": 1, "input_quality": 1},
    ),
    "CAMEL": one(
        {"role_1": "Painter_RoleType.ASSISTANT", "topic;": "Colours", "message_1": ASKED, "message_2": ANSWERED},
        QUESTION_AND_ANSWER,
        {"role_1": 1, "topic;": 1},
    ),
    "metharme": one({"prompt": ASKED, "generation": ANSWERED}, QUESTION_AND_ANSWER, {}),
    "Cohere's chat": one(
        {"chat_history": [{"role": "USER", "message": ASKED}, {"role": "CHATBOT", "message": ANSWERED}],
         "message": "Sure?", "response": "Yes."},
        chat(user(ASKED), said(ANSWERED), user("Sure?"), said("Yes.")),
        {},
    ),
    "turns of OpenRLHF": one(
        {"message": json.dumps([{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}])},
        QUESTION_AND_ANSWER,
        {},
    ),
    "texts and their speakers": one(
        {"dialogue": ["Be brief.", ASKED, ANSWERED], "speakers": ["system", "user", "assistant"]},
        chat(system("Be brief."), user(ASKED), said(ANSWERED)),
        {},
    ),
    "two who take turns": one(
        {"dialogue": [ASKED, ANSWERED], "speakers": ["Ann", "Bob"]}, QUESTION_AND_ANSWER, {"speakers": 1}
    ),
}  # fmt: skip
