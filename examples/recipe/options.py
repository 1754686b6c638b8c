"""Options of the chain that hold for all of its jobs, for the stages or the tools, or for one step alone.

A value may begin with where it holds: ``--time 2-00:00:00`` is for all jobs, ``--time tools:1:00:00`` for those that
run a tool, ``--time sft:12:00:00`` for one step. The narrower one wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from examples.recipe.chain import Step
from megatron_apriel.errors import ConfigError, shown

ALL, STAGES, TOOLS = "", "stages", "tools"

OF_THE_CHAIN = {
    "--job-name", "-J", "--dependency", "-d", "--output", "-o", "--error", "-e", "--array", "-a", "--chdir", "-D",
    "--parsable", "--wrap", "--wait", "-W", "--test-only", "--kill-on-invalid-dep",
}  # fmt: skip
"""Options of sbatch that the chain itself gives, or that it cannot work with."""
RESERVED = {
    "output": "What follows looks for it in RUN_ROOT. Set RUN_ROOT for a chain of its own.",
    "checkpoint.export": "What follows begins with the exported result.",
}
"""Settings that would break the chain, and why."""
FOR_ONE_STAGE = {"init_from": "It would be the beginning of every stage. Name the one, as in --set STAGE:init_from=..."}


@dataclass
class Choice:
    """The values of one option, by where they hold."""

    option: str
    values: dict[str, list[str]] = field(default_factory=dict)

    def of(self, step: Step) -> list[str]:
        """The values that hold for a step, wider ones first."""
        return [value for place in _places(step) for value in self.values.get(place, [])]

    def last_of(self, step: Step) -> str | None:
        """The value that wins."""
        values = self.of(step)
        return values[-1] if values else None


def _places(step: Step) -> tuple[str, str, str]:
    return ALL, STAGES if step.stage else TOOLS, step.name


def choice(
    option: str,
    given: Sequence[str],
    steps: Mapping[str, Step],
    unplaced: str = ALL,
    number_from: int | None = None,
    name: str | None = None,
) -> Choice:
    """Read an option's values.

    Args:
        option: as it is written, for messages.
        given: its values, each maybe with ``PLACE:`` before it.
        steps: of the chain.
        unplaced: where a value holds that has no place before it.
        number_from: the least number that it may be, where it is one of the stages' nodes, tasks or GPUs.
        name: how sbatch calls it, if differently.

    Raises:
        ConfigError: a value is not a number, is of no stage, or there is none behind a place.
    """
    places, chosen = {STAGES, TOOLS, *steps}, Choice(name or option)
    for text in given:
        place, colon, value = text.partition(":")
        if not colon or place not in places:
            place, value = unplaced, text
        if number_from is not None:
            _check_number(option, text, place, value, steps, number_from)
        if not value:
            raise ConfigError(f"{option}={shown(text)} has no value.")
        chosen.values.setdefault(place, []).append(value)
    return chosen


def _check_number(option: str, text: str, place: str, value: str, steps: Mapping[str, Step], least: int) -> None:
    if not re.fullmatch("[0-9]{1,7}", value) or int(value) < least:
        raise ConfigError(
            f"{option} {shown(text)} is not a whole number from {least}.",
            fix=f"For all stages: {option} 8. For one: {option} sft:8. Stages: {_stage_names(steps)}.",
        )
    if place == TOOLS or (place in steps and not steps[place].stage):
        raise ConfigError(
            f"{option} {shown(text)}: surgery and averages run on one node, without GPUs.",
            fix=f"Stages: {_stage_names(steps)}.",
        )


def settings(given: Sequence[str], steps: Mapping[str, Step]) -> Choice:
    """Read ``--set``: settings of the stages, as ``key=value``.

    Raises:
        ConfigError: it is no setting, of no stage, or one that breaks the chain.
    """
    chosen = choice("--set", given, steps, unplaced=STAGES)
    for place, words in chosen.values.items():
        for word in words:
            key, equals, _ = word.partition("=")
            if not equals or not re.fullmatch(r"[a-z0-9_.]+", key):
                raise ConfigError(
                    f"--set {shown(word)} is not a setting.",
                    fix=f"Give --set KEY=VALUE, or --set STAGE:KEY=VALUE. Stages: {_stage_names(steps)}.",
                )
            if place == TOOLS or (place in steps and not steps[place].stage):
                raise ConfigError(
                    f"--set {shown(f'{place}:{word}')}: {place} is no stage, and only stages have settings.",
                    fix=f"Stages: {_stage_names(steps)}.",
                )
            reason = RESERVED.get(key) or (FOR_ONE_STAGE.get(key) if place == STAGES else None)
            if reason:
                raise ConfigError(f"--set {shown(word)} cannot be set for the chain.", fix=reason)
    return chosen


def _stage_names(steps: Mapping[str, Step]) -> str:
    return ", ".join(step.name for step in steps.values() if step.stage)


def _means_one_of(name: str, options: set[str]) -> bool:
    """Whether sbatch would take ``name`` for one of them: the beginning of a long one's name is enough for it."""
    if name.startswith("--"):
        return any(option.startswith(name) for option in options)
    return name[:2] in options


def scheduler_options(given: Sequence[str], steps: Mapping[str, Step]) -> Choice:
    """Read ``--sbatch``: further options of sbatch, one word each.

    Raises:
        ConfigError: it is no option, or one that the chain gives itself.
    """
    chosen = choice("--sbatch", given, steps)
    for word in (word for words in chosen.values.values() for word in words):
        if not word.startswith("-"):
            raise ConfigError(
                f"--sbatch {shown(word)} is not an option of sbatch.",
                fix="Give one word, as in --sbatch=--reservation=NAME or --sbatch=sft:--mail-type=END.",
            )
        _check_not_of_the_chain("--sbatch", word)
    return chosen


def options_for_tools(given: str) -> tuple[str, ...]:
    """Read ``CPU_SBATCH_ARGS``: further options of sbatch, with spaces between.

    Raises:
        ConfigError: one of them is one that the chain gives itself.
    """
    for word in (words := given.split()):
        if word.startswith("-"):
            _check_not_of_the_chain("CPU_SBATCH_ARGS:", word)
    return tuple(words)


def _check_not_of_the_chain(where: str, word: str) -> None:
    if _means_one_of(word.partition("=")[0], OF_THE_CHAIN):
        raise ConfigError(
            f"{where} {shown(word)} cannot be given: the chain's jobs are named, logged and ordered by itself.",
            fix="Leave it out, or submit that stage by itself, as in sbatch OPTIONS examples/sft.sh",
        )
