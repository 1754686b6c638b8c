"""Which layers make 8-bit weights anew for the backward pass; ``tests/gpu/test_transformer_engine.py`` shows them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.model import options, specs
from megatron_apriel.model.options import ModelOptions, decoder_config, remaking_layers
from megatron_apriel.model.remade_weights import remaking
from megatron_apriel.parallel.layout import Layout

DECODER = Architecture.from_preset("tiny").decoder


class Linear(torch.nn.Identity):
    """As far as this matters, one of Transformer Engine's layers that no sharded data parallelism wraps."""

    @property
    def is_fsdp2(self) -> bool:
        return False


LAYERS = specs.Layers("transformer_engine", Linear, Linear, torch.nn.Identity)


@pytest.mark.parametrize(
    ("how", "of_five"),
    [
        ({"fp8": "none"}, 0),
        ({"fp8": "delayed"}, 0),
        ({"fp8": "delayed", "fp8_weights": "remade"}, 5),
        ({"fp8": "tensorwise", "fp8_weights": "remade", "recompute": "selective"}, 5),
        ({"fp8": "tensorwise", "fp8_weights": "remade", "recompute": "full"}, 0),
        ({"fp8": "tensorwise", "fp8_weights": "remade", "recompute": "full", "recompute_layers": 2}, 3),
        ({"fp8": "tensorwise", "fp8_weights": "remade", "recompute": "full", "recompute_layers": 8}, 0),
    ],
)
def test_layers_that_are_not_recomputed_as_a_whole(
    how: dict[str, Any], of_five: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "choose_layers", lambda *_: LAYERS)
    monkeypatch.setattr(options.dist, "get_backend", lambda: "gloo")
    config = decoder_config(DECODER, ModelOptions(dtype=torch.bfloat16, **how), Layout())
    assert remaking_layers(config, 5) == of_five


def test_the_last_layers_of_a_block_are_built_of_them() -> None:
    shape = {"num_layers": 3, "ffn_hidden_size": 8, "causal": True, "final_norm": False}
    block = specs.block_spec(LAYERS, **shape, remaking_layers=2)
    attentions = [spec.submodules.self_attention.submodules for spec in block.layer_specs]
    mlps = [spec.submodules.mlp.keywords["submodules"] for spec in block.layer_specs]
    for linears in (
        [of.linear_qkv for of in attentions],
        [of.linear_proj for of in attentions],
        [of.linear_fc1 for of in mlps],
        [of.linear_fc2 for of in mlps],
    ):
        assert linears == [Linear, remaking(Linear), remaking(Linear)]
    assert remaking(Linear)().is_fsdp2 and not Linear().is_fsdp2
    assert not any(parameter for parameter in remaking(Linear)().state_dict())


def test_a_transformer_engine_that_cannot_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fp8_weights=remade cannot be had of .*Identity"):
        remaking(torch.nn.Identity)


def test_others_than_transformer_engines_layers_are_built_as_they_are() -> None:
    layers = specs.Layers("local", *[torch.nn.Identity] * 3)
    specs.block_spec(layers, num_layers=2, ffn_hidden_size=8, causal=True, final_norm=False)
