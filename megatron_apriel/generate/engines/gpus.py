"""The GPUs of this machine as its driver lists them, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess

from megatron_apriel.errors import ServerError

PATIENCE_S = 120.0
"""For the driver, which takes seconds where it was not in use."""


def gpu_memory() -> list[int]:
    """Bytes of memory of each GPU that programs may use; empty where there is none.

    Raises ServerError where the driver does not answer.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return []
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise ServerError(
            f"{program} did not answer within {PATIENCE_S:g} s.",
            "A driver whose GPU has failed keeps whoever asks it waiting.",
            "Take another node, or set CUDA_VISIBLE_DEVICES to nothing, which looks for no GPU.",
        ) from None
    if done.returncode:
        return []
    found = [int(line) << 20 for line in done.stdout.split("\n") if line.strip().isdecimal()]
    if visible is None:
        return found
    wanted = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return found[: len(wanted)]
