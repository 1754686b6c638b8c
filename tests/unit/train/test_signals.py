"""Requests to stop: answered at once, distinguished by exit code, and a second one not waited for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_apriel.config.load import to_yaml
from megatron_apriel.errors import ConfigError, ExitCode
from megatron_apriel.testing.stages import small_stage
from megatron_apriel.train.signals import StopRequest, check_time_left


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, ExitCode.REQUEUE),
        (signal.SIGUSR1, ExitCode.REQUEUE),
        (signal.SIGINT, ExitCode.INTERRUPTED),
    ],
)
def test_a_signal_is_noted_with_its_exit_code(number: int, code: ExitCode) -> None:
    with StopRequest() as stop:
        assert not stop.poll()
        os.kill(os.getpid(), number)
        assert stop.poll()
    assert stop.exit_code == code
    assert stop.reason == signal.Signals(number).name


BUSY = """
import ctypes, sys, time
from pathlib import Path
from megatron_apriel.train.signals import StopRequest
system, lock = ctypes.CDLL(None), ctypes.create_string_buffer(128)
with StopRequest(checkpoints=Path(sys.argv[1]), rank=int(sys.argv[2])) as stop:
    stop.when = "after this step"
    print("busy", flush=True)
    system.pthread_mutex_lock(lock)
    # Which this thread has: two minutes, whatever signal comes.
    system.pthread_mutex_timedlock(lock, (ctypes.c_long * 2)(int(time.time()) + 120, 0))
    print("not busy", flush=True)
"""
"""A process whose main thread is deep in a step, without an instruction of Python's."""


