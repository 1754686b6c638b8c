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
from typing import Any, NamedTuple

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


def gather_keys_and_values(key_SGD: Tensor, value_SGD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Keys and values of all ranks' blocks, [2 C, S, G, D]: of each rank in turn its keys, then its values."""
    return gather_from_sequence_parallel_region(torch.stack([key_SGD, value_SGD]), group=group)


class _Run(NamedTuple):
    """Neighbouring tokens of a sequence that one rank owns: from ``start`` on in its part."""

    rank: int
    start: int
    length: int


def _runs(ranks: int, own: int, block: Block) -> list[_Run]:
    """Where the keys lie that a block sees, in the sequence's order.

    Args:
        ranks: context-parallel ranks.
        own: tokens of each.
        block: whose keys.
    """
    size, runs = own // 2, []
    for number in range(block.first_key // size, -(-block.stop // size)):
        rank, half = owner_of_block(ranks, number)
        first, stop = max(block.first_key - number * size, 0), min(block.stop - number * size, size)
        runs.append(_Run(rank, half * size + first, stop - first))
    return runs


class _Seen(torch.autograd.Function):
    """Copies of the keys and of the values that each block sees.

    Autograd's own way back through slices of slices makes a tensor of zeros for each of them, as large as what it was
    taken from: at two ranks some fifty times the traffic of the keys and values themselves, and more at more ranks.
    """

    @staticmethod
    def forward(ctx: Any, gathered: Tensor, runs: Sequence[Sequence[_Run]]) -> tuple[Tensor, ...]:
        ctx.runs, ctx.size = runs, gathered.shape
        return tuple(
            torch.cat([gathered[2 * run.rank + which, run.start : run.start + run.length] for run in of_block])
            for of_block in runs
            for which in (0, 1)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].new_zeros(ctx.size)
        for number, of_block in enumerate(ctx.runs):
            for which, own in enumerate(gradients[2 * number : 2 * number + 2]):
                pieces = own.split([run.length for run in of_block])
                for run, piece in zip(of_block, pieces, strict=True):
                    gradient[2 * run.rank + which, run.start : run.start + run.length].add_(piece)
        return gradient, None


def attend_by_blocks(
    core_attention: Callable[..., Tensor], query_SND: Tensor, gathered: Tensor, blocks: Sequence[Block]
) -> Tensor:
    """Causal attention of the queries of ``blocks``, which lie one after another, to keys of the whole sequence.

    Args:
        core_attention: attention proper, called as Megatron calls it.
        query_SND: of this rank.
        gathered: see :func:`gather_keys_and_values`.
        blocks: of this rank.

    Returns:
        What ``core_attention`` gives for all S queries.
    """
    # Copies, which Transformer Engine wants too: it refuses keys that begin in the middle of their storage.
    seen = _Seen.apply(gathered, [_runs(len(gathered) // 2, gathered.shape[1], block) for block in blocks])
    outputs = [
        core_attention(
            query,
            key,
            value,
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
        for block, query, key, value in zip(
            blocks, query_SND.split([block.length for block in blocks]), seen[0::2], seen[1::2], strict=True
        )
    ]
    return torch.cat(outputs)
