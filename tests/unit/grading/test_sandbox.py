"""Programs are shut in: twelve hostile ones, each harmless were the sandbox to fail, in both ways to shut them in."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_apriel.errors import ConfigError
from megatron_apriel.grading import sandbox as sandbox_file
from megatron_apriel.grading import watching
from megatron_apriel.grading.process_tree import descendants
from megatron_apriel.grading.sandbox import Level, Run, Sandbox, find_sandbox, why_not
from megatron_apriel.grading.watching import End, Limits

LIMITS = Limits(
    seconds=40.0, memory_bytes=256 * 2**20, processes=16, output_bytes=64 * 2**10, disk_bytes=4 * 2**20, open_files=64
)


@pytest.fixture(params=list(Level), ids=lambda level: level.name.lower())
def shut_in(request: pytest.FixtureRequest) -> Sandbox:
    level: Level = request.param
    if reason := why_not(level):
        pytest.skip(reason)
    return Sandbox(level, LIMITS)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    file = tmp_path / "canary"
    file.write_text("the canary sings", encoding="utf-8")
    return file


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def run(shut_in: Sandbox, program: str, *arguments: object) -> Run:
    """Run it, and check what holds for every program."""
    done = shut_in.run_python(textwrap.dedent(program), arguments=[str(one) for one in arguments])
    assert not [process for process in descendants(os.getpid()) if is_running_in_sandbox(process)]
    return done


def hurried(shut_in: Sandbox) -> Sandbox:
    return replace(shut_in, limits=replace(LIMITS, seconds=3.0))


def is_running_in_sandbox(process: int) -> bool:
    with suppress(OSError):
        return b"program.py" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def test_a_program_gives_its_result(shut_in: Sandbox) -> None:
    done = shut_in.run_python("print(sum(map(int, input().split())))", "2 3 4")
    assert (done.end, done.code, done.output, done.errors) == (End.BY_ITSELF, 0, "9\n", "")
    assert done.succeeded and done.level is shut_in.level


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(137)", 137),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("raise ValueError", 1),
        ("import os; os.abort()", 134),
    ],
)
def test_its_own_end_is_told_from_a_killed_one(shut_in: Sandbox, program: str, code: int) -> None:
    done = run(shut_in, program)
    assert (done.end, done.code, done.succeeded) == (End.BY_ITSELF, code, False)


def test_packages_and_threads_work(shut_in: Sandbox) -> None:
    program = """
        import subprocess, sys, threading, numpy
        thread = threading.Thread(target=lambda: print(numpy.arange(4).sum(), flush=True))
        thread.start(); thread.join()
        print(subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, text=True).stdout)
    """
    assert run(shut_in, program).output.split() == ["6", "7"]


def test_fork_bomb(shut_in: Sandbox) -> None:
    program = """
        import os, time
        for made in range(60):
            try:
                if os.fork() == 0:
                    time.sleep(5); os._exit(0)
            except OSError:
                break
        print(made, flush=True)
    """
    done = run(shut_in, program)
    assert done.end is End.PROCESSES or int(done.output.split()[0]) <= LIMITS.processes


def test_reads_a_file_of_ours(shut_in: Sandbox, canary: Path) -> None:
    done = run(shut_in, "import sys; print(open(sys.argv[1]).read())", canary)
    assert done.code == 1
    assert "sings" not in done.output + done.errors


def test_writes_a_file_outside(shut_in: Sandbox, canary: Path) -> None:
    program = """
        import os, sys
        for attempt in (lambda: open(sys.argv[1], "w"), lambda: open(sys.argv[1] + "2", "w"),
                        lambda: os.unlink(sys.argv[1]), lambda: os.chmod(sys.argv[1], 0), lambda: open("/usr/x", "w")):
            try:
                attempt(); print("did")
            except OSError:
                print("refused")
    """
    mode = canary.stat().st_mode
    assert run(shut_in, program, canary).output.split() == ["refused"] * 5
    assert canary.read_text("utf-8") == "the canary sings" and canary.stat().st_mode == mode
    assert list(canary.parent.iterdir()) == [canary]


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_speaks_over_the_network(shut_in: Sandbox, kind: str) -> None:
    with socket.socket(socket.AF_INET, getattr(socket, kind)) as listener:
        listener.bind(("127.0.0.1", 0))
        if kind == "SOCK_STREAM":
            listener.listen()
        listener.settimeout(0.2)
        program = f"""
            import socket, sys
            with socket.socket(socket.AF_INET, socket.{kind}) as own:
                own.connect(("127.0.0.1", int(sys.argv[1]))); own.send(b"secret")
        """
        assert run(shut_in, program, listener.getsockname()[1]).code == 1
        with pytest.raises(TimeoutError):
            listener.accept() if kind == "SOCK_STREAM" else listener.recv(10)


def test_speaks_over_a_unix_socket(shut_in: Sandbox, tmp_path: Path) -> None:
    for name in (str(tmp_path / "socket"), f"\0{tmp_path}"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
            listener.listen()
            program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1].replace('@', chr(0)))"
            assert run(shut_in, program, name.replace("\0", "@")).code == 1


def test_takes_memory(shut_in: Sandbox) -> None:
    done = run(shut_in, "held = [bytearray(16 * 2**20) for _ in range(40)]; print('holds it')")
    assert "holds it" not in done.output
    assert done.end is End.MEMORY or "MemoryError" in done.errors


def test_takes_memory_in_many_processes(shut_in: Sandbox) -> None:
    program = """
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                held = b"x" * (100 * 2**20); time.sleep(20); os._exit(0)
        time.sleep(20)
    """
    assert run(shut_in, program).end is End.MEMORY


def test_takes_memory_that_no_process_holds(shut_in: Sandbox) -> None:
    program = """
        import os
        try:
            for _ in range(16): os.write(os.memfd_create("hidden"), b"x" * 2**20)
            print("hides it")
        except OSError as error:
            print(error.strerror)
    """
    assert "hides it" not in run(shut_in, program).output


def test_writes_without_end(shut_in: Sandbox) -> None:
    done = run(shut_in, "import sys\nfor _ in range(8192): sys.stdout.write('x' * 1024)")
    assert done.end is End.OUTPUT and done.code is None
    assert len(done.output) <= LIMITS.output_bytes


def test_ignores_signals(shut_in: Sandbox) -> None:
    program = """
        import signal, time
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        time.sleep(3600)
    """
    done = run(hurried(shut_in), program)
    assert (done.end, done.code) == (End.TIME, None)


def test_a_machine_too_busy_to_begin_is_slow_and_not_without_a_sandbox(shut_in: Sandbox) -> None:
    done = run(replace(shut_in, limits=replace(LIMITS, seconds=0.0001)), "print(1)")
    assert (done.end, done.code, done.output) == (End.TIME, None, "")


def test_closes_its_outputs_and_goes_on(shut_in: Sandbox) -> None:
    assert run(hurried(shut_in), "import os, time; os.closerange(0, 30); time.sleep(3600)").end is End.TIME


def test_leaves_a_daemon_behind(shut_in: Sandbox) -> None:
    program = """
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 30)
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(3600)", sys.argv[1]])
            os._exit(0)
        time.sleep(0.5); print("gone")
    """
    mark = f"daemon-of-{os.getpid()}"
    done = run(shut_in, program, mark)
    assert (done.end, done.code, done.output) == (End.BY_ITSELF, 0, "gone\n")
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert mark not in left


def test_links_out(shut_in: Sandbox, canary: Path) -> None:
    program = """
        import os, sys
        os.symlink(sys.argv[1], "link")
        for mode in "ra":
            try:
                print(open("link", mode).read())
            except OSError:
                print("refused")
    """
    assert run(shut_in, program, canary).output.split() == ["refused"] * 2
    assert canary.read_text("utf-8") == "the canary sings"


def test_attacks_another_process(shut_in: Sandbox, victim: subprocess.Popen[bytes]) -> None:
    program = """
        import ctypes, os, resource, signal, sys
        victim = int(sys.argv[1])
        for attempt in (lambda: os.kill(victim, signal.SIGTERM), lambda: os.kill(-1, signal.SIGUSR2),
                        lambda: resource.prlimit(victim, resource.RLIMIT_CPU, (0, 0)),
                        lambda: open(f"/proc/{victim}/environ").read()):
            try:
                signal.signal(signal.SIGUSR2, signal.SIG_IGN); attempt()
            except OSError:
                pass
        print(ctypes.CDLL(None).ptrace(16, victim, 0, 0))
    """
    assert run(shut_in, program, victim.pid).output.strip() == "-1"
    assert victim.poll() is None


@pytest.mark.parametrize("seen", [True, False])
def test_fills_the_disk(shut_in: Sandbox, seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also faster than anybody looks."""
    if not seen:
        monkeypatch.setattr(watching, "_broken_limit", lambda *_: None)
    program = """
        import os
        written = 0
        try:
            for number in range(32):
                with open(f"file{number}", "wb", buffering=0) as file:
                    written += file.write(b"x" * 2**20)
        except OSError:
            pass
        print(written)
    """
    done = run(shut_in, program)
    assert done.end is End.DISK or int(done.output) <= LIMITS.disk_bytes
    big = run(shut_in, "open('large', 'wb').write(b'x' * (8 * 2**20)); print('wrote')")
    assert "wrote" not in big.output


