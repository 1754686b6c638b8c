"""Runs llama.cpp's converter on a tokenizer that splits text into Tekken's words: ``llama_converter.py CONVERTER ...``.

The converter finds out how a tokenizer splits text by a hash of some tokens, and so knows published vocabularies alone.
One that was cut or learned anew splits alike and has another hash. Whoever starts this has compared the words. A
program of its own, in a process of its own: nothing of the package is imported.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

TEKKEN = "tekken"
"""llama.cpp's name for the way of splitting."""


def know_tekken(models: Any) -> None:
    """Have the converter's class of text models take an unknown vocabulary for one of Tekken's words."""
    known = models.get_vocab_base_pre

    def by_hash_or_words(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:  # what llama.cpp raises for a hash that it does not list
            return TEKKEN

    models.get_vocab_base_pre = by_hash_or_words


def main() -> None:
    """Run the converter with the arguments behind its name."""
    converter = Path(sys.argv[1])
    sys.argv = sys.argv[1:]
    sys.path[:1] = [str(converter.parent), str(converter.parent / "gguf-py")]
    if (converter.parent / "conversion").is_dir():  # where versions around build 10434 keep it
        know_tekken(importlib.import_module("conversion.base").TextModel)
    runpy.run_path(str(converter), run_name="__main__")


if __name__ == "__main__":
    main()
