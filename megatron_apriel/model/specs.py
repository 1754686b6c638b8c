"""Which implementation the layers have: chosen once, for the whole model.

On a GPU, Transformer Engine's linear layers (FP8), attention by FlashAttention-4 or cuDNN, and this project's own
kernels for norms, activation and rotary positions; elsewhere Megatron's own parallel linear layers and torch's
attention. All have the same parameters under the same names, so a checkpoint written by one can be read by the others.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Literal

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.core.utils import log_single_rank

from megatron_apriel.config.choices import Attention
from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.megatron_parameters import NORM_KEYS
from megatron_apriel.model.activation import SwiGLU
from megatron_apriel.model.attention import LocalCoreAttention, PackedSelfAttention
from megatron_apriel.model.flash_attention import PACKAGE, FlashCoreAttention, why_not_flash_attention
from megatron_apriel.model.norm import BranchNorm, RMSNorm
from megatron_apriel.model.quantised_mlp import QuantisedMLP
from megatron_apriel.model.remade_weights import remaking
from megatron_apriel.terminal import named_logger

LayerKind = Literal["auto", "local", "transformer_engine"]

logger = named_logger(__name__)


@dataclass(frozen=True)
class Layers:
    """The classes that a transformer layer is built from.

    Attributes:
        name: ``local`` or ``transformer_engine``.
        column_linear: column-parallel linear layer for the way into attention and MLP.
        row_linear: row-parallel linear layer for the way out.
        core_attention: attention proper.
    """

    name: str
    column_linear: type
    row_linear: type
    core_attention: type

    @property
    def fused(self) -> bool:
        return self.name == "transformer_engine"

    def remaking(self) -> Layers:
        """The same, with 8-bit weights made anew for every product: see ``remade_weights.py``."""
        return replace(self, column_linear=remaking(self.column_linear), row_linear=remaking(self.row_linear))


@cache
def choose_layers(kind: LayerKind, attention: Attention = "auto", dtype: torch.dtype = torch.bfloat16) -> Layers:
    """The implementation for this machine; the choice and its reason are logged once.

    Args:
        kind: ``auto`` is Transformer Engine's layers where they can run.
        attention: what attends within Transformer Engine's layers; ``auto`` is FlashAttention-4 on the GPUs that it was
            measured on, where it is installed.
        dtype: of the activations.

    Raises:
        ConfigError: if something is asked for that cannot run here.
    """
    missing = _why_no_transformer_engine()
    if kind == "transformer_engine" and missing:
        raise ConfigError(f"Transformer Engine's layers cannot be used: {missing}.", fix="Use layers 'local' here.")
    if kind == "local" or missing:
        reason = "as asked for" if kind == "local" else missing
        if attention != "auto":
            raise ConfigError(
                f"attention={attention} needs Transformer Engine's layers, and those are not used: {reason}.",
                fix="Set attention=auto here.",
            )
        log_single_rank(logger, logging.INFO, f"layers: Megatron's own, torch's attention ({reason})")
        return Layers("local", ColumnParallelLinear, RowParallelLinear, LocalCoreAttention)
    log_single_rank(logger, logging.INFO, "layers: Transformer Engine (it and a CUDA device are present)")
    from megatron.core.extensions import transformer_engine as te

    core_attention = _choose_attention(attention, dtype, te.TEDotProductAttention)
    return Layers("transformer_engine", te.TEColumnParallelLinear, te.TERowParallelLinear, core_attention)


def _choose_attention(attention: Attention, dtype: torch.dtype, cudnn: type) -> type:
    why_not = why_not_flash_attention(dtype, asked_for=attention == "flash")
    if attention == "flash" and why_not:
        raise ConfigError(
            f"attention=flash cannot be used: {why_not}.", fix=f"Install {PACKAGE}, or set attention=cudnn or auto."
        )
    if attention == "cudnn" or why_not:
        reason = "as asked for" if attention == "cudnn" else why_not
        log_single_rank(logger, logging.INFO, f"attention: cuDNN, through Transformer Engine ({reason})")
        return cudnn
    reason = "as asked for" if attention == "flash" else "it is installed, and this is a Hopper GPU"
    log_single_rank(logger, logging.INFO, f"attention: FlashAttention-4 ({reason})")
    return FlashCoreAttention


def _why_no_transformer_engine() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    return "" if find_spec("transformer_engine") else "Transformer Engine is not installed"


def block_spec(
    layers: Layers, *, num_layers: int, ffn_hidden_size: int, causal: bool, final_norm: bool, remaking_layers: int = 0
) -> TransformerBlockSubmodules:
    """What Megatron's ``TransformerBlock`` needs to build ``num_layers`` equal layers.

    Args:
        layers: see :func:`choose_layers`.
        num_layers: layers of this pipeline stage and chunk.
        ffn_hidden_size: width of the gated MLP.
        causal: a token sees the tokens before it; else all of its document or image.
        final_norm: give the block a norm after its last layer.
        remaking_layers: so many of the last layers make 8-bit weights anew for every product.
    """
    kinds = [layers] * (num_layers - remaking_layers) + [layers.remaking() for _ in range(remaking_layers)]
    specs = [_layer_spec(kind, ffn_hidden_size, causal) for kind in kinds]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=RMSNorm if final_norm else None)


def _layer_spec(layers: Layers, ffn_hidden_size: int, causal: bool) -> ModuleSpec:
    mask = AttnMaskType.causal if causal else AttnMaskType.no_mask
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=BranchNorm,
            self_attention=ModuleSpec(
                module=PackedSelfAttention,
                params={"attn_mask_type": mask},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=layers.column_linear,
                    core_attention=layers.core_attention,
                    linear_proj=layers.row_linear,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=BranchNorm,
            mlp=partial(
                QuantisedMLP.as_mlp_submodule,
                submodules=MLPSubmodules(
                    linear_fc1=layers.column_linear, linear_fc2=layers.row_linear, activation_func=SwiGLU
                ),
                ffn_hidden_size=ffn_hidden_size,
            ),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=NORM_KEYS,
        ),
    )
