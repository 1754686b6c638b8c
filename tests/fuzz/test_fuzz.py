"""The first cases of every target, with one seed; and that a case tells what it should of code that is broken."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from megatron_apriel.errors import DataError
from tests.fuzz.byte_changes import change_bytes
from tests.fuzz.case import Target, Wrong, limited, run_case
from tests.fuzz.json_changes import change_value, write_json

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1800)
def test_the_first_cases_of_every_target(tmp_path: Path) -> None:
    """In a process of its own: one of the targets is a rank, for good."""
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "12", "--seed", "1", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout or done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 14 and all(" 0 failed" in line for line in lines)


class Numbers(Target):
    """A stand-in: a file of digits, read by whatever function a test gives."""

    name = "numbers"
    about = "digits"

    def __init__(self, read: Callable[[str], object]) -> None:
        self.read = read

    def make(self, directory: Path) -> None: ...

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        (directory / "digits").write_text("x" * changes + str(random.randrange(10)))
        return f"{changes} letters"

    def check(self, directory: Path) -> None:
        self.read((directory / "digits").read_text())


def refuses(text: str) -> None:
    if not text.isdigit():
        raise DataError(f"{text!r} is no number.")


def differs(text: str) -> None:
    raise Wrong(f"{text!r} was read")


@pytest.mark.parametrize(
    ("read", "honest", "changed", "signature"),
    [
        (refuses, "accepted", "refused", ""),
        (int, "accepted", "failed", "ValueError in test_fuzz.py"),
        (lambda text: None, "accepted", "accepted", ""),
        (differs, "failed", "failed", "accepted: _ was read"),
        (lambda text: bytearray(2**30) and None, "failed", "failed", "memory beyond 512 MiB"),
    ],
)
def test_what_becomes_of_a_case(
    tmp_path: Path, read: Callable[[str], object], honest: str, changed: str, signature: str
) -> None:
    target = Numbers(read)
    assert run_case(target, 1, 0, tmp_path / "case").outcome == honest
    result = run_case(target, 1, 1, tmp_path / "case")
    assert result.outcome == changed
    assert result.signature.startswith(signature.partition(" in ")[0])
    assert run_case(target, 1, 1, tmp_path / "case").changes == result.changes


def test_an_honest_input_may_not_be_refused(tmp_path: Path) -> None:
    def never(text: str) -> None:
        raise DataError("no.")

    assert run_case(Numbers(never), 1, 0, tmp_path / "case").signature == "honest files are refused"


def test_waiting_is_told_from_being_kept_waiting() -> None:
    read, _ = os.pipe()
    begun = time.monotonic()
    with pytest.raises(BaseException, match="it waits for something that does not come"), limited():
        os.read(read, 1)
    assert time.monotonic() - begun < 60


def test_mutations_are_functions_of_their_seed() -> None:
    document = {"a": [1, {"b": "text"}], "c": None}
    first, second = ([write_json(change_value(Random(seed), document)[0]) for seed in range(200)] for _ in range(2))
    assert first == second and len(set(first)) > 100
    assert document == {"a": [1, {"b": "text"}], "c": None}
    data = bytes(range(200))
    assert [change_bytes(Random(seed), data) for seed in range(200)] == [
        change_bytes(Random(seed), data) for seed in range(200)
    ]
