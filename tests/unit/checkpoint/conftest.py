"""A stand-in for a rank's model, a checkpoint to be changed as a stranger would, and one in both published forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from converting import TINY, to_mistral
from safetensors.torch import load_file, save_file
from torch import nn

from megatron_apriel.checkpoint.convert import convert, plan_conversion
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.formats.megatron_parameters import parameters
from megatron_apriel.formats.mistral_params import params_from_architecture
from megatron_apriel.testing.checkpoints import write_hf_checkpoint

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


@pytest.fixture(scope="session")
def honest_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny model, converted."""
    folder = tmp_path_factory.mktemp("untrusted")
    source = write_hf_checkpoint(folder / "hf", Architecture.from_preset("tiny"), dtype="bfloat16")
    convert(plan_conversion(source, Kind.MEGATRON), folder / "step_00000001")
    return folder / "step_00000001"


@pytest.fixture
def path(honest_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    copy = tmp_path / honest_checkpoint.name
    for file in honest_checkpoint.rglob("*"):
        target = copy / file.relative_to(honest_checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            target.write_bytes(file.read_bytes())
    return copy


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("forms") / "hf", TINY, dtype="bfloat16")


@pytest.fixture(scope="module")
def mistral(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("forms") / "mistral"
    directory.mkdir()
    save_file(to_mistral(load_file(hf / "model.safetensors"), TINY), directory / "consolidated.safetensors")
    # As Mistral writes it, with a key that this project does not know.
    params = {**params_from_architecture(TINY), "model_type": "transformer"}
    (directory / "params.json").write_text(json.dumps(params))
    return directory
