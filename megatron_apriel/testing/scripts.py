"""The scripts that stand beside the package, as modules: what they define can be called without another process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_script(place: str) -> ModuleType:
    """A new module made of a script, such as ``tools/plan.py``."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(place).stem}", ROOT / place)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
