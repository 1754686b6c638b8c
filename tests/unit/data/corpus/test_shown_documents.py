"""--show of tools/prepare_data.py: what is printed is what the corpus holds, and the marks are those of the loss."""

import gzip
import io
import json
import re
import secrets

import pytest
from PIL import Image

from megatron_apriel.data.corpus.on_disk import Corpus

MARGIN = re.compile(r"(\+| ) (reasoning|         ) ([|\\]) (.*)")


@pytest.fixture
def records(tmp_path):
    """A conversation with reasoning, an image and quoted control tokens; one with a turn not learned; a plain text."""
    Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
    first = {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is\nit? </s>"}]},
            {"role": "assistant", "content": "A [IMG] of\nred.", "reasoning_content": "It is\tred.\nAll of it."},
        ],
        "images": ["red.png"],
    }
    second = {
        "messages": [
            {"role": "user", "content": "Add 6 and 6."},
            {"role": "assistant", "content": "Twelve.", "weight": 1},
            {"role": "user", "content": "And 1."},
            {"role": "assistant", "content": "Thirteen.", "reasoning_content": "12 + 1.", "weight": 0},
        ]
    }
    third = {"text": "Grüße, 東京!\n", "loss_masking_spans": [[0, 4]]}
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in (first, second)))
    (tmp_path / "texts.jsonl").write_text(json.dumps(third) + "\n")
    return tmp_path


def shown(printed: str) -> list[list[tuple[str, ...]]]:
    """Of each document its lines: learned, reasoning, bar, text."""
    parts = re.split(r"^document \d+, .*$", printed, flags=re.MULTILINE)[1:]
    return [[match.groups() for line in part.splitlines() if (match := MARGIN.fullmatch(line))] for part in parts]


def test_a_conversation(prepare_data, records, model, capsys):
    assert prepare_data("--input", records / "records.jsonl", "--model", model, "--show", "1") == 0
    printed = capsys.readouterr().out
    assert "from " + str(records / "records.jsonl") in printed
    (lines,) = shown(printed)
    assert [(learned + reasoning.strip(), text) for learned, reasoning, _, text in lines] == [
        (" ", "«<s>»<|user|>"),
        (" ", "«image of 48x64 pixels: 3 x 4 patches, 15 tokens»What is"),
        (" ", "it? </s>"),
        (" ", "<|end|>"),
        (" ", "<|assistant|>"),
        (" ", "Here are my reasoning steps:"),
        ("+reasoning", "It is\\tred."),
        ("+reasoning", "All of it."),
        ("+", "[BEGIN FINAL RESPONSE]"),
        ("+", "A [IMG] of"),
        ("+", "red."),
        ("+", "[END FINAL RESPONSE]"),
        ("+", "<|end|>"),
        ("+", "«</s>»"),
    ]
    assert {bar for _, _, bar, _ in lines} == {"|"}


def test_turns_that_are_not_learned_and_parts_of_a_line(prepare_data, records, model, capsys):
    inputs = (records / "records.jsonl", records / "texts.jsonl")
    assert prepare_data("--input", *inputs, "--model", model, "--show", "9") == 0
    _, conversation, text = shown(capsys.readouterr().out)
    assert ("+", "         ", "|", "Twelve.") in conversation
    assert (" ", "reasoning", "|", "12 + 1.") in conversation
    assert (" ", "         ", "|", "Thirteen.") in conversation
    assert (" ", "         ", "|", "«<s>»Grüße") in text
    assert ("+", "         ", "\\", ", 東京!") in text


def test_the_lines_are_the_corpus(prepare_data, records, model, table, tmp_path, capsys):
    """Without its margins and with line ends between, a printed text is that of the tokens, learned ones and others."""
    written = tmp_path / "corpus"
    assert prepare_data(written, "--input", records / "records.jsonl", "--model", model, "--show", "2") == 0
    corpus = Corpus.open(written)
    documents = shown(capsys.readouterr().out)
    assert len(documents) == len(corpus) == 2
    tokenizer = table.tokenizer
    text = "".join(("\n" if bar == "|" else "") + line for _, _, bar, line in documents[1]).removeprefix("\n")
    assert text.replace("«", "").replace("»", "") == tokenizer.decode(corpus.tokens(1))
    learned = "\n".join(line for mark, _, _, line in documents[1] if mark == "+")
    assert learned == tokenizer.decode(corpus.tokens(1)[corpus.responses(1)]).rstrip("\n")


def test_no_more_is_read_than_is_shown(prepare_data, model, tmp_path, capsys):
    """A file that breaks off far behind the shown documents, which is an error for one who reads it to its end."""
    file = tmp_path / "long.jsonl.gz"
    # Text that hardly packs: what a reader unpacks ahead must not reach the end.
    good = "".join(json.dumps({"text": secrets.token_hex(500)}) + "\n" for _ in range(20_000))
    file.write_bytes(gzip.compress(('{"text": 7}\n' + good).encode())[:-1000])
    assert prepare_data("--input", file, "--model", model, "--show", "2", "--workers", "1") == 0
    printed = capsys.readouterr()
    assert len(shown(printed.out)) == 2
    assert "bad record" in printed.err and "documents" not in printed.out.split("document 2")[1]
    assert not list(tmp_path.glob("*corpus*"))


def test_colours_on_a_terminal_only(table):
    from rich.console import Console

    from megatron_apriel.data.corpus.chat import encode_text
    from megatron_apriel.data.corpus.shown_document import lines, shown_document

    encoded = encode_text(table, ["a \x1b[31mred", " word"], learned=[False, True])
    document = shown_document(table, encoded.tokens, encoded.responses, (), "here")
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, _environ={"TERM": "xterm"})
        for line in lines(document):
            console.print(line, soft_wrap=True)
        written = console.file.getvalue()
        assert "\\x1b[31mred" in written
        assert ("\x1b[" in written) == terminal


def test_without_a_destination_something_must_be_asked_for(prepare_data, model, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "Words."}\n')
    with pytest.raises(SystemExit) as ended:
        prepare_data("--input", tmp_path / "a.jsonl", "--model", model)
    assert ended.value.code == 2
    assert "--show" in capsys.readouterr().err
    assert prepare_data("--input", tmp_path / "a.jsonl", "--model", model, "--dry-run") == 0
    assert "nothing was written" in capsys.readouterr().out
