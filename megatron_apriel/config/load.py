"""From a stage's YAML file and ``key=value`` overrides to a checked :class:`StageConfig`, and back to YAML.

An override names a setting by its dotted place, list positions included, and gives a value in YAML::

    tokens=10M   parallel.tensor=4   mixture.0.weight=70%   train={decoder: 1.0}   validation=null

Later overrides win. Relative paths are relative to the current directory, not to the file, so that one file serves
every place; ``${VAR}`` and ``${VAR:-default}`` are replaced in paths only. The way back spells them as they were
written, where the environment gave their values: these may be secrets. No torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_apriel.config.explain import config_error, not_a_mapping
from megatron_apriel.config.fields import dotted
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.yaml_text import MOST_DEEP, Location, parse_yaml, read_yaml, write_yaml
from megatron_apriel.errors import ConfigError, brief, listed, printable, shown


def load_stage(path: str | Path, overrides: Sequence[str] = ()) -> StageConfig:
    """Read, override and check a stage's configuration.

    Args:
        path: YAML file.
        overrides: ``key=value`` words; see the module's text.

    Raises ConfigError that names every mistake with its line or override, the reason and the valid choices.
    """
    path = Path(path)
    settings, lines = read_yaml(path)
    if not isinstance(settings, dict):
        raise not_a_mapping(printable(path), settings)
    origins: dict[Location, str] = {}
    for override in overrides:
        location, value = _parse_override(override)
        _set(settings, location, value, override)
        lines = {place: line for place, line in lines.items() if place[: len(location)] != location}
        origins = {place: text for place, text in origins.items() if place[: len(location)] != location}
        origins[location] = override
    return _validated(settings, printable(path), lines, origins)


def _validated(
    settings: dict[Any, Any], path: str, lines: dict[Location, int], origins: dict[Location, str]
) -> StageConfig:
    try:
        return StageConfig.model_validate(settings)
    except ValidationError as error:
        raise config_error(error, path, lines, origins) from None


def to_yaml(config: StageConfig) -> str:
    """The whole resolved configuration, defaults included; :func:`load_stage` reads it back as an equal one.

    Where epochs were counted, their tokens stand in it instead of them.
    """
    settings = config.model_dump(mode="json")
    return write_yaml(settings if config.tokens is None else settings | {"epochs": None})


def _parse_override(override: str) -> tuple[Location, Any]:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"{shown(override)} is not an override.",
            "After the stage's file come settings that replace the file's.",
            "Write key=value, as in parallel.tensor=4 or mixture.0.weight=70%.",
        )
    if len(parts) > MOST_DEEP:
        raise ConfigError(
            f"override {shown(override)} names {len(parts):,} places in one another.",
            f"At most {MOST_DEEP} are read.",
        )
    if "[" in key:
        dots = re.sub(r"\[(\w*)\]", r".\1", key.strip()).strip(".")
        raise ConfigError(
            f"{shown(override)}: the items of a list are named with dots.", fix=f"Write {brief(f'{dots}={text}')}"
        )
    value, _ = parse_yaml(text, f"override {shown(override)}")
    return tuple(int(part) if _POSITION.fullmatch(part) else part for part in parts), value


_POSITION = re.compile("[0-9]{1,18}")


def _set(settings: dict[Any, Any], location: Location, value: Any, override: str) -> None:
    """Put ``value`` at ``location``; sections that the file leaves out are created, list items are not."""
    container: Any = settings
    for depth, key in enumerate(location):
        last = depth == len(location) - 1
        here = dotted(location[:depth])
        if isinstance(container, list):
            if not isinstance(key, int) or key >= len(container):
                items = listed((f"{here}.{index}" for index in range(len(container))), 8)
                raise ConfigError(
                    f"override {shown(override)}: {here} has no item {printable(key)}.",
                    f"{here} is a list of {len(container)}.",
                    f"Items: {items or 'none'}; or replace the whole list with {here}=[...].",
                )
        elif not isinstance(container, dict):
            raise ConfigError(
                f"override {shown(override)}: {here} is {shown(container)}, which has no part {shown(key)}.",
                "Only sections and lists have parts.",
                f"Replace the whole value with {here}=...",
            )
        elif isinstance(key, int):
            raise ConfigError(
                f"override {shown(override)}: {here or 'the stage'} has no items in the file.",
                "An item of a list can be replaced only where the file gives the list.",
                f"Give the whole list, {here or key}=[...].",
            )
        if last:
            container[key] = value
        elif isinstance(container, dict) and container.get(key) is None:
            container[key] = {}
        container = container[key]
