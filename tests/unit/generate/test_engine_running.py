"""An engine's program: waited for, ended with what it started, and told about signals; with a stand-in for it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread, Timer

import pytest

from megatron_apriel.errors import ConfigError, ServerError, TransientError
from megatron_apriel.generate.engines import running
from megatron_apriel.generate.engines.engine import Launch
from megatron_apriel.generate.engines.running import Program, check_port, free_port, run_step
from megatron_apriel.testing.ports import own_port

SERVER = """
import os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

child = subprocess.Popen(["sleep", "600"])
print("child", child.pid, flush=True)

def ended(number, frame):
    print("told", signal.Signals(number).name, flush=True)
    sys.exit(0)

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, ended)
asked = 0

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        self.send_response(200 if asked > 2 else 503)
        self.end_headers()

HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def standin(code: str, **variables: str) -> Launch:
    return Launch((sys.executable, "-c", code), variables)


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def child_in(log: Path) -> int:
    return int(log.read_text().split("child ")[1].split()[0])


def test_it_is_ready_once_it_says_so_and_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = own_port()
    monkeypatch.setattr(running, "_SECONDS_BETWEEN_LINES", 0.0)
    with Program(standin(SERVER, PORT=str(port)), tmp_path / "log") as program:
        assert program.wait_until_ready(f"http://127.0.0.1:{port}/health", 60)
        child = child_in(tmp_path / "log")
        assert is_alive(child)
    assert re.search(rf"{Path(sys.executable).name} is loading, for \d+ s now", capsys.readouterr().err)
    assert "told SIGTERM" in (tmp_path / "log").read_text()
    wait_until(lambda: not is_alive(child))
    check_port("127.0.0.1", port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(number: signal.Signals, tmp_path: Path) -> None:
    port, before = own_port(), signal.getsignal(number)
    with Program(standin(SERVER, PORT=str(port)), tmp_path / "log") as program:
        assert program.wait_until_ready(f"http://127.0.0.1:{port}/", 60)
        Timer(0.2, os.kill, (os.getpid(), number)).start()
        program.wait()
        assert program.signalled is number
    assert f"told {number.name}" in (tmp_path / "log").read_text()
    assert signal.getsignal(number) is before


def test_a_signal_ends_the_wait(tmp_path: Path) -> None:
    with Program(standin("import time; time.sleep(600)"), tmp_path / "log") as program:
        Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert not program.wait_until_ready(f"http://127.0.0.1:{own_port()}/", 60)


def test_a_program_that_has_ended_by_a_signal_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon it ends after the signal."""
    look = Program.check_running

    def late(program: Program, when: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        program._process.wait()
        look(program, when)

    monkeypatch.setattr(Program, "check_running", late)
    with Program(standin("import time; time.sleep(600)"), tmp_path / "log") as program:
        assert not program.wait_until_ready(f"http://127.0.0.1:{own_port()}/", 60)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    )
    with Program(standin(stubborn), tmp_path / "log") as program:
        wait_until(lambda: "on" in (tmp_path / "log").read_text())

        def stop() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(lambda: program.signalled is not None)  # two at once may be one
            os.kill(os.getpid(), signal.SIGINT)

        Thread(target=stop).start()
        program.wait()
        assert program._process.returncode == -signal.SIGKILL


def test_a_program_that_ends_is_an_error_with_what_it_printed(tmp_path: Path) -> None:
    failing = standin("import sys; print('no memory \\x1b[31m'); sys.exit(3)")
    with (
        Program(failing, tmp_path / "log") as program,
        pytest.raises(ServerError, match=r"ended with exit code 3 before it answered(?s:.*)no memory \\x1b"),
    ):
        program.wait_until_ready("http://127.0.0.1:9/", 60)
    port = own_port()
    dying = SERVER.replace("asked += 1", "asked += 1\n        if asked == 4: os.kill(os.getpid(), 9)")
    with Program(standin(dying, PORT=str(port)), tmp_path / "log") as program:
        address = f"http://127.0.0.1:{port}/"
        assert program.wait_until_ready(address, 60)
        with pytest.raises(ServerError, match="ended with signal SIGKILL"):
            subprocess.run([sys.executable, "-c", f"import httpx; httpx.get({address!r})"], stderr=-3, check=False)
            program.wait()


def test_a_program_that_does_not_answer(tmp_path: Path) -> None:
    with (
        Program(standin("import time; time.sleep(600)"), tmp_path / "log") as program,
        pytest.raises(ServerError, match=r"did not answer at http.* within 0\.5 s"),
    ):
        program.wait_until_ready(f"http://127.0.0.1:{own_port()}/", 0.5)
    with pytest.raises(ConfigError, match="/no/such/program cannot be started: No such file"):
        Program(Launch(("/no/such/program",)))


def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from megatron_apriel.generate.engines.engine import Launch\n"
        "from megatron_apriel.generate.engines.running import Program\n"
        "program = Program(Launch((sys.executable, '-c', 'import time; time.sleep(600)')), Path(sys.argv[1]))\n"
        "print(program._process.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log")], stdout=-1, text=True) as parent:
        assert parent.stdout
        program = int(parent.stdout.readline())
        assert is_alive(program)
        parent.kill()
    wait_until(lambda: not is_alive(program))


def test_steps_run_to_their_end(tmp_path: Path) -> None:
    file = tmp_path / "made"
    run_step(standin("import os; open(os.environ['FILE'], 'w').write('x')", FILE=str(file)))
    assert file.read_text() == "x"
    with pytest.raises(ServerError, match="ended with exit code 4"):
        run_step(standin("raise SystemExit(4)"))


def test_ports() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(TransientError, match=r"port \d+ of 127.0.0.1 cannot be used(?s:.*)--port"):
            check_port("127.0.0.1", other.getsockname()[1])
    with pytest.raises(ConfigError, match=r"--host no\.such\.host\.invalid is no address"):
        check_port("no.such.host.invalid", 8000)
    check_port("127.0.0.1", own_port())
    assert 0 < free_port("127.0.0.1") < 65536
