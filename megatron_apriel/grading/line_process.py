"""A process that answers requests, one line of JSON each way, and that a time limit ends.

What checks an answer may take for ever, crash, or want packages of versions that are not ours. In a process of its own
it can be ended: the next request starts a new one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Event, Lock, Timer
from typing import Any, Self

from megatron_apriel.errors import brief
from megatron_apriel.grading.verdict import Cause, Mark, Verdict


class UnansweredError(Exception):
    """A request that has no answer."""

    cause: Cause

    def verdict(self, what: str) -> Verdict:
        """The verdict on what was to be checked: none.

        Args:
            what: was done, for the reason.
        """
        return Verdict(Mark.NONE, f"{what}: {self}", self.cause)


class OutOfTimeError(UnansweredError):
    """A request took longer than allowed; its process was ended."""

    cause = Cause.SLOW


class BrokenProcessError(UnansweredError):
    """The process ended by itself, or answered something else than JSON; its last words are the message."""

    cause = Cause.CHECK


class LineProcess:
    """A process that is started when it is first asked; a context manager. One request at a time.

    Args:
        command: that starts it; it reads requests from its standard input until that ends.
        seconds: that a request may take, beside those of a start.
        starting_seconds: that the first request after a start may take in addition.
        environment: variables of it; None for our own.
    """

    def __init__(
        self,
        command: Sequence[str],
        seconds: float,
        *,
        starting_seconds: float = 60.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command, self._seconds, self._starting = list(command), seconds, starting_seconds
        self._environment = None if environment is None else dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def __enter__(self) -> LineProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def ask(self, request: Any) -> Any:
        """The answer to a request.

        Raises:
            OutOfTimeError: it took too long.
            BrokenProcessError: the process ended or answers nonsense.
        """
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            process, seconds = self._running()
            ended = Event()

            def end() -> None:
                ended.set()
                _end(process)

            timer = Timer(seconds, end)
            timer.start()
            try:
                process.stdin.write(line)  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                said = process.stdout.readline()  # type: ignore[union-attr]
            except OSError:
                said = b""
            except BaseException:  # a signal's handler; the answer, when it comes, would be taken for that to the next
                self._stop()
                raise
            finally:
                timer.cancel()
                timer.join()
            if said.endswith(b"\n"):
                with suppress(ValueError):
                    return json.loads(said)
            self._stop()
            if ended.is_set():
                raise OutOfTimeError(f"it took longer than {seconds:g} s")
            raise BrokenProcessError(self._last_words(said))

    def close(self) -> None:
        """End it."""
        with self._lock:
            self._stop()

    def _running(self) -> tuple[subprocess.Popen[bytes], float]:
        """The process, and the seconds that it may take for its next answer."""
        if self._process is not None and self._process.poll() is None:
            return self._process, self._seconds
        self._stop()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise BrokenProcessError(f"{self._command[0]}: {error.strerror}") from None
        return self._process, self._seconds + self._starting

    def _stop(self) -> None:
        if self._process is not None:
            _end(self._process)
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]
            self._process.wait()
            self._process = None

    def _last_words(self, said: bytes) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return brief(lines[-1] if lines else said.decode("utf-8", "replace").strip() or "it ended without a word", 300)


class Grader:
    """What compares answers through such a process; a context manager, because it keeps the process."""

    _process: LineProcess

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it, and what it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
