"""Attention over packed sequences: rotary positions per token, and never across the borders of documents or images.

:class:`PackedSelfAttention` is Megatron's ``SelfAttention`` with its own way from hidden states to output. Megatron's
applies rotary positions by document, which asks the device for the documents' lengths in every layer; here the angles
come per token (``rotary.py``) and nothing waits. Of a sequence that is divided over context-parallel ranks, see
``context.py``. :class:`LocalCoreAttention` does the attention itself where Transformer Engine is absent.

Shape letters: S tokens, N query heads, G key-value heads, D numbers per head; T keys, as many as S but for a block.
"""

from __future__ import annotations

import copy
import enum
from itertools import pairwise
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_apriel.batch import Batch
from megatron_apriel.model.context import BlockedSeqParams, attend_by_blocks, gather_keys_and_values
from megatron_apriel.model.rotary import Rotary, split_and_rotate


def packed(cu_seqlens: Tensor, longest: int) -> PackedSeqParams:
    """How a sequence is divided into documents, or a list of patches into images.

    Args:
        cu_seqlens: int32, cumulative lengths from 0.
        longest: the largest length, as a plain number.
    """
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


def packed_documents(batch: Batch) -> PackedSeqParams:
    """How the sequence of a batch is divided into documents, and its blocks if this rank has only a part of it."""
    if batch.part is None:
        return packed(batch.cu_seqlens, batch.max_document)
    return BlockedSeqParams(qkv_format="thd", blocks=batch.part.blocks)


class PackedSelfAttention(SelfAttention):  # type: ignore[misc]
    """Self-attention of a packed sequence; parameters and sharding are those of Megatron's ``SelfAttention``."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        # Transformer Engine's attention must not divide the sequence for itself: it is given all keys that it needs.
        undivided = copy.copy(config)
        undivided.context_parallel_size = 1
        super().__init__(undivided, *args, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: None = None,
        *,
        rotary_pos_emb: Rotary,
        packed_seq_params: PackedSeqParams,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states [S, 1, H] (S over tensor-parallel ranks under sequence parallelism) to the same shape.

        Args:
            hidden_states: normalised already, or by the fused first layer.
            attention_mask: none is ever used; documents come from ``packed_seq_params``.
            rotary_pos_emb: of all S tokens.
            packed_seq_params: see :func:`packed` and :func:`packed_documents`.
        """
        projected_S1GX, _ = self.get_query_key_value_tensors(hidden_states, split_qkv=False)
        queries = self.num_attention_heads_per_partition // self.num_query_groups_per_partition
        fused = self.config.transformer_impl == "transformer_engine"
        query, key, value = split_and_rotate(projected_S1GX, queries, rotary_pos_emb, fused=fused)
        if isinstance(packed_seq_params, BlockedSeqParams):
            gathered = gather_keys_and_values(key, value, self.pg_collection.cp)
            context = attend_by_blocks(self.core_attention, query, gathered, packed_seq_params.blocks)
        else:
            context = self.core_attention(
                query,
                key,
                value,
                None,
                attn_mask_type=self.attn_mask_type,
                attention_bias=None,
                packed_seq_params=packed_seq_params,
            )
        return self.linear_proj(context.reshape(context.shape[0], 1, -1))

    def extra_repr(self) -> str:
        heads, groups = self.num_attention_heads_per_partition, self.num_query_groups_per_partition
        return (
            f"heads {heads} of {self.config.num_attention_heads}, "
            f"key-value heads {groups} of {self.config.num_query_groups}, "
            f"head size {self.config.kv_channels}, tensor shard {self.tp_group.rank()} of {self.tp_group.size()}"
        )


class CoreAttention(torch.nn.Module):
    """Attention proper, built as Megatron builds its own: causal within each document, or full within each image."""

    def __init__(
        self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str, **_: Any
    ) -> None:
        super().__init__()
        self.causal = attn_mask_type == AttnMaskType.causal

    def extra_repr(self) -> str:
        return "causal within each document" if self.causal else "full within each image"


class LocalCoreAttention(CoreAttention):
    """torch's scaled-dot-product attention, one document (or image) at a time.

    Reads the documents' lengths on the host, which costs a wait where they are on a GPU; Transformer Engine's kernel
    is the one for GPUs.
    """

    def forward(
        self,
        query_SND: Tensor,
        key_TGD: Tensor,
        value_TGD: Tensor,
        attention_mask: None,
        *,
        attn_mask_type: enum.Enum,
        attention_bias: None,
        packed_seq_params: PackedSeqParams,
    ) -> Tensor:
        """Attention within each document, of its last tokens where it has fewer queries than keys: [S, N, D]."""
        bounds = (packed_seq_params.cu_seqlens_q.tolist(), packed_seq_params.cu_seqlens_kv.tolist())
        outputs = []
        for (start, end), (first, last) in zip(*map(pairwise, bounds), strict=True):
            query = query_SND[None, start:end].transpose(1, 2)
            key, value = (x[None, first:last].transpose(1, 2) for x in (key_TGD, value_TGD))
            earlier = (last - first) - (end - start)
            mask = None
            if self.causal and earlier:
                mask = torch.ones(end - start, last - first, dtype=torch.bool, device=query.device).tril(earlier)
            output = torch.nn.functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=self.causal and mask is None,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            outputs.append(output[0].transpose(0, 1))
        return torch.cat(outputs)
