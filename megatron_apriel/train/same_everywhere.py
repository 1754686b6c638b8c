"""Whether all ranks would train the same. Hosts may have stage files, models, corpora and checkpoints of their own.

Ranks that disagree wait for each other for ever, or, what is worse, do not: where tokens come from one copy of a corpus
and labels from another, there is a loss all the same. So what a run is made of is compared once, before it begins.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_apriel.checkpoint.tensor_bytes import as_bytes
from megatron_apriel.checkpoint.weights import open_weights
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.sources import Source
from megatron_apriel.errors import CheckpointError, ConfigError, DataError, OutputError, listed, printable, shown
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.outputs import appears
from megatron_apriel.parallel.agreement import alike, of_all_ranks


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


def check_model(init_from: Path, architecture: Architecture) -> None:
    """Raise CheckpointError, on all ranks, where the model that a rank begins from is another; collective.

    Compared are shapes, settings and a row from the middle of each weight: training moves nearly all numbers.
    """
    said = alike(lambda: (printable(init_from), _digest(init_from, architecture)))
    (path, first), *others = of_all_ranks(said)
    for rank, (elsewhere, other) in enumerate(others, start=1):
        if other != first:
            raise CheckpointError(
                f"{path} of rank 0 and {elsewhere} of rank {rank} are different models.",
                "The model in training would be made of parts of both.",
                "Give all hosts the same init_from, by a shared file system or a copy that is whole.",
            )


def _digest(init_from: Path, architecture: Architecture) -> str:
    weights, digest = open_weights(init_from, architecture), hashlib.sha256(repr(architecture).encode())
    if dist.get_world_size() > 1:
        for name, weight in weights.table.items():
            middle = weight.matrix[0] // 2
            digest.update(as_bytes(weights.read(name, middle, middle + 1)))
    return digest.hexdigest()


def check_output(output: Path) -> None:
    """Raise OutputError, on all ranks, where a rank's output is not rank 0's directory; collective.

    Each rank writes its part of a checkpoint. Where hosts have directories of their own, none of them gets a whole one,
    and each save looks as if it had succeeded.
    """
    if dist.get_world_size() == 1:
        return
    is_first = dist.get_rank() == 0
    mark = output / f".met-{of_all_ranks(secrets.token_hex(8))[0]}"
    with contextlib.ExitStack() as behind:
        if is_first:
            behind.callback(_remove, mark)
        alike(lambda: _make(mark) if is_first else None)
        seen = of_all_ranks((printable(output), appears(mark)))
    (first, _), *others = seen
    for rank, (path, is_there) in enumerate(others, start=1):
        if not is_there:
            raise OutputError(
                f"{path} of rank {rank} is not the directory {first} of rank 0: a file that rank 0 made is not there.",
                "Each rank writes its part of a checkpoint, and no host would get a whole one.",
                "The output directory must lie on a file system that all hosts share.",
            )


def _make(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(exist_ok=False)
    except OSError as error:
        raise OutputError(
            f"nothing can be written to {printable(file.parent)}: {error.strerror}.",
            "A run keeps its checkpoints there.",
            "Check its permissions and its room, or give another output.",
        ) from None


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # an empty file more, for which no rank ends alone
        file.unlink(missing_ok=True)


def result_exists(final: Path, outdated: Path) -> bool:
    """Whether the run's result is there, and no earlier training's: as rank 0 sees it, which writes both; collective.

    Another host may see a file late that was made a moment ago, and would train on alone.
    """
    return of_all_ranks(final.exists() and not outdated.exists())[0]


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