def test_looks_for_secrets(shut_in: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "the canary sings")
    program = """
        import glob, os
        print(dict(os.environ))
        for file in glob.glob("/proc/*/environ"):
            try:
                print(open(file, "rb").read())
            except OSError:
                pass
        for number in range(3, 64):
            try:
                print(number, os.read(number, 100))
            except OSError:
                pass
    """
    done = run(shut_in, program)
    assert "canary" not in done.output and "SECRET" not in done.output
    assert not [line for line in done.output.splitlines() if line[0].isdigit()]


def test_makes_namespaces(shut_in: Sandbox) -> None:
    program = """
        import ctypes
        libc = ctypes.CDLL(None)
        print(libc.unshare(0x10000000), libc.unshare(0x20000), libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
    """
    assert run(shut_in, program).output.split() == ["-1"] * 3


def test_a_start_that_fails_leaves_nothing_open(shut_in: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    before = len([*Path("/proc/self/fd").iterdir()])
    with monkeypatch.context() as machine:
        machine.setattr(subprocess, "Popen", fail)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            shut_in.run_python("")
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    assert run(shut_in, "print(1)").output == "1\n"


def test_without_a_sandbox_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_file, "why_not", lambda level: "it is not there")
    with pytest.raises(ConfigError, match="none is run"):
        find_sandbox()


def test_a_sandbox_that_fails_runs_nothing(shut_in: Sandbox, monkeypatch: pytest.MonkeyPatch, canary: Path) -> None:
    monkeypatch.setattr(sandbox_file, "system_call_filter", lambda guards_marks: b"\xff" * 16)
    with pytest.raises(ConfigError, match="Nothing was run"):
        shut_in.run_python("print('ran')")


def test_the_best_one_is_found() -> None:
    if all(map(why_not, Level)):
        pytest.skip("this machine has none")
    assert find_sandbox().level is next(level for level in Level if not why_not(level))


def test_the_interpreter_sees_our_packages_only(shut_in: Sandbox) -> None:
    done = run(shut_in, "import os, sys; print(sys.prefix, os.path.exists(os.path.expanduser('~')))")
    assert done.output.split() == [sys.prefix, "False"]


def test_limits_hold_while_a_signal_comes(shut_in: Sandbox) -> None:
    """A signal to our process, as a scheduler sends, neither ends the watch nor is taken for the program's end."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        assert run(shut_in, "import time; time.sleep(0.5); print('whole')").output == "whole\n"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
