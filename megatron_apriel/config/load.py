"""From a stage's YAML file and ``key=value`` overrides to a checked :class:`StageConfig`, and back to YAML.

An override names a setting by its dotted place, list positions included, and gives a value in YAML::

    tokens=10M   parallel.tensor=4   mixture.0.weight=70%   train={decoder: 1.0}   validation=null

Later overrides win. Relative paths are relative to the current directory, not to the file, so that one file serves
every place; ``${VAR}`` and ``${VAR:-default}`` are replaced in paths only. No torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_apriel.config.explain import config_error, not_a_mapping
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.yaml_text import Location, parse_yaml, read_yaml, write_yaml
from megatron_apriel.errors import ConfigError


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
        raise not_a_mapping(str(path), settings)
    # A copy, in which what the file says once and uses twice, by YAML's aliases, can be set apart.
    settings = _with_text_keys(settings)
    origins: dict[Location, str] = {}
    for override in overrides:
        location, value = _parse_override(override)
        _set(settings, location, value, override)
        lines = {place: line for place, line in lines.items() if place[: len(location)] != location}
        origins = {place: text for place, text in origins.items() if place[: len(location)] != location}
        origins[location] = override
    return _validated(settings, str(path), lines, origins)


def _validated(
    settings: dict[Any, Any], path: str, lines: dict[Location, int], origins: dict[Location, str]
) -> StageConfig:
    try:
        return StageConfig.model_validate(_with_text_keys(settings))
    except ValidationError as error:
        raise config_error(error, path, lines, origins) from None


def to_yaml(config: StageConfig) -> str:
    """The whole resolved configuration, defaults included; :func:`load_stage` reads it back as an equal one."""
    return write_yaml(config.model_dump(mode="json"))


def _parse_override(override: str) -> tuple[Location, Any]:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"{override!r} is not an override.",
            "After the stage's file come settings that replace the file's.",
            "Write key=value, as in parallel.tensor=4 or mixture.0.weight=70%.",
        )
    if "[" in key:
        dots = re.sub(r"\[(\w*)\]", r".\1", key.strip()).strip(".")
        raise ConfigError(f"{override!r}: the items of a list are named with dots.", fix=f"Write {dots}={text}")
    value, _ = parse_yaml(text, f"override {override!r}")
    return tuple(int(part) if part.isdecimal() else part for part in parts), value


def _set(settings: dict[Any, Any], location: Location, value: Any, override: str) -> None:
    """Put ``value`` at ``location``; sections that the file leaves out are created, list items are not."""
    container: Any = settings
    for depth, key in enumerate(location):
        last = depth == len(location) - 1
        here = ".".join(map(str, location[:depth]))
        if isinstance(container, list):
            if not isinstance(key, int) or key >= len(container):
                items = ", ".join(f"{here}.{index}" for index in range(len(container)))
                raise ConfigError(
                    f"override {override!r}: {here} has no item {key}.",
                    f"{here} is a list of {len(container)}.",
                    f"Items: {items or 'none'}; or replace the whole list with {here}=[...].",
                )
        elif not isinstance(container, dict):
            raise ConfigError(
                f"override {override!r}: {here} is {container!r}, which has no part {key!r}.",
                "Only sections and lists have parts.",
                f"Replace the whole value with {here}=...",
            )
        elif isinstance(key, int):
            raise ConfigError(
                f"override {override!r}: {here or 'the stage'} has no items in the file.",
                "An item of a list can be replaced only where the file gives the list.",
                f"Give the whole list, {here or key}=[...].",
            )
        if last:
            container[key] = value
        elif isinstance(container, dict) and container.get(key) is None:
            container[key] = {}
        container = container[key]


def _with_text_keys(value: Any) -> Any:
    """Keys as text: YAML may read one as a number, and the schema's answer to it should still be 'not a setting'."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_text_keys(item) for item in value]
    return value
