"""What the files of a model say of the tokens with which a document begins and ends, compared with one another.

Documents begin and end with the tokenizer's own tokens. Two of its files may name other ones, and versions of
transformers read the one or the other; config and generation config name ids, at which servers stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_apriel.errors import CheckpointError, DataError, listed, printable, shown
from megatron_apriel.formats.hf_directory import TOKENIZER_CONFIG
from megatron_apriel.formats.json_files import read_json
from megatron_apriel.formats.sidecars import CONFIG, GENERATION

_MAP = "special_tokens_map.json"
_ENDS = ("bos_token", "eos_token")


def check_ends(directory: Path) -> None:
    """Raise DataError where the files of a tokenizer name different tokens for the begin or the end of a text."""
    files = [directory / name for name in (TOKENIZER_CONFIG, _MAP)]
    if not all(file.is_file() for file in files):
        return
    settings, special = (_object(file) for file in files)
    for name in _ENDS:
        said = [_content(one.get(name)) for one in (settings, special)]
        if None not in said and said[0] != said[1]:
            raise DataError(
                f"{printable(files[0])} has the {name} {shown(said[0])}, and {_MAP} beside it {shown(said[1])}.",
                "Versions of transformers read the one or the other, and every document would begin or end with it.",
                f"Correct {name} in the file that is out of date.",
            )


def other_ends(directory: Path, ends: Mapping[str, int]) -> list[str]:
    """What config and generation config say otherwise than the tokenizer does, in words.

    Args:
        directory: of the model.
        ends: the tokenizer's ids, by ``bos_token_id`` and ``eos_token_id``.
    """
    found = []
    for file in (directory / CONFIG, directory / GENERATION):
        whole = _object(file) if file.is_file() else {}
        for place, part in (("", whole), ("text_config: ", whole.get("text_config"))):
            for name, id_ in ends.items():
                said = part.get(name) if isinstance(part, Mapping) else None
                ids = said if isinstance(said, list) else [said]
                if said is not None and id_ not in ids:
                    found.append(
                        f"{file.name}: {place}{name}={listed(list(map(str, ids)), 8)}, the tokenizer's is {id_}"
                    )
    return found


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def _object(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except CheckpointError as error:
        raise DataError(str(error)) from None
