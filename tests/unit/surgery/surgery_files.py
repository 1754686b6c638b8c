"""Small checkpoints, written and read without the code under test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
)

ROOT = Path(__file__).parents[3]

SMALL = Architecture(
    decoder=DecoderArchitecture(32, 5, 4, 2, 16, 48, 64, rope_theta=1e6, max_positions=512),
    tower=TowerArchitecture(24, 2, 2, 12, 40, "gelu", image_size=64),
    projector=ProjectorArchitecture(24, 32),
)
"""Five layers, grouped queries, a head size that is not hidden/heads."""


def text_tensors(layers: int, *, hidden: int = 8, ffn: int = 12, seed: int = 0, dtype: str = "BF16") -> dict[str, Any]:
    """A text-only Mistral of 2 query heads and 1 group of size 4, under Hugging Face names."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens": (16, hidden)}
    for layer in range(layers):
        parts = {"q": (8, hidden), "k": (4, hidden), "v": (4, hidden), "o": (hidden, 8)}
        for letter, shape in parts.items():
            shapes[f"model.layers.{layer}.self_attn.{letter}_proj"] = shape
        for name, shape in {"gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}.items():
            shapes[f"model.layers.{layer}.mlp.{name}_proj"] = shape
        for name in ("input", "post_attention"):
            shapes[f"model.layers.{layer}.{name}_layernorm"] = (hidden,)
    shapes |= {"model.norm": (hidden,), "lm_head": (16, hidden)}
    tensors = {}
    for name, shape in shapes.items():
        numbers = rng.standard_normal(shape).astype(np.float32)
        if dtype == "BF16":
            tensors[f"{name}.weight"] = ("BF16", (numbers.view(np.uint32) >> 16).astype(np.uint16))
        else:
            tensors[f"{name}.weight"] = (dtype, numbers.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]))
    return tensors


def text_config(layers: int, **changes: Any) -> dict[str, Any]:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    return {"model_type": "mistral", "num_hidden_layers": layers, **sizes, "rms_norm_eps": 1e-05, **changes}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def environment(**changes: str) -> dict[str, str]:
    """For subprocesses: the package can be imported, and no library starts threads."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


def flipping_a_bit(write: Callable[..., Any]) -> Callable[..., Any]:
    """``write_tensors``, after which a bit of what it wrote is another."""

    def write_then_flip(directory: Path, *arguments: Any, **options: Any) -> Any:
        hashes = write(directory, *arguments, **options)
        with (directory / "model.safetensors").open("r+b") as stream:
            stream.seek(-7, os.SEEK_END)
            byte = stream.read(1)
            stream.seek(-7, os.SEEK_END)
            stream.write(bytes([byte[0] ^ 1]))
        return hashes

    return write_then_flip


def signalled_in_mid_write(
    process: subprocess.Popen[str], folder: Path, partial: str, size: int, number: signal.Signals
) -> str:
    """Send a signal once a file of ``partial`` has more than ``size`` bytes; returns what the process said."""
    deadline = time.monotonic() + 300
    while not any(path.stat().st_size > size for path in folder.glob(f"{partial}/*.safetensors")):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    return errors


_MEASURED = """
import json, re, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
    print(json.dumps([end.code, int(peak) / 1024, sorted({"torch", "numpy", "megatron.core"} & set(sys.modules))]))
"""


def measured(tool: str, *arguments: object) -> tuple[int, float, list[str]]:
    """Run a tool in a process of its own; its exit code, peak memory in MiB, and which large packages it imported."""
    command = [sys.executable, "-c", _MEASURED, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout, done.stderr
    code, megabytes, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return code, megabytes, modules
