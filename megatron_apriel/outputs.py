"""Output directories that are whole or absent.

A result that takes minutes to write can be stopped at any moment: by Ctrl-C, by the scheduler, by a full disk, by a
power cut. A half-written checkpoint that looks like a checkpoint is worse than none. So nothing is ever written at its
final place. The work goes to a hidden directory beside it, on the same file system::

    runs/.average.partial-node17-4711-889123/      <- being written
    runs/average/                                  <- appears by one rename, when everything is on disk

When an existing result is replaced, the two directories change places in one atomic system call
(``renameat2(RENAME_EXCHANGE)``), so that at every moment there is a whole directory under the final name. Where a file
system lacks that call, two renames stand in for it, and a process killed between them is repaired by the next run.

The hidden name says who is writing: host, process and the process's start time. What a killed process left is removed
by the next run that writes to the same place. What a live process is writing is never touched: beside the name, the
writer holds a lock on the directory, which the kernel releases only with the process.

Files by themselves are written by ``output_files.py``. This file may import only ``errors``, ``locks`` and
``terminal``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from megatron_apriel.errors import OutputError, ended_by
from megatron_apriel.locks import HeldError, lock_directory
from megatron_apriel.terminal import note

RUNS_OWN = ("checkpoints", "metrics.jsonl")
"""What a training run leaves in its output directory, and nothing else does."""
SEEN_WITHIN_S = 10.0
"""For which file systems, as NFS, may not show what another host did."""
_MOUNTS = Path("/proc/self/mountinfo")
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_SUCH_CALL = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


def check_destination(
    destination: str | Path,
    overwrite: bool = False,
    marker: str | tuple[str, ...] = "config.json",
    inputs: Sequence[str | Path] = (),
) -> Path:
    """Check that ``destination`` may be written, before any work is done.

    Args:
        destination: directory to be made. A link is followed: the directory that it points to is meant.
        overwrite: an existing directory is replaced if it contains ``marker`` and no training run, or nothing at all.
        marker: file that distinguishes an earlier result of ours from a directory of somebody's, or all of several.
        inputs: the destination may neither lie in one of them nor contain one.

    Returns:
        The destination as an absolute path with links resolved.

    Raises:
        OutputError: if it exists and may not or cannot be replaced, or overlaps an input.
    """
    target = resolved(destination)
    for given in map(Path, inputs):
        _check_apart(destination, target, given)
    check_place(destination, target)
    if os.path.lexists(target):
        _check_replaceable(destination, target, overwrite, marker)
        _check_not_mounted(destination, target)
    return target


def _check_apart(destination: str | Path, target: Path, given: Path) -> None:
    """Raise OutputError if writing ``target`` would touch the input ``given``."""
    place = followed(given)
    if target == place or target in place.parents or place in target.parents:
        relation = "is" if target == place else "contains" if target in place.parents else "lies inside"
        raise OutputError(
            f"the destination {destination} {relation} the input {given}.",
            "An input is only read; replacing it would lose it if anything went wrong.",
            "Give a destination outside of it.",
        )
    for link in _links_into(target, place):
        raise OutputError(
            f"the destination {destination} holds what {link} of the input is a link to.",
            "An input is only read; replacing the destination would take that file from it.",
            "Give another destination.",
        )


def _check_replaceable(destination: str | Path, target: Path, overwrite: bool, marker: str | tuple[str, ...]) -> None:
    """Raise OutputError unless what exists at ``target`` is an earlier result that may be replaced, or empty."""
    if not target.is_dir():
        raise OutputError(f"the destination {destination} is a file.", fix="Give the name of a directory.")
    if not overwrite:
        raise OutputError(
            f"the destination {destination} exists.",
            "Nothing is overwritten unless you ask for it.",
            "Give another destination, or --overwrite to replace it.",
        )
    if (missing := _missing(target, marker)) and any(target.iterdir()):
        raise OutputError(
            f"the destination {destination} exists and has no {missing[0]}.",
            f"Only a directory with {missing[0]} in it is taken for an earlier result; this one may be something else.",
            "Remove it yourself if it is not needed, or give another destination.",
        )
    if held := [name for name in RUNS_OWN if (target / name).exists()]:
        raise OutputError(
            f"the destination {destination} holds {held[0]} of a training run.",
            "It would be lost with what is replaced.",
            "Move the run away, or give another destination.",
        )


def _check_not_mounted(destination: str | Path, target: Path) -> None:
    """Raise OutputError if something is mounted at ``target``, as a volume is in a container: it cannot be renamed."""
    with suppress(OSError):
        lines = _MOUNTS.read_bytes().split(b"\n")
        # Lines of proc(5) have the place fifth, in which what would end it is written in octal digits.
        escaped = re.sub(rb"[ \t\n\\]", lambda match: b"\\%03o" % ord(match[0]), os.fsencode(target))
        if any(line.split(b" ")[4:5] == [escaped] for line in lines):
            raise OutputError(
                f"the destination {destination} is where something is mounted, and cannot be replaced.",
                "The result is written beside its final place and appears there by a rename.",
                f"Give a directory in it, as {target / 'result'}.",
            )


def _missing(directory: Path, marker: str | tuple[str, ...]) -> list[str]:
    """Those of the files that make a directory a result which are not in it."""
    names = (marker,) if isinstance(marker, str) else marker
    return [name for name in names if not (directory / name).is_file()]


def _links_into(target: Path, given: Path) -> Iterator[Path]:
    """Links in the directory ``given`` that lead to something inside ``target``."""
    if target.is_dir() and given.is_dir():
        with os.scandir(given) as entries:
            links = [Path(entry.path) for entry in entries if entry.is_symlink()]
        yield from (link for link in links if target in followed(link).parents)


def check_place(destination: str | Path, target: Path) -> None:
    """Raise OutputError if the directory in which ``target`` is to appear cannot be made or written to."""
    place = next(path for path in (*target.parents, Path("/")) if os.path.lexists(path))
    if not place.is_dir():
        raise OutputError(
            f"the destination {destination} cannot be made: {place} is a file.", fix="Give a path through directories."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(
            f"the destination {destination} cannot be made: nothing may be written in {place}.",
            "The result is written beside its final place and appears there by a rename.",
            "Give another destination, or change the permissions of that directory.",
        )


def free_space(destination: str | Path) -> tuple[Path, int]:
    """The nearest directory to ``destination`` that exists, and the free bytes of its file system."""
    path = followed(destination)
    place = next(one for one in (path, *path.parents) if one.exists())
    return place, shutil.disk_usage(place).free


def check_space(destination: str | Path, needed: int) -> None:
    """Raise OutputError if the file system of ``destination`` has less than ``needed`` bytes free."""
    place, free = free_space(destination)
    if free < needed:
        raise OutputError(
            f"{destination} needs {needed:,} bytes, and {place} has {free:,} bytes free.",
            "An existing result is kept until the new one is whole, so both need room for a while.",
            "Free some space or give a destination on another file system.",
        )


@contextmanager
def whole_directory(
    destination: str | Path,
    overwrite: bool = False,
    marker: str | tuple[str, ...] = "config.json",
    inputs: Sequence[str | Path] = (),
) -> Iterator[Path]:
    """Yield a directory to write into; it becomes ``destination`` when the block ends well, and vanishes otherwise.

    The block must write ``marker``. SIGTERM and SIGHUP end the block like an error, with the usual exit code
    (128 + signal), unless the program has handlers of its own for them. All files are on disk before the rename.

    Args:
        destination, overwrite, marker, inputs: see :func:`check_destination`, which is called first.

    Raises:
        OutputError: if the destination is refused, or the disk is full, read-only, or appeared in the meantime.
    """
    target = check_destination(destination, overwrite, marker, inputs)
    made = _make_parents(target.parent)
    partial: Path | None = None
    try:
        with terminating_signals_raise(), ExitStack() as lock:
            _remove_stale(target)
            partial = target.parent / f".{target.name}.partial-{writer_name()}-{os.urandom(3).hex()}"
            partial.mkdir()
            with suppress(HeldError):  # another process is looking whether this one lives
                lock.enter_context(lock_directory(partial))
            yield partial
            if missing := _missing(partial, marker):
                raise RuntimeError(f"the block that wrote {destination} did not write {missing[0]}")
            flush_directory(partial)
            _publish(partial, destination, target, overwrite, marker)
    except OSError as error:
        raise _explained(error, destination, target) from error
    finally:
        if partial is not None:
            # Either unfinished work, or the replaced result, which the exchange left under this name, or nothing.
            shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # not empty: the result is in it
                parent.rmdir()


def _make_parents(parent: Path) -> list[Path]:
    """Create missing parents; returns those created, innermost first, so that a failure can take them away again."""
    missing = [path for path in (parent, *parent.parents) if not path.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explained(error, parent, parent) from error
    return missing


def _explained(error: OSError, destination: str | Path, target: Path) -> OutputError:
    failure, file = "could not be written", error.filename
    if error.errno in _FULL:
        reason = "The disk, the quota or the largest allowed file is full."
    elif error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        reason = "It appeared while the work was under way; another process may write to the same place."
    else:
        reason = f"The system says: {file or ''} {error.strerror}.".replace("  ", " ")
        if isinstance(file, str) and f".{target.name}." not in file and Path(file).absolute() not in target.parents:
            failure = "could not be made"  # an input failed, not the output
    return OutputError(
        f"{destination} {failure}: {error.strerror or error}.", reason, "What was there before is unchanged."
    )


def check_growing(directory: Path) -> None:
    """Check that files can be added to a directory, or that it can be made. Raises OutputError."""
    target = resolved(directory)
    if os.path.lexists(target) and not target.is_dir():
        raise OutputError(f"{directory} is no directory.", fix="Give the name of one, or of one that is to be made.")
    check_place(directory, target / "any")


def followed(path: str | Path) -> Path:
    """Absolute, links followed as far as they lead: one that leads back to itself stays, which ``Path`` refuses."""
    return Path(os.path.realpath(path))


def resolved(path: str | Path) -> Path:
    """Absolute, links followed. Raises OutputError for a link that leads back to itself."""
    try:
        return Path(path).resolve()
    except RuntimeError:  # what Path makes of such a link
        raise OutputError(f"the destination {path} is a link that leads back to itself.") from None


def appears(file: Path, size: int = 0) -> bool:
    """Whether a file of another host is seen here, of ``size`` bytes or more, now or within ``SEEN_WITHIN_S``."""
    end = time.monotonic() + SEEN_WITHIN_S
    while not (file.is_file() and file.stat().st_size >= size):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def reserve(descriptor: int, size: int) -> None:
    """Give a new file its final size and room on the disk: writing is faster then, and a full disk shows at once.

    Where the system or the file system has no such call, the file takes its room while it is written.

    Raises:
        OSError: there is no such room.
    """
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except (AttributeError, OSError):
        return
    # Not os.posix_fallocate: where a file system cannot reserve, that writes to every block of the file instead.
    while fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        code = ctypes.get_errno()
        if code in _NO_SUCH_CALL:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def flush_directory(directory: Path) -> None:
    """Wait until every file and directory below is on disk, so that the rename cannot overtake the contents."""
    for folder, _, files in os.walk(directory):
        for path in [*(os.path.join(folder, name) for name in files), folder]:  # noqa: PTH118 - os.walk gives strings
            if not os.path.islink(path):  # noqa: PTH114
                flush(path)


def flush(path: str | Path) -> None:
    """Wait until a file, or the names in a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot flush a directory
            raise
    finally:
        os.close(descriptor)


