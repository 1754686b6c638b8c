"""The stand-ins of the tests of scripts, outside of a job and inside of one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stand_ins import PROGRAMS, RECORD, ROOT, STAND_INS, Stage


@pytest.fixture
def shell(tmp_path: Path) -> Stage:
    for name, body in STAND_INS.items():
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"{RECORD}{body}\n")
        script.chmod(0o755)
    for name in PROGRAMS:
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    stage = Stage(tmp_path / "bin", {"RUN_ROOT": str(tmp_path / "runs")})
    (tmp_path / "runs" / "upscaled").mkdir(parents=True)
    stage.log.touch()
    return stage


@pytest.fixture
def slurm(shell: Stage, tmp_path: Path) -> Stage:
    """As inside a batch job of four nodes with eight tasks each; scripts are copied away, as Slurm does."""
    shell.environment |= {
        "SLURM_JOB_ID": "54242", "SLURM_JOB_NUM_NODES": "4", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_ON_NODE": "104",
        "SLURM_JOB_NODELIST": "node[1-4]", "SLURM_SUBMIT_DIR": str(ROOT),
    }  # fmt: skip
    (tmp_path / "spool").mkdir()
    return shell
