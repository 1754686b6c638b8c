"""The surgery room imports neither torch nor Megatron Core, and its tools teach by example."""

from __future__ import annotations

import subprocess
import sys

import pytest
from surgery_files import ROOT, environment


def test_no_heavy_imports() -> None:
    modules = sorted(file.stem for file in (ROOT / "megatron_apriel" / "surgery").glob("*.py"))
    imports = "; ".join(f"import megatron_apriel.surgery.{name}" for name in modules if name != "__init__")
    code = f"import sys; {imports}; print([n for n in ('torch', 'megatron.core', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert len(modules) > 8
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("tool", ["upscale_layers", "average_checkpoints"])
def test_help_teaches_by_example(tool: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(COLUMNS="120"), check=True)
    assert f"\n  python tools/{tool}.py " in done.stdout
    assert "--dry-run" in done.stdout
