"""The vision tower: a Pixtral vision transformer on packed patches, with no padding at all.

All images of a rank's share are one list of patches. A patch becomes a token by one linear layer, which is the
convolution of the reference with its filters flattened; attention stays inside each image; positions are rows and
columns. There is no class token and no norm after the last layer (transformers, ``PixtralVisionModel``).

Every tensor- and context-parallel rank holds the whole tower: its layers belong to a group of one rank. See
``sharing.py`` for how ranks divide the images, and why its parameters are marked as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_apriel.batch import PackedImages
from megatron_apriel.formats.architecture import TowerArchitecture
from megatron_apriel.model.attention import packed
from megatron_apriel.model.norm import RMSNorm
from megatron_apriel.model.rotary import tower_rotary
from megatron_apriel.model.specs import Layers, block_spec
from megatron_apriel.parallel.groups import current_device, group_of_one


def mark_replicated(module: torch.nn.Module) -> None:
    """Tell Megatron that tensor-parallel ranks hold the same parameters and each a part of their gradients."""
    for parameter in module.parameters():
        parameter.tensor_model_parallel = False  # type: ignore[attr-defined]
        parameter.sequence_parallel = False  # type: ignore[attr-defined]
        parameter.average_gradients_across_tp_domain = True  # type: ignore[attr-defined]


def replicated_state(sharded: ShardedStateDict) -> ShardedStateDict:
    """Number the copies on tensor-parallel ranks, so that a checkpoint takes one of them and not each."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    for entry in sharded.values():
        entry.replica_id = (entry.replica_id[0], rank, entry.replica_id[2])
    return sharded


class VisionTower(MegatronModule):  # type: ignore[misc]
    """Patches of any number of images to one feature per patch.

    Args:
        architecture: shapes.
        config: see :func:`megatron_apriel.model.options.tower_config`.
        layers: see :func:`megatron_apriel.model.specs.choose_layers`.
    """

    def __init__(self, architecture: TowerArchitecture, config: TransformerConfig, layers: Layers) -> None:
        super().__init__(config)
        self.architecture = architecture
        alone = group_of_one()
        self.patch_embedding = torch.nn.Linear(
            architecture.patch_values,
            architecture.hidden_size,
            bias=False,
            dtype=config.params_dtype,
            device=current_device(),
        )
        self.pre_norm = RMSNorm(config, architecture.hidden_size, architecture.norm_eps)
        self.transformer = TransformerBlock(
            config,
            block_spec(
                layers,
                num_layers=architecture.num_layers,
                ffn_hidden_size=architecture.ffn_hidden_size,
                causal=False,
                final_norm=False,
            ),
            post_layer_norm=False,
            pg_collection=ProcessGroupCollection(tp=alone, cp=alone, pp=alone),
        )
        mark_replicated(self)

    def forward(self, images: PackedImages) -> Tensor:
        """Features [P, hidden_size] of the share's P patches, P above 0."""
        dtype = self.config.params_dtype
        hidden_P1H = self.pre_norm(self.patch_embedding(images.patches_PC.to(dtype))[:, None])
        rotary = tower_rotary(images.rows_P, images.columns_P, self.architecture.head_dim, self.architecture.rope_theta)
        hidden_P1H = self.transformer(
            hidden_states=hidden_P1H,
            attention_mask=None,
            rotary_pos_emb=rotary,
            packed_seq_params=packed(images.cu_seqlens, images.max_patches),
        )
        return hidden_P1H[:, 0]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        return replicated_state(super().sharded_state_dict(prefix, sharded_offsets, metadata))

    def extra_repr(self) -> str:
        return "replicated over tensor- and context-parallel ranks, each runs its share of the images"
