"""A stand-in for a rank's model: the right parameters under the right names, and no computation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.megatron_parameters import parameters

SPELLED_LOCALLY = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


class StandIn(nn.Module):
    """The parameters of one tensor-parallel rank and of the decoder layers ``first`` to ``stop``."""

    def __init__(
        self,
        architecture: Architecture,
        *,
        tensor_size: int = 1,
        first: int = 0,
        stop: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        layers = architecture.decoder.num_layers
        stop = layers if stop is None else stop
        for key, parameter in parameters(architecture).items():
            name = key
            if key.startswith("decoder.layers."):
                layer = int(key.split(".")[2])
                if not first <= layer < stop:
                    continue
                name = key.replace(f"layers.{layer}.", f"layers.{layer - first}.")
            elif key.startswith(("decoder.final", "output") if stop < layers else ()) or (
                key.startswith(("tower", "projector", "embedding")) and first > 0
            ):
                continue
            for spelled, local in SPELLED_LOCALLY.items():
                name = name.replace(spelled, local)
            self._place(name, nn.Parameter(torch.zeros(parameter.shard_shape(tensor_size), dtype=dtype)))
        self.decoder_layers = range(first, stop)
        self.decoder.layers = nn.ModuleList(self.decoder.layers.children())

    def _place(self, name: str, parameter: nn.Parameter) -> None:
        *path, leaf = name.split(".")
        module: nn.Module = self
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(leaf, parameter)


@pytest.fixture(scope="session")
def stand_in() -> Callable[..., StandIn]:
    return StandIn