def busy(checkpoints: Path, rank: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUSY, str(checkpoints), str(rank)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "busy\n"
    return process


@pytest.mark.parametrize(
    ("rank", "variables", "said"),
    [
        (0, {"TORCHELASTIC_RUN_ID": "none"}, True),
        (1, {"TORCHELASTIC_RUN_ID": "none"}, False),
        (0, {"TORCHELASTIC_RUN_ID": "none", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1800"}, False),
        (0, {}, False),
    ],
)
def test_under_torchrun_it_says_that_the_ranks_may_be_killed_before_they_have_saved(
    rank: int, variables: dict[str, str], said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    process = busy(tmp_path, rank)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    line = process.stdout.readline()
    process.kill()
    process.communicate()
    assert "SIGINT: stopping after this step; again to stop now" in line
    assert ("torchrun kills its ranks after 30 s, unless TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in line) == said


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_answered_at_once_and_a_second_ends_the_process(tmp_path: Path, number: int, rank: int) -> None:
    """While the main thread is in a call that no handler of Python's interrupts."""
    for name in ("step_00000200", "step_00000400", "step_00000600.partial") if rank == 0 else ():
        (tmp_path / name).mkdir()
    process, name = busy(tmp_path, rank), signal.Signals(number).name
    prefix = f"rank {rank}: " if rank else ""
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{prefix}{name}: stopping after this step; again to stop now\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert "not busy" not in output
    next_start = f"the next start resumes from {tmp_path}/step_00000400" if rank == 0 else "there is no checkpoint"
    assert output.startswith(f"{prefix}{name} again: stopping now; {next_start}")
    assert process.returncode == 128 + number


def test_slurms_warning_and_its_end_are_two_requests_and_neither_is_a_second(tmp_path: Path) -> None:
    process = busy(tmp_path)
    assert process.stdout is not None
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
        line = process.stdout.readline()
        assert line == f"{signal.Signals(number).name}: stopping after this step; again to stop now\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].startswith("SIGINT again: stopping now")


def test_the_end_of_slurms_time_of_grace_does_not_cut_off_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends SIGTERM at the beginning and at the end of that time, and kills after a while."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    process = busy(tmp_path)
    assert process.stdout is not None
    for words in (
        "SIGTERM: stopping after this step; SIGINT to stop now",
        "SIGTERM again: still stopping after this step",
    ):
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == f"{words}\n"
    process.send_signal(signal.SIGUSR1)  # and its warning, whenever that comes
    assert process.stdout.readline() == "SIGUSR1: stopping after this step; again to stop now\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].startswith("SIGINT again: stopping now")


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_end_of_the_jobs_time_is_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    assert not StopRequest(margin_s=50).poll()
    stop = StopRequest(margin_s=200)
    assert stop.poll()
    assert stop.exit_code == ExitCode.REQUEUE


def test_the_agreed_exit_code_is_taken_and_the_own_reason_stays() -> None:
    other = StopRequest()
    other.adopt(ExitCode.REQUEUE)
    assert (other.exit_code, other.reason) == (ExitCode.REQUEUE, "another rank was asked to stop")
    with StopRequest() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        asked.adopt(ExitCode.INTERRUPTED)
    assert (asked.exit_code, asked.reason) == (ExitCode.INTERRUPTED, "SIGTERM")


def test_time_that_leaves_no_room_for_a_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_time_left(10**9)  # no job, no end
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    check_time_left(60)
    with pytest.raises(
        ConfigError, match=r"the job ends in (100|9\d) s, and faults.save_before_end_of_job_s=200 of them"
    ):
        check_time_left(200)


STARTING = """
import sys, time
from megatron_apriel.train import early_requests
early_requests.listen()
print("importing", flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
else:
    sys.stdin.readline()
from megatron_apriel.train.signals import StopRequest
with StopRequest() as stop:
    print(stop.poll(), stop.reason, int(stop.exit_code), flush=True)
with StopRequest() as stop:
    print(stop.poll(), flush=True)
"""
"""A process that is asked to stop while it imports."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_during_imports_stops_the_run_before_its_first_step(number: int) -> None:
    # As the launch script starts it: ignored until the program listens.
    command = ["bash", "-c", 'trap "" USR1 TERM; exec "$@"', "rank", sys.executable, "-c", STARTING, "go"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "importing\n"
        process.send_signal(number)
        name = signal.Signals(number).name
        assert process.stdout.readline() == f"{name}: stopping before the first step; again to stop now\n"
        output, _ = process.communicate("go\n", timeout=120)
    assert output == f"True {name} 75\nFalse\n"


HELD = """
import importlib.abc, runpy, sys
module = sys.argv.pop(1)
class Held(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            print("importing", flush=True)
            sys.stdin.readline()
sys.meta_path.insert(0, Held())
runpy.run_module("megatron_apriel.train", run_name="__main__", alter_sys=True)
"""
"""The command line, which waits where it imports a module."""


def held(module: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HELD, module, *words]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and "importing\n" in iter(process.stdout.readline, "")
    return process


def test_the_command_line_listens_before_it_loads_anything() -> None:
    with held("megatron_apriel.config.load", "no such stage.yaml") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "SIGTERM: stopping before the first step; again to stop now\n"
        process.communicate("go\n", timeout=120)
    assert process.returncode == ExitCode.FAILED  # as without the signal


@pytest.mark.parametrize("module", ["megatron_apriel.config.load", "megatron_apriel.planning.beginning"])
def test_an_interrupt_during_imports_is_said_in_one_line(tmp_path: Path, module: str) -> None:
    (tmp_path / "stage.yaml").write_text(to_yaml(small_stage()))
    with held(module, str(tmp_path / "stage.yaml")) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert errors.splitlines()[-1].endswith("interrupted; nothing was left half-written") and "Traceback" not in errors
    assert process.returncode == ExitCode.INTERRUPTED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_dry_run_is_ended_by_a_signal_as_any_program(tmp_path: Path, number: int) -> None:
    (tmp_path / "stage.yaml").write_text(to_yaml(small_stage()))
    with held("megatron_apriel.planning.dry_run", str(tmp_path / "stage.yaml"), "--dry-run") as process:
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    assert output == ""
    assert process.returncode == (ExitCode.INTERRUPTED if number == signal.SIGINT else -signal.SIGTERM)


def test_a_signal_before_a_dry_run_ends_it(tmp_path: Path) -> None:
    (tmp_path / "stage.yaml").write_text(to_yaml(small_stage()))
    with held("megatron_apriel.config.load", str(tmp_path / "stage.yaml"), "--dry-run") as process:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate("go\n", timeout=120)
    assert "Dry run" not in output and process.returncode == -signal.SIGTERM


ENDING = """
import runpy, signal, sys
sys.argv[1:] = ["no such stage.yaml"]
try:
    runpy.run_module("megatron_apriel.train", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code, *(signal.getsignal(number).name for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)))
"""
"""A run that is over, while Python has not ended."""


def test_a_signal_after_the_end_does_not_replace_the_exit_code() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDING], stdout=subprocess.PIPE, text=True, check=True)
    assert ended.stdout == "1 SIG_IGN SIG_IGN SIG_IGN\n"


def test_a_second_signal_during_imports_ends_the_process() -> None:
    command = [sys.executable, "-c", STARTING, "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "importing\n"
        for words in ("stopping before the first step; again to stop now", "again: stopping now"):
            process.send_signal(signal.SIGTERM)
            assert words in process.stdout.readline()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
