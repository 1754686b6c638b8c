"""Reasoning parted from the answer, in every published spelling.

Models write their reasoning between tags, and their makers chose different ones: ``<think>`` (DeepSeek, Qwen),
``[THINK]`` (Magistral), ``<|begin_of_thought|>`` (OpenThoughts, Sky-T1), ``<reasoning>`` and ``<thinking>``,
``◁think▷`` (Kimi), ``<|START_THINKING|>`` (Cohere), ``<seed:think>`` (Seed), gpt-oss's channels, LLaVA-CoT's stages,
headings (HuatuoGPT-o1, Granite, s1), and this project's own opening. The first of these are one grammar: a name of
reasoning in some kind of brackets, opened and closed; the answer behind it may stand between tags of its own. The
grammar is followed, not a list of tags.

- The first opening and the first closing after it enclose the reasoning. A closing alone ends what began in the prompt.
- Words before the opening belong to the answer; between two pieces of reasoning nothing may stand.
- A reasoning that was opened and not closed was cut off: it would be taught as an answer. So would a tag left over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from megatron_apriel.data.raw.fields.taken import Fields, kind_of, text_of
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.turns.chat_markers import (
    END_OF_TURN,
    REASONING_OPENING,
    RESPONSE_CLOSING,
    RESPONSE_OPENING,
)

_THOUGHT = (
    r"(?:\w{1,12}:)?(?:inner[_ ]|chain[_ ]of[_ ]|longcat[_ ]|deep[_ ]?)?"
    r"(?:think(?:ing|_fast(?:er)?)?|thoughts?|reason(?:ing)?)"
    r"(?:[_ ](?:process|content|trace|steps|chain))?"
    r"|rationale|cot|scratch_?pad|analysis|reflection|(?:inner|internal)[_ ]monologue"
)
_ANSWER = r"(?:final[_ ])?(?:answer|solution|response|output)"


def _tags(name: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of opening and closing tags with this name, in all kinds of brackets."""
    opening = (
        rf"(?i:<\s?(?:{name})(?:\s[^<>\n]{{0,80}})?>|◁(?:{name})▷|<\|(?:begin_of_|start_of_|begin_|start_)?(?:{name})\|>"
        rf"|<\|(?:{name})_(?:start|begin)\|>|\[(?:THINK(?:ING)?|REASONING)\])"
    )
    closing = (
        rf"(?i:</\s?(?:{name})\s?>|◁/(?:{name})▷|<\|(?:end_of_|end_|/)(?:{name})\|>|<\|(?:{name})_end\|>"
        r"|\[/(?:THINK(?:ING)?|REASONING)\])"
    )
    return re.compile(opening), re.compile(closing)


