"""A lock between processes that share a directory: a file, or a directory, that one of them at a time has locked.

The kernel releases the lock when its holder closes the file or dies, so nothing is left behind that a person must
remove. The directory may be one that others write to. So the file is opened without following a link or waiting for
the other end of a pipe, and nothing is ever written into it: whatever stands in its place stays as it is.

Locking is ``filelock.lock_descriptor``. Opening and waiting stay by hand: ``filelock.FileLock`` opens pipes and devices
and no directories, and where a file system has no locks it makes a file that outlives a killed process.

This file may import only ``inputs``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import lock_descriptor

from megatron_apriel.inputs import NotAFileError

_EVERY_S = 0.1
"""Between two attempts: the kernel's own waiting cannot be given up."""
_KERNELS_LIST = Path("/proc/locks")


class HeldError(Exception):
    """Another process holds the lock; says which one, where that can be known."""


@dataclass(frozen=True)
class TakenLock:
    """A lock that was taken; released at the end of ``with``, or with the process.

    Attributes:
        descriptor: of the locked file or directory.
        problem: why it is not locked after all: some network file systems have no locks. None where it is.
    """

    descriptor: int
    problem: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self.descriptor)


def take_lock(path: Path, patience_s: float = 0.0) -> TakenLock:
    """Lock the file ``path``, which is made where there is none.

    Args:
        path: of the lock file.
        patience_s: how long to wait for another process that holds it.

    Raises:
        HeldError: another process still holds it.
        NotAFileError: a pipe, a device or a directory stands in its place.
        OSError: a link stands there, or the file cannot be made or opened.
    """
    return _locked(_opened(path), path, patience_s)


def lock_directory(path: Path) -> TakenLock:
    """Lock a directory itself, with no file in it.

    Raises:
        HeldError: another process holds it.
        OSError: it is no directory, or cannot be opened.
    """
    return _locked(os.open(path, os.O_RDONLY | os.O_DIRECTORY), path, 0.0)


def _locked(descriptor: int, path: Path, patience_s: float) -> TakenLock:
    deadline = time.monotonic() + patience_s
    try:
        while not lock_descriptor(descriptor, blocking=False):
            if time.monotonic() >= deadline:
                raise HeldError(f"{path} is locked by {_holder(descriptor)}")
            time.sleep(_EVERY_S)
    except OSError as error:
        return TakenLock(descriptor, error)
    except BaseException:
        os.close(descriptor)
        raise
    return TakenLock(descriptor)


def _opened(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        _check_regular(path, path.lstat().st_mode)  # some devices do something when they are opened
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "it is a link, which is not followed", str(path))
    if not stat.S_ISREG(mode):
        raise NotAFileError(path, mode)


def _holder(descriptor: int) -> str:
    """Who has locked an open file, by the kernel's list, which knows the processes of this host."""
    status = os.fstat(descriptor)
    place = (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
    try:
        for line in _KERNELS_LIST.read_text(encoding="ascii").splitlines():
            _, kind, *_, process, file, _, _ = line.split()
            major, minor, inode = file.split(":")
            if kind == "FLOCK" and (int(major, 16), int(minor, 16), int(inode)) == place and int(process) > 0:
                return f"process {process} of this host"
    except (OSError, ValueError):
        pass
    return "a process that cannot be seen from here, as on another host"