def _publish(
    partial: Path, destination: str | Path, target: Path, overwrite: bool, marker: str | tuple[str, ...]
) -> None:
    if overwrite and os.path.lexists(target):
        _check_replaceable(destination, target, overwrite, marker)  # hours later, something else may be there
        if not exchange(partial, target):
            _swap_by_two_renames(partial, target)
    else:
        os.rename(partial, target)  # noqa: PTH104 - fails on a directory that is not empty, as it must
    flush(target.parent)


def exchange(first: Path, second: Path) -> bool:
    """Let two paths change places atomically. Returns False where the system or the file system cannot do so."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_SUCH_CALL:
        return False
    raise OSError(code, os.strerror(code), str(second))


def _swap_by_two_renames(partial: Path, target: Path) -> None:
    """Replace ``target`` without an atomic exchange; ``_remove_stale`` repairs a kill between the two renames."""
    aside = target.parent / f".{target.name}.replaced-{writer_name()}-{os.urandom(3).hex()}"
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        target.rename(aside)
        try:
            partial.rename(target)
        except OSError:
            aside.rename(target)
            raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    shutil.rmtree(aside, ignore_errors=True)


def writer_name() -> str:
    """Host, process and start time of this process: together they name one process for good."""
    host = "".join(letter if letter.isalnum() else "_" for letter in os.uname().nodename)[:64]
    return f"{host}-{os.getpid()}-{start_time(os.getpid())}"


def start_time(process: int) -> str:
    """Start time of a live process in clock ticks since boot, "" if there is none (or only its zombie)."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # the command's name, in parentheses, may itself contain spaces
    return "" if fields[0] == "Z" else fields[19]


