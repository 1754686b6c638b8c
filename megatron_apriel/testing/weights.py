"""Weights and gradients of a whole model, in and out of its shards: written apart from ``checkpoint``, to test with.

Names are those of the model with local layers, decoder layers by their global numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.model.apriel import AprielModel

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")


def from_transformers(named: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Tensors of a transformers 5 model in memory (weights or gradients) by this model's names and layouts."""
    decoder, tower = architecture.decoder, architecture.tower
    language = "model." if tower is None else "model.language_model."
    result = {
        "embedding.word_embeddings.weight": named[f"{language}embed_tokens.weight"],
        "decoder.final_layernorm.weight": named[f"{language}norm.weight"],
        "output_layer.weight": named["lm_head.weight"],
    }
    for number in range(decoder.num_layers):
        parts = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
        layer = _layer(named, f"{language}layers.{number}.", parts, decoder.num_kv_heads, decoder.head_dim)
        result |= {f"decoder.layers.{number}.{name}": tensor for name, tensor in layer.items()}
    if tower is not None:
        vision = "model.vision_tower."
        result["tower.patch_embedding.weight"] = named[f"{vision}patch_conv.weight"].flatten(1)
        result["tower.pre_norm.weight"] = named[f"{vision}ln_pre.weight"]
        for number in range(tower.num_layers):
            parts = ("attention", "feed_forward", "attention_norm", "ffn_norm")
            layer = _layer(named, f"{vision}transformer.layers.{number}.", parts, tower.num_heads, tower.head_dim)
            result |= {f"tower.transformer.layers.{number}.{name}": tensor for name, tensor in layer.items()}
        for name, tensor in named.items():
            if name.startswith("model.multi_modal_projector."):
                result["projector." + name.removeprefix("model.multi_modal_projector.")] = tensor
    return result


def _layer(
    named: Mapping[str, Tensor], prefix: str, parts: tuple[str, str, str, str], groups: int, head_dim: int
) -> dict[str, Tensor]:
    attention, mlp, first_norm, second_norm = parts
    query, key, value = (named[f"{prefix}{attention}.{letter}_proj.weight"] for letter in "qkv")
    width = query.shape[1]
    by_group = [query.reshape(groups, -1, width), key.reshape(groups, head_dim, width)]
    by_group.append(value.reshape(groups, head_dim, width))
    gate, up = (named[f"{prefix}{mlp}.{name}_proj.weight"] for name in ("gate", "up"))
    return {
        "input_layernorm.weight": named[f"{prefix}{first_norm}.weight"],
        "pre_mlp_layernorm.weight": named[f"{prefix}{second_norm}.weight"],
        "self_attention.linear_qkv.weight": torch.cat(by_group, dim=1).reshape(-1, width),
        "self_attention.linear_proj.weight": named[f"{prefix}{attention}.o_proj.weight"],
        "mlp.linear_fc1.weight": torch.cat([gate, up]),
        "mlp.linear_fc2.weight": named[f"{prefix}{mlp}.down_proj.weight"],
    }


def named_parameters(chunks: Iterable[AprielModel]) -> dict[str, torch.nn.Parameter]:
    """This rank's parameters by their global names."""
    result = {}
    for chunk in chunks:
        first = chunk.decoder_layers.start
        for name, parameter in chunk.named_parameters():
            if match := _LAYER.match(name):
                name = f"decoder.layers.{first + int(match[1])}.{name[match.end() :]}"
            result[name] = parameter
    return result


def _halves(name: str) -> int:
    """gate and up of the decoder's gated MLPs lie above one another, and a shard has a run of each."""
    return 2 if name.endswith("linear_fc1.weight") else 1


def load_full(chunks: Iterable[AprielModel], weights: Mapping[str, Tensor]) -> None:
    """Copy each rank's part of the whole model's ``weights`` into its shards."""
    rank, size = _tensor_place()
    with torch.no_grad():
        for name, parameter in named_parameters(chunks).items():
            full = weights[name]
            if getattr(parameter, "tensor_model_parallel", False):
                axis = parameter.partition_dim  # type: ignore[attr-defined]
                parts = [half.chunk(size, axis)[rank] for half in full.chunk(_halves(name), axis)]
                full = torch.cat(parts, axis)
            parameter.copy_(full)


def gather_full(
    chunks: Iterable[AprielModel], value: Callable[[torch.nn.Parameter], Tensor | None]
) -> dict[str, Tensor]:
    """The whole model's tensors, on every rank: ``value`` of each parameter, with shards put together.

    A parameter whose value is None on its ranks is left out. All ranks must call this.
    """
    _, size = _tensor_place()
    group = parallel_state.get_tensor_model_parallel_group()
    mine = {}
    for name, parameter in named_parameters(chunks).items():
        tensor = value(parameter)
        if tensor is None:
            continue
        if size > 1 and getattr(parameter, "tensor_model_parallel", False):
            axis = parameter.partition_dim  # type: ignore[attr-defined]
            shards = [torch.empty_like(tensor) for _ in range(size)]
            dist.all_gather(shards, tensor.contiguous(), group=group)
            halves = zip(*(shard.chunk(_halves(name), axis) for shard in shards), strict=True)
            tensor = torch.cat([torch.cat(parts, axis) for parts in halves], axis)
        mine[name] = tensor.detach().clone()
    everyone: list[dict[str, Tensor] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {name: tensor for part in everyone if part for name, tensor in part.items()}


def gather_moments(chunks: Iterable[AprielModel], optimizer: MegatronOptimizer) -> dict[str, Tensor]:
    """The optimizer's first moments of the whole model, on every rank; after one step ``1 - beta1`` times the gradient.

    That is the gradient as the update saw it: reduced over all ranks, divided, clipped. All ranks must call this.
    """
    chunks = list(chunks)
    shards = {
        id(parameter): torch.zeros(parameter.numel(), device=parameter.device)
        for parameter in named_parameters(chunks).values()
        if parameter.requires_grad
    }
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if getattr(part, "is_stub_optimizer", False):
            continue
        buckets = (bucket for ranges in part.gbuf_ranges for of_dtype in ranges.values() for bucket in of_dtype)
        for parameter, ranges in (item for bucket in buckets for item in bucket["param_map"].items()):
            group, number = part.model_param_group_index_map[parameter]
            moment = part.optimizer.numbers(part.optimizer.param_groups[group]["params"][number])["exp_avg"]
            shards[id(parameter)][ranges["param"].start : ranges["param"].end] = moment.read(0, len(moment))
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    for shard in shards.values():  # each data-parallel rank holds a run of it
        dist.all_reduce(shard, group=group)
    return gather_full(chunks, lambda parameter: _shaped(shards.get(id(parameter)), parameter))


def _shaped(flat: Tensor | None, like: Tensor) -> Tensor | None:
    return None if flat is None else flat.view(like.shape)


def _tensor_place() -> tuple[int, int]:
    return (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
