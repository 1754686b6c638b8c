"""Records with a question and its answer, under the names that Alpaca and its kin gave them."""

from __future__ import annotations

import re
from typing import Any

from megatron_apriel.data.raw.documents import Conversation
from megatron_apriel.data.raw.fields.envelopes import is_turn
from megatron_apriel.data.raw.fields.meanings import HISTORY, PROMPT_INPUT, PROMPTS
from megatron_apriel.data.raw.fields.taken import Fields, text_of
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.conversations import conversation
from megatron_apriel.data.raw.turns.parts import content_of
from megatron_apriel.data.raw.turns.reasoning import without_opening
from megatron_apriel.data.raw.turns.rendered import check_not_rendered
from megatron_apriel.data.raw.turns.replies import holds_reply, is_turns_text, reply_turns
from megatron_apriel.data.raw.turns.turn import Turn, pair_turns, turns_of

_BY_ANYBODY = ("llm_response", "model_response", "assistant_response", "model_answer", "generation",
               "generated_solution", "solution", "target", "final_answer")  # fmt: skip
"""Answers that may stand beside any prompt, where none of its own does."""
ANSWERS_TO = {
    "instruction": ("output", "outputs", "response", "completion", "answer", *_BY_ANYBODY),
    "prompt": ("completion", "response", "output", "outputs", "answer", *_BY_ANYBODY),
    "question": ("attempt", "deepseek_attempt", "response", "solution", "completion", "output", "answer", *_BY_ANYBODY,
                 "answers"),
    "query": ("response", "output", "completion", "answer", *_BY_ANYBODY, "answers", "label"),
    "problem": ("reannotated_assistant_content", "deepseek_solution", "generated_solution", "solution", "response",
                "output", "completion", "answer", *_BY_ANYBODY),
    "input": ("output", "response", "completion", "target", *_BY_ANYBODY, "content"),
    "inputs": ("targets", "outputs"),
    "text_input": ("output",),
    "input_text": ("output_text", "output"),
    "user": ("assistant",),
    "human": ("assistant", "gpt"),
    "message": ("response", "reply"),
    "message_1": ("message_2",),
}  # fmt: skip
"""For each name of a prompt, the names that its answer may have."""
_ASKING = ("instruction", "prompt", "question", "query", "problem", "input", "inputs", "text_input", "input_text")
"""Prompts that are no names of people."""
_TEMPLATE = re.compile(r"\s*Below is an? (?:instruction|question|task)\b")
"""How Alpaca's template begins, which some sets keep beside what it was filled with."""

_WITH_INPUT = {
    **dict.fromkeys(("instruction", "prompt"), PROMPT_INPUT.names),
    **dict.fromkeys(("question", "query", "problem"), ("context",)),
}
"""For each name of a prompt that another text may follow, the names of that one."""


def pair_of(record: Fields) -> tuple[str, str] | None:
    for prompt in PROMPTS.names:
        if not isinstance(record.peek(prompt), str | list | dict) or prompt not in record:
            continue
        for answer in ANSWERS_TO[prompt]:
            value = record.peek(answer)
            if answer in record and isinstance(value, str | list | dict) and _may_answer(answer, value):
                return prompt, answer
    return None


def _may_answer(name: str, value: Any) -> bool:
    """Whether a value is an answer: under names that mean something else as well only texts are."""
    texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if name == "label":
        return texts and len(value) == 1
    return name != "answers" or texts or (isinstance(value, str) and not value.lstrip().startswith(("{", "[")))


def read_pair(record: Fields, most_values: int) -> Conversation:
    names = pair_of(record)
    if names is None:
        raise BadRecord(
            "it has no prompt and answer, as other records of its file do; its fields: "
            + (", ".join(name for name in record.names() if name in record) or "none")
        )
    prompt, answer = names
    turns = _history(record, most_values)
    turns += _asked(record, prompt, most_values)
    said, path = record.take(answer), record.path(answer)
    if holds_reply(said, most_values):
        turns += reply_turns(record, answer, most_values)
    else:
        turns += pair_turns(None, only_text(said, path), record, path, "the answer", most_values)
    if turns[-1].reasoning and len(turns) > 1 and turns[-2].pieces and isinstance(turns[-2].pieces[-1], str):
        turns[-2].pieces[-1] = without_opening(turns[-2].pieces[-1])
    _check_other_prompts(record, prompt, turns)
    return conversation(record, turns, most_values)


def _check_other_prompts(record: Fields, prompt: str, turns: list[Turn]) -> None:
    """Raise BadRecord for a further question or its input that no turn holds: the answer would be one to a part."""
    for name in _ASKING:
        value = record.peek(name)
        if (
            name != prompt
            and isinstance(value, str)
            and value.strip()
            and not any(value.strip() in turn.text for turn in turns)
        ):
            if _is_filled_in(value, turns):
                record.count(name)
                continue
            path = record.path(name)
            raise BadRecord(
                f"field {path!r} holds a text that no turn holds, beside another question: put both into one, or "
                f"--ignore {path}"
            )


def _is_filled_in(text: str, turns: list[Turn]) -> bool:
    """Whether a text is a template with the question in it, its answer as well or known words around it."""
    asked = [line.strip() for turn in turns[:-1] for line in turn.text.splitlines()]
    return all(line in text for line in asked) and (turns[-1].text in text or _TEMPLATE.match(text) is not None)


def _asked(record: Fields, prompt: str, most_values: int) -> list[Turn]:
    value, path = record.take(prompt), record.path(prompt)
    if _is_list_of_turns(value) or is_turns_text(value, most_values):
        return turns_of(value, record, path, most_values)
    extra = ""
    if prompt in _WITH_INPUT:
        texts = tuple(name for name in _WITH_INPUT[prompt] if isinstance(record.peek(name), str | None))
        extra = text_of(record.take(*texts) or "", f"field {record.taken_name(*texts)!r}") if texts else ""
    content = content_of(only_text(value, path), record, path, f"field {path!r}", most_values)
    check_not_rendered("".join(piece for piece in content.pieces if isinstance(piece, str)), f"field {path!r}")
    if extra.strip():
        content.pieces.append("\n" + extra)
    return [Turn("user", f"field {path!r}", content.pieces)]


def _history(record: Fields, most_values: int) -> list[Turn]:
    path, value = record.taken_name(*HISTORY.names), record.take(*HISTORY.names)
    return [] if value is None else turns_of(value, record, path, most_values)


def _is_list_of_turns(value: Any) -> bool:
    rows = value if isinstance(value, list) else [value]
    return bool(rows) and all(map(is_turn, rows))


def only_text(value: Any, path: str) -> Any:
    """The text of a list of one text."""
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        if len(set(value)) > 1:
            raise BadRecord(f"field {path!r} is a list of {len(value)} texts, and none of them is the one to learn")
        return value[0]
    return value
