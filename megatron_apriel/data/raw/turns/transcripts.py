"""A conversation as one text whose turns begin with capitals and a colon, as Glaive's set of function calls has it.

``USER:``, ``ASSISTANT:`` and ``FUNCTION RESPONSE:`` begin a turn at the beginning of the text and behind an empty line.
Other transcripts name their speakers in ways that words of a turn may have as well; they are not read.
"""

from __future__ import annotations

import re

_SPEAKER = re.compile(r"(?:\A\s{0,9}|\n\s{0,9}\n\s{0,9})(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE): ?")
_SYSTEM = "SYSTEM: "


def is_transcript(text: str) -> bool:
    """Whether a text is such a conversation, with a question and an answer."""
    begins = _SPEAKER.match(text)
    return begins is not None and begins[1] in ("SYSTEM", "USER") and "\nASSISTANT:" in text


def transcribed(text: str) -> list[dict[str, str]]:
    """The turns of such a text."""
    _, *pieces = _SPEAKER.split(text)
    return [
        {"role": role.lower().replace(" ", "_"), "content": content.strip()}
        for role, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def without_speaker(system: str) -> str:
    """A system turn that stands beside such a text, without its own beginning."""
    return system.removeprefix(_SYSTEM)