def _remove_stale(target: Path) -> None:
    """Remove what killed processes left beside ``target``; restore a result that was cut off between two renames."""
    ours = writer_name().rpartition("-")[0].rpartition("-")[0]
    for kind in ("replaced", "partial"):
        prefix = f".{target.name}.{kind}-"
        for path in sorted(target.parent.iterdir()):
            if not path.name.startswith(prefix) or path.is_symlink() or not path.is_dir():
                continue
            host, process, started, _ = (*path.name.removeprefix(prefix).split("-"), "", "", "", "")[:4]
            if host != ours or not process.isdecimal():
                note(
                    f"note: {path} was begun on {host or 'another host'} and not finished. "
                    "If no process there is writing it, remove it."
                )
                continue
            if start_time(int(process)) == started:
                continue  # its writer lives
            try:
                with lock_directory(path):
                    pass
            except HeldError:
                continue  # its writer lives in another process namespace
            except OSError:
                continue  # gone by now, as its writer's own end or another process removed it; or another user's
            # Where there are no locks, the writer's name is the only guard.
            if kind == "replaced" and not os.path.lexists(target):
                path.rename(target)
            else:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def terminating_signals_raise() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit(128 + signal) inside the block, where they have their default effect."""

    def stop(number: int, frame: FrameType | None) -> None:
        note(f"stopped by {signal.Signals(number).name}; nothing was left half-written")
        raise SystemExit(ended_by(number))

    replaced = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, stop)
                replaced.append(number)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)
