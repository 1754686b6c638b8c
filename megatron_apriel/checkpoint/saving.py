"""How shards reach the disk: Megatron's plan of who writes what, torch's writer to write it.

Megatron's own writer is made for saving in the background: it starts worker processes even for a synchronous save, and
imports packages that are not among its dependencies. A save that the run waits for needs none of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed import checkpoint


class SynchronousSave(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """Writes Megatron's ``torch_dist`` format with :class:`torch.distributed.checkpoint.FileSystemWriter`."""

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: Path) -> None:
        shards, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        planner = MCoreSavePlanner(
            dedup_replicated_tensors=not self.keep_only_main_replica,
            flatten_state_dict=False,
            flatten_sharded_tensors=False,
        )
        writer = checkpoint.FileSystemWriter(checkpoint_dir, sync_files=True)
        checkpoint.save(mcore_to_pyt_state_dict(shards, False), storage_writer=writer, planner=planner)


def save_strategy() -> Any:
    """Where several ranks hold the same shard, each writes a part of them instead of the first writing all."""
    strategy = SynchronousSave()
    return FullyParallelSaveStrategyWrapper(strategy, _copies()) if _have_copies() else strategy


def load_strategy() -> Any:
    """Where several ranks hold the same shard, each reads a part of them from the disk and gives it to the others."""
    strategy = TorchDistLoadShardedStrategy()
    return FullyParallelLoadStrategyWrapper(strategy, _copies()) if _have_copies() else strategy


def _copies() -> Any:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _have_copies() -> bool:
    return parallel_state.model_parallel_is_initialized() and dist.get_world_size(_copies()) > 1
