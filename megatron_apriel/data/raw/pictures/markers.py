"""Words in a text that stand for a picture, a film or anything else that lies beside it: markers.

``<image>`` is a marker wherever it stands. Other models have tokens of their own for it, which are known here by their
whole spelling, and data sets have words that could be words as well, as ``[photo]`` or ``<graph>``: these are markers
only where they stand alone at the beginning or the end of a turn, as makers of such data put them, or where a record
has as many of them as pictures and no other place for these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from megatron_apriel.data.raw.problems import BadRecord

IMAGE_MARKER = "<image>"
PLAIN_MARKER = re.compile(
    r"\(<image>\./</image>\)|<img><image></img>|<<image>>|<image>(?:\s{0,9}(?:\./)?\s{0,9}</image>)?"
)
"""``<image>``, also as an element that holds nothing, and as MiniCPM-V writes it."""
_FILLED = re.compile(r"<image>(?!\s{0,9}(?:\./)?\s{0,9}</image>)[^<>\n]{1,300}</image>")
_APART = r"(?:[ _:#-]| #)"
"""Between a marker's word and its number."""
NUMBERED_MARKER = re.compile(rf"<\|?(?i:image|img|picture){_APART}?(\d{{1,4}})\|?>|\[(?i:image){_APART}(\d{{1,4}})\]")
LOOSELY_NUMBERED = re.compile(
    rf"\[(?i:img|picture|pic){_APART}?(\d{{1,4}})\]|\{{\{{?(?i:image|img|picture)_?(\d{{1,4}})\}}?\}}"
    rf"|<\|?(?i:pic|photo|figure|fig|screenshot|page|slide|frame){_APART}?(\d{{1,4}})\|?>"
)
"""Words of programs and pages as well: markers only where a record has images and no other marker."""
OTHER_MARKER = re.compile(
    r"<\|vision_start\|><\|image_pad\|><\|vision_end\|>|<img></img>"
    r"|<\|begin_of_image\|>(?:<\|image\|>)?<\|end_of_image\|>"
    r"|<\|image_start\|>(?:<\|(?:image|patch)\|>)?<\|image_end\|>"
    r"|<\|media_(?:start|begin)\|>image<\|media_content\|>(?:<\|media_pad\|>)?<\|media_end\|>"
    r"|<\|IMAGE_START\|>(?:<\|image@placeholder\|>)?<\|IMAGE_END\|>"
    r"|<\|(?:image|image_pad|image_placeholder|image_token|image@placeholder|img|media_pad)\|>"
    r"|<(?:ImageHere|ImageContent|im_patch|image_patch|image_here|image[_-]placeholder|IMAGE_PLACEHOLDER|image_token"
    r"|image_pad|image_embeds|__image__|__media__|start_of_image|image_soft_token|IMAGE|Image|img|IMG)>"
    r"|<image\s{0,9}/>|<\|IMAGE\|>|\[\[(?:IMG|IMAGE)\]\]|\[(?:IMG|IMAGE|IMAGE_PLACEHOLDER)\]"
)
"""Of Qwen, GLM, Llama, Kimi, Ernie, Gemma, LLaVA and others, with what each writes around it."""
_NOT_CERTAIN = ("<img>", "<IMG>", "[IMAGE]")
"""Those that stand for an image only at the beginning of a turn: pages have them, too."""
_IMAGE_WORD = r"(?:images?|img|pic|picture|photo|figure|screenshot|visual|media)"
_LOOSE_MARKER = re.compile(
    rf"<{_IMAGE_WORD}(?:_token)? ?/?>|\[{_IMAGE_WORD}\]|\{{\{{? ?{_IMAGE_WORD} ?\}}\}}?", re.IGNORECASE
)
"""What may be a marker and may be a word."""
_LOOSE_ELEMENT = re.compile(rf"</{_IMAGE_WORD}>", re.IGNORECASE)
_WORD_BEHIND = re.compile(
    r"s?\s*(?:tag|element|marker|placeholder|token|node|block|field|attribute)s?\b", re.IGNORECASE
)
_TYPE_BEFORE = re.compile(r"\b(?:[A-Z]\w*|vector|list|array|optional|(?:shared|unique)_ptr|use[A-Z]\w*)$")
"""What stands before a type in code, as in ``List<Image>``."""
_LONGEST_TYPE = 80  # characters of such a name
_TYPE = re.compile(r"<[A-Z][a-z]+>")
_SLOT = re.compile(r"<[\w -]+>|\[[\w -]+\]|\{\{?[\w -]+\}\}?")
"""What is to be filled in, or named, in a text that is a template or speaks of elements."""
_BESIDE_MARKERS = re.compile(
    r"<fake_token_around_image>|<IMG_CONTEXT>|<\|?(?:vision|image|media)_(?:start|begin|end)\|?>|<global-img>"
    r"|<im_(?:start|end)>|<\|(?:begin|end)_of_image\|>|<\|IMAGE_(?:START|END)\|>|<\|media_content\|>|<\|patch\|>"
    r"|<boi>|<eoi>"
)
"""What other models write around an image."""
_PLACEHOLDER = re.compile(
    r"(?P<certain><ref-object>|<\|(?:video|audio|speech|sound)(?:_(?:\d+|pad|token))?\|>|<\|(?:VIDEO|AUDIO)\|>"
    r"|<\|(?:video|audio)@placeholder\|>|<\|(?:VIDEO|AUDIO)_START\|>|<\|audio_bos\|>|<\|begin_of_(?:video|audio)\|>"
    r"|<(?:Video|Audio|Speech|Sound)Here>|<ts></?ts/?>|<mask><pos>)"
    r"|(?P<box><bbox>)|<(?i:video|audio|speech)(?:[ _-]?\d{1,3})?>"
)
"""Of films, sounds, series of numbers and objects: certain ones, boxes, and those that may be words."""
_LONE_PLACEHOLDER = re.compile(
    r"<(?:sound|music|voice|clip|vid|movie|point|pc|point_?cloud|3d|scene|ts|time_?series|graph|mol|molecule|protein"
    r"|region\d*|mask|depth|event|thermal|lidar|eeg|ecg|imu|tactile|pdf|bbox_?\d+)>|\[(?:video|audio|sound|clip)\]",
    re.IGNORECASE,
)
"""What stands for further things that no record is read with, where it stands alone."""


