"""A lock between processes: one at a time, released by death, and nothing opened or changed that is no lock file."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_apriel import locks
from megatron_apriel.inputs import NotAFileError
from megatron_apriel.locks import HeldError, lock_directory, take_lock

HOLD = """
import sys
from pathlib import Path
from megatron_apriel.locks import take_lock
take_lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_excludes_others_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with take_lock(path) as lock:
        assert lock.problem is None
        with pytest.raises(HeldError, match=rf"a\.lock is locked by process {os.getpid()} of this host"):
            take_lock(path)
    with take_lock(path), pytest.raises(HeldError):
        take_lock(path, 0.2)


def test_another_process_is_named_and_its_death_releases_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=f"process {process.pid} of this host"):
            take_lock(path)
        process.kill()
    with take_lock(path, 120) as lock:
        assert lock.problem is None


def test_a_holder_that_the_kernel_does_not_list_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "nonsense\n", "1: FLOCK  ADVISORY  WRITE -1 00:00:0 0 EOF\n"):
        (tmp_path / "list").write_text(text)
        monkeypatch.setattr(locks, "_KERNELS_LIST", tmp_path / "list")
        with take_lock(tmp_path / "a.lock"), pytest.raises(HeldError, match="cannot be seen from here"):
            take_lock(tmp_path / "a.lock")


def test_a_file_system_without_locks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object, **options: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "lock_descriptor", unsupported)
    for lock in (take_lock(tmp_path / "a.lock", 5), lock_directory(tmp_path)):
        with lock:
            assert "No locks available" in str(lock.problem)


def test_a_directory_is_locked_without_a_file_in_it(tmp_path: Path) -> None:
    with lock_directory(tmp_path) as lock:
        assert lock.problem is None and not list(tmp_path.iterdir())
        with pytest.raises(HeldError, match=rf"{tmp_path} is locked by process {os.getpid()} of this host"):
            lock_directory(tmp_path)
    with lock_directory(tmp_path):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        lock_directory(tmp_path / "file")


def test_other_programs_that_lock_the_file_are_seen(tmp_path: Path) -> None:
    """The lock is the kernel's ``flock``, by which older checkouts and other tools lock too."""
    with (tmp_path / "a.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(HeldError):
            take_lock(tmp_path / "a.lock")
    with take_lock(tmp_path / "a.lock"), (tmp_path / "a.lock").open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.timeout(120)
def test_what_is_no_lock_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(NotAFileError):
            take_lock(tmp_path / name, 5)
    (tmp_path / "somebodys").write_text("text")
    (tmp_path / "link").symlink_to("somebodys")
    (tmp_path / "dangling").symlink_to("absent")
    for name in ("link", "dangling"):
        with pytest.raises(OSError, match="it is a link, which is not followed"):
            take_lock(tmp_path / name)
    assert (tmp_path / "somebodys").read_text() == "text" and not (tmp_path / "absent").exists()
    with take_lock(tmp_path / "somebodys"):
        pass
    assert (tmp_path / "somebodys").read_text() == "text"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "reason"), [("pipe", NotAFileError), ("link", OSError)])
def test_what_took_the_place_of_the_lock_after_looking_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reason: type[OSError]
) -> None:
    (tmp_path / "somebodys").touch()
    if kind == "pipe":
        os.mkfifo(tmp_path / "lock")
    else:
        (tmp_path / "lock").symlink_to("somebodys")
    regular = (tmp_path / "somebodys").stat()
    monkeypatch.setattr(Path, "lstat", lambda path: regular)
    with pytest.raises(reason):
        take_lock(tmp_path / "lock")