_OPENING, _CLOSING = _tags(_THOUGHT)
_ANSWER_OPENING, _ANSWER_CLOSING = _tags(_ANSWER)
_CERTAIN = re.compile(r"(?i)</?\s?(?:seed:)?think(?:\s[^<>]*)?>|\[/?THINK\]|◁.*▷|<\|.*\|>")
"""Tags that no text has by chance; others, as ``<reasoning>``, may stand in code or in advice about prompts."""
_WORDS_OF_PAGES = re.compile(r"(?i)<\s?(?:reason|rationale|cot|analysis|reflection)\b")
"""Tags that documents have as well: they are reasoning only where an answer follows."""
_ENDS = re.compile(r"^(?:begin|start|end)_(?:of_)?|_(?:begin|start|end)$")
_EMPTY = re.compile(r"(?i)<\s?(?:seed:)?think\s*/>")
_LONGEST_TAG = 100
_MOST_CLOSINGS = 20
"""That are looked at for one of an opening's name."""
_PREAMBLE = 200
"""Characters of the words before reasoning whose tag is not certain."""
_STAGES = re.compile(
    r"\s*<SUMMARY>(.*?)</SUMMARY>\s*(?:<CAPTION>(.*?)</CAPTION>\s*)?<REASONING>(.*?)</REASONING>\s*"
    r"<CONCLUSION>(.*?)</CONCLUSION>\s*",
    re.DOTALL | re.IGNORECASE,
)
"""LLaVA-CoT's; of a question without an image there is no caption."""
_STEPS = (
    r"(?i:plan(?:ning)?|analy[sz]e|observ(?:e|ation)|perce(?:ive|ption)|info|caption|description|look|verify|critique)"
)
_STEPS_BEFORE = re.compile(rf"<{_STEPS}>.*</{_STEPS}>\s{{0,99}}(?=<(?i:answer)>.*</(?i:answer)>\Z)", re.DOTALL)
"""Steps in tags of their own before an answer in tags, as sets for reinforcement learning have them."""
_ELEMENTS = re.compile(r"<(\w{1,30})>.*</\w{1,30}>", re.DOTALL)
_HEADINGS = (
    ("## Thinking\n", "\n## Final Response\n"),
    ("Here is my thought process:", "\nHere is my response:"),
    ("<|im_start|>think\n", "<|im_start|>answer\n"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<start_working_out>", "<end_working_out>"),
    ("<|channel>thought\n", "<channel|>"),
    ("[unused16]", "[unused17]"),
    ("Thinking...\n", "\n...done thinking."),
)
"""Two lines or marks, before reasoning and before the answer: HuatuoGPT-o1, Granite, s1, Apertus, Unsloth, Gemma, Pangu
and what Ollama prints."""
_FOLDED = re.compile(
    r"\s*<details(?P<marked>\s[^<>]{0,80}type=\"reasoning\"[^<>]{0,80})?>\s*<summary>(?P<title>[^<>]{0,80})</summary>"
    r"(?P<thought>.*?)</details>(?P<answer>.*)",
    re.DOTALL,
)
"""What Open WebUI folds away, each line behind ``>``."""
_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>(analysis|final)<\|message\|>(.*?)(?:<\|end\|>|<\|return\|>|\Z)", re.DOTALL
)
"""gpt-oss's."""
_BARE_CHANNELS = re.compile(r"analysis(?P<thought>.+?)assistant(?P<channel>final|commentary)(?P<answer>.*)", re.DOTALL)
"""The same with its special tokens left out, as a decoder does that skips them."""
_LOOKS_LIKE_REASONING = re.compile(
    r"[<\[{◁]\|?/?\w{0,20}(?:think|thought|reason|scratchpad|reflect|monologue|analysis|working_out|rationale)"
    r"\w{0,20}\|?[>\]}▷]|&lt;/?think(?:ing)?&gt;|```(?:think|reason)|type=\"reasoning\"|<\|inner_prefix\|>"
    r"|<\|im_start\|>think|<\|?channel\|?>(?:thought|analysis)"
    r"|^[#*\s]{0,6}(?:chain of thought|(?:thought|thinking|reasoning)(?: process)?|thoughts|scratchpad)[*\s]{0,4}:",
    re.IGNORECASE | re.MULTILINE,
)
_FORMATS = re.compile(r"[\w.-]+-v\d+|unknown")
"""What OpenRouter calls the form of a text of reasoning; its number stands beside it, too."""
_TYPES = re.compile(r"(?:(?:reasoning|thinking|thought|summary|text)[._]?){1,3}")
"""Of a text of reasoning: ``thinking``, ``reasoning.text``, ``summary_text``."""
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_QUOTES = "`\"'\u201c\u2018"


