"""The project's errors, and how a command line turns them into a message and an exit code.

Everything a person can get wrong raises one of these. A message has three parts: what happened (with the values), why
that cannot work, and how to fix it::

    ConfigError: parallel.tensor=3 does not divide the decoder's 8 key-value groups.
      Every tensor-parallel rank must own whole groups. Possible here: 1, 2, 4, 8.
      Set in examples/cpt_stage2.yaml (or parallel.tensor=... on the command line).

This file may import only ``inputs`` and ``concealed``.
"""

from __future__ import annotations

import errno
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import TracebackType

from megatron_apriel.concealed import concealed
from megatron_apriel.inputs import NotAFileError, TooLargeError

_REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
}  # fmt: skip


class ExitCode(IntEnum):
    """Exit codes that scripts can rely on; a command that a signal ended has :func:`ended_by` it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REQUEUE = 75
    """Stopped by a signal after saving; starting the same command again continues (``EX_TEMPFAIL`` of sysexits.h)."""
    TRY_AGAIN = 76
    """Failed for a reason that may pass by itself: the same command may succeed a little later."""
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    """Whoever read the output went away before its end; the result may or may not be there."""


def ended_by(number: int) -> int:
    """The exit code of a command that was ended by a signal, as shells have it: 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + number


def printable(text: object) -> str:
    """``text`` as it may be printed: what steers a terminal or turns the reading direction is written as an escape.

    Names and values come out of files that somebody else wrote. For one line: line ends are escaped too. What came out
    of the environment through ``${NAME}`` is shown by that name (:mod:`megatron_apriel.concealed`).
    """
    return _without_steering(concealed(_words_of(text)))


def _without_steering(text: str) -> str:
    return text if text.isprintable() else "".join(_escaped(one) if _steers(one) else one for one in text)


def printable_lines(text: object) -> str:
    """:func:`printable` for a text of several lines, which keeps its line ends."""
    return "\n".join(printable(line) for line in _words_of(text).split("\n"))


def words_of(error: BaseException) -> str:
    """What an exception says; its kind where it says nothing."""
    return str(error) or type(error).__name__


def brief(text: object, most: int = 80) -> str:
    """:func:`printable`, the middle cut out where it is long."""
    words = concealed(_words_of(text))  # before it is cut: a part of a secret would not be known for one
    begin, end = words[: most + 1], words[-20:]  # escapes make it longer: of the rest nothing would be left
    line = _without_steering(begin)
    return line if len(line) <= most else f"{line[: most - 23]}...{_without_steering(end)[-20:]}"


def shown(value: object, most: int = 80) -> str:
    """A value that somebody else wrote, as a message quotes it: on one line, cut where it is long."""
    return brief(_words_of(value, repr), most)


def _words_of(value: object, made: Callable[[object], str] = str) -> str:
    """``str(value)``, and a name for what it is where it has none: a message must not fail over what it quotes.

    NumPy makes texts of any numbers, beyond the last letter too; Python finds that when such a letter is taken out.
    """
    try:
        text = made(value)
        list(text)
    except Exception:
        return f"[a {type(value).__name__} that cannot be shown]"
    return text


_LONGEST_NAME = 300


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first few of ``names``, printable, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(brief(name, _LONGEST_NAME) for name in names[:most]) + more


_STEERING = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode's categories of control and format characters, lone surrogates, private letters, line separators."""
_JOINERS = "\u200c\u200d"
"""Format characters that belong to the spelling of words and of emoji."""


def _steers(letter: str) -> bool:
    return not letter.isprintable() and unicodedata.category(letter) in _STEERING and letter not in _JOINERS


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _with_own_lines(text: object) -> str:
    """:func:`printable`, but for line ends before indented lines, as lists in messages have them and names seldom."""
    return "\n  ".join(map(printable, _words_of(text).split("\n  ")))


class AprielError(Exception):
    """Base of the project's errors; its text can be printed as it stands.

    The lines of a list in it are indented by two spaces or more. Another line end is taken for part of a name and
    escaped: a file's name must not look like a message.

    Args:
        what: one sentence, with the values that were found.
        why: the reason, if ``what`` does not already give it.
        fix: what to do about it, with the valid choices.

    Attributes:
        of_one_rank: whether the other ranks of a run do not raise it as well, and wait for the one that does.
    """

    of_one_rank = False

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = map(_with_own_lines, (what, why, fix))
        super().__init__("\n".join([self.what, *(f"  {part}" for part in (self.why, self.fix) if part)]))


class ConfigError(AprielError):
    """A configuration, command line or layout that cannot be run."""


class DataError(AprielError):
    """A record, image, corpus or mixture that cannot be used as asked."""


class CheckpointError(AprielError):
    """Weights that are missing, left over, damaged, or do not fit the model."""


class OutputError(AprielError):
    """A destination that may not be replaced or that cannot be written (disk full, no permission)."""


class TransientError(AprielError):
    """A failure that may pass by itself: a port that is taken, another run's lock, a rank that did not come."""


class ServerError(AprielError):
    """A server that cannot be reached, refuses, or answers something else than was asked."""


def run_command(main: Callable[[], int | None], leave_message: Callable[[str], None] | None = None) -> int:
    """Run a command line's ``main`` and return its exit code; every tool ends with ``sys.exit(run_command(main))``.

    While it runs, torch loads nothing that could run code, whoever asks it to.

    The project's own errors are printed on standard error without a traceback, since they already say what to do. Any
    other exception is a defect of the program and keeps its traceback, which is printable too.

    Args:
        main: the command; the exit code, or None for 0.
        leave_message: is given what is printed of an error, too.
    """
    sys.excepthook = print_traceback
    try:
        with _no_unrestricted_loading():
            code = int(main() or ExitCode.OK)
        sys.stdout.flush()  # while a failure to print can still be reported
        return code
    except BrokenPipeError:
        # The reader of our output (`| head`) went away, maybe before the work was done. What is still waiting to be
        # printed goes nowhere: Python would complain of it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.PIPE_CLOSED
    except KeyboardInterrupt:
        print("interrupted; nothing was left half-written", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except Exception as error:
        message = _message_of(error)
        if message is None:
            raise
        print(message, file=sys.stderr)
        if leave_message is not None:
            leave_message(message)
        return ExitCode.TRY_AGAIN if isinstance(error, TransientError) else ExitCode.FAILED


def _message_of(error: Exception) -> str | None:
    """What is printed of an error that is no defect of the program; None of one that is."""
    if isinstance(error, AprielError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, NotAFileError | TooLargeError):
        return f"DataError: {printable(error.filename)}: {error.strerror}."
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        # What the system refuses (permissions, names, a failing or full disk) is no defect of the program either.
        return (
            f"{type(error).__name__}: {printable(error.filename or 'standard output or a file')}: {error.strerror}.\n"
            "  The operating system refused it.\n"
            "  Check its permissions, those of the directories above it, and the disk (ls -ld, df)."
        )
    return None


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception on standard error as Python does, but printable; made to be ``sys.excepthook``."""
    import traceback  # late: nearly every command ends without one

    print(printable_lines("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


@contextmanager
def _no_unrestricted_loading() -> Iterator[None]:
    """Have ``torch.load`` refuse pickles that call functions, whatever its caller asks for.

    torch's own switches, looked at in every call: nobody's code, a library's neither, gets round them by accident.
    """
    switches = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": None}
    before = {name: os.environ.get(name) for name in switches}
    _set_environment(switches)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
