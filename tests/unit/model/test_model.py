"""What the model promises beyond equality with its reference: packing, images or none, freezing, its errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlavaForConditionalGeneration  # noqa: F401  (imported once, before ranks are forked)

from megatron_apriel.config.training_sections import TrainedParts
from megatron_apriel.errors import DataError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.tensor_names import component_of
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.freeze import apply_freezing
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.model.sharing import gather_shares
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import make_batch, random_document
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.testing.weights import from_transformers, load_full

ARCHITECTURE = Architecture.from_preset("tiny")
TEXT_ONLY = replace(ARCHITECTURE, tower=None, projector=None)


def alone(test):
    """Runs the test as the only rank of a process group, in a process of its own."""

    def run() -> None:
        def on_rank(rank: int, size: int) -> None:
            with groups.initialized(Layout()):
                test()

        run_ranks(1, on_rank)

    run.__name__ = test.__name__
    return run


def build(architecture: Architecture = ARCHITECTURE, dtype: torch.dtype = torch.float32) -> AprielModel:
    model = build_model(architecture, ModelOptions(dtype=dtype), Layout())[0]
    load_full([model], from_transformers(hf_model(ARCHITECTURE).state_dict(), ARCHITECTURE))
    return model


def documents(*grids: list[tuple[int, int]]) -> list:
    generator = torch.Generator().manual_seed(0)
    return [random_document(ARCHITECTURE, 7 + 5 * i, grid, generator) for i, grid in enumerate(grids)]


@alone
def test_packed_documents_give_what_each_gives_alone() -> None:
    model, parts = build(), documents([(2, 3)], [], [(1, 1), (4, 2)])
    packed = model(make_batch(ARCHITECTURE, parts, sequence_length=80))
    separate = torch.cat([model(make_batch(ARCHITECTURE, [part])) for part in parts])
    torch.testing.assert_close(packed[: len(separate)], separate, rtol=1e-5, atol=1e-5)
    # Attention that crossed the borders, or positions that ran on, would not give this.
    merged = model(make_batch(ARCHITECTURE, [[token for part in parts for token in part]]))
    assert (merged[: len(separate)] - separate).abs().max() > 0.1


@alone
def test_images_packed_together_give_the_features_of_each_alone() -> None:
    model, parts = build(), documents([(2, 3), (5, 1), (1, 1)])
    together = model.tower(make_batch(ARCHITECTURE, parts).images)
    images = [item for item in parts[0] if isinstance(item, torch.Tensor)]
    apart = torch.cat([model.tower(make_batch(ARCHITECTURE, [[image]]).images) for image in images])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


@alone
def test_without_images_the_loss_is_that_of_a_model_without_a_tower() -> None:
    parts = documents([], [])
    with_tower, without = build(), build(TEXT_ONLY)
    losses = with_tower(make_batch(ARCHITECTURE, parts))
    assert torch.equal(losses, without(make_batch(TEXT_ONLY, parts)))
    losses.sum().backward()
    for name, parameter in with_tower.named_parameters():
        assert parameter.grad is not None, name
        assert (component_of(name).trained_as == "decoder") == bool(parameter.grad.any()), name


@alone
def test_gradients_come_in_one_order_with_and_without_images() -> None:
    for recompute in ("none", "full"):
        model = build_model(ARCHITECTURE, ModelOptions(recompute=recompute), Layout())[0]
        names = {parameter: name for name, parameter in model.named_parameters()}
        come: list[torch.Tensor] = []
        for parameter in names:
            parameter.register_post_accumulate_grad_hook(come.append)
        for grids in ([(2, 3)], []):
            model(make_batch(ARCHITECTURE, documents(grids))).sum().backward()
        order, half = [names[parameter] for parameter in come], len(names)
        assert set(order[:half]) == set(names.values())
        assert order[:half] == order[half:], recompute


@alone
def test_tower_does_not_see_gradients_that_nobody_needs() -> None:
    model = build()
    apply_freezing([model], TrainedParts(projector=1))
    seen = []
    model.tower.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    model.projector.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    model(make_batch(ARCHITECTURE, documents([(2, 3)]))).sum().backward()
    assert seen == [False, True]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (component_of(name).trained_as == "projector"), name


@alone
def test_images_without_a_tower_are_an_error() -> None:
    with pytest.raises(DataError, match="6 image patches was given to a model without a vision tower"):
        build(TEXT_ONLY)(make_batch(ARCHITECTURE, documents([(2, 3)])))


@alone
def test_images_shared_over_another_number_of_ranks_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"in 2 shares, but ranks that gather them: 1"):
        build()(make_batch(ARCHITECTURE, documents([(2, 3), (1, 1)]), place=DataPlace(shares=2)))
    with pytest.raises(ValueError, match="share 0 has 3 patches, announced were 4"):
        gather_shares(torch.zeros(3, 8), [4], groups.image_shares_group(), groups.context_group())


@alone
def test_bfloat16_is_near_float32_and_loss_stays_float32() -> None:
    batch = make_batch(ARCHITECTURE, documents([(2, 3)], [(3, 3)]))
    exact, rounded = build()(batch), build(dtype=torch.bfloat16)(batch)
    assert rounded.dtype == torch.float32
    assert (rounded.sum() - exact.sum()).abs() < 0.02 * exact.sum()


@alone
def test_layers_say_which_shard_they_hold() -> None:
    text = repr(build())
    assert "decoder layers 0-3 of 4, tensor shard 0 of 1" in text
    assert "heads 4 of 4, key-value heads 2 of 2, head size 32" in text
    assert "tokens 0 to 255 of 256" in text
    assert "replicated over tensor-parallel ranks" in text
