"""The last step before a program runs in the sandbox: limits, another user, Landlock, the filter of system calls.

It runs with the sandbox's interpreter, alone and without this project::

    python -I -S sandbox_launcher.py '{"command": [...], "status": 5, ...}'

and tells through the descriptor ``status``, which the program does not get, that everything is in place, or what is
not. With ``"watches": true`` it stays behind as the parent of all that the program leaves behind, and ends it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

_NO_NEW_PRIVILEGES, _SET_FILTER, _SIGNAL_AT_PARENTS_DEATH, _ADOPT_ORPHANS = 38, 22, 1, 36
_KEEP_CAPABILITIES, _AMBIENT, _READ_AND_SEARCH = 8, 47, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of rights over files that each version of Landlock knows."""
_ASK_VERSION = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Failed(Exception):
    pass


def main() -> None:
    """Get everything into place, and become the program."""
    settings = json.loads(sys.argv[1])
    status: int = settings["status"]
    os.set_inheritable(status, False)
    try:
        if settings["watches"]:
            _prctl(_ADOPT_ORPHANS, 1)
            _prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
            if child := os.fork():
                os.close(status)
                os._exit(_waited(child))
            _prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
        for name, value in settings["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        _prctl(_NO_NEW_PRIVILEGES, 1)
        if settings["readable"] is not None:
            _landlock(settings["readable"], settings["writable"])
        if settings["user"] is not None:
            _become(settings["user"], keeps_reading=settings["readable"] is not None)
        _filter(bytes.fromhex(settings["filter"]))
        os.write(status, b"ready")
        os.execve(settings["command"][0], settings["command"], settings["environment"])
    except (OSError, _Failed, ValueError) as error:
        os.write(status, f"failed: {error}".encode())
        os._exit(1)


def _waited(child: int) -> int:
    """How the program ended, once nothing that it started is left."""
    code: int | None = None
    while True:
        try:
            process, ended = os.wait()
        except ChildProcessError:
            return code or 0
        if process == child:
            code = os.waitstatus_to_exitcode(ended)
            code = 128 - code if code < 0 else code
        if code is not None:
            _kill_children()


def _kill_children() -> None:
    """Those that were orphaned; whose parents among them die become ours and are killed at the next turn."""
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:  # noqa: PTH123
        for process in file.read().split():
            try:
                os.kill(int(process), signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue


def landlock_version() -> int:
    """The version of Landlock that the kernel has, 0 if none."""
    return max(int(_libc.syscall(*map(_word, (_CREATE_RULESET, None, 0, _ASK_VERSION)))), 0)


def _landlock(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Leave only some paths to read and run, and some to write too; no signal leaves the sandbox."""
    version = landlock_version()
    rights = (1 << _RIGHTS.get(version, 16)) - 1
    handled = (ctypes.c_uint64 * 3)(rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    ruleset = _called(_CREATE_RULESET, handled, ctypes.sizeof(handled), 0)
    for paths, allowed in ((readable, _EXECUTE | _READ_FILE | _READ_DIR), (writable, rights & ~(1 << 15))):
        for path in paths:
            if not os.path.exists(path):  # noqa: PTH110
                continue
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            mask = allowed if os.path.isdir(path) else allowed & _OF_FILES  # noqa: PTH112
            rule = (mask & rights).to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
            _called(_ADD_RULE, ruleset, 1, rule, 0)
            os.close(descriptor)
    _called(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _become(user: int, *, keeps_reading: bool) -> None:
    """Go on as another user and group, without capabilities.

    With ``keeps_reading``, folders that only root may enter can be passed, so that the program reaches an interpreter
    behind them; what it may read there is left to Landlock.
    """
    if keeps_reading:
        _prctl(_KEEP_CAPABILITIES, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    if keeps_reading:
        mask = 1 << _READ_AND_SEARCH
        if _libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(mask, mask, mask)):
            raise _Failed(f"capset: {os.strerror(ctypes.get_errno())}")
        _prctl(_AMBIENT, 2, _READ_AND_SEARCH)


def _filter(program: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    _prctl(_SET_FILTER, 2, ctypes.byref(Program(len(program) // 8, program)))


def _prctl(option: int, value: int, more: Any = 0) -> None:
    if _libc.prctl(*map(_word, (option, value, more, 0, 0))):
        raise _Failed(f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def _called(number: int, *arguments: Any) -> int:
    result = int(_libc.syscall(*map(_word, (number, *arguments))))
    if result < 0:
        raise _Failed(f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return result


def _word(value: Any) -> Any:
    """An argument in the width of a register."""
    return ctypes.c_long(value) if isinstance(value, int) else value


if __name__ == "__main__":
    main()
