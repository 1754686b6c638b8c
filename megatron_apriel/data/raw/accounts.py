"""What was left of a record once it was understood: refused where it changes the lesson, counted otherwise."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from megatron_apriel.data.raw.fields import Fields, Leftover, is_nothing, leaves
from megatron_apriel.data.raw.meanings import CONVERSATIONS, IMAGES, ROLE, SYSTEMS, TOOLS, TURN_LISTS
from megatron_apriel.data.raw.problems import BadRecord, shortened
from megatron_apriel.data.raw.reading import plain_name, words_of
from megatron_apriel.data.raw.refused_fields import (
    ABOUT,
    CONTEXT,
    CUT,
    DISLIKED,
    INSIDE,
    REASONS,
    REFUSED,
    THROWN,
    WITHOUT,
)
from megatron_apriel.data.raw.split_names import HELD_OUT, SPLIT_OF_WORD

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")
"""Of pictures that are read."""
OTHER_IMAGE_SUFFIXES = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".tga", ".psd")
"""Of pictures that are not."""
FILM_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".wav", ".mp3", ".flac", ".ogg", ".m4a", ".opus")
"""Of films and sounds."""
IMAGE_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*", b"BM")
"""Of files of pictures."""
_DOCUMENT_BEGINNING = b"%PDF-"

_IMAGE_WORDS = frozenset(("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "screenshot"))
_MEDIA_WORDS = frozenset(("media", "attachment", "attachments", "asset", "assets", "figure", "figures", "visual"))
"""In the path of an address that belongs to the question, and says not only where something came from."""
_NAMING_WORDS = frozenset(("id", "ids", "name", "names", "key", "keys", "filename", "filenames", "uuid", "hash"))
"""The last word of a field that says which picture, as ``image_id`` does."""
_OTHER_VIEWS = frozenset(
    ("depth", "segmentation", "reference", "edited", "conditioning", "control", "second", "before", "after", "left",
     "right", "overlay", "heatmap", "crop", "frame", "frames", "page", "pages")
)  # fmt: skip
"""Words for a further picture that belongs to the question."""
_CHOICE = re.compile(r"(?:option|choice|candidate|opt|op)s?_?[a-j1-9]|[a-j]")
"""A choice in a field of its own, as multiple choice sets have them (MMBench, MedMCQA)."""
_OBEYED = frozenset({*SYSTEMS.names, *TOOLS.names} - {"developer", "sys", "functions", "apis"})
"""What the answers obey, inside objects that hold anything besides."""
_API_OBJECT = re.compile(r"(?:\w+\.)*(?:completion|response|message|chunk|batch|list|run|event)s?")
"""What an answer of a server says to be, in its field ``object``."""
_YES, _NO = (True, "true", "yes", "1"), (False, "false", "no", "0")
_WORDS = {"cut": CUT, "thrown": THROWN, "disliked": DISLIKED, "not taken": "reject ignore"}
_SPEAKERS = ("user", "human", "prompter", "assistant", "gpt", "model", "bot", "system")
_PATH_CHARACTERS = 120  # of a path in the count of fields
_LONGEST_NAME = 4096  # of a file's name


def account(record: Fields, said: Sequence[str], images: Sequence[Any], *, unreasoned: bool = False) -> Counter[str]:
    """Paths of the fields that were not used, each with how often it stood there.

    Args:
        record: after it was read.
        said: texts of its turns, in which context that stands beside them may be found.
        images: those that the document has.
        unreasoned: whether it ends with an answer that shows no reasoning.

    Raises:
        BadRecord: one of them changes the lesson.
    """
    unused: Counter[str] = Counter()
    ignored = record.reading.ignored
    has_choices = {"a", "b"} <= {*record.names()}
    for leftover in record.leftovers():
        refuse_known(leftover, answered=bool(said))
        if said and _is_obeyed_by_answers(leftover, has_choices):
            _check_context(leftover, said)
        elif said and leftover.level == "record" and isinstance(leftover.value, Mapping):
            _check_inside(leftover, said, ignored)
        if unreasoned and leftover.level in ("record", "turn"):
            _check_reasoning(leftover, said)
        if not said and leftover.level == "record":
            _check_alone(leftover)
        for path, name, value in leaves(leftover, ignored):
            if path != leftover.path:
                inside = INSIDE if leftover.level == "record" else INSIDE[:1]
                refuse_known(Leftover(leftover.level, path, name, value, leftover.counted), values=inside)
            if not images:
                _check_naming(path, name, value)
            _check_picture(path, name, value, images)
            unused[shortened(path, _PATH_CHARACTERS)] += 1
    _check_captioned_address(record, images)
    return unused


def refuse_known(leftover: Leftover, answered: bool = True, values: Sequence[str] = ()) -> None:
    """Raise BadRecord for a field that is known to change the lesson.

    Args:
        leftover: the field.
        answered: whether its record has turns. A text or a caption has a class, and no answer that could be bad.
        values: kinds of values of the rows that are meant; without any all.
    """
    if is_nothing(leftover.value) or leftover.counted:
        return
    words = words_of(leftover.name)
    for rule in REFUSED:
        if (rule.levels and leftover.level not in rule.levels.split()) or (values and rule.values not in values):
            continue
        named = leftover.name in rule.names.split() or not words.isdisjoint(rule.words.split())
        if (named or not rule.names + rule.words) and _is_meant(rule.values, leftover.value, answered):
            raise BadRecord(f"field {leftover.path!r} {rule.reason}{_way_out(leftover.path)}")


def _is_meant(values: str, value: Any, answered: bool) -> bool:
    if values == "true":
        return value not in (0, False)
    if values == "no success":
        return type(value) is int and not 200 <= value < 300
    if values == "set":
        return value not in WITHOUT
    if values in ("yes", "no", "cut off"):
        word = value.strip().lower() if isinstance(value, str) else value
        return word in _NO if values == "no" else word in _YES and (answered or values == "yes")
    if values == "disliked" and isinstance(value, int | float):
        return value < 0
    if words := _WORDS.get(values):
        return any(_is_word_of(one, words.split()) for one in (value if isinstance(value, list) else [value]))
    if values == "split":
        return isinstance(value, str) and SPLIT_OF_WORD.get(value.strip().lower()) in HELD_OUT
    if values == "pages":
        return answered and not (isinstance(value, bool | int | float) or "://" in str(value)[:32])
    if values == "marks":
        marks = value if isinstance(value, list) else [value]
        if not answered:
            return all(isinstance(mark, bool) for mark in marks)
        plain = all(isinstance(mark, bool | int | float) for mark in marks)
        return plain or (isinstance(value, str) and bool(value.strip()))
    if values == "media":
        kind_of_answer = isinstance(value, str) and _API_OBJECT.fullmatch(value) is not None
        return not (kind_of_answer or isinstance(value, bool | int | float))
    return True


def _is_word_of(value: Any, words: Sequence[str]) -> bool:
    if isinstance(value, Mapping):  # {"reason": "max_output_tokens"}
        return any(_is_word_of(one, words) for one in value.values())
    return isinstance(value, str) and plain_name(value.strip()).rpartition(".")[2] in words


def _check_alone(leftover: Leftover) -> None:
    """Refuse a text that is a turn of a conversation, or that stands beside turns nobody reads."""
    path, value = leftover.path, leftover.value
    if leftover.name in ROLE.names and isinstance(value, str) and plain_name(value) in _SPEAKERS:
        raise BadRecord(f"field {path!r} is {value!r}: the text is one turn of a conversation, and would stand alone")
    if leftover.name in (*TURN_LISTS.names, *CONVERSATIONS.names):
        return  # whoever has such a record read as a text has asked for it
    turns = value if isinstance(value, list) else []
    if turns and all(isinstance(one, Mapping) and not set(map(_plain, one)).isdisjoint(ROLE.names) for one in turns):
        raise BadRecord(f"field {path!r} holds turns that are not read beside a plain text: --map {path}=messages reads"
                        f" them{_way_out(path)}")  # fmt: skip


def _plain(name: Any) -> str:
    return plain_name(str(name))


def _is_context(name: str, has_choices: bool) -> bool:
    choice = _CHOICE.fullmatch(name) is not None and (len(name) > 1 or has_choices)
    return choice or name in CONTEXT.split()


def _check_inside(leftover: Leftover, said: Sequence[str], ignored: frozenset[str]) -> None:
    """Refuse what the answers obey where it stands in an object of the record, as in ``metadata.system_prompt``."""
    waiting: list[tuple[str, Any]] = [(leftover.path, leftover.value)]
    while waiting:
        path, value = waiting.pop()
        for key, one in value.items():
            inner, name = f"{path}.{key}", plain_name(str(key))
            if inner in ignored:
                continue
            if name in _OBEYED and _is_obeyed(name, one):
                _check_context(Leftover("record", inner, name, one), said)
            elif isinstance(one, Mapping):
                waiting.append((inner, one))


def _is_obeyed_by_answers(leftover: Leftover, has_choices: bool) -> bool:
    if leftover.level == "turn":
        return leftover.name in CONTEXT.split()
    return leftover.level == "record" and (_is_context(leftover.name, has_choices) or _is_obeyed_outside(leftover))


def _is_obeyed_outside(leftover: Leftover) -> bool:
    """Whether it is a system turn, or tools, around the request of a log; answers repeat the tools of theirs."""
    if leftover.name in TOOLS.names and "." in leftover.path:
        return False
    return leftover.name in (*SYSTEMS.names, *TOOLS.names) and _is_obeyed(leftover.name, leftover.value)


def _is_obeyed(name: str, value: Any) -> bool:
    """Whether a value may be an instruction, or tools, and not only the name of one."""
    if name in TOOLS.names:
        listed = value if isinstance(value, list) else [value]
        return any(isinstance(one, Mapping) or str(one).lstrip()[:1] in ("{", "[") for one in listed)
    return not isinstance(value, str) or " " in value.strip()


def _check_reasoning(leftover: Leftover, said: Sequence[str]) -> None:
    """Refuse a text that may be the reasoning of the answer."""
    words = words_of(leftover.name)
    if words.isdisjoint(REASONS.split()) or leftover.name.rpartition("_")[2] in ABOUT.split():
        return
    for text in _texts(leftover):
        if " " in text.strip() and not any(text.strip() in turn for turn in said):
            raise BadRecord(
                f"field {leftover.path!r} may hold the reasoning of the answer, which has none: --map "
                f"{leftover.path}=reasoning reads it{_way_out(leftover.path)}"
            )


def _check_naming(path: str, name: str, value: Any) -> None:
    """Refuse the name of a picture of a set that lies elsewhere, in a record without any."""
    words = name.split("_")
    if len(words) < 2 or words[0] not in _IMAGE_WORDS or words[-1] not in _NAMING_WORDS:
        return
    if not is_nothing(value) and value not in (False, -1):
        raise BadRecord(
            f"field {path!r} names a picture, {shortened(str(value), 80)!r}, and the record has none{_way_out(path)}"
        )


def _check_context(leftover: Leftover, said: Sequence[str]) -> None:
    for text in _texts(leftover):
        if not any(text.strip() in turn for turn in said):
            raise BadRecord(
                f"field {leftover.path!r} holds a text that no turn holds: the answers may follow it, and it would be "
                f"left out{_way_out(leftover.path)}"
            )


def _texts(leftover: Leftover) -> list[str]:
    """All texts in a leftover."""
    texts: list[str] = []
    waiting = [value for _, _, value in leaves(leftover, frozenset())]
    while waiting:
        value = waiting.pop()
        waiting += value if isinstance(value, list) else []
        texts += [value] if isinstance(value, str) and value.strip() else []
    return texts


def _check_picture(path: str, name: str, value: Any, images: Sequence[Any]) -> None:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, bytes) and one.startswith(IMAGE_BEGINNINGS):
            raise BadRecord(f"field {path!r} holds a picture that is not read{_way_out(path)}")
        if isinstance(one, bytes) and one.startswith(_DOCUMENT_BEGINNING):
            raise BadRecord(f"field {path!r} holds a document (PDF) whose pages are not read{_way_out(path)}")
        if not isinstance(one, str) or (len(one) > _LONGEST_NAME and not one.startswith("data:image")):
            continue
        address = "://" in one[:32]
        if one.startswith("data:image"):
            raise BadRecord(f"field {path!r} holds a picture that is not read{_way_out(path)}")
        suffix = PurePosixPath(one.partition("?")[0] if address else one).suffix.lower()
        if suffix in FILM_SUFFIXES and not address and not _is_prose(one):
            raise BadRecord(f"field {path!r} names a film or a sound, which are not read{_way_out(path)}")
        if suffix not in (*IMAGE_SUFFIXES, *OTHER_IMAGE_SUFFIXES) or _is_prose(one):
            continue
        if address and (images or not (_speaks_of_pictures(name) or _is_about_media(path))):
            continue  # where a picture or a page came from
        if images and not _speaks_of_pictures(name) and words_of(name).isdisjoint(_OTHER_VIEWS):
            continue  # what a picture was made of, or is called elsewhere
        if not images or not _is_known_file(one, name, images):
            raise BadRecord(f"field {path!r} names a picture, {shortened(one, 80)!r}, that is not read{_way_out(path)}")


def _speaks_of_pictures(name: str) -> bool:
    return any(word.rstrip("0123456789") in _IMAGE_WORDS for word in words_of(name))


def _is_about_media(path: str) -> bool:
    return not frozenset(plain_name(path.replace(".", "_")).split("_")).isdisjoint(_MEDIA_WORDS)


def _is_prose(text: str) -> bool:
    return text.count(" ") > 8 or "\n" in text


def _is_known_file(text: str, name: str, images: Sequence[Any]) -> bool:
    """Whether it names, once more, a picture that the document has."""
    names = {PurePosixPath(path).name for path in _paths(images)}
    if PurePosixPath(text).name in names or PurePosixPath(text).stem in {PurePosixPath(one).stem for one in names}:
        return True
    return not names and name in IMAGES.names


def _paths(images: Iterable[Any]) -> list[str]:
    found = []
    for image in images:
        path = image.get("path") if isinstance(image, Mapping) else image
        if isinstance(path, str) and len(path) <= _LONGEST_NAME:
            found.append(path)
    return found


def _check_captioned_address(record: Fields, images: Sequence[Any]) -> None:
    """Refuse the caption of a picture that was never downloaded: its address beside its size."""
    address = record.peek("url")
    sized = "width" in record and "height" in record
    if not images and isinstance(address, str) and sized and "://" in address[:32]:
        raise BadRecord(f"field {record.path('url')!r} is the address of a picture, which is not fetched: download it")


def _way_out(path: str) -> str:
    return f"; --ignore {shortened(path, _PATH_CHARACTERS)} reads on without it"
