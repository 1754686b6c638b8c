"""Parts of the model that every tensor-parallel rank holds whole, though each runs them on other images.

Where ranks hold the same parameter, Megatron expects them to have the same gradient for it. Of these parameters each
rank has a part of the gradient; ``sharing.py`` says why the average of all is what is wanted.
"""

from __future__ import annotations

from typing import Any

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.transformer.module import MegatronModule


class Replicated(MegatronModule):  # type: ignore[misc]
    """Base of tower and projector, which call :meth:`mark_replicated` once their parameters are made."""

    def mark_replicated(self) -> None:
        """Tell Megatron that tensor-parallel ranks hold the same parameters and each a part of their gradients."""
        for parameter in self.parameters():
            parameter.tensor_model_parallel = False  # type: ignore[attr-defined]
            parameter.sequence_parallel = False  # type: ignore[attr-defined]
            parameter.average_gradients_across_tp_domain = True  # type: ignore[attr-defined]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """Megatron's, with the copies on tensor-parallel ranks numbered: a checkpoint takes one of them."""
        sharded = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        rank = parallel_state.get_tensor_model_parallel_rank()
        for entry in sharded.values():
            entry.replica_id = (entry.replica_id[0], rank, entry.replica_id[2])
        return sharded
