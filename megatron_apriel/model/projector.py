"""The projector: two linear layers with an activation between, from the tower's width to the decoder's."""

from __future__ import annotations

from functools import partial

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_apriel.formats.architecture import ProjectorArchitecture
from megatron_apriel.model.options import ACTIVATIONS
from megatron_apriel.model.replicated import Replicated
from megatron_apriel.parallel.groups import current_device


class Projector(Replicated):
    """Features of patches to embeddings of tokens; held whole by every tensor-parallel rank, like the tower."""

    def __init__(self, architecture: ProjectorArchitecture, config: TransformerConfig) -> None:
        super().__init__(config)
        self.activation = ACTIVATIONS[architecture.activation]
        linear = partial(torch.nn.Linear, bias=architecture.bias, dtype=config.params_dtype, device=current_device())
        self.linear_1 = linear(architecture.input_size, architecture.output_size)
        self.linear_2 = linear(architecture.output_size, architecture.output_size)
        self.mark_replicated()

    def forward(self, features: Tensor) -> Tensor:
        """[P, input_size] to [P, output_size]."""
        return self.linear_2(self.activation(self.linear_1(features)))

    def extra_repr(self) -> str:
        return "replicated over tensor-parallel ranks"
