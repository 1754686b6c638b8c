"""The first line of a run comes before anything heavy is loaded, and after the stage was read and found valid."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_apriel.config.load import to_yaml
from megatron_apriel.errors import ExitCode
from megatron_apriel.testing.stages import small_stage

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = (
    "import sys; sys.modules.update(dict.fromkeys(('torch', 'megatron', 'transformers', 'numpy')));"
    " from megatron_apriel.errors import run_command; from megatron_apriel.train.command import main;"
    " sys.exit(run_command(main))"
)


def started(file: Path, *overrides: str, **variables: str) -> tuple[str, str]:
    """What a run says where what it loads next is not there."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "SLURM_PROCID")}
    command = [sys.executable, "-c", PROGRAM, str(file), *overrides]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stdout, done.stderr


@pytest.mark.parametrize(("overrides", "length"), [([], "1,908 steps"), (["tokens=null", "epochs=1"], "1 epoch")])
def test_it_says_what_was_read_before_torch_is_loaded(tmp_path: Path, overrides: list[str], length: str) -> None:
    (tmp_path / "stage.yaml").write_text(to_yaml(small_stage()))
    output, error = started(tmp_path / "stage.yaml", *overrides)
    words = f"stage trial: {length} in global batches of 64 x 8,192 tokens, to runs/trial; loading torch and Megatron"
    assert re.fullmatch(rf"[-0-9]{{10}} [:0-9]{{8}} {words} Core\n", output)
    assert "import of" in error and "halted" in error
    assert started(tmp_path / "stage.yaml", RANK="1")[0] == started(tmp_path / "stage.yaml", SLURM_PROCID="3")[0] == ""


def test_a_stage_that_is_wrong_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "stage.yaml").write_text(to_yaml(small_stage()).replace("seed:", "sead:"))
    output, error = started(tmp_path / "stage.yaml")
    assert output == "" and "ConfigError" in error and "Did you mean seed?" in error


def test_a_python_without_the_projects_packages_is_named() -> None:
    """As where nobody has activated .venv: the project is found in the current directory, and nothing else is."""
    command = [sys.executable, "-S", "-m", "megatron_apriel.train", "stage.yaml"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == ExitCode.FAILED
    assert done.stderr.startswith(f"ConfigError: {sys.executable} has no module pydantic.")
    assert "source .venv/bin/activate" in done.stderr and "Traceback" not in done.stderr
