"""Printing: lines, tables, logs, bars, complaints about arguments and tracebacks, with names that steer a terminal."""

from __future__ import annotations

import io
import logging
import sys
from datetime import datetime
from typing import Any

import pytest
from rich.console import Console

from megatron_apriel import progress as bars
from megatron_apriel.errors import brief, listed, run_command, shown
from megatron_apriel.tables import Table, figures, lines_of, standard_output
from megatron_apriel.terminal import named_logger, note, say, say_on, time_stamps

NAME = "a\x1b[2J\r\nDone\x9b\u202e[red]:bomb:[/b]"
PRINTED = r"a\x1b[2J\r\nDone\x9b\u202e[red]:bomb:[/b]"


def test_an_argument_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("first", NAME)
    note(NAME)
    out, err = capsys.readouterr()
    assert (out, err) == (f"first\n{PRINTED}\n", f"{PRINTED}\n")


def test_what_is_logged_is_printable_for_every_handler() -> None:
    seen = io.StringIO()
    handler = logging.StreamHandler(seen)
    logger = named_logger("megatron_apriel.some.module")
    logger.addHandler(handler)
    try:
        logger.warning("%s is left grey; %d so far", NAME, 3)
    finally:
        logger.removeHandler(handler)
    assert seen.getvalue() == f"{PRINTED} is left grey; 3 so far\n"


def test_tables_show_names_letter_by_letter(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(NAME, "plain", title=f"title {NAME}")
    table.add_column(NAME, justify="right")
    table.add_row(NAME, "[bold]x[/]", ["two", NAME])
    standard_output(400).print(table)
    Console(width=400).print(table)  # a console that would read styles
    out = capsys.readouterr().out
    assert out.count(PRINTED) == 10
    assert "[bold]x[/]" in out
    assert not any(letter in out for letter in "\x1b\r\x9b\u202e")


def test_nothing_to_say_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    say()
    note()
    assert capsys.readouterr() == ("", "")


def test_a_narrow_table_breaks_numbers_and_cuts_none() -> None:
    table = figures(*(f"number {place}" for place in range(8)), words=())
    table.add_row(*["339,334"] * 8)
    rows = [line.split("│")[1:-1] for line in lines_of(table, 50) if line.startswith("│")]
    assert ["".join(cells).replace(" ", "") for cells in zip(*rows, strict=True)] == ["339,334"] * 8
    assert len(rows) > 1


def test_bars_show_labels_letter_by_letter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bars, "_SECONDS_BETWEEN_LINES", 0.0)
    with bars.progress(NAME, 2) as step:
        step()
    assert capsys.readouterr().err.startswith(f"{PRINTED}: 1 item of 2 items")
    written = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=written, force_terminal=True, width=200))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with bars.progress("[red]a\x1b[2J[/b]", 1) as step:
        step()
    assert r"[red]a\x1b[2J[/b]" in written.getvalue()


def test_a_traceback_is_printable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)

    def main() -> int:
        raise ValueError(NAME)

    with pytest.raises(ValueError) as caught:
        run_command(main)
    sys.excepthook(caught.type, caught.value, caught.tb)
    err = capsys.readouterr().err
    assert "Traceback" in err and r"ValueError: a\x1b[2J\r" in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (brief("x" * 100), "x" * 57 + "..." + "x" * 20),
        (shown("a\nb"), r"'a\nb'"),
        (shown([NAME]), None),
        (listed([NAME, "b", "c"], 2), f"{PRINTED}, b and 1 more"),
        (listed([]), ""),
    ],
)
def test_quotes_are_short_and_printable(text: str, value: Any) -> None:
    assert text == (repr([NAME]) if value is None else value)
    assert text.isprintable()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "stamped"), [(io.StringIO(), True), (_Terminal(), False)])
def test_lines_to_a_file_begin_with_the_time(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, stamped: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    logger, handler = named_logger("megatron_apriel.a.watched.module"), logging.StreamHandler(stream)
    logger.addHandler(handler)
    say("before")
    with time_stamps():
        say("one", NAME)
        note("two")
        logger.warning("three")
    say("after")
    logger.removeHandler(handler)
    before, *within, after = stream.getvalue().splitlines()
    assert (before, after) == ("before", "after")
    words = ["one", PRINTED, "two", "three"]
    if stamped:
        assert [line[20:] for line in within] == words
        written = [datetime.strptime(line[:20], "%Y-%m-%d %H:%M:%S ") for line in within]
        assert all(abs((datetime.now() - each).total_seconds()) < 60 for each in written)
    else:
        assert within == words


def test_a_text_in_pieces_keeps_its_line_ends_and_steers_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for piece in (NAME, "\n\ta", "b\n"):
        say_on(piece)
    say_on("faint", dim=True, remark=True)
    name = PRINTED.replace(r"\n", "\n")
    assert capsys.readouterr() == (f"{name}\n\tab\n", "faint")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    say_on("a\x1b", dim=True)
    monkeypatch.setenv("NO_COLOR", "1")
    say_on("b", dim=True)
    assert capsys.readouterr().out == "\x1b[2ma\\x1b\x1b[0mb"