def check_filled(text: str) -> None:
    """Raise BadRecord for a marker that holds words which are neither nothing nor a path."""
    if filled := _FILLED.search(text):
        raise BadRecord(f"the marker {filled[0][:80]!r} holds words, and what they name is not known")


def has_marker(text: str) -> bool:
    """Whether a marker of an image stands in a text, in any spelling."""
    return IMAGE_MARKER in text or bool(NUMBERED_MARKER.search(text) or OTHER_MARKER.search(text))


def loose_markers(texts: Iterable[str], count: int) -> re.Pattern[str] | None:
    """What finds the words that are the places of ``count`` pictures, where texts have just as many and no marker."""
    strings = list(texts)
    if count == 0 or any(map(has_marker, strings)) or any(map(_LOOSE_ELEMENT.search, strings)):
        return None
    found = [(text, match) for text in strings for match in _LOOSE_MARKER.finditer(text)]
    return _LOOSE_MARKER if len(found) == count and not any(_is_word(*one) for one in found) else None


def check_markers(text: str, where: str, *, pictures: bool, said: bool = False) -> None:
    """Raise BadRecord for a marker that stands for what the record does not have.

    ``<image>`` and ``<video>`` may also be words that a text is about: then they stand in quotation marks or code, the
    word behind them says so, or the text has elements of HTML or XML.

    Args:
        text: of a turn.
        where: names it.
        pictures: whether the record has images.
        said: whether it is an assistant's, who may write about markers in any way.
    """
    rest = PLAIN_MARKER.sub("", OTHER_MARKER.sub("", _PLACEHOLDER.sub("", text)))
    about = "</" in rest or "/>" in _LOOSE_MARKER.sub("", rest)
    for match in _PLACEHOLDER.finditer(text):
        if match["certain"] or not (about or (not match["box"] and (said or _is_word(text, match)))):
            raise BadRecord(f"{where}: the marker {match[0]} stands for what is not read (film, sound, objects)")
    if said:
        return
    if (left := _BESIDE_MARKERS.search(rest)) and not _is_word(rest, left):
        raise BadRecord(f"{where}: {left[0]} stands around another model's images, and would be learned as words")
    if about:
        return
    if lone := _alone(_LONE_PLACEHOLDER, text):
        raise BadRecord(f"{where}: the marker {lone} stands for what is not read (film, sound, objects)")
    if pictures:
        return
    for pattern in (PLAIN_MARKER, NUMBERED_MARKER, OTHER_MARKER):
        for match in pattern.finditer(text):
            if match[0] in _NOT_CERTAIN and text[: match.start()].strip():
                continue
            if match[0] != "[IMG]" and not _is_word(text, match):
                raise _without_image(where, match[0])
    if lone := _alone(_LOOSE_MARKER, text):
        raise _without_image(where, lone)


def _without_image(where: str, marker: str) -> BadRecord:
    return BadRecord(f"{where}: the marker {marker} stands for an image, and the record has none")


def _alone(pattern: re.Pattern[str], text: str) -> str:
    """A marker that has the first or the last line of a text for itself, or ""; none among other words like it."""
    lines = text.strip().split("\n")
    ends = (lines[0].strip(), lines[-1].strip()) if len(lines) > 1 else ()
    lone = next((line for line in ends if pattern.fullmatch(line)), "")
    others = {slot for slot in _SLOT.findall(text) if slot[0] == lone[:1]}
    return "" if any(not (has_marker(one) or _is_of_markers(one)) for one in others) else lone


def _is_of_markers(slot: str) -> bool:
    return any(one.fullmatch(slot) for one in (_LOOSE_MARKER, _LONE_PLACEHOLDER, _PLACEHOLDER))


def _is_word(text: str, match: re.Match[str]) -> bool:
    """Whether a text speaks about a marker."""
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    quoted = bool(before) and before in "`\"'\u201c\u2018" and bool(after) and after in "`\"'\u201d\u2019"
    if quoted or _WORD_BEHIND.match(text, match.end()):
        return True
    line = text[max(0, match.start() - _LONGEST_TYPE) : match.start()]
    return _TYPE.fullmatch(match[0]) is not None and _TYPE_BEFORE.search(line) is not None
