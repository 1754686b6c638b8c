"""The helper that runs a function under limits: what passes, and the message for each broken function."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_apriel.errors import DataError
from megatron_apriel.testing import limits
from megatron_apriel.testing.limits import measured, refused_within, slowness


def refuse() -> None:
    raise DataError("a.jsonl is bad.")


def refuse_late() -> None:
    begin = time.process_time()
    while time.process_time() - begin < 0.3:
        pass
    refuse()


def refuse_large() -> None:
    data = bytearray(300 * 2**20)
    data[::4096] = b"x" * len(data[::4096])
    refuse()


def test_a_refusal_is_its_message() -> None:
    assert refused_within(refuse) == "DataError: a.jsonl is bad."
    assert refused_within(open, "/absent").startswith("FileNotFoundError: ")
    assert refused_within(refuse_late, seconds=10) == refused_within(refuse_large, mebibytes=400)


def test_the_least_of_several_tries_counts(tmp_path: Path) -> None:
    """A machine that is busy the first time."""

    def refuse_late_at_first() -> None:
        if not (tmp_path / "tried").exists():
            (tmp_path / "tried").touch()
            refuse_late()
        refuse()

    assert refused_within(refuse_late_at_first, seconds=0.1) == "DataError: a.jsonl is bad."


def refuse_later() -> None:
    begin = time.process_time()
    while time.process_time() - begin < 0.6:
        pass
    refuse()


def test_a_slow_processor_is_not_held_against_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slowness() >= 1
    monkeypatch.setattr(limits, "slowness", lambda: 3.0)
    assert refused_within(refuse_later, seconds=0.3) == "DataError: a.jsonl is bad."
    monkeypatch.setattr(limits, "slowness", lambda: 1.0)
    with pytest.raises(AssertionError, match=r"it took 0\.[0-9] s of processor time; allowed are 0\.3"):
        refused_within(refuse_later, seconds=0.3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: "fine", "not refused; the result is 'fine'"),
        (lambda: 1 / 0, "(?s)an error that nobody should see:.*ZeroDivisionError"),
        (lambda: os._exit(3), "died with exit code 3"),
        (refuse_late, "it took 0.[0-9] s of processor time; allowed are 0.1"),
        (refuse_large, "it took [0-9]+ MiB; allowed are 40"),
    ],
)
def test_what_is_no_refusal_within_the_limits(function: Callable[[], object], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        refused_within(function, seconds=0.1 if function is refuse_late else 60, mebibytes=40)


def test_what_was_spent() -> None:
    spent = measured(lambda: bytes(50 * 2**20)[:3])
    assert spent.result == "b'\\x00\\x00\\x00'" and spent.error is None
    assert spent.seconds < 60 and spent.mebibytes < 200
