"""How shards reach the disk and come back: Megatron's plan of who writes what, torch's writer to write it.

Megatron's own writer starts worker processes, even for a synchronous save, and imports packages that are not among its
dependencies. :mod:`writing` needs none of it, not even in the background.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint import CheckpointException

from megatron_apriel.checkpoint.agreement import alike
from megatron_apriel.checkpoint.boxes import Boxes
from megatron_apriel.checkpoint.shard_writer import first_failure
from megatron_apriel.checkpoint.verify import changed
from megatron_apriel.checkpoint.writing import ShardWriting
from megatron_apriel.errors import CheckpointError


class _Planned(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """Plans the writing of Megatron's ``torch_dist`` format, and leaves the writing to whoever asked for the plan."""

    writing: ShardWriting

    def __init__(self, boxes: Mapping[str, Boxes]) -> None:
        super().__init__()
        self._boxes = boxes

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: Path) -> None:
        shards, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        self.writing = ShardWriting(checkpoint_dir, mcore_to_pyt_state_dict(shards, False) | self._boxes)


def plan_writing(state: ShardedStateDict, boxes: Mapping[str, Boxes], directory: Path) -> ShardWriting:
    """Plan who writes which of the shards in ``state``, and this rank's ``boxes``, into ``directory``; collective.

    Where several ranks hold the same shard, each writes a part of them instead of the first writing all. What is no
    shard is written here already.

    Args:
        state: nested, with Megatron's sharded tensors at its leaves.
        boxes: by key, what this rank alone holds of tensors.
        directory: exists and is empty.

    Raises:
        CheckpointException: torch's, on all ranks alike.
    """
    strategy = _Planned(boxes)
    parallel = FullyParallelSaveStrategyWrapper(strategy, _copies()) if _have_copies() else strategy
    dist_checkpointing.save(state, str(directory), parallel)
    return strategy.writing


class _ReadTogether(TorchDistLoadShardedStrategy):  # type: ignore[misc]
    """Megatron's reader. A rank that cannot read its part tells the others, which would wait for it to give it them."""

    def load(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: Path, *more: Any) -> Any:
        def own_part() -> Any:
            try:
                return super(_ReadTogether, self).load(sharded_state_dict, checkpoint_dir, *more)
            except CheckpointException as error:
                raise unreadable(checkpoint_dir, error) from error

        return alike(own_part)


def unreadable(path: Path, error: CheckpointException) -> CheckpointError:
    """What torch raised while it read the checkpoint at ``path``, told."""
    failure = first_failure(error)
    # torch advises to switch off what keeps a file from running code.
    return changed(path, "a tensor in it is damaged" if isinstance(failure, pickle.UnpicklingError) else str(failure))


def load_strategy() -> Any:
    """Where several ranks hold the same shard, each reads a part of them from the disk and gives it to the others."""
    strategy = _ReadTogether()
    return FullyParallelLoadStrategyWrapper(strategy, _copies()) if _have_copies() else strategy


def _copies() -> Any:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _have_copies() -> bool:
    return parallel_state.model_parallel_is_initialized() and dist.get_world_size(_copies()) > 1
