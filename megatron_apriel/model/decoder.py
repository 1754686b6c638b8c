"""The text decoder's two ends: token embeddings and the head. Its layers are Megatron's ``TransformerBlock``."""

from __future__ import annotations

import copy

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    VocabParallelEmbedding,
    gather_from_tensor_model_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_apriel.architecture import DecoderArchitecture


class TokenEmbedding(MegatronModule):  # type: ignore[misc]
    """Token ids to embeddings; each tensor-parallel rank holds a run of the vocabulary."""

    def __init__(self, architecture: DecoderArchitecture, config: TransformerConfig) -> None:
        super().__init__(config)
        self.word_embeddings = VocabParallelEmbedding(
            architecture.vocab_size, architecture.hidden_size, init_method=config.init_method, config=config
        )

    def forward(self, tokens_S: Tensor) -> Tensor:
        """[S, 1, H], all tokens on every rank: images are placed before the sequence is divided."""
        return self.word_embeddings(tokens_S[:, None])

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


def gather_logits(logits_S1V: Tensor) -> Tensor:
    """Logits of the whole vocabulary [S, V] on every tensor-parallel rank."""
    gathered: Tensor = gather_from_tensor_model_parallel_region(logits_S1V)
    return torch.squeeze(gathered, 1)
