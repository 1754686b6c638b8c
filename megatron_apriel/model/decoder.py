"""The text decoder's two ends: token embeddings and the head. Its layers are Megatron's ``TransformerBlock``."""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    VocabParallelEmbedding,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_apriel.formats.architecture import DecoderArchitecture
from megatron_apriel.model.main_grad import placeholder_gradient
from megatron_apriel.model.sharing import await_parameters


class _Lookup(torch.autograd.Function):
    """Rows of the table, and gradients added to just those rows of its ``main_grad``.

    Of the gradient's 131072 rows a sequence touches a few thousand; as a tensor of the table's size it costs several
    passes over more than a gigabyte in every micro-batch.
    """

    @staticmethod
    def forward(ctx: Any, table_VH: Tensor, rows_S: Tensor, outside_S: Tensor) -> Tensor:
        ctx.table_VH = table_VH
        ctx.save_for_backward(rows_S, outside_S)
        return torch.nn.functional.embedding(rows_S, table_VH).masked_fill_(outside_S[:, None], 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        table_VH: Tensor = ctx.table_VH
        rows_S, outside_S = ctx.saved_tensors
        main_grad: Tensor | None = getattr(table_VH, "main_grad", None)
        sum_VH = torch.zeros_like(table_VH) if main_grad is None else main_grad
        gradient_SH = gradients[0].masked_fill(outside_S[:, None], 0.0).to(sum_VH.dtype)
        # Image slots, padding and other ranks' tokens have no gradient, and all of them the same few rows. Equal rows
        # are added one after another, so those tokens add their zeros to rows of their own instead.
        idle_S = (gradient_SH == 0).all(dim=1)
        apart_S = torch.arange(len(rows_S), device=rows_S.device) % len(table_VH)
        _add_rows(sum_VH, torch.where(idle_S, apart_S, rows_S), gradient_SH)
        return (sum_VH if main_grad is None else placeholder_gradient(table_VH)), None, None


def _add_rows(sum_VH: Tensor, rows_S: Tensor, gradient_SH: Tensor) -> None:
    """Add each gradient to its row, equal rows always in the same order, so that the rounding is the same every time.

    On a GPU ``index_put_`` sorts equal rows together and ``index_add_`` adds them as they come. On a CPU it is the
    other way round: the threads of ``index_put_`` add as they come, ``index_add_`` takes one row after another.
    """
    if sum_VH.is_cuda:
        sum_VH.index_put_((rows_S,), gradient_SH, accumulate=True)
    else:
        sum_VH.index_add_(0, rows_S, gradient_SH)


class TokenEmbedding(MegatronModule):  # type: ignore[misc]
    """Token ids to embeddings; each tensor-parallel rank holds a run of the vocabulary."""

    def __init__(self, architecture: DecoderArchitecture, config: TransformerConfig) -> None:
        super().__init__(config)
        self.word_embeddings = VocabParallelEmbedding(
            architecture.vocab_size, architecture.hidden_size, init_method=config.init_method, config=config
        )

    def forward(self, tokens_S: Tensor) -> Tensor:
        """[S, 1, H], all tokens on every rank: images are placed before the sequence is divided."""
        table = self.word_embeddings
        # The module itself is not called: what hooks of its forward pass do must be asked for.
        await_parameters(table)
        rows_S = tokens_S - table.vocab_start_index
        outside_S = (rows_S < 0) | (rows_S >= table.num_embeddings_per_partition)
        embeddings_SH = _Lookup.apply(table.weight, rows_S.masked_fill(outside_S, 0), outside_S)
        embeddings_SH = reduce_from_tensor_model_parallel_region(embeddings_SH, group=table.tp_group)
        return embeddings_SH[:, None]

    def extra_repr(self) -> str:
        table = self.word_embeddings
        return f"tokens {table.vocab_start_index} to {table.vocab_end_index - 1} of {table.num_embeddings}"


def build_head(architecture: DecoderArchitecture, config: TransformerConfig) -> ColumnParallelLinear:
    """Hidden states to logits; each tensor-parallel rank has the logits of a run of the vocabulary."""
    # Megatron's own linear layers fuse the weight gradient through Apex only; Transformer Engine's layers need nothing.
    config = copy.copy(config)
    config.gradient_accumulation_fusion = False
    return ColumnParallelLinear(
        architecture.hidden_size,
        architecture.vocab_size,
        config=config,
        init_method=config.init_method,
        bias=False,
        gather_output=False,
    )
