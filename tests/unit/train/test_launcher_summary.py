"""A rank's message stands where torchrun ends: in its summary, and not only above fifty lines of torchrun's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.train.launcher_summary import FILE_VARIABLE, leave_message

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_torchrun_ends_with_what_was_wrong(tmp_path: Path) -> None:
    command = [*TORCHRUN, "-m", "megatron_apriel.train", str(tmp_path / "stage.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == ExitCode.FAILED
    summary = done.stderr[done.stderr.index("Root Cause") :]
    assert f"ConfigError: {tmp_path / 'stage.yaml'} does not exist." in summary
    assert "A stage is described by one YAML file." in summary, "the way out too"
    assert "To enable traceback" not in done.stderr


def test_a_rank_that_was_killed_stays_the_root_cause(tmp_path: Path) -> None:
    """The one that noticed has a traceback, and no file that would be older than its death."""
    program = tmp_path / "rank.py"
    program.write_text(
        "import os, signal, sys, time\n"
        "from megatron_apriel.errors import run_command\n"
        "from megatron_apriel.train.launcher_summary import leave_message\n"
        "def main():\n"
        "    if os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    time.sleep(2)\n"
        "    raise RuntimeError('connection closed by peer')\n"
        "sys.exit(run_command(main, leave_message))\n",
        encoding="utf-8",
    )
    done = subprocess.run([*TORCHRUN, str(program)], capture_output=True, text=True, timeout=300)
    summary = done.stderr[done.stderr.index("Root Cause") :]
    assert f"exitcode  : -{int(signal.SIGKILL)}" in summary
    assert "connection closed" not in summary


def _refused() -> int:
    raise ConfigError("a=3 is odd.", "Only pairs fit.", "Give 2 or 4.")


def test_the_file_is_in_the_form_that_torchrun_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "error.json"))
    assert run_command(_refused, leave_message) == ExitCode.FAILED
    failure = ProcessFailure(local_rank=0, pid=os.getpid(), exitcode=1, error_file=str(tmp_path / "error.json"))
    assert failure.message["message"] == "ConfigError: a=3 is odd.\n  Only pairs fit.\n  Give 2 or 4."
    assert json.loads((tmp_path / "error.json").read_text())["message"] == failure.message


@pytest.mark.parametrize("place", [None, "gone/error.json"], ids=["no torchrun", "a folder that is gone"])
def test_without_a_place_for_it_the_message_is_printed_alone(
    place: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if place is None:
        monkeypatch.delenv(FILE_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / place))
    assert run_command(_refused, leave_message) == ExitCode.FAILED
    assert capsys.readouterr().err.startswith("ConfigError: a=3 is odd.")
    assert not list(tmp_path.iterdir())
