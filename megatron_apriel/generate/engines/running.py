"""An engine's program while it runs: started, waited for until it answers, and ended with all that it started.

It leads a session of its own, so that a key pressed in the terminal reaches this process alone, which passes every
signal on, or ends the program when a signal ends its own work. Where this process is killed, the kernel ends the
program.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from megatron_apriel.errors import ConfigError, ServerError, TransientError, printable
from megatron_apriel.generate.engines.engine import Launch
from megatron_apriel.terminal import note
from megatron_apriel.workers import end_with_parent

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ENDING_SECONDS = 30.0
_SECONDS_BETWEEN_LINES = 15.0


class Program:
    """A program that serves; a context manager, at whose end it is gone.

    Args:
        launch: what is started.
        log: file for what it prints; by default that goes where this process's remarks go.
        passes_signals: whether signals to this process are passed on to the program, and end this process only with
            it; else they act on this process alone, as where it asks the program something.

    Raises:
        ConfigError: it cannot be started.
    """

    def __init__(self, launch: Launch, log: Path | None = None, *, passes_signals: bool = True) -> None:
        self.name = launch.name
        self.log = log
        self._passed_on = _PASSED_ON if passes_signals else ()
        self.signalled: signal.Signals | None = None
        """The signal that ended it, where a person or a scheduler sent one."""
        output: Any = log.open("ab") if log else 2
        own = os.getpid()
        try:
            self._process = subprocess.Popen(
                launch.command,
                env={**os.environ, **launch.variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(own, signal.SIGTERM),
            )
        except OSError as error:
            raise ConfigError(f"{launch.command[0]} cannot be started: {error.strerror}.") from None
        finally:
            if log:
                output.close()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Program:
        for number in self._passed_on:
            self._handlers[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._end()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def wait_until_ready(self, address: str, seconds: float) -> bool:
        """Wait until ``address`` answers with 200; False if a signal came first.

        Where the program prints into a log, a line now and then says that it is still loading.

        Raises:
            ServerError: the program ended, or the time was over.
        """
        begun = said = time.monotonic()
        while self.signalled is None:
            self.check_running(" before it answered")
            now = time.monotonic()
            if now > begun + seconds:
                raise ServerError(f"{self.name} did not answer at {address} within {seconds:g} s.", *self._last_lines())
            try:
                if httpx.get(address, timeout=5.0, trust_env=False).status_code == 200:
                    return True
            except httpx.HTTPError:
                pass
            if self.log and now >= said + _SECONDS_BETWEEN_LINES:
                said = now
                note(f"{self.name} is loading, for {now - begun:.0f} s now")
            time.sleep(0.2)
        return False

    def check_running(self, when: str = "") -> None:
        """Raise ServerError if it ended, unless a signal was passed on to it."""
        code = self._process.poll()
        if code is not None and self.signalled is None:
            raise ServerError(f"{self.name} ended with {_spelled(code)}{when}.", *self._last_lines())

    def wait(self) -> None:
        """Wait until it ends. Raises ServerError if nobody asked it to."""
        code = self._process.wait()
        if self.signalled is None:
            raise ServerError(f"{self.name} ended with {_spelled(code)}.", *self._last_lines())

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """A second signal does not wait for an orderly end."""
        again = self.signalled is not None
        self.signalled = signal.Signals(number)
        if again:
            self._signal_all(signal.SIGKILL)
        elif self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self) -> None:
        try:
            if self._process.poll() is None:
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_ENDING_SECONDS)
        finally:  # A signal may end the wait.
            # Also what it started and left behind.
            self._signal_all(signal.SIGKILL)
            self._process.wait()

    def _signal_all(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _last_lines(self) -> tuple[str, str]:
        """Why and what to do, for an error."""
        if self.log is None:
            return "", "What it printed stands above."
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        return "It printed last:" + "".join(f"\n    {printable(line)}" for line in lines), ""


def run_step(launch: Launch) -> None:
    """Run a program to its end. Raises ServerError if it fails."""
    done = subprocess.run(
        launch.command, env={**os.environ, **launch.variables}, stdin=subprocess.DEVNULL, stdout=2, check=False
    )
    if done.returncode:
        raise ServerError(
            f"{shlex.join(launch.command)} ended with {_spelled(done.returncode)}.", fix="What it printed stands above."
        )


def check_port(host: str, port: int) -> None:
    """Raise TransientError if something listens there already, ConfigError if there is no such address."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except socket.gaierror as error:
        raise ConfigError(f"--host {host} is no address: {error.strerror}.", fix="Give one of this machine.") from None
    except OSError as error:
        raise TransientError(
            f"port {port} of {host} cannot be used: {error.strerror}.", fix="Choose another one with --port."
        ) from None


def free_port(host: str) -> int:
    """A port that nothing listens at."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _spelled(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
