"""The surgery room imports neither torch nor Megatron Core, and its tools teach by example."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from surgery_files import ROOT, environment, text_config, text_tensors

from megatron_apriel.testing.plain_safetensors import write_model

SLOW_TO_IMPORT = {
    "torch", "transformers", "tokenizers", "numpy", "pydantic", "rich", "httpx", "socket",
}  # fmt: skip
"""What some commands need, and what takes a run that only copies bytes longer to import than a read of its headers."""


def test_no_heavy_imports() -> None:
    modules = sorted(file.stem for file in (ROOT / "megatron_apriel" / "surgery").glob("*.py"))
    imports = "; ".join(f"import megatron_apriel.surgery.{name}" for name in modules if name != "__init__")
    code = f"import sys; {imports}; print([n for n in ('torch', 'megatron.core', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert len(modules) > 8
    assert done.stdout == "[]\n"


def test_a_run_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", text_tensors(4), text_config(4))
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "before = set(sys.modules)\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    print(*(set(sys.modules) - before), file=sys.stderr)\n"
    )
    tool = str(ROOT / "tools" / "upscale_layers.py")
    command = [sys.executable, "-c", code, tool, str(source), str(tmp_path / "result"), "--num-layers", "5"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    imported = set(done.stderr.splitlines()[-1].split())
    assert "megatron_apriel.surgery.upscale" in imported
    assert not imported & SLOW_TO_IMPORT


@pytest.mark.parametrize("tool", ["upscale_layers", "average_checkpoints"])
def test_help_teaches_by_example(tool: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(COLUMNS="120"), check=True)
    assert f"\n  python tools/{tool}.py " in done.stdout
    assert "--dry-run" in done.stdout
