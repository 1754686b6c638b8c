"""The model as one class: tower and projector in front, the decoder's layers, the head; any of them may be elsewhere.

A pipeline cuts the model into stages, and an interleaved pipeline cuts it into several chunks per rank; each chunk is
an :class:`AprielModel` that has what belongs to it. The first has embedding, tower and projector, the last the final
norm and the head. A micro-batch is one packed sequence, so hidden states are always [S, 1, H]; under context
parallelism S are the rank's own tokens only, and under sequence parallelism those are divided over the tensor-parallel
ranks too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.enums import ModelType
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_apriel.batch import Batch, PackedImages
from megatron_apriel.errors import DataError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.model.attention import packed_documents
from megatron_apriel.model.decoder import TokenEmbedding, build_head
from megatron_apriel.model.head import HeadOperation, token_losses
from megatron_apriel.model.options import remaking_layers
from megatron_apriel.model.projector import Projector
from megatron_apriel.model.rotary import decoder_rotary
from megatron_apriel.model.sharing import (
    await_parameters,
    gather_shares,
    parameters_by_use,
    place_features,
    with_zero_gradients,
)
from megatron_apriel.model.specs import Layers, block_spec
from megatron_apriel.model.vision import VisionTower
from megatron_apriel.parallel.groups import context_group, image_shares_group


class AprielModel(MegatronModule):  # type: ignore[misc]
    """One pipeline chunk of the whole model.

    Args:
        architecture: shapes; without a tower the model is text-only.
        config: of the decoder, and what Megatron's schedules read.
        vision_config: of the tower and projector; None for a text-only model.
        layers: see :func:`megatron_apriel.model.specs.choose_layers`.
        decoder_layers: global numbers of the layers of this chunk.
        pre_process: this is the first chunk of the model.
        post_process: this is the last chunk of the model.
        vp_stage: number of the chunk on its rank, None without interleaving.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: TransformerConfig,
        vision_config: TransformerConfig | None,
        layers: Layers,
        *,
        decoder_layers: range,
        pre_process: bool = True,
        post_process: bool = True,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(config)
        self.architecture, self.decoder_layers = architecture, decoder_layers
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        # Read by Megatron's schedules and gradient reduction.
        self.model_type, self.share_embeddings_and_output_weights = ModelType.encoder_or_decoder, False
        decoder = architecture.decoder
        self.tower: VisionTower | None = None
        self.projector: Projector | None = None
        if pre_process:
            self.embedding = TokenEmbedding(decoder, config)
            if architecture.tower is not None and architecture.projector is not None:
                self.tower = VisionTower(architecture.tower, vision_config, layers)
                self.projector = Projector(architecture.projector, vision_config)
        self.decoder = TransformerBlock(
            config,
            block_spec(
                layers,
                num_layers=len(decoder_layers),
                ffn_hidden_size=decoder.ffn_hidden_size,
                causal=True,
                final_norm=True,
                remaking_layers=remaking_layers(config, len(decoder_layers)),
            ),
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
        )
        if post_process:
            self.output_layer = build_head(decoder, config)

    def forward(self, batch: Batch, operation: HeadOperation[Any] = token_losses) -> Any:
        """Run this chunk on a packed sequence of S tokens.

        Args:
            batch: on this rank's device; its images are this rank's share.
            operation: what the last chunk does with its head; see ``model/head.py``.

        Returns:
            On the last chunk what ``operation`` makes: the loss of each token, if no other is given. On the others
            hidden states [S, 1, H].

        Raises:
            DataError: if the batch has images and the model has no tower.
        """
        decoder = self.architecture.decoder
        hidden = self.decoder(
            hidden_states=self._embed(batch) if self.pre_process else None,
            attention_mask=None,
            rotary_pos_emb=decoder_rotary(batch.positions_S, decoder.head_dim, decoder.rope_theta),
            packed_seq_params=packed_documents(batch),
        )
        if not self.post_process:
            return hidden
        return operation(self.output_layer, hidden, batch)

    def _embed(self, batch: Batch) -> Tensor:
        """Embeddings [S, 1, H] of tokens and patches; this rank's tokens only under sequence parallelism."""
        embeddings_S1H = self.embedding(batch.tokens_S)
        if self.tower is not None and self.projector is not None:
            await_parameters(self.tower, self.projector)
        if batch.images.num_patches:
            features_KH = self._image_features(batch.images)
            slots = batch.images.slots_K
            if batch.part is not None:
                features_KH, slots = features_KH.index_select(0, batch.part.features_L), batch.part.slots_L
            embeddings_S1H = place_features(embeddings_S1H, features_KH, slots)
        else:
            embeddings_S1H = with_zero_gradients(embeddings_S1H, self._image_parameters())
        if self.config.sequence_parallel:
            embeddings_S1H = scatter_to_sequence_parallel_region(embeddings_S1H)
        return embeddings_S1H

    def _image_features(self, images: PackedImages) -> Tensor:
        """Projected features [K, H] of the images of all shares, from the pixels of this rank's."""
        if self.tower is None or self.projector is None:
            raise DataError(
                f"a batch with {images.num_patches} image patches was given to a model without a vision tower.",
                fix="Train on text, or start from a checkpoint that has a tower.",
            )
        if images.patches_PC.shape[0]:
            trained = any(parameter.requires_grad for parameter in self.tower.parameters())
            with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
                features = self.tower(images)
            # Megatron's layers enable gradients for a moment; without a trained tower nothing of it may be kept.
            share = self.projector(features if trained else features.detach())
        else:
            share = self.embedding.word_embeddings.weight.new_zeros(0, self.architecture.decoder.hidden_size)
            share = with_zero_gradients(share, self._image_parameters())
        return gather_shares(share, images.share_sizes, image_shares_group(), context_group())

    def _image_parameters(self) -> Iterator[torch.nn.Parameter]:
        """Parameters of tower and projector in the order of their use."""
        for part in (self.tower, self.projector):
            if part is not None:
                yield from parameters_by_use(part)

    def set_is_first_microbatch(self) -> None:
        """Have each layer's next weight gradient overwrite what is in the buffer, and cast FP8 weights anew.

        Megatron's own schedules call its layers' attention to it in FP8 only; in bfloat16, too, reading a buffer that
        was just set to zero is in vain.
        """
        for module in self.modules():
            if hasattr(module, "is_first_microbatch"):
                module.is_first_microbatch = True

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor]) -> None:
        """Take hidden states from the previous stage; called by Megatron's schedules."""
        self.decoder.set_input_tensor(input_tensor[0] if isinstance(input_tensor, list) else input_tensor)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        """What this rank holds, by the names of a distributed checkpoint: layers by their global numbers."""
        sharded = super().sharded_state_dict(
            prefix, sharded_offsets, {**(metadata or {}), "non_homogeneous_layers": True}
        )
        if self.config.fp8:
            return sharded
        # Without FP8 the layers' extra state is empty, and Transformer Engine's and local layers differ in having it.
        return {name: entry for name, entry in sharded.items() if not name.endswith("_extra_state")}

    def extra_repr(self) -> str:
        first, last = self.decoder_layers.start, self.decoder_layers.stop - 1
        rank, size = (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_world_size(),
        )
        return f"decoder layers {first}-{last} of {self.config.num_layers}, tensor shard {rank} of {size}"
