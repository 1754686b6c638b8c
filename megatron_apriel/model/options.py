"""What can be chosen about a model besides its architecture, and the TransformerConfigs that follow from it.

Megatron reads everything about its layers from a ``TransformerConfig`` of some three hundred fields. The two that this
model uses, of the decoder and of the tower, are made here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_apriel.config.choices import Attention, Fp8Recipe, Fp8Weights, Recompute
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import DecoderArchitecture, TowerArchitecture
from megatron_apriel.model.specs import LayerKind, Layers, choose_layers
from megatron_apriel.parallel.layout import Layout

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}
"""Gate activations; ``gelu`` is the exact form."""

FP8_FORMATS: dict[Fp8Recipe, str] = {"delayed": "hybrid", "tensorwise": "hybrid", "blockwise": "e4m3"}
"""Per recipe: ``hybrid`` has e4m3 forward and e5m2, of wider range, for gradients. Blocks of 128 numbers with a scale
each need no wider range, so e4m3 serves both (arXiv 2412.19437, section 3.3)."""


@dataclass(frozen=True)
class ModelOptions:
    """How a model computes. What does not fit together is refused by the configuration, not here.

    Attributes:
        dtype: of parameters and activations, bfloat16 or float32.
        fp8: recipe of the decoder's matrix products; tower, projector, embedding and head stay in ``dtype``.
        fp8_weights: 8-bit copies of weights are ``kept`` over the micro-batches of a step, or ``remade`` for each
            layer's products.
        bf16_layers_at_start, bf16_layers_at_end: decoder layers that ``fp8`` leaves in bfloat16.
        recompute: ``none``; ``selective`` keeps no activations of the MLPs, which are the widest; ``full`` keeps only
            what enters each layer.
        recompute_layers: with ``full``, the number of decoder layers per pipeline chunk; None for all.
        fuse_weight_gradients: Transformer Engine's layers add weight gradients to Megatron's float32 buffer
            themselves; needs the model to be wrapped for data parallelism.
        overlapped_tokens: of a micro-batch on the ranks of one tensor-parallel group, where their gathers and scatters
            overlap with products; None where they do not.
        layers, attention: see :func:`megatron_apriel.model.specs.choose_layers`.
    """

    dtype: torch.dtype = torch.float32
    fp8: Fp8Recipe = "none"
    fp8_weights: Fp8Weights = "kept"
    bf16_layers_at_start: int = 0
    bf16_layers_at_end: int = 0
    recompute: Recompute = "none"
    recompute_layers: int | None = None
    fuse_weight_gradients: bool = False
    overlapped_tokens: int | None = None
    layers: LayerKind = "auto"
    attention: Attention = "auto"

    @classmethod
    def from_stage(cls, config: StageConfig) -> Self:
        """What a stage's configuration asks for."""
        precision, recompute, parallel = config.precision, config.recompute, config.parallel
        dtype = torch.bfloat16 if precision.compute_on(torch.cuda.is_available()) == "bf16" else torch.float32
        return cls(
            dtype=dtype,
            fp8=precision.fp8,
            fp8_weights=precision.fp8_weights,
            bf16_layers_at_start=precision.bf16_layers_at_start,
            bf16_layers_at_end=precision.bf16_layers_at_end,
            recompute=recompute.mode,
            recompute_layers=recompute.layers,
            fuse_weight_gradients=choose_layers("auto", config.attention, dtype).fused,
            overlapped_tokens=config.sequence_length // parallel.context if parallel.tensor_overlap else None,
            attention=config.attention,
        )

    def chosen_layers(self) -> Layers:
        """The implementation that the layers of decoder and tower have here. Raises ConfigError."""
        return choose_layers(self.layers, self.attention, self.dtype)


def decoder_config(decoder: DecoderArchitecture, options: ModelOptions, layout: Layout) -> TransformerConfig:
    """The decoder's TransformerConfig, which is also the one that Megatron's schedules and optimizer read.

    Raises:
        ConfigError: for combinations that Megatron or Transformer Engine cannot run.
    """
    layers = check_options(options)
    interleaved = layout.virtual > 1
    return TransformerConfig(
        num_layers=decoder.num_layers,
        hidden_size=decoder.hidden_size,
        num_attention_heads=decoder.num_heads,
        num_query_groups=decoder.num_kv_heads,
        kv_channels=decoder.head_dim,
        ffn_hidden_size=decoder.ffn_hidden_size,
        layernorm_epsilon=decoder.norm_eps,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        context_parallel_size=layout.context,
        virtual_pipeline_model_parallel_size=layout.virtual if interleaved else None,
        pipeline_model_parallel_layout=layout.megatron_layer_layout(decoder.num_layers),
        sequence_parallel=layout.sequence and layout.tensor > 1,
        pipeline_dtype=options.dtype,
        # The interleaved schedule is only right with its sends and receives overlapped and not batched.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        # gloo sends from the tensor itself, which must then outlive the call; NCCL's stream order makes freeing safe.
        deallocate_pipeline_outputs=dist.get_backend() == "nccl",
        calculate_per_token_loss=True,
        gradient_accumulation_fusion=options.fuse_weight_gradients,
        tp_comm_overlap=options.overlapped_tokens is not None,
        **_fp8_fields(options),
        **_recompute_fields(options, all_layers=False),
        **_shared_fields(decoder.activation, options, layers),
    )


