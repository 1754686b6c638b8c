"""The environments of their own in which the packages of some benchmarks run; ``make scorers`` makes them."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_apriel.errors import ConfigError, printable

VARIABLE = "APRIEL_SCORERS"
DEFAULT = Path(__file__).resolve().parents[2] / ".scorers"


def scorer_python(name: str) -> Path:
    """The interpreter of one of the environments.

    Args:
        name: ``ifbench``, ``tau2``, ``scicode`` or ``evalscope``.

    Raises:
        ConfigError: it is not there.
    """
    folder = Path(os.environ.get(VARIABLE) or DEFAULT)
    python = folder / name / "bin" / "python"
    if not python.is_file():
        raise ConfigError(
            f"there is no {printable(python)}.",
            f"{name} runs in an environment of its own, because its pins are not ours.",
            f"Make it with `make scorers`, or name the folder of such environments in {VARIABLE}.",
        )
    return python


def plain_environment(*kept: str) -> dict[str, str]:
    """Variables for a process of such an environment: none that says where our packages are, nor any secret."""
    own = {name: os.environ[name] for name in kept if name in os.environ}
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **own}


def package_files(name: str, path: str) -> list[Path]:
    """Files of a path in the packages of an environment; none where it is not there."""
    folder = Path(os.environ.get(VARIABLE) or DEFAULT)
    return sorted((folder / name / "lib").glob(f"python3*/site-packages/{path}"))
