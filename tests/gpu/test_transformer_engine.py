"""Transformer Engine's layers against the local ones on one GPU: losses and gradients, bf16 and every FP8 recipe."""

from __future__ import annotations

import pytest
import torch

from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
)
from megatron_apriel.model import quantised_mlp, specs
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import make_batch, random_document
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.marks import needs_transformer_engine
from megatron_apriel.testing.weights import from_transformers, load_full

pytestmark = [pytest.mark.gpu, needs_transformer_engine]

ARCHITECTURE = Architecture(
    decoder=DecoderArchitecture(512, 4, 8, 2, 128, 1024, 1024, rope_theta=1e9),
    tower=TowerArchitecture(256, 2, 4, 64, 512, "silu", image_size=256),
    projector=ProjectorArchitecture(256, 512),
)


def run(options: ModelOptions, images: bool = True, scale: float = 1.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    grids = [[(4, 6), (3, 3)], [], [(7, 5)]] if images else [[], []]
    documents = [random_document(ARCHITECTURE, 60, grid, generator) for grid in grids]
    weights = from_transformers(hf_model(ARCHITECTURE).state_dict(), ARCHITECTURE)
    weights = {name: tensor * scale if tensor.dim() > 1 else tensor for name, tensor in weights.items()}
    with groups.initialized(Layout()) as device:
        model = build_model(ARCHITECTURE, options, Layout())[0]
        load_full([model], weights)
        batch = make_batch(ARCHITECTURE, documents, sequence_length=384).to(device)
        # The first pass in 8 bits is not like the others: delayed scaling has no history in it.
        for _ in range(1 if options.fp8 == "none" else 2):
            model.zero_grad()
            losses = model(batch)
            losses.sum().backward()
        gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters()}
        return losses.detach().cpu(), gradients


def distance(found: torch.Tensor, reference: torch.Tensor) -> float:
    return float((found - reference).norm() / reference.norm())


@pytest.mark.parametrize("images", [True, False])
def test_transformer_engine_rounds_no_worse_than_local_layers(images: bool) -> None:
    """Both in bf16, against the local layers in float32: what Transformer Engine adds is rounding of the same size."""
    expected_losses, expected = run(ModelOptions(dtype=torch.float32, layers="local"), images)
    local_losses, local = run(ModelOptions(dtype=torch.bfloat16, layers="local"), images)
    losses, gradients = run(ModelOptions(dtype=torch.bfloat16, layers="transformer_engine"), images)
    assert distance(losses, expected_losses) < 0.02
    assert distance(losses, expected_losses) < 1.5 * distance(local_losses, expected_losses)
    for name, reference in expected.items():
        if reference.norm():
            assert distance(gradients[name], reference) < 1.5 * distance(local[name], reference) + 0.01, name
        else:
            assert not gradients[name].any(), name


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_fp8_points_the_same_way(recipe: str) -> None:
    """With weights of a trained model's size: larger random ones amplify every rounding from layer to layer."""
    scale = 0.3
    expected_losses, expected = run(ModelOptions(dtype=torch.float32, layers="local"), scale=scale)
    options = ModelOptions(dtype=torch.bfloat16, layers="transformer_engine", fp8=recipe)
    losses, gradients = run(options, scale=scale)
    assert distance(losses, expected_losses) < 0.01
    for name, reference in expected.items():
        cosine = float(torch.cosine_similarity(gradients[name].flatten(), reference.flatten(), dim=0))
        assert cosine > 0.95, (name, cosine)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_activation_that_writes_8_bits_is_the_ordinary_one(
    recipe: str, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ModelOptions(dtype=torch.bfloat16, layers="transformer_engine", fp8=recipe, recompute=recompute)
    used: list[bool] = []
    find = quantised_mlp._quantisers

    def counted(first: object, second: object) -> object:
        used.append((found := find(first, second)) is not None)
        return found

    monkeypatch.setattr(quantised_mlp, "_quantisers", counted)
    losses, gradients = run(options, scale=0.3)
    # The decoder's layers in the second pass; never the tower's, which stays in bfloat16.
    assert sum(used) >= ARCHITECTURE.decoder.num_layers
    monkeypatch.setattr(quantised_mlp, "_quantisers", lambda first, second: None)
    expected_losses, expected = run(options, scale=0.3)
    assert distance(losses, expected_losses) < 0.003
    for name, reference in expected.items():
        cosine = float(torch.cosine_similarity(gradients[name].flatten(), reference.flatten(), dim=0))
        assert cosine > 0.98, (name, cosine)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_weights_that_are_remade_for_every_product(
    recipe: str, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy of them waits for the backward pass; that no bit changes is seen in ``test_host_states_on_gpu.py``."""

    def copies_and_numbers(fp8_weights: str) -> tuple[int, dict[str, torch.Tensor]]:
        saved: list[tuple[int, ...]] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            saved.extend([tuple(sorted(tensor.shape))] * (tensor.dtype == torch.uint8))
            return tensor

        how = {"fp8": recipe, "fp8_weights": fp8_weights, "recompute": recompute}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses, gradients = run(ModelOptions(dtype=torch.bfloat16, layers="transformer_engine", **how), scale=0.3)
        # Shapes of attention's and the MLP's matrices; activations have 384 rows.
        copies = sum(shape in {(512, 1536), (512, 1024), (512, 2048)} for shape in saved)
        return copies, {"losses": losses, **gradients}

    copies, found = copies_and_numbers("remade")
    _, expected = copies_and_numbers("kept")
    for name, reference in expected.items():
        # As far as two FP8 runs with attention that adds up in any order are alike.
        assert float(torch.cosine_similarity(found[name].flatten(), reference.flatten(), dim=0)) > 0.95, name
    monkeypatch.setattr(specs, "remaking", lambda linear: linear)
    ordinary, _ = copies_and_numbers("remade")
    if recompute == "none":
        assert copies == 0 < ordinary
    elif recompute == "full":
        assert copies == ordinary