def split_reasoning(said: str, where: str) -> tuple[str, str]:
    """The reasoning and the answer of what an assistant said, both without white space around them.

    Raises:
        BadRecord: the reasoning has no end, or stands in several places, or a tag of it would be left in the answer.
    """
    text = said.strip()
    if text.startswith(REASONING_OPENING) and RESPONSE_OPENING not in text:
        raise BadRecord(
            f"{where}: reasoning opened by {REASONING_OPENING!r} has no {RESPONSE_OPENING!r}; it was cut off"
        )
    if RESPONSE_OPENING in text and not _OPENING.match(text):
        reasoning, _, rest = text.partition(RESPONSE_OPENING)
        return reasoning.strip().removeprefix(REASONING_OPENING).strip(), rest.partition(RESPONSE_CLOSING)[0].strip()
    if stages := _STAGES.fullmatch(text):
        return "\n\n".join(stage.strip() for stage in stages.groups()[:3] if stage), stages[4].strip()
    if (folded := _FOLDED.match(text)) and folded["answer"].strip() and _is_reasoning(folded):
        lines = (line.removeprefix("> ").removeprefix(">") for line in folded["thought"].strip().splitlines())
        return "\n".join(lines).strip(), folded["answer"].strip()
    text = _without_end(text)
    text = _EMPTY.sub("", text, count=1).strip() if _EMPTY.match(text) else text
    for opening, closing in _HEADINGS:
        thought, found, answer = text.removeprefix(opening).partition(closing)
        thought, answer = (part.strip().removesuffix("<|im_end|>").strip() for part in (thought, answer))
        if text.startswith(opening) and found and thought and answer:
            return thought, _unwrapped(answer, where, reasoned=True)
    if text.startswith(("<|channel|>", "<|start|>")):
        return _channels(text, where)
    if bare := _BARE_CHANNELS.fullmatch(text):
        if bare["channel"] != "final":
            raise BadRecord(f"{where}: channels of gpt-oss other than analysis and final: 'assistantcommentary'")
        return bare["thought"].replace("assistantanalysis", "\n\n").strip(), bare["answer"].strip()
    return _tagged(text, where)


def behind_reasoning(said: str) -> str:
    """What stands behind the last reasoning between tags; nothing where it was opened and not closed.

    Unlike :func:`split_reasoning` it refuses nothing: an answer is scored in whatever form it is.
    """
    text = said.lstrip()
    if text.startswith(("<|channel|>", "<|start|>")):
        return next((part[2].strip() for part in _last(_CHANNEL, text) if part[1] == "final"), "")
    if (bare := _BARE_CHANNELS.fullmatch(text)) and bare["channel"] == "final":
        return bare["answer"].strip()
    opening = _OPENING.match(text)
    for closing in _last(_CLOSING, text):
        if opening is not None or _CERTAIN.fullmatch(closing[0]):
            return text[closing.end() :].strip()
    return "" if opening is not None and _CERTAIN.fullmatch(opening[0]) else said


