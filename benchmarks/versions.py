"""What a result was measured from: commit and driver, as far as the machine can say."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from benchmarks.processes import ROOT


def commit() -> str:
    """The checked-out commit, abbreviated; ``unknown`` where there is no git repository."""
    return _say(["git", "rev-parse", "--short=12", "HEAD"]) or "unknown"


def is_dirty() -> bool:
    """Whether tracked files differ from that commit."""
    return bool(_say(["git", "status", "--porcelain", "--untracked-files=no"]))


def driver() -> str:
    """Version of the GPU's driver; ``unknown`` where there is none."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return (_say(query).splitlines() or ["unknown"])[0]


def _say(command: Sequence[str]) -> str:
    """What a command prints, or nothing where it cannot be run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
