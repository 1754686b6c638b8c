"""What a command line makes of an error: exit code, message, and no traceback for what is no defect."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from megatron_apriel.errors import ConfigError, ExitCode, brief, printable, printable_lines, run_command, shown


def test_own_errors_have_three_parts(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise ConfigError("a=3 is odd.", "Only pairs fit.", "Give 2 or 4.")

    assert run_command(main) == ExitCode.FAILED
    out, err = capsys.readouterr()
    assert err == "ConfigError: a=3 is odd.\n  Only pairs fit.\n  Give 2 or 4.\n"
    assert not out


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.ELOOP])
def test_what_the_system_refuses_is_told_without_a_traceback(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise OSError(number, os.strerror(number), "models/x/config.json")

    assert run_command(main) == ExitCode.FAILED
    assert f"models/x/config.json: {os.strerror(number)}.\n" in capsys.readouterr().err


def test_defects_keep_their_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        run_command(lambda: os.stat("no such file").st_size)  # noqa: PTH116 - any call that fails


@pytest.mark.parametrize("flush", [True, False], ids=["in the middle", "at the end"])
def test_a_reader_that_goes_away_is_no_success(flush: bool) -> None:
    """``tool | head``: the work may not have been done, so the exit code cannot be 0."""
    program = (
        "import sys; from megatron_apriel.errors import run_command\n"
        "def main():\n"
        "    sys.stdin.read()\n"
        f"    print('line', flush={flush})\n"
        "sys.exit(run_command(main))\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", program], text=True, **pipes)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    assert process.wait(timeout=60) == ExitCode.PIPE_CLOSED
    assert process.stderr.read() == ""
    process.stderr.close()


def test_what_steers_a_terminal_is_escaped_in_messages() -> None:
    error = ConfigError("a\x1b[2J\x9bb.json\u202e is missing.", "first\n  second\n    third", "\x07")
    assert str(error) == "a\\x1b[2J\\x9bb.json\\u202e is missing.\n  first\n  second\n    third\n  \\x07"


class _Speechless:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


def test_what_has_no_text_is_named_by_its_type() -> None:
    beyond_the_last_letter = np.frombuffer(b"\0\0\x11\0" * 3, "<U3")[0]
    for what in (_Speechless(), beyond_the_last_letter):
        expected = f"[a {type(what).__name__} that cannot be shown]"
        assert printable(what) == printable_lines(what) == str(ConfigError(what)) == expected
    assert shown(_Speechless()) == "[a _Speechless that cannot be shown]"
    assert "U00110000" in shown(beyond_the_last_letter)


def test_a_name_with_a_line_end_is_no_message_of_its_own() -> None:
    error = ConfigError("a\nConfigError: forged.json is missing.", "because\nof it")
    assert str(error) == "a\\nConfigError: forged.json is missing.\n  because\\nof it"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name\nConfigError: forged\r", "name\\nConfigError: forged\\r"),
        ("bad \udcff bytes", "bad \\udcff bytes"),
        ("Größe 数据 данные \U0001f469\u200d\U0001f680", None),
    ],
)
def test_printable_keeps_letters_of_all_languages(text: str, expected: str | None) -> None:
    assert printable(text) == (text if expected is None else expected)


@pytest.mark.parametrize("length", [0, 19, 56, 79, 80, 81, 200])
@pytest.mark.parametrize("letters", ["a", "\x1b", "a\x1b", "\u202e\n-"])
def test_a_long_text_is_cut_as_it_would_be_printed(letters: str, length: int) -> None:
    """Only its two ends are looked at; what is seen is the middle cut out of the whole."""
    text = (letters * length)[:length]
    whole = printable(text)
    assert brief(text) == (whole if len(whole) <= 80 else f"{whole[:57]}...{whole[-20:]}")
