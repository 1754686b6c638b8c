"""Texts that another model's chat template has rendered already: their turns are words of one text, and its tags too.

Such a text would teach the model to write tags that mean nothing to it. What begins as one is refused; the token that
ends a turn, left behind an answer by the server that made it, is taken off.
"""

from __future__ import annotations

import re

from megatron_apriel.data.raw.problems import BadRecord

_BAR, _LINE = "\uff5c", "\u2581"
"""DeepSeek's, which are not those of ASCII."""
_BEGINNINGS = ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>", "<|startoftext|>", "[gMASK]<sop>",
               f"<{_BAR}begin{_LINE}of{_LINE}sentence{_BAR}>", "<BOS_TOKEN>")  # fmt: skip
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|endoftext|>", "<|end_of_text|>", "<|end_of_turn|>",
         "<end_of_turn>", "<turn|>", "<eos>", "<|return|>", "<|END_OF_TURN_TOKEN|>", "<|end_of_sentence|>", "<|eom|>",
         f"<{_BAR}end{_LINE}of{_LINE}sentence{_BAR}>", "[|endofturn|]")  # fmt: skip
_BOS = "|".join(map(re.escape, _BEGINNINGS))
_OPENING = re.compile(
    rf"\s*(?:{_BOS})?\s*(?P<tag><\|im_start\|>\s?(?:system|developer|user|human|assistant|tool)\b|<\|start_header_id\|>\w|<\|header_start\|>\w|<start_of_turn>\w"
    r"|<\|turn>\w|<\|start\|>(?:system|developer|user|assistant)\b|<\|START_OF_TURN_TOKEN\|>|<\|start_of_role\|>\w"
    rf"|<extra_id_[01]>(?:System|User|Assistant)\b|<{_BAR}(?:User|Assistant){_BAR}>|\[INST\]|<<SYS>>|\[\|(?:Human|system|user|assistant)\|\])"
)
"""Of ChatML, Llama 2 to 4, Gemma, gpt-oss, Cohere, Granite, NeMo, DeepSeek, Mistral, Baize and EXAONE."""
_DIALOGUES = ((re.compile(r"\s*### ?(?:Human|User):"), re.compile(r"### ?(?:Assistant|Bot|AI):")),
              (re.compile(r"\n\nHuman:"), re.compile(r"\n\nAssistant:")),
              (re.compile(r"(?:Below is an instruction\b[^#]{0,400})?### Instruction:"), re.compile(r"### Response:")),
              (re.compile(r"(?:A chat between[^:]{0,300})?USER:"), re.compile(r"\bASSISTANT:")),
              (re.compile(r"\s*<\|(?:system|user|prompter)\|>"), re.compile(r"<\|assistant\|>")))  # fmt: skip
"""Guanaco, Anthropic's older form, Alpaca, Vicuna, Zephyr: how one begins, and what its answer begins with."""
_RUNNING_ON = re.compile(
    r"(?:<\|im_end\|>|<\|eot_id\|>|<\|eot\|>|<end_of_turn>|<turn\|>)\s{0,9}"
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<\|header_start\|>|<start_of_turn>|<\|turn>)"
    r"|\n<extra_id_1>(?:User|Assistant)\n"
)


def check_not_rendered(text: str, what: str) -> None:
    """Raise BadRecord for a text that begins as a rendered conversation, or goes on as one behind the end of a turn."""
    found = _OPENING.match(text)
    tag = found["tag"] if found else ""
    for opening, answer in _DIALOGUES:
        if not tag and (begins := opening.match(text)) and answer.search(text, begins.end()):
            tag = begins[0].strip()[-40:]
    if not tag and "```" not in text and (goes_on := _RUNNING_ON.search(text)):
        tag = goes_on[0]
    if tag:
        raise BadRecord(
            f"{what} is a conversation that another chat template has rendered, by {tag.strip()!r}: the tags would be "
            "learned as words; give its turns as messages"
        )


def without_end(text: str) -> str:
    """An answer without the token of another template that ends the turn."""
    stripped = text.rstrip()
    ends = _ENDS if "<s>" in text else (*_ENDS, "</s>")
    while end := next((one for one in ends if stripped.endswith(one)), None):
        text = stripped = stripped.removesuffix(end).rstrip()
    return text
