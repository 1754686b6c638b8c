"""What the tests of evaluation share: a server that answers by the question, and small data of the published form."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megatron_apriel.testing.chat_servers import AnsweringServer
from tools import evaluate

ROOT = Path(__file__).resolve().parents[3]
TOOL = str(ROOT / "tools" / "evaluate.py")
Answering = Callable[[Callable[[dict[str, Any]], Any]], AnsweringServer]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Starts servers that answer what a function makes of a request."""
    servers: list[AnsweringServer] = []

    def start(answer: Callable[[dict[str, Any]], Any]) -> AnsweringServer:
        server = AnsweringServer(answer)
        server.__enter__()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.__exit__()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten questions in MMLU-Pro's published form, the right letter A in six; three of AIME's."""
    folder = tmp_path / "data"
    (folder / "mmlu_pro").mkdir(parents=True)
    rows = [
        {"question_id": number, "question": f"What is {number}?", "options": ["so", "not so", "neither"],
         "answer": "AB"[number >= 6], "answer_index": int(number >= 6), "category": ("law", "physics")[number % 2]}
        for number in range(10)
    ]  # fmt: skip
    write_lines(folder / "mmlu_pro" / "test.jsonl", rows)
    (folder / "aime25").mkdir()
    write_lines(folder / "aime25" / "test.jsonl", [{"problem": f"p{number}", "answer": "070"} for number in range(3)])
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def run(out: Path, data: Path, *arguments: str, benchmarks: str = "mmlu_pro") -> int:
    return evaluate.main([str(out), "--benchmarks", benchmarks, "--data", str(data), *arguments])


def started(program: Sequence[str], **how: Any) -> subprocess.Popen[str]:
    """A process of Python, which imports this project from here."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen([sys.executable, *program], env={**os.environ, "PYTHONPATH": paths}, text=True, **how)


def wait_until(happened: Callable[[], object]) -> None:
    for _ in range(6000):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within five minutes")


class AnsweringUntil:
    """Answers so many questions, and further ones only once it may go on."""

    def __init__(self, number: int, answer: str) -> None:
        self.goes_on = threading.Event()
        self._number, self._answer, self._asked = number, answer, itertools.count()

    def __call__(self, body: dict[str, Any]) -> str:
        if next(self._asked) >= self._number:
            self.goes_on.wait(300)
        return self._answer


def row(out: Path, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())["rows"][number]
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_photographs(folder: Path, pictures: int, seed: int) -> Path:
    """Make a folder of pictures with something to see; returns it."""
    folder.mkdir()
    draw = np.random.default_rng(seed)
    for number in range(pictures):
        small = draw.integers(0, 256, size=(12, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Six pictures with something to see."""
    return write_photographs(tmp_path / "photographs", 6, seed=0)
