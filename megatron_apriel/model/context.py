"""Attention of a sequence that is divided over context-parallel ranks: gather keys and values, attend by blocks.

Between attentions every token is on its own, so a rank can hold any tokens; each holds two blocks of the sequence, one
early and one late (``parallel/context_parts.py``). For attention, keys and values of the whole sequence are gathered
from the context-parallel ranks, and each block of queries attends to the part of them that it sees, documents kept
apart. This is how Llama 3 was trained (arXiv 2407.21783, section 3.3.2). The usual alternative passes keys and values
around in a ring while it computes, and hides the transfer; but it wants each *document* to divide into 2C equal blocks,
and so padding in every document of a pack. Gathering wants nothing of documents, and grouped-query attention makes it
cheap: 8 key-value heads of 128 numbers are 2048 numbers a token, where a hidden state has 5120.

Backward, each rank has gradients for all keys that its queries saw. They are summed over the ranks and divided again,
one reduce-scatter, which is what the gather's backward pass does.

How many queries and keys a block has of each document comes with the batch as plain numbers and small tensors, so
nothing waits for the device. The attention proper is the same class as without context parallelism, called once per
block with fewer queries than keys; the causal diagonal then ends in the lower right corner of each document.

Shape letters: S tokens of this rank, T tokens of the whole sequence, N query heads, G key-value heads, D numbers per
head.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from megatron_apriel.batch import Block
from megatron_apriel.parallel.context_parts import owner_of_block


class BlockMask(enum.Enum):
    """Transformer Engine's name for the mask of a block, which Megatron's ``AttnMaskType`` lacks."""

    padding_causal_bottom_right = enum.auto()


@dataclass
class BlockedSeqParams(PackedSeqParams):  # type: ignore[misc]
    """What Megatron's layers hand through to the attention of a rank that holds blocks of a sequence."""

    blocks: tuple[Block, ...] = ()


def gather_keys_and_values(key_SGD: Tensor, value_SGD: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Keys and values of the whole sequence, each [T, G, D] in the sequence's order, from this rank's blocks."""
    ranks = group.size()
    gathered = gather_from_sequence_parallel_region(torch.stack([key_SGD, value_SGD]), group=group)
    pieces = gathered.view(ranks, 2, 2, key_SGD.shape[0] // 2, *key_SGD.shape[1:])
    places = [owner_of_block(ranks, block) for block in range(2 * ranks)]
    key_TGD, value_TGD = (torch.cat([pieces[rank, which, half] for rank, half in places]) for which in (0, 1))
    return key_TGD, value_TGD


def attend_by_blocks(
    core_attention: Callable[..., Tensor],
    query_SND: Tensor,
    key_TGD: Tensor,
    value_TGD: Tensor,
    blocks: Sequence[Block],
) -> Tensor:
    """Causal attention of the queries of ``blocks``, which lie one after another, to keys of the whole sequence.

    Args:
        core_attention: attention proper, called as Megatron calls it.

    Returns:
        What ``core_attention`` gives for all S queries.
    """
    outputs, start = [], 0
    for block in blocks:
        seen = slice(block.first_key, block.stop)
        outputs.append(
            core_attention(
                query_SND[start : start + block.length],
                # Copies: Transformer Engine refuses keys that begin in the middle of their storage.
                key_TGD[seen].clone(),
                value_TGD[seen].clone(),
                None,
                attn_mask_type=BlockMask.padding_causal_bottom_right,
                attention_bias=None,
                packed_seq_params=PackedSeqParams(
                    qkv_format="thd",
                    cu_seqlens_q=block.cu_queries,
                    cu_seqlens_kv=block.cu_keys,
                    max_seqlen_q=block.max_queries,
                    max_seqlen_kv=block.max_keys,
                ),
            )
        )
        start += block.length
    return torch.cat(outputs)
