"""Tokens, the chat format, preparing a corpus, the corpus on disk. ``Corpus`` is what others need of it by name."""

from importlib import import_module
from typing import Any

__all__ = ["Corpus"]


def __getattr__(name: str) -> Any:
    """``Corpus``, from the file that has it, only when somebody asks: that file is in this room itself."""
    if name in __all__:
        return getattr(import_module("megatron_apriel.data.corpus.on_disk"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
