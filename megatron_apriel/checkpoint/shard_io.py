"""How shards reach the disk and come back: which rank writes and reads which of them, by Megatron's division.

torch's writer writes them. They are read by :mod:`piece_reader`, since torch's reader trusts a checkpoint's directory.

Megatron's own writer starts worker processes, even for a synchronous save, and imports packages that are not among its
dependencies. :mod:`background_save` needs none of it, not even in the background.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedStateDict,
    ShardedTensor,
    apply_factory_merges,
)
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess, save_preprocess
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch import Tensor

from megatron_apriel.checkpoint.background_save import ShardWriting
from megatron_apriel.checkpoint.optimizer_shards import Boxes, read_whole
from megatron_apriel.checkpoint.piece_reader import PieceReader
from megatron_apriel.parallel.agreement import alike


class _Divided(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """Divides the writing of Megatron's ``torch_dist`` format, and leaves the writing to whoever asked for that."""

    writing: ShardWriting

    def __init__(self, boxes: Mapping[str, Boxes]) -> None:
        super().__init__()
        self._boxes = boxes

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: Path) -> None:
        shards, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        self.writing = ShardWriting(checkpoint_dir, mcore_to_pyt_state_dict(shards, False) | self._boxes)


def divide_writing(state: ShardedStateDict, boxes: Mapping[str, Boxes], directory: Path) -> ShardWriting:
    """Settle who writes which of the shards in ``state``, and this rank's ``boxes``, into ``directory``; collective.

    Where several ranks hold the same shard, each writes a part of them instead of the first writing all. Nothing is
    written yet. Megatron's own function would let rank 0 write a file here, of whose failure no other rank would know.

    Args:
        state: nested, with Megatron's sharded tensors at its leaves.
        boxes: by key, what this rank alone holds of tensors.
        directory: exists and is empty.

    Raises:
        CheckpointException: torch's, on all ranks alike.
    """
    strategy = _Divided(boxes)
    parallel = FullyParallelSaveStrategyWrapper(strategy, _copies()) if _have_copies() else strategy
    shards, common = save_preprocess(state)
    shards["common_state"] = ShardedObject("common_state", common, (1,), (0,), replica_id=dist.get_rank())
    parallel.save(shards, directory)
    return strategy.writing


class _OwnPart:
    """Reads the shards that Megatron's plan gives this rank to read. One that fails informs the others, which wait."""

    def __init__(self, reader: PieceReader) -> None:
        self._reader = reader

    def load(self, shards: ShardedStateDict, *_: Any) -> Any:
        return alike(lambda: dict_list_map_outplace(self._filled, shards))

    def _filled(self, shard: ShardedTensor) -> Tensor:
        read_whole(self._reader, shard.data, shard.key, shard.global_offset)
        data: Tensor = shard.data
        return data


def read_shards(state: ShardedStateDict, reader: PieceReader, directory: Path) -> Any:
    """Fill the shards in ``state`` from a checkpoint, and return them as tensors in the same nesting; collective.

    Where several ranks hold the same shard, each reads a part of them from the disk and gives it to the others.
    Megatron's own function would read the checkpoint's directory and its objects itself, unrestricted.

    Args:
        state: nested, with Megatron's sharded tensors at its leaves; every one of them is in the checkpoint.
        reader: of the checkpoint.
        directory: of the checkpoint.
    """
    shards, _, factories = load_preprocess(state)
    own: Any = _OwnPart(reader)
    strategy = FullyParallelLoadStrategyWrapper(own, _copies()) if _have_copies() else own
    return apply_factory_merges(strategy.load(shards, directory), factories)


def _copies() -> Any:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _have_copies() -> bool:
    return parallel_state.model_parallel_is_initialized() and dist.get_world_size(_copies()) > 1
