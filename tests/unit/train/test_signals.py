"""Requests to stop: noted, distinguished by exit code, and a second one not swallowed."""

import os
import signal
import time

import pytest

from megatron_apriel.errors import ExitCode
from megatron_apriel.train.signals import StopRequest


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


def test_a_second_interrupt_is_not_waited_for() -> None:
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)


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


def test_another_ranks_request_is_adopted_but_does_not_replace_ours() -> None:
    stop = StopRequest()
    stop.adopt(ExitCode.REQUEUE)
    assert (stop.exit_code, stop.reason) == (ExitCode.REQUEUE, "another rank was asked to stop")
    stop.adopt(ExitCode.INTERRUPTED)
    assert stop.exit_code == ExitCode.REQUEUE