def _last(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """Where a pattern matches, from the end on."""
    return reversed(list(pattern.finditer(text)))


def _is_reasoning(folded: re.Match[str]) -> bool:
    return bool(folded["marked"] or _LOOKS_LIKE_REASONING.search(f"{folded['title'].strip()}:"))


def _without_end(text: str) -> str:
    """An answer without the end of the turn that the model wrote behind it and a server left there."""
    answer, _, behind = text.partition(RESPONSE_CLOSING)
    return text if behind.replace(END_OF_TURN, "").replace("</s>", "").strip() else answer.strip()


def without_opening(prompt: str) -> str:
    """A prompt without the tag that opens the reasoning of its answer, at its end."""
    tags = [
        match for match in _OPENING.finditer(prompt, max(0, len(prompt) - _LONGEST_TAG)) if _CERTAIN.fullmatch(match[0])
    ]
    return prompt[: tags[-1].start()].rstrip() if tags and not prompt[tags[-1].end() :].strip() else prompt


def looks_unrecognised(answer: str) -> bool:
    """Whether an answer holds what looks like tags or headings of reasoning in a spelling that is not known."""
    return _LOOKS_LIKE_REASONING.search(answer) is not None


def begins_with_reasoning(text: str) -> bool:
    """Whether a text is an answer with reasoning before it, by tags that no text has by chance."""
    opening, closing = _OPENING.match(text.lstrip()), _unquoted(_CLOSING, text)
    if closing is None or not _CERTAIN.fullmatch(closing[0]):
        return False
    return opening is not None or _unquoted(_OPENING, text) is None


def reasoning_text(value: Any, what: str) -> str:
    """The reasoning that a field holds: a text, or a list of texts or parts with texts. Raises BadRecord."""
    if isinstance(value, list) and value:
        return "\n\n".join(text for one in value if (text := reasoning_text(one, what)).strip())
    if isinstance(value, dict):
        said = {name: one for name, one in value.items() if one is not None and not _is_beside(name, one)}
        texts = [name for name in ("thinking", "text", "content", "summary") if name in said]
        if len(texts) != 1 or said.keys() - {*texts, "signature", "id"}:
            raise BadRecord(
                f"{what} is an object of {', '.join(map(str, said))}; known: one of text, content, thinking, summary"
            )
        return reasoning_text(said[texts[0]], what)
    if not isinstance(value, str):
        raise BadRecord(f"{what} is {kind_of(value)}, not a string")
    return text_of(value, what)


def _is_beside(name: str, value: Any) -> bool:
    if name == "index":
        return type(value) is int
    if name == "type":
        return _TYPES.fullmatch(str(value)) is not None
    return (name == "format" and _FORMATS.fullmatch(str(value)) is not None) or (name == "effort" and value in _EFFORTS)


def taken_reasoning(fields: Fields, names: tuple[str, ...], where: str) -> str:
    """The reasoning in the fields of those names; several must say the same. Raises BadRecord."""
    found: dict[str, str] = {}
    for name in names:
        if name in fields and not _is_switch(fields.peek(name)):
            path = fields.path(name)
            text = reasoning_text(fields.take(name), f"{where}{path}").strip()
            text = text.removeprefix(REASONING_OPENING).strip()
            text = _without_tags(text)
            if text:
                found[path] = text
    if len({" ".join(text.split()) for text in found.values()}) > 1:
        raise BadRecord(f"{where}{' and '.join(found)} hold different reasoning")
    return next(iter(found.values()), "")


def joined(apart: str, inside: str, where: str) -> str:
    """The one reasoning of a turn that has it in a field and between tags as well. Raises BadRecord if they differ."""
    if not apart or not inside:
        return apart or inside
    one, other = (" ".join(text.split()) for text in (apart, inside))
    if one in other:
        return inside
    if other in one:
        return apart
    raise BadRecord(f"{where}: the reasoning in its field and between the <think> tags of its text differ")


def _without_tags(text: str) -> str:
    """Reasoning in a field of its own whose tags were left around it."""
    if opening := _OPENING.match(text):
        text = text[opening.end() :]
    closings = list(_CLOSING.finditer(text))
    return (text[: closings[-1].start()] if closings and closings[-1].end() == len(text) else text).strip()


def _is_switch(value: Any) -> bool:
    """``reasoning: on`` or ``{"effort": "high"}``: whether and how to reason, which is no reasoning."""
    if isinstance(value, dict) and value:
        return not {"thinking", "text", "content"} & value.keys() and not isinstance(value.get("summary"), list)
    return isinstance(value, bool | int | float) or (
        isinstance(value, str) and value.strip().lower() in ("on", "off", "yes", "no", "true", "false", "none", "auto",
                                                             "low", "medium", "high")
    )  # fmt: skip


def _channels(text: str, where: str) -> tuple[str, str]:
    found: dict[str, list[str]] = {"analysis": [], "final": []}
    place = 0
    for match in _CHANNEL.finditer(text):
        if text[place : match.start()].strip():
            break
        found[match[1]].append(match[2].strip())
        place = match.end()
    if text[place:].strip() or len(found["final"]) > 1:
        raise BadRecord(f"{where}: channels of gpt-oss other than analysis and final: {text[place : place + 40]!r}")
    return "\n\n".join(found["analysis"]), "".join(found["final"])


def _tagged(text: str, where: str) -> tuple[str, str]:
    opening, closing = _first_opening(text), _lone_closing(text)
    pieces, before = [], ""
    if closing is not None and (opening is None or closing.start() < opening.start()):
        pieces, rest = [text[: closing.start()]], text[closing.end() :].strip()  # opened in the prompt
    elif opening is not None:
        before, rest = text[: opening.start()].strip(), text[opening.start() :]
    elif (steps := _STEPS_BEFORE.match(text)) and (answered := _unwrapped(text[steps.end() :], where, reasoned=True)):
        return steps[0].strip(), answered
    else:
        return "", _unwrapped(text, where, reasoned=False)
    place = 0
    while (opening := _OPENING.match(rest, place)) is not None:
        if (closing := _closing_behind(opening, rest)) is not None:
            pieces.append(rest[opening.end() : closing.start()])
            place = _behind_space(rest, closing.end())
        elif (answer := _ANSWER_OPENING.search(rest, opening.end())) is not None:
            pieces.append(rest[opening.end() : answer.start()])
            place = answer.start()
        else:
            raise BadRecord(
                f"{where}: reasoning opened by {opening[0]!r} has no {_closing_of(opening[0])!r}; it was cut off"
            )
    rest = rest[place:].strip()
    answered = _unwrapped(rest, where, reasoned=True)
    for pattern in (_OPENING, _CLOSING):
        left = _unquoted(pattern, answered)
        if left is not None and _CERTAIN.fullmatch(left[0]):
            raise BadRecord(f"{where}: {left[0]!r} stands in the answer, behind reasoning that was closed before")
    if answered != rest and _ELEMENTS.fullmatch(before):
        before, pieces = "", [before, *pieces]  # what was seen, in a tag of its own
    reasoning = "\n\n".join(piece.strip() for piece in pieces if piece.strip())
    return reasoning, "\n".join(filter(None, (before, answered)))


def _behind_space(text: str, place: int) -> int:
    while text[place : place + 1].isspace():
        place += 1
    return place


def _closing_behind(opening: re.Match[str], text: str) -> re.Match[str] | None:
    """The first closing of that name, for reasoning may hold tags of others, as a reflection; else the first of any."""
    closings = list(islice(_CLOSING.finditer(text, opening.end()), _MOST_CLOSINGS))
    alike = (closing for closing in closings if _name_of(closing[0]) == _name_of(opening[0]))
    return next(alike, closings[0] if closings else None)


def _name_of(tag: str) -> str:
    """What a tag of reasoning is called, whichever end it marks."""
    return _ENDS.sub("", re.split(r"\s", tag.strip("<>[]|◁▷/ ").lower())[0])


def _lone_closing(text: str) -> re.Match[str] | None:
    """A closing of what began in the prompt: none that ends what the text itself opens, or that pages have as well."""
    opening, closing = _unquoted(_OPENING, text), _unquoted(_CLOSING, text)
    if closing is None or (opening is not None and opening.start() < closing.start()):
        return None
    return None if _WORDS_OF_PAGES.match(closing[0].replace("/", "")) else closing


def _first_opening(text: str) -> re.Match[str] | None:
    """Where reasoning begins: at the start, or behind words where the tag is certain or the words are few."""
    opening = _unquoted(_OPENING, text)
    if opening is not None and _WORDS_OF_PAGES.match(opening[0]):
        closing = _CLOSING.search(text, opening.end())
        rest = "" if closing is None else text[closing.end() :].strip()
        if not rest or (rest.startswith("<") and not _ANSWER_OPENING.match(rest)):
            return None
    if opening is None or opening.start() == 0 or _CERTAIN.fullmatch(opening[0]):
        return opening
    few = opening.start() <= _PREAMBLE and "```" not in text[: opening.start()]
    return opening if few and _CLOSING.search(text, opening.end()) else None


def _unwrapped(text: str, where: str, *, reasoned: bool) -> str:
    """The answer without tags around all of it; without reasoning only those are taken that no text has by chance."""
    opening = None if text.startswith("[") else _ANSWER_OPENING.match(text)
    if opening is None or not (reasoned or opening[0].startswith("<|")):
        return text
    closing = _ANSWER_CLOSING.search(text, opening.end())
    if closing is None:
        raise BadRecord(f"{where}: the answer opened by {opening[0]!r} has no end; it was cut off")
    if text[closing.end() :].strip():
        return text
    return text[opening.end() : closing.start()].strip()


def _unquoted(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The first match that does not stand between quotation marks or as code, where a text speaks about tags."""
    for match in pattern.finditer(text):
        around = text[match.start() - 1 : match.start()] + text[match.end() : match.end() + 1]
        if not (len(around) == 2 and around[0] in _QUOTES and around[1] in "`\"'\u201d\u2019"):
            return match
    return None


def _closing_of(opening: str) -> str:
    for begin in ("<|begin_of_", "<|start_of_", "<|begin_", "<|start_"):
        if opening.lower().startswith(begin):
            return "<|end_" + opening[len(begin) - (3 if begin.endswith("of_") else 0) :]
    return opening[0] + ("|/" + opening[2:] if opening.startswith("<|") else "/" + opening[1:])