def tower_config(tower: TowerArchitecture, options: ModelOptions) -> TransformerConfig:
    """The tower's TransformerConfig: whole on every rank, never in FP8."""
    layers = options.chosen_layers()
    return TransformerConfig(
        num_layers=tower.num_layers,
        hidden_size=tower.hidden_size,
        num_attention_heads=tower.num_heads,
        num_query_groups=tower.num_heads,
        kv_channels=tower.head_dim,
        ffn_hidden_size=tower.ffn_hidden_size,
        layernorm_epsilon=tower.norm_eps,
        gradient_accumulation_fusion=options.fuse_weight_gradients,
        **_recompute_fields(options, all_layers=True),
        **_shared_fields(tower.activation, options, layers),
    )


def check_options(options: ModelOptions) -> Layers:
    """The implementation of the layers, after a look at whether it can run ``options`` on this machine.

    Raises:
        ConfigError: if it cannot. Nothing of the model or the data is needed to know it.
    """
    layers = options.chosen_layers()
    if options.fp8 != "none" and not layers.fused:
        raise ConfigError(
            f"precision.fp8={options.fp8} needs Transformer Engine on a CUDA device; the layers here are local ones.",
            fix="Set precision.fp8=none on this machine.",
        )
    if options.overlapped_tokens is not None and not layers.fused:
        raise ConfigError(
            "parallel.tensor_overlap=true needs Transformer Engine on a CUDA device; the layers here are local ones.",
            fix="Set parallel.tensor_overlap=false on this machine.",
        )
    if options.fuse_weight_gradients and not layers.fused:
        raise ConfigError("fused weight gradients need Transformer Engine's layers.")
    return layers


def _fp8_fields(options: ModelOptions) -> dict[str, Any]:
    if options.fp8 == "none":
        return {}
    return {
        "fp8": FP8_FORMATS[options.fp8],
        "fp8_recipe": options.fp8,
        # What Megatron calls the copies that its layers otherwise make in the first micro-batch of a step.
        "disable_parameter_transpose_cache": options.fp8_weights == "remade",
        "first_last_layers_bf16": bool(options.bf16_layers_at_start or options.bf16_layers_at_end),
        "num_layers_at_start_in_bf16": options.bf16_layers_at_start,
        "num_layers_at_end_in_bf16": options.bf16_layers_at_end,
    }


def _recompute_fields(options: ModelOptions, all_layers: bool) -> dict[str, Any]:
    if options.recompute == "none":
        return {}
    if options.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    if all_layers or options.recompute_layers is None:
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": options.recompute_layers,
    }


def remaking_layers(config: TransformerConfig, num_layers: int) -> int:
    """Layers of a chunk of the decoder, its last ones, that make 8-bit weights anew for the backward pass too.

    Those that are recomputed as a whole make them in their second forward pass.
    """
    if not config.fp8 or not config.disable_parameter_transpose_cache:
        return 0
    if config.recompute_granularity != "full":
        return num_layers
    return max(0, num_layers - config.recompute_num_layers) if config.recompute_method == "block" else 0


def _shared_fields(activation: str, options: ModelOptions, layers: Layers) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": ACTIVATIONS[activation],
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "params_dtype": options.dtype,
        "bf16": options.dtype == torch.bfloat16,
        "use_cpu_initialization": not on_gpu,
        "transformer_impl": layers.name,
        # Lets the MLP take this project's own SwiGLU. Gelu is written out: Megatron's and Transformer Engine's fused
        # ones are the tanh approximation, and no checkpoint here was trained with that.
        "use_te_activation_func": layers.fused and activation == "silu",
        "bias_activation_fusion": False,
        "bias_dropout_fusion": on_gpu,
        # Rotary positions are applied per token by this model's own attention.
        "apply_rope_fusion": False,
        "masked_softmax_fusion": False,
    }
