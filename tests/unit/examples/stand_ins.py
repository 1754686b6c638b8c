"""Stand-ins for Slurm's programs and the interpreter, in a directory that is all of PATH: no real Slurm is asked.

Each writes its name, its arguments and the variables that matter to a log, and ends with the code that the test asks
for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
STAGES = ("upscale", "realign", "cpt_stage1", "cpt_stage2", "sft", "sft_subset", "sft_long")

RECORD = """#!/usr/bin/env bash
# Not that versions were asked for.
if [[ $* == *--version* || $* == *importlib.metadata* ]]; then :; else
{ printf '%s' "$(basename "$0")"; printf '\\t%s' "$@"; printf '\\n'; } >>"$FAKE_LOG"
fi
"""
PROGRAMS = (
    "basename", "bash", "cat", "date", "dirname", "env", "grep", "head", "mkdir", "mv", "sed", "sleep", "sort", "stat",
    "timeout", "wc",
)  # fmt: skip
"""Of this machine that the scripts and the stand-ins call. No other is in reach: a real Slurm is never asked."""
STAND_INS = {
    # The plan and the check of the interpreter succeed unless set otherwise; training ends with FAKE_CODE, and what
    # ends well leaves its product. What submits and shows the chain is real.
    "fakepython": """case "$*" in
        *examples.recipe*) exec "$REAL_PYTHON" "$@" ;;
        *--dry-run*) exit "${FAKE_PLAN_CODE:-0}" ;;
        -c*importlib.metadata*) printf ', Python 3.12.9, torch 2.99.0, megatron-core 0.99.0' ;;
        -c*) exit 0 ;;
        *train* | tools/evaluate.py*)
            if [[ -n ${FAKE_WORKING:-} ]]; then
                told() { echo "told $1" >>"$FAKE_LOG"; sleep 0.5; echo saved; exit "${FAKE_CODE:-75}"; }
                for name in HUP INT TERM; do trap "told $name" "$name"; done
                : >"$FAKE_WORKING"
                for ((count = 0; count < 2000; count++)); do sleep 0.05; done
                exit 1
            fi ;;&
        *train*)
            [[ ${FAKE_CODE:-0} == 0 ]] || exit "$FAKE_CODE"
            words="$*"
            file=${words#*examples/}
            mkdir -p "$RUN_ROOT/${file%%.yaml*}/final" ;;
        tools/upscale_layers.py*) mkdir -p "$3" ;;
        tools/evaluate.py*) exit "${FAKE_CODE:-0}" ;;
        tools/*) mkdir -p "$2" ;;
    esac""",
    "srun": r"""if [[ $1 == --version ]]; then echo "slurm 99.05.1"; exit; fi
        printf 'env\t%s\t%s\t%s\t%s\n' "${MASTER_ADDR-none}" "${MASTER_PORT:-}" "${RANK:-}${WORLD_SIZE:-}" \
            "${SLURM_JOB_END_TIME:-}" >>"$FAKE_LOG"
        left=$(env | grep -E "^(${FAKE_LEFT:-SLURM_(CPU_BIND|MEM_)})" | sort)
        printf 'left%s\n' "${left:+$'\t'${left//$'\n'/$'\t'}}" >>"$FAKE_LOG"
        exit "${FAKE_CODE:-0}" """,
    "squeue": r"""if [[ -n ${FAKE_SQUEUE_CODE:-} ]]; then echo "$FAKE_SQUEUE_SAYS" >&2; exit "$FAKE_SQUEUE_CODE"; fi
        if [[ $* == *tres-per-task* ]]; then echo "${FAKE_TRES:-N/A}"
        elif [[ $* == *%e* ]]; then echo "2-00:00:00|${FAKE_END:-N/A}"; else cat "${FAKE_QUEUE:-/dev/null}"; fi""",
    "scontrol": 'exit "${FAKE_SCONTROL_CODE:-0}"',
    "sbatch": r"""count=$(grep -c ^sbatch "$FAKE_LOG")
        if [[ $count == "${FAKE_SBATCH_FULL:-}" ]]; then echo "QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi
        printf "${FAKE_SBATCH_SAYS:-%s}\n" "$((1000 + count))" """,
    "apptainer": 'while [[ $1 != fakepython ]]; do shift; done; exec "$@"',
    "nvidia-smi": """if [[ -n ${FAKE_HANG:-} ]]; then exec sleep "$FAKE_HANG"; fi
        for ((i = 0; i < ${FAKE_GPUS:-0}; i++)); do echo "GPU $i"; done""",
}


@dataclass
class Stage:
    """A directory of stand-ins, all that is on PATH, and the log they write."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    cwd: Path = ROOT

    def start(self, *command: str | Path, errors: int = subprocess.STDOUT, **environment: str) -> subprocess.Popen[str]:
        """A script with both of its outputs in one pipe."""
        known = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
        variables = {
            "PATH": str(self.directory),
            "FAKE_LOG": str(self.log),
            "PYTHON": "fakepython",
            "REAL_PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            **known,
            **self.environment,
        }
        return subprocess.Popen(
            [str(self.directory / "bash"), *map(str, command)],
            cwd=self.cwd,
            env=variables | environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    def run(self, *command: str | Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script, which must end with that code."""
        with self.start(*command, errors=subprocess.PIPE, **environment) as script:
            output, said = script.communicate()
        assert script.returncode == code, output + said
        return subprocess.CompletedProcess(script.args, code, output, said)

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def calls(self, name: str) -> list[list[str]]:
        """Arguments of each call of a stand-in, in order."""
        lines = [line.split("\t") for line in self.log.read_text().splitlines()]
        return [words[1:] for words in lines if words[0] == name]


def wait_until(happened: Callable[[], object]) -> None:
    for _ in range(6000):
        if happened():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within two minutes")


def spooled(tmp_path: Path, name: str) -> Path:
    """A copy of a script in the place where Slurm runs it."""
    return Path(shutil.copy(ROOT / "examples" / f"{name}.sh", tmp_path / "spool" / "slurm_script"))


def submitted(shell: Stage) -> dict[str, list[str]]:
    """Arguments of sbatch, by the name of the job."""
    calls = shell.calls("sbatch")
    names = [next(word for word in call if word.startswith("--job-name=")).split("=")[1] for call in calls]
    return dict(zip(names, calls, strict=True))


def make(shell: Stage, *products: str) -> None:
    """Let products of the chain be there."""
    for product in products:
        (Path(shell.environment["RUN_ROOT"]) / product).mkdir(parents=True, exist_ok=True)
