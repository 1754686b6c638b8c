"""A model by what a person writes for it: a directory, or a server's address."""

from __future__ import annotations

import os
import re
from pathlib import Path

from megatron_apriel.concealed import conceal
from megatron_apriel.errors import ConfigError
from megatron_apriel.generate.answer import Model
from megatron_apriel.generate.server import ServerModel

_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(?:/.*)?")


def is_address(place: str) -> bool:
    """Whether a server's address was written, and not a directory."""
    return "://" in place or (_HOST_AND_PORT.fullmatch(place) is not None and not Path(place).exists())


def open_model(place: str, *, served_name: str = "", key_variable: str = "", device: str = "") -> Model:
    """Open the model at ``place``.

    Args:
        place: a Hugging Face directory, or an address as ``http://localhost:8000``.
        served_name: which of a server's models.
        key_variable: environment variable that holds the server's key.
        device: of a directory's model; by default a GPU where there is one.

    Raises:
        ConfigError: an option that has no meaning for it, a key that is not set, or an address that is none.
        CheckpointError, ServerError: it cannot be opened.
    """
    if is_address(place):
        if device:
            raise ConfigError(f"a device has no meaning for the server at {place}.", fix="Leave it out.")
        return ServerModel(place, served_name, key=_key(key_variable) if key_variable else "")
    if served_name or key_variable:
        raise ConfigError(
            f"{place} is a directory, and a name or key for a server is given.",
            fix="Leave it out, or give the server's address, such as http://localhost:8000.",
        )
    from megatron_apriel.generate.transformers_model import TransformersModel

    return TransformersModel(place, device=device)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"the environment variable {variable} holds no key.", fix="Set it, or name the variable that holds the key."
        )
    conceal(key, f"${{{variable}}}")
    return key
