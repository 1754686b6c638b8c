"""What a record says of pictures, films and documents in fields that nobody reads: without them its words mean less.

A picture stands in such a field as bytes, as base64 or by its name; or the record only says that there is one: its id
in a set, its size, its numbers. A record with images may say all that of the images that were read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from megatron_apriel.data.raw.fields.meanings import CAPTIONS, IMAGES, PICTURE_FILES, TEXT
from megatron_apriel.data.raw.fields.taken import Fields, is_nothing
from megatron_apriel.data.raw.file_kinds import (
    FILM_SUFFIXES,
    IMAGE_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    PAGE_SUFFIXES,
    kind_of_base64,
    kind_of_bytes,
    names_container,
)
from megatron_apriel.data.raw.problems import BadRecord, shortened, way_out
from megatron_apriel.data.raw.reading import plain_name, words_of

_IMAGE_WORDS = frozenset(("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "screenshot"))
_MEDIA_WORDS = frozenset(("media", "attachment", "attachments", "asset", "assets", "figure", "figures", "visual"))
"""In the path of an address that belongs to the question, and says not only where something came from."""
_NAMING_WORDS = frozenset(("id", "ids", "name", "names", "key", "keys", "filename", "filenames", "uuid", "hash"))
"""The last word of a field that says which picture, as ``image_id`` does."""
_ABOUT_ONE = frozenset(
    ("width", "height", "size", "sizes", "shape", "resolution", "feature", "features", "embedding", "embeddings",
     "embeds", "array", "tensor", "pixels", "values", "sha256", "md5", "url", "urls", "link", "links", "uri", "uris",
     "index", "idx", "caption", "captions", "description")
)  # fmt: skip
"""The last word of a field that says something of a picture which belongs to a conversation."""
_HAS_ONE = frozenset(
    ("has_image", "has_images", "has_picture", "contains_image", "with_image", "image_required", "requires_image",
     "is_multimodal", "multimodal", "num_images", "n_images", "image_count", "images_count", "pixel_values", "pixels",
     "imgid", "cocoid", "imgs_num", "img_num", "image_num", "num_imgs", "has_video", "has_audio", "num_videos",
     "num_audios", "num_frames", "video_duration", "audio_duration", "video_length", "audio_length")
)  # fmt: skip
"""Fields that say that there is a picture, a film or a sound."""
_MODALITIES = frozenset(("image", "images", "vision", "visual", "multimodal", "video", "audio", "speech"))
"""Words for what a conversation is about besides words."""
_MODAL = frozenset(
    ("modality", "modalities", "data_type", "media_type", "input_type", "input_modality", "input_modalities")
)
"""Fields in which these words stand; others of forms, as ``file_type``, hold ``image/png``."""
_FORM = re.compile(r"(?:image|video|audio)/[\w.+-]+", re.IGNORECASE)
_KIND = frozenset(("type", "kind", "media_type", "mime_type"))
"""Fields of an attachment that say what it is."""
_FILMS = frozenset(("video", "videos", "audio", "audios"))
_NO_FILMS = frozenset(("title", "genre", "game", "games"))
_NONE = frozenset(("", "none", "null", "nan", "n/a", "na", "no", "false"))
_CONTAINER = re.compile(r"(?:[\w.-]+(?::\d+)?/){0,9}[\w.-]*(?::[\w.-]+|(?:x86_64|arm64|amd64)[\w.-]*)")
"""An image of Docker, as sets of agents name them."""
_OTHER_VIEWS = frozenset(
    ("depth", "segmentation", "reference", "edited", "conditioning", "control", "second", "before", "after", "left",
     "right", "overlay", "heatmap", "crop", "frame", "frames", "page", "pages")
)  # fmt: skip
"""Words for a further picture that belongs to the question."""
_SPEAKERS = frozenset(("avatar", "favicon", "logo"))
"""Words for pictures of whoever speaks, or of a site."""
_SMALLER = frozenset(("thumb", "thumbnail", "preview", "icon"))
"""Words for the same picture, smaller."""
_FILE_WORDS = frozenset(("file", "files", "filename", "filepath", "document", "documents", "doc", "attachment", "pdf"))
"""In the name of a field that names what a conversation is about."""
_JUDGED = frozenset(("aesthetic", "pwatermark", "punsafe", "phash", "clip"))
"""In the name of a number that only sets of pictures with captions have (LAION, DataComp, COYO)."""
_CRAWLED = frozenset(("crawl", "dump", "warc", "timestamp", "segment", "date"))
"""In the name of a field that only pages of the web have (FineWeb, C4, CulturaX)."""
_CHANGED = frozenset(("crop", "crop_box", "rotation", "rotate", "flip", "mirror"))
"""Fields that say that a picture is to be changed before it is looked at."""
_PAGE_OF_A_FILE = "/wiki/"
"""In the address of a page whose name is that of a picture."""
_PAGE = 300  # characters: captions are shorter, and a page's own address may end in .jpg too
_LONGEST_NAME = 4096  # of a file's name


def check_traces(path: str, name: str, value: Any, images: Sequence[Any], *, answered: bool) -> None:
    """Raise BadRecord for a field that shows that words would be learned without what they are about.

    Args:
        path: of the field, from the record downwards.
        name: its own name, plain.
        value: of it, or of what is inside it.
        images: those that the document has.
        answered: whether the record has turns.
    """
    if not images:
        _check_naming(path, name, value, answered)
        if answered:
            _check_inside(path, name, value)
    elif name in _CHANGED and not isinstance(value, str) and value not in (0, False) and not is_nothing(value):
        raise BadRecord(f"field {path!r} changes the picture, in a way that is not followed here{way_out(path)}")
    for one in value if isinstance(value, list) else [value]:
        _check_value(path, name, one, images, answered)


def check_captioned_address(record: Fields, images: Sequence[Any]) -> None:
    """Refuse the caption of a picture that was never downloaded: its address beside its size or figures of it."""
    address = record.peek("url")
    if images or not isinstance(address, str) or "://" not in address[:32]:
        return
    words = [words_of(name) for name in record.names() if not is_nothing(record.peek(name))]
    sized = all(any(side in one for one in words) for side in ("width", "height"))
    page = _PAGE_OF_A_FILE in address or any(not _CRAWLED.isdisjoint(one) for one in words)
    shown = _suffix(address) in IMAGE_SUFFIXES and not page and len(_text_of(record)) < _PAGE
    if sized or shown or any(not _JUDGED.isdisjoint(one) for one in words):
        raise BadRecord(f"field {record.path('url')!r} is the address of a picture, which is not fetched: download it")


def _text_of(record: Fields) -> str:
    texts = (record.peek(name) for name in (*TEXT.names, *CAPTIONS.names))
    return max((text for text in texts if isinstance(text, str)), key=len, default="")


def _check_naming(path: str, name: str, value: Any, answered: bool) -> None:
    """Refuse what says that there is a picture, in a record without any."""
    if is_nothing(value) or value in (False, -1) or names_container(value):
        return
    if isinstance(value, str) and _CONTAINER.fullmatch(value):
        return
    words = name.split("_")
    endings = _NAMING_WORDS | _ABOUT_ONE if answered else _NAMING_WORDS
    named = len(words) > 1 and words[0] in _IMAGE_WORDS and words[-1] in endings
    says = answered and name in _HAS_ONE and value not in (0, "0", "false", "False", "no")
    modal = name in _MODAL or (name in _KIND and _is_about_media(path.rpartition(".")[0]))
    modal = answered and modal and not _MODALITIES.isdisjoint(_words_in(value))
    form = answered and isinstance(value, str) and _FORM.fullmatch(value) is not None
    if named or says or modal or form:
        raise _named_only(path, value)


def _check_inside(path: str, name: str, value: Any) -> None:
    """Refuse what names a picture, a film or a sound inside of an object, where no name of a file shows it."""
    around = path.split(".")[:-1]
    texts = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
    texts = [one for one in texts if one.strip().lower() not in _NONE and "://" not in one[:32]]
    if not around or not texts or any(map(_CONTAINER.fullmatch, texts)) or any(map(_is_prose, texts)):
        return
    words = words_of(name)
    film = not words.isdisjoint(_FILMS) and words.isdisjoint(_NO_FILMS)
    described = any(plain_name(one).split("_")[0] in _IMAGE_WORDS for one in around)
    if film or described or name in IMAGES.names:
        raise _named_only(path, value)


def _named_only(path: str, value: Any) -> BadRecord:
    return BadRecord(
        f"field {path!r} names a picture, a film or a sound, {shortened(str(value), 80)!r}, and the record has none"
        f"{way_out(path)}"
    )


def _words_in(value: Any) -> set[str]:
    texts = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
    return {word for text in texts for word in plain_name(re.sub("[+,/]", " ", text)).split("_")}


def _check_value(path: str, name: str, value: Any, images: Sequence[Any], answered: bool) -> None:
    kind = kind_of_bytes(value) if isinstance(value, bytes) else kind_of_base64(value) if isinstance(value, str) else ""
    same = images and (name in IMAGES.names or not words_of(name).isdisjoint(_SMALLER))
    if kind and not (same and isinstance(value, str)):
        raise BadRecord(f"field {path!r} holds {kind} that is not read{way_out(path)}")
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or _is_prose(value):
        return
    address, suffix = "://" in value[:32], _suffix(value)
    if suffix in FILM_SUFFIXES and not (address and not _is_about_media(path)):
        raise BadRecord(f"field {path!r} names a film or a sound, which are not read{way_out(path)}")
    if suffix in PAGE_SUFFIXES and answered and not address and not words_of(name).isdisjoint(_FILE_WORDS):
        raise BadRecord(f"field {path!r} names a document, whose pages are not read{way_out(path)}")
    if suffix not in (*IMAGE_SUFFIXES, *OTHER_IMAGE_SUFFIXES):
        return
    if address and (images or not (_speaks_of_pictures(name) or _is_about_media(path))):
        return  # where a picture or a page came from
    if images and not _speaks_of_pictures(name) and words_of(name).isdisjoint(_OTHER_VIEWS):
        return  # what a picture was made of, or is called elsewhere
    if not images or not _is_known_file(value, name, images):
        raise BadRecord(f"field {path!r} names a picture, {shortened(value, 80)!r}, that is not read{way_out(path)}")


def _suffix(text: str) -> str:
    name = text.partition("?")[0] if "://" in text[:32] else text
    return PurePosixPath(name.removesuffix(".gz")).suffix.lower()


def _speaks_of_pictures(name: str) -> bool:
    words = words_of(name)
    return words.isdisjoint(_SPEAKERS) and any(word.rstrip("0123456789") in _IMAGE_WORDS for word in words)


def _is_about_media(path: str) -> bool:
    return not frozenset(plain_name(path.replace(".", "_")).split("_")).isdisjoint(_MEDIA_WORDS)


def _is_prose(text: str) -> bool:
    return text.count(" ") > 8 or "\n" in text


def _is_known_file(text: str, name: str, images: Sequence[Any]) -> bool:
    """Whether it names, once more, a picture that the document has."""
    names = {PurePosixPath(path).name for path in _paths(images)}
    if PurePosixPath(text).name in names or PurePosixPath(text).stem in {PurePosixPath(one).stem for one in names}:
        return True
    return not names and name in (*IMAGES.names, *PICTURE_FILES.names)


def _paths(images: Iterable[Any]) -> list[str]:
    found = []
    for image in images:
        path = image.get("path") if isinstance(image, Mapping) else image
        if isinstance(path, str) and len(path) <= _LONGEST_NAME:
            found.append(path)
    return found
