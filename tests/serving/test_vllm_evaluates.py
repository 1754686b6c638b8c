"""A vLLM that serves a model is asked IFBench's real prompts: killed and resumed, the end is that of one go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.generate.engines.engine import Service
from megatron_apriel.grading.scorer_environments import package_files
from tools import evaluate

pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif(not package_files("ifbench", "ifbench"), reason="needs IFBench's environment: make scorers"),
]
ROOT = Path(__file__).resolve().parents[2]
PROMPTS = 40


def arguments(out: Path, service: Service) -> list[str]:
    return [str(out), "--model", service.address, "--benchmarks", "ifbench", "--runs", "1", "--temperature", "0",
            "--limit", str(PROMPTS), "--max-tokens", "24", "--at-once", "2", "--name", "rigged"]  # fmt: skip


def answers(out: Path) -> dict[str, Any]:
    lines = (out / "ifbench" / "answers-1.jsonl").read_text().splitlines()
    assert len(lines) == PROMPTS
    return {one["key"]: (one["content"], one["finish"], one["tokens"]) for one in map(json.loads, lines)}


def test_an_interrupted_evaluation_ends_as_one_go(service: Service, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert evaluate.main(arguments(whole, service)) == 0
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), *arguments(cut, service)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    file = cut / "ifbench" / "answers-1.jsonl"
    for ending, least in ((signal.SIGKILL, 5), (signal.SIGTERM, 15)):
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") >= least):
                time.sleep(0.02)
            process.send_signal(ending)
        assert process.returncode != 0
    assert evaluate.main(arguments(cut, service)) == 0
    assert answers(cut) == answers(whole)
    ours, theirs = (json.loads((out / "report.json").read_text())["rows"][0] for out in (cut, whole))
    counted = ("asked", "missing", "right", "wrong", "none", "truncated", "failed", "score", "loose")
    assert [ours[name] for name in counted] == [theirs[name] for name in counted]
    assert ours["asked"] == PROMPTS and ours["source"]["items"] == 294
