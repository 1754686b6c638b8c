"""What a variable of the environment brings into a stage's paths is used by a run and shown by none of its outputs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from stage_runs import STAGE, records

SECRET = "hf_Tr1al-s3cret"


def test_a_run_shows_the_name_and_not_the_value(root: Path, tmp_path: Path) -> None:
    """On the console, in its records, its resolved configuration and the run.json of its checkpoints."""
    place = tmp_path / SECRET
    shutil.copytree(root, place, ignore=shutil.ignore_patterns("*.yaml"))
    file = tmp_path / "trial.yaml"
    stage = re.sub(r"ROOT(/\w+)", r'"${TRIAL_PLACE}\1"', STAGE.format(root="ROOT", name="run"))
    file.write_text(stage, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TRIAL_PLACE": str(place)}

    def train(stage: Path, *overrides: str) -> str:
        command = [sys.executable, "-m", "megatron_apriel.train", str(stage), "logging.tensorboard=true", *overrides]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    shown = train(file)
    assert "${TRIAL_PLACE}/run/checkpoints/step_00000006" in shown
    resolved = place / "run" / "config.resolved.yaml"
    assert "init_from: ${TRIAL_PLACE}/model" in resolved.read_text(encoding="utf-8")
    copy = shutil.copyfile(resolved, tmp_path / "again.yaml")
    shutil.rmtree(place / "run" / "checkpoints" / "step_00000006")
    again = train(copy, "checkpoint.export=false")
    assert "resumed from ${TRIAL_PLACE}/run/checkpoints/step_00000004" in again
    assert records(place, "run", "checkpoint")[-1]["path"] == "${TRIAL_PLACE}/run/checkpoints/step_00000006"
    assert SECRET not in shown + again
    for written in (place / "run").rglob("*"):
        if written.is_file():
            assert SECRET.encode() not in written.read_bytes(), written
