"""The vision tower: a Pixtral vision transformer on packed patches, with no padding at all.

All images of a rank's share are one list of patches. A patch becomes a token by one linear layer, which is the
convolution of the reference with its filters flattened; attention stays inside each image; positions are rows and
columns. There is no class token and no norm after the last layer (transformers, ``PixtralVisionModel``).

Every tensor- and context-parallel rank holds the whole tower (``replicated.py``): its layers belong to a group of one
rank. See ``sharing.py`` for how ranks divide the images.
"""

from __future__ import annotations

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_apriel.batch import PackedImages
from megatron_apriel.formats.architecture import TowerArchitecture
from megatron_apriel.model.attention import packed
from megatron_apriel.model.norm import RMSNorm
from megatron_apriel.model.replicated import Replicated
from megatron_apriel.model.rotary import tower_rotary
from megatron_apriel.model.specs import Layers, block_spec
from megatron_apriel.parallel.groups import current_device, group_of_one


class VisionTower(Replicated):
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
        self.mark_replicated()

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

    def extra_repr(self) -> str:
        return "replicated over tensor- and context-parallel ranks, each runs its share of the images"
