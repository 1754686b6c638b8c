"""Arguments of command lines: what each kind takes, and that what it refuses is said printably, with its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megatron_apriel import command_line
from megatron_apriel.command_line import CommandLine, chosen
from megatron_apriel.errors import ConfigError

NAME = "a\x1b[2J\r\x9b31m\u202e"


def parsed(kind: Callable[[str], Any], text: str) -> Any:
    parser = CommandLine(prog="tool")
    parser.add_argument("--value", type=kind)
    return parser.parse_args(["--value", text]).value


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("above_zero", "8", 8),
        ("count_above_zero", "10K", 10_000),
        ("bytes_above_zero", "5GB", 5 * 10**9),
        ("bytes_above_zero", "2MiB", 2**21),
        ("fraction", "10%", 0.1),
        ("fraction", "0", 0.0),
        ("not_negative", "0", 0.0),
        ("not_negative", "0.6", 0.6),
        ("word_list", " a, b,,c ", ("a", "b", "c")),
        ("word_list", "", ()),
        ("number_list", "1,2.5,1", (1.0, 2.5, 1.0)),
    ],
)
def test_what_is_taken(kind: str, text: str, value: Any) -> None:
    assert parsed(getattr(command_line, kind), text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        *(("above_zero", text, f"'{text}' is not a whole number above 0") for text in ("0", "x", "1.5", "10K", "")),
        ("count_above_zero", "0", "0 is not above 0"),
        ("count_above_zero", "ten", "'ten' is not a number with a unit"),
        ("bytes_above_zero", "0GB", "0GB is not above 0"),
        ("bytes_above_zero", "5 apples", "'5 apples' is not a number with a unit"),
        ("fraction", "110%", "'110%' is not between 0% and 100%"),
        *(("not_negative", text, f"'{text}' is not a number, 0 or above") for text in ("x", "nan", "inf", "")),
        ("number_list", "1,x", "'1,x' is not a list of numbers, such as 1,2,1"),
    ],
)
def test_what_is_refused(kind: str, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed(getattr(command_line, kind), text)
    assert f"argument --value: {message}" in capsys.readouterr().err


def test_words_of_a_list_are_some_of_those_that_there_are() -> None:
    assert chosen("b, a", ["a", "b"], "--cases") == ["b", "a"]
    with pytest.raises(ConfigError, match=r"--cases: there is no 'c'\.\n  Valid: a, b"):
        chosen("a,c", ["a", "b"], "--cases")


@pytest.mark.parametrize("kind", [int, command_line.above_zero, command_line.count_above_zero, command_line.fraction])
def test_arguments_are_quoted_printably(kind: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandLine(prog="tool")
    parser.add_argument("--number", type=kind)
    for words in (["--number", NAME], [NAME]):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        err = capsys.readouterr().err
        assert not any(letter in err for letter in "\x1b\r\x9b\u202e")


def test_texts_keep_their_line_ends() -> None:
    assert "examples:\n  one\n  two" in CommandLine(epilog="examples:\n  one\n  two").format_help()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--image_root", "a", "--input", "b"], "--image_root: did you mean --image-root?"),
        (["--Image-Root=a", "--input", "b"], "--Image-Root: did you mean --image-root?"),
        (["--inputs", "b"], "--inputs: did you mean --input?"),  # and --input is what is missing
        (["--imag", "a", "--inputs", "b"], "--inputs: did you mean --input?"),
    ],
)
def test_an_option_that_there_is_not_has_the_nearest_one_beside_it(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = CommandLine(prog="tool")
    parser.add_argument("--image-root")
    parser.add_argument("--input", required=True)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(words)
    err = capsys.readouterr().err
    assert err.endswith(f"\n  {line}\n")
    assert err.count("did you mean") == 1


def test_options_that_resemble_none_are_named_alone(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandLine(prog="tool")
    parser.add_argument("--input")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--learning-rate", "1e-4", "--input", "--", "-x"])
    assert "did you mean" not in capsys.readouterr().err
