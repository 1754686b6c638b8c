"""What the answers obey and no turn holds: instructions, tools, texts beside the turns or in objects there.

Where a turn holds the text as well, the field is counted as not used; otherwise its record is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from megatron_apriel.data.raw.fields.meanings import SYSTEMS, TOOLS
from megatron_apriel.data.raw.fields.taken import Leftover, leaves
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord, way_out
from megatron_apriel.data.raw.reading import plain_name
from megatron_apriel.data.raw.turns.other_turns import contents_of

CONTEXT = (
    "prompt instruction instructions context documents document persona background preamble knowledge passage article "
    "paragraph history chat_history examples few_shot demonstrations choices options candidates hint hints "
    "custom_instruction contexts ctx ctxs passages paragraphs articles evidence evidences guideline guidelines rules "
    "definition task_prompt task_instruction task_definition role_description retrieved_documents search_results story "
    "preamble_override few_shot_examples in_context_examples assistant_prefill premise dialogue_history "
    "conversation_history schema schemas db_schema database_schema table_schema ddl table "
    "tables scenario situation personality bot_definitions world_info lorebook knowledge_base pre_prompt "
    "initial_prompt prompt_prefix prefill output_format answer_format system_text system_role system_content sysprompt "
    "task_description bot_description char_description character_description character profile user_profile memory "
    "memories facts ocr ocr_text ocr_tokens source_text source_document reference_text snippets chunks web_results "
    "retrieved retrieval constraints requirements assistant_prefix response_prefix answer_prefix demos icl_examples "
    "style_guide constitution persona_description persona_text background_story backstory lore scene previous_turns "
    "prior_messages past_conversation conversation_summary dialogue_summary passage_text context_text document_text "
    "table_text file_content file_contents docs"
)
"""Fields beside turns that are counted where the turns hold their text, and refused where they do not."""
CONTEXT_ENDINGS = (
    "persona personas context contexts policy guidelines rules scenario passage passages instruction instructions "
    "memory memories demonstrations shots"
)
"""Last words of names of further such fields."""
CONTEXT_OF = (
    ("system sys developer", "prompt prompts message messages msg instruction instructions text content"),
    ("tool tools functions api apis", "prompt description descriptions desc text doc docs documentation spec"),
)
"""Words of names of further such fields: one of each pair."""
NO_CONTEXT = (
    "original seed raw source old previous evolved generated grading grader judge judging evaluation eval scoring "
    "annotation annotator labeling review reward license benchmark similar neighbor input_persona"
)
"""Words in such names, and a whole name (PersonaHub's), that say that the text is about the record, or that it was made
of it."""
ABOUT = (
    "type types token tokens length len count language lang model id source effort mode budget level category score "
    "quality template format prompt tag tags time domain difficulty instruction instructions style"
)
"""Last words of names of what only describes it."""
TAGS = ("intent", "knowledge", "difficulty")
"""What a classifier says of a question, where all stand beside it (Magpie): ``knowledge`` is no context then."""
MOST_VALUES = 10_000
"""Most of a JSON text in a field that is looked into."""
_CHOICE = re.compile(r"(?:option|choice|candidate|opt|op)s?_?[a-j1-9]|[a-j]")
"""A choice in a field of its own, as multiple choice sets have them (MMBench, MedMCQA)."""
_OBEYED = frozenset({*SYSTEMS.names, *TOOLS.names} - {"developer", "sys", "functions", "function", "apis"})
"""What the answers obey, inside objects that hold anything besides."""
_IDENTIFIER = re.compile(r"[\w.-]*[:_/][\w.:/-]*")
"""A text that is a name of something, as ``punctuation:no_comma``, and no instruction."""
_KIND_OF_CONSTRAINT = re.compile(r"[a-z][a-z_ ]{0,40}:[a-z_][a-z_ ]{0,60}")
"""A name of IFEval's kinds in words, as ``detectable format:number bullet lists`` (Tulu 3)."""
_CONTEXT_OF = [[frozenset(words.split()) for words in pair] for pair in CONTEXT_OF]
_ABOUT = frozenset((*ABOUT.split(), "name", "version", "hash")) - {"prompt", "instruction", "instructions"}


def _is_context(name: str, has_choices: bool) -> bool:
    choice = _CHOICE.fullmatch(name) is not None and (len(name) > 1 or has_choices)
    return choice or name in CONTEXT.split()


def _reads_as_context(leftover: Leftover) -> bool:
    """Whether the words of a field's name say that it is such a text, and it is no mere name and no JSON."""
    words = leftover.name.split("_")
    paired = any(not any(one.isdisjoint(words) for one in pair) for pair in _CONTEXT_OF) and words[-1] not in _ABOUT
    named = (paired or words[-1] in CONTEXT_ENDINGS.split()) and {leftover.name, *words}.isdisjoint(NO_CONTEXT.split())
    return named and any(" " in text.strip() and text.lstrip()[:1] not in ("[", "{") for text in texts_of(leftover))


def check_inside(leftover: Leftover, said: Sequence[str], ignored: frozenset[str]) -> None:
    """Refuse what the answers obey where it stands in an object of the record, as in ``metadata.system_prompt``."""
    waiting: list[tuple[str, Any]] = [(leftover.path, _as_object(leftover.value))]
    while waiting:
        path, value = waiting.pop()
        for key, one in value.items() if isinstance(value, Mapping) else ():
            inner, name = f"{path}.{key}", plain_name(str(key))
            if inner in ignored:
                continue
            if name in _OBEYED and _is_obeyed(name, one):
                ours = "tools" if name in TOOLS.names else "system"
                check_context(Leftover("record", inner, name, one), said, f": --map {inner}={ours} reads it")
            else:
                waiting.append((inner, _as_object(one)))


def _as_object(value: Any) -> Any:
    """A value, or that of its JSON text where it may hold what the answers obey."""
    if not isinstance(value, str) or not value.lstrip().startswith("{") or not any(f'"{n}"' in value for n in _OBEYED):
        return value
    with suppress(BadRecord):
        return parsed_json(value, MOST_VALUES)
    return value


def is_obeyed_by_answers(leftover: Leftover, has_choices: bool) -> bool:
    """Whether a field is such a text by its name.

    Args:
        leftover: the field.
        has_choices: whether its record has fields ``a`` and ``b``: one letter is the name of a choice then.
    """
    if leftover.level == "turn":
        named = leftover.name in CONTEXT.split() or _reads_as_context(leftover)
        return named or (leftover.name in SYSTEMS.names and _is_obeyed(leftover.name, leftover.value))
    named = _is_context(leftover.name, has_choices) or _reads_as_context(leftover)
    return leftover.level == "record" and (named or _is_obeyed_outside(leftover))


def _is_obeyed_outside(leftover: Leftover) -> bool:
    """Whether it is a system turn, or tools, around the request of a log; answers repeat the tools of theirs."""
    if leftover.name in TOOLS.names and "." in leftover.path:
        return False
    return leftover.name in (*SYSTEMS.names, *TOOLS.names) and _is_obeyed(leftover.name, leftover.value)


def may_be_tools(value: Any) -> bool:
    """Whether a value may hold schemas of tools, and not only names."""
    listed = value if isinstance(value, list) else [value]
    return any(isinstance(one, Mapping) or str(one).lstrip()[:1] in ("{", "[") for one in listed)


def _is_obeyed(name: str, value: Any) -> bool:
    """Whether a value may be an instruction, or tools, and not only the name of one."""
    if name in TOOLS.names:
        return may_be_tools(value)
    return not isinstance(value, str) or " " in value.strip()


def check_context(leftover: Leftover, said: Sequence[str], also: str = "") -> None:
    """Raise BadRecord if none of the texts ``said`` holds what the field says; ``also`` names another way out."""
    for text in contents_of(leftover.value) or texts_of(leftover):
        kind = leftover.name == "constraints" and _KIND_OF_CONSTRAINT.fullmatch(text) is not None
        kind = kind or _IDENTIFIER.fullmatch(text.strip()) is not None
        if not kind and not any(text.strip() in turn for turn in said):
            raise BadRecord(
                f"field {leftover.path!r} holds a text that no turn holds: the answers may follow it, and it would be "
                f"left out{also}{way_out(leftover.path)}"
            )


def texts_of(leftover: Leftover) -> list[str]:
    """All texts in a leftover."""
    texts: list[str] = []
    waiting = [value for _, _, value in leaves(leftover, frozenset())]
    while waiting:
        value = waiting.pop()
        waiting += value if isinstance(value, list) else []
        texts += [value] if isinstance(value, str) and value.strip() else []
    return texts
