"""Environments beside the project's own, each with programs that do not share its pins."""

from __future__ import annotations

from pathlib import Path

import megatron_apriel
from megatron_apriel.errors import ConfigError

PROJECT = Path(megatron_apriel.__file__).resolve().parents[1]
"""The folder that holds the package: what a program of another environment imports of it is found there."""


def program_in(environment: str, name: str) -> Path:
    """Where the program ``name`` of the folder ``environment`` lies, or will."""
    return PROJECT / environment / "bin" / name


def check_made(environment: str, name: str, setup: str) -> None:
    """Raise ConfigError, with the command that makes the environment, if it has no such program that can be started."""
    program = program_in(environment, name)
    if not program.is_file():
        raise ConfigError(f"{environment} has no {name}: it was not made yet.", fix=f"Make it: {setup}")
    with program.open("rb") as file:
        first = file.readline(4096).decode("utf-8", "replace")
    interpreter = first.removeprefix("#!").split(maxsplit=1)[0] if first.startswith("#!") and first[2:].strip() else ""
    if interpreter and not Path(interpreter).exists():
        raise ConfigError(
            f"{program} cannot be started: it names {interpreter}, which is not there.",
            "Programs of an environment do not move with the project's folder.",
            f"Make it anew: {setup}",
        )
