"""What a prepared corpus must hold, written out by hand: words, which of them are learned, and pictures.

The format's text is put together here a second time, from docs/data.md and without its template, so that a test of a
published shape compares tokens, flags and pixels with something that does not come from the code under test.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.corpus.prepare import PrepareOptions, prepare
from megatron_apriel.data.corpus.tokens import TokenTable

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
HERE = "Here are my reasoning steps:\n"


@dataclass(frozen=True)
class Written:
    """A document: pieces of text with whether they are learned, ``[IMG]`` for an image, and the images' colours."""

    pieces: tuple[tuple[str, bool], ...]
    colours: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    @property
    def learned(self) -> str:
        return "".join(text for text, learned in self.pieces if learned)


def png(colour: str = "red", size: tuple[int, int] = (32, 16)) -> bytes:
    memory = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(memory, "PNG")
    return memory.getvalue()


def user(text: str) -> tuple[str, str]:
    return "user", text


def system(text: str) -> tuple[str, str]:
    return "system", text


def result(text: str) -> tuple[str, str]:
    return "tool_result", text


def said(
    answer: str = "", reasoning: str = "", calls: list[Any] | None = None, learned: bool = True
) -> tuple[Any, ...]:
    return "assistant", answer, reasoning, calls, learned


def chat(*turns: tuple[Any, ...], tools: list[Any] | None = None, images: tuple[str, ...] = ()) -> Written:
    """A conversation in the chat format, as docs/data.md describes it."""
    pieces: list[tuple[str, bool]] = [("<s>", False)]
    offered = f"<available_tools>{json.dumps(tools, ensure_ascii=False)}</available_tools>" if tools else ""
    if offered and turns[0][0] != "system":
        pieces.append((f"<|system|>\n{offered}\n<|end|>\n", False))
    for number, (role, text, *more) in enumerate(turns):
        if role != "assistant":
            if role == "system" and number == 0 and offered:
                text = f"{text}\n{offered}"
            pieces.append((f"<|{role}|>\n{text}\n<|end|>\n", False))
            continue
        reasoning, calls, learned = more
        if calls:
            listed = ", ".join(f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}' for name, arguments in calls)
            text = f"{text}\n<tool_calls>[{listed}]</tool_calls>" if text else f"<tool_calls>[{listed}]</tool_calls>"
        if number + 1 < len(turns):
            pieces += [("<|assistant|>\n", False), (f"{text}\n<|end|>\n", learned)]
            continue
        thought = f"{reasoning}\n" if reasoning else ""
        answer = f"{thought}[BEGIN FINAL RESPONSE]\n{text}\n[END FINAL RESPONSE]\n<|end|>\n</s>"
        pieces += [(f"<|assistant|>\n{HERE}", False), (answer, learned)]
    return Written(tuple(pieces), images)


def plain(*parts: str | tuple[str, bool], images: tuple[str, ...] = (), ends: bool = False) -> Written:
    """A plain document: none of it is learned by itself, or what the pairs say."""
    pairs = [part if isinstance(part, tuple) else (part, False) for part in parts]
    return Written((("<s>", False), *pairs, ("</s>", ends)), images)


def prepared(inputs: list[Path], model: Path, out: Path, options: PrepareOptions) -> tuple[list[Written], Any]:
    """The documents that preparing gives, read back from disk; and its summary."""
    summary = prepare(out, inputs, model, options)
    table, corpus = TokenTable.from_directory(model), Corpus.open(out)
    return [_written(corpus, number, table) for number in range(len(corpus))], summary


def _written(corpus: Corpus, number: int, table: TokenTable) -> Written:
    tokens = np.asarray(corpus.tokens(number))
    flags = np.asarray(corpus.responses(number)).astype(bool)
    images = corpus.images(number)
    pieces: list[tuple[str, bool]] = []
    at = 0

    def words(begin: int, end: int) -> None:
        edges = [begin, *(begin + 1 + np.flatnonzero(np.diff(flags[begin:end].astype(int)))).tolist(), end]
        for first, last in pairwise(edges):
            if last > first:
                text = table.tokenizer.decode(tokens[first:last].tolist(), skip_special_tokens=False)
                pieces.append((text, bool(flags[first])))

    colours = []
    for image in images:
        start, rows, columns = int(image["start"]), int(image["rows"]), int(image["columns"])
        words(at, start)
        at = start + rows * (columns + 1)
        assert not flags[start:at].any(), "nobody learns to draw"
        pieces.append(("[IMG]", False))
        picture = np.asarray(Image.open(io.BytesIO(corpus.image_bytes(image).tobytes())).convert("RGB"))
        assert (picture == picture[0, 0]).all()
        colours.append({value: name for name, value in COLOURS.items()}[tuple(picture[0, 0].tolist())])
    words(at, len(tokens))
    return Written(tuple(pieces), tuple(colours))
