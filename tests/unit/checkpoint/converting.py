"""The converting command, and the two forms of a small model that it converts."""

from __future__ import annotations

import torch

from megatron_apriel.errors import run_command
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.testing.scripts import load_script

TINY = Architecture.from_preset("tiny")


def convert(*arguments: object) -> int:
    return run_command(
        lambda: load_script("tools/convert_checkpoint.py").main([str(argument) for argument in arguments])
    )


def to_mistral(stored: dict[str, torch.Tensor], architecture: Architecture) -> dict[str, torch.Tensor]:
    """Mistral's form, made here from the published description alone: names, and q and k permuted head by head."""

    def permuted(weight: torch.Tensor, head: int) -> torch.Tensor:
        # The inverse of transformers' conversion: view(H, d//2, 2, in).transpose(1, 2).reshape(H*d, in).
        return weight.view(-1, 2, head // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()

    decoder, tower, result = architecture.decoder, architecture.tower, {}
    renamed = {
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "attention.q_proj": "attention.wq", "attention.k_proj": "attention.wk",
        "attention.v_proj": "attention.wv", "attention.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3", "gate_proj": "w1", "down_proj": "w2",
        "up_proj": "w3", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attention_norm",
        "linear_1": "w_in", "linear_2": "w_out", "embed_tokens": "tok_embeddings",
    }  # fmt: skip
    for name, tensor in stored.items():
        in_tower = name.startswith("vision_tower")
        new = name.replace("language_model.model.", "").replace("language_model.lm_head", "output")
        new = new.replace("vision_tower", "vision_encoder").replace("multi_modal_projector", "vision_language_adapter")
        for old, mistral in renamed.items():
            new = new.replace(old, mistral)
        rotary = name.endswith(("q_proj.weight", "k_proj.weight"))
        result[new] = permuted(tensor, tower.head_dim if in_tower else decoder.head_dim) if rotary else tensor
    return result
