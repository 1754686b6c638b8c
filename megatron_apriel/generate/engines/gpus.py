"""The GPUs of this machine as its driver lists them, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess


def gpu_memory() -> list[int]:
    """Bytes of memory of each GPU that programs may use; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode:
        return []
    found = [int(line) << 20 for line in done.stdout.split("\n") if line.strip().isdecimal()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    wanted = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return found[: len(wanted)]
