"""Work that one rank does for all, and whose outcome all must share: nobody goes on, or waits, alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_apriel.errors import AprielError, CheckpointError

UNCHANGED = "What was there before is unchanged."


def on_first_rank(work: Callable[[], None], path: Path) -> None:
    """Do ``work``, which writes ``path``, on rank 0 and let every rank know how it ended; collective.

    Raises:
        CheckpointError: on all ranks, if it failed for a reason outside of the program.
    """
    failure = None
    if dist.get_rank() == 0:
        try:
            work()
        except (AprielError, OSError) as error:
            failure = error
    agree(failure, path)


def agree(failure: Exception | None, path: Path) -> None:
    """Raise on every rank what failed on rank 0, or nowhere; collective. Other ranks' ``failure`` is not looked at."""
    outcome: list[Any] = [None if failure is None else str(failure)]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(failure, AprielError):
        raise failure
    if outcome[0] is not None:
        raise CheckpointError(f"{path} could not be written: {outcome[0]}", UNCHANGED) from failure
