"""Whether all ranks would train the same. Hosts may have stage files, corpora and checkpoints of their own.

Ranks that disagree wait for each other for ever, or, what is worse, do not: where tokens come from one copy of a corpus
and labels from another, there is a loss all the same. So what a run is made of is compared once, before it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.sources import Source
from megatron_apriel.errors import CheckpointError, ConfigError, DataError, listed, printable, shown
from megatron_apriel.parallel.agreement import of_all_ranks


def check_settings(config: StageConfig) -> None:
    """Raise ConfigError, on all ranks, where a setting differs; collective. Copies may lie at other paths."""
    first, *others = of_all_ranks(dict(_settings(config.model_dump())))
    for rank, other in enumerate(others, start=1):
        if differing := [name for name in {**first, **other} if first.get(name) != other.get(name)]:
            both = (f"{name}={shown(first.get(name))} for rank 0 and {shown(other.get(name))}" for name in differing)
            raise ConfigError(
                f"{listed(both)} for rank {rank}.",
                "Ranks with different settings would train different models, or wait for each other for ever.",
                "Start all with the same stage file and the same overrides.",
            )


def _settings(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Plain settings by their dotted names."""
    if isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _settings(inner, f"{name}.{key}" if name else str(key))
    elif not isinstance(value, Path):
        yield name, value


def check_checkpoints(newest: Path | None) -> None:
    """Raise CheckpointError, on all ranks, where hosts see another newest checkpoint; collective."""
    first, *others = of_all_ranks(newest.name if newest is not None else "none")
    for rank, other in enumerate(others, start=1):
        if other != first:
            raise CheckpointError(
                f"the newest checkpoint is {first} for rank 0 and {other} for rank {rank}.",
                "Ranks that resume from different steps would train different models.",
                "The output directory must lie on a file system that all hosts share.",
            )


def check_documents(sources: Sequence[Source]) -> None:
    """Raise DataError, on all ranks, where a corpus holds other documents; collective."""
    first, *others = of_all_ranks([(printable(each.corpus.path), each.corpus.fingerprint) for each in sources])
    for rank, other in enumerate(others, start=1):
        for (path, fingerprint), (elsewhere, another) in zip(first, other, strict=True):
            if another != fingerprint:
                raise DataError(
                    f"{path} of rank 0 and {elsewhere} of rank {rank} hold different documents.",
                    "Ranks that share a sequence would read different tokens.",
                    "Give all hosts the same corpus, by a shared file system or a copy that is whole.",
                )
