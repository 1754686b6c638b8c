"""A command that follows a run ends with who started it, at whatever moment a signal comes."""

from __future__ import annotations

import os
import signal
import subprocess

from megatron_apriel.errors import ExitCode
from tests.unit.evaluate.conftest import started

AT_EVERY_STEP = """
import os, signal, sys
from megatron_apriel.evaluate.follow_commands import ended_before_job, run

def run_until(line):
    "Run what does not end by itself; a signal comes before that line of ``run``, and another one a second later."
    left = line
    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code is not run.__code__:
            return None
        left -= event == "line"
        if left == 0:
            left = -1
            os.kill(os.getpid(), signal.SIGUSR1)
        return trace
    with ended_before_job():
        signal.setitimer(signal.ITIMER_REAL, 1)
        sys.settrace(trace)
        run([sys.executable, "-c", "import time; time.sleep(600)"])

for line in range(1, 16):
    process = os.fork()
    if not process:
        run_until(line)
    print(line, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), file=sys.stderr, flush=True)
"""
"""Processes that are left over keep its standard output open."""


def test_a_signal_at_any_line_ends_the_command() -> None:
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    with started(["-c", AT_EVERY_STEP], **how) as process:
        try:
            said = process.communicate(timeout=120)[1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    ended = [line for line in said.splitlines() if "nearly over" not in line]
    assert ended == [f"{line} {ExitCode.REQUEUE:d}" for line in range(1, 16)]
