"""Weights & Biases asked for online, with and without a login; nothing is sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("wandb")

PROGRAM = """
import sys
from pathlib import Path
import wandb
from megatron_apriel.errors import run_command
from megatron_apriel.testing.stages import small_stage
from megatron_apriel.train.wandb_run import begin_wandb

def begun(**settings):
    print("begun", settings["mode"])
    if sys.argv[2:]:
        raise wandb.Error(sys.argv[2])
    wandb.teardown()


wandb.init = begun
logging = {"wandb": sys.argv[1]}
sys.exit(run_command(lambda: begin_wandb(small_stage(logging=logging))))
"""
KEY = "0123456789" * 4


def begun(home: Path, *words: str, **variables: str) -> tuple[int, str, str]:
    """A process that has this home and opens the sink."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") and name != "NETRC"}
    environment = {**kept, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), **variables}
    command = [sys.executable, "-c", PROGRAM, *(words or ["online"])]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_without_a_login_online_is_refused_with_the_way_out(tmp_path: Path) -> None:
    code, _, error = begun(tmp_path)
    assert code == 1
    assert "ConfigError: logging.wandb=online, and no login to Weights & Biases was found." in error
    assert "Run wandb login once, or set logging.wandb=offline" in error
    assert begun(tmp_path, "offline")[:2] == (0, "begun offline\n")
    code, _, error = begun(tmp_path, "online", "the key is too short", WANDB_API_KEY=KEY)
    assert code == 1 and "ConfigError: logging.wandb=online, and wandb refuses: the key is too short" in error


def test_every_kind_of_login_is_found(tmp_path: Path) -> None:
    assert begun(tmp_path, WANDB_API_KEY=KEY)[:2] == (0, "begun online\n")
    file = tmp_path / "netrc"
    file.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    file.chmod(0o600)
    assert begun(tmp_path, NETRC=str(file))[:2] == (0, "begun online\n")
    file.rename(tmp_path / ".netrc")
    assert begun(tmp_path)[:2] == (0, "begun online\n")
