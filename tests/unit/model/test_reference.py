"""The model against transformers, in float32: tower output, logits, and the gradient of every parameter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration, MistralForCausalLM, PixtralVisionModel  # noqa: F401  (before the fork)

from megatron_apriel.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
)
from megatron_apriel.batch import IGNORED_LABEL
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.head import token_logits
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import hf_inputs, make_batch, random_document
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.testing.weights import from_transformers, load_full

TOLERANCE = 1e-5
"""Largest difference, as a part of the reference's largest magnitude."""

SHAPES = {
    # Head size 32 in a hidden size of 64 with 4 heads, as Mistral-Nemo's 128 is not 5120 / 32; 2 queries per group.
    "silu": Architecture.from_preset("tiny"),
    # Another patch size, a gelu tower, a projector without bias, multi-head attention, 24 numbers per head.
    "gelu": Architecture(
        decoder=DecoderArchitecture(48, 3, 3, 3, 24, 80, 160, norm_eps=1e-6, rope_theta=1e9),
        tower=TowerArchitecture(32, 3, 2, 16, 72, "gelu", patch_size=8, image_size=80, rope_theta=1e4),
        projector=ProjectorArchitecture(32, 48, bias=False),
    ),
    # One key-value head for all, a silu projector, a gelu decoder, one channel, another image token, theta 100.
    "one_kv_head": Architecture(
        decoder=DecoderArchitecture(40, 2, 5, 1, 16, 64, 100, rope_theta=1e6, activation="gelu"),
        tower=TowerArchitecture(64, 1, 2, 32, 48, "silu", patch_size=4, image_size=64, channels=1, rope_theta=100.0),
        projector=ProjectorArchitecture(64, 40, activation="silu"),
        image_token_id=17,
    ),
    "text": replace(Architecture.from_preset("tiny"), tower=None, projector=None),
}

GRIDS = {
    "one image": [[(3, 5)]],
    "no image": [[]],
    "documents with three, no and one image": [[(1, 1), (4, 2), (1, 7)], [], [(5, 3)]],
}


def relative_difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value - reference).abs().max() / reference.abs().max()).item()


def documents_of(architecture: Architecture, grids: list[list[tuple[int, int]]]) -> list:
    generator = torch.Generator().manual_seed(5)
    if architecture.tower is None:
        grids = [[] for _ in grids]
    return [random_document(architecture, 9 + 4 * number, grid, generator) for number, grid in enumerate(grids)]


def run_reference(architecture: Architecture, documents: list) -> tuple[list, torch.Tensor, dict]:
    """Each document alone through transformers: its logits; the loss sum and gradients of all of them together."""
    model = hf_model(architecture, seed=3)
    all_logits, losses = [], []
    for document in documents:
        logits = model(**hf_inputs(architecture, document)).logits[0]
        labels = make_batch(architecture, [document]).labels_S
        losses.append(F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED_LABEL))
        all_logits.append(logits.detach())
    loss = torch.stack(losses).sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    # transformers leaves out what a text-only batch does not reach; there it counts as zero.
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.grad is None}
    return all_logits, loss.detach(), from_transformers(gradients | zeros, architecture)


def build(architecture: Architecture, options: ModelOptions | None = None):
    model = build_model(architecture, options or ModelOptions(), Layout())[0]
    load_full([model], from_transformers(hf_model(architecture, seed=3).state_dict(), architecture))
    return model


def compare_with_reference(architecture: Architecture, grids: list, options: ModelOptions) -> None:
    documents = documents_of(architecture, grids)
    expected_logits, expected_loss, expected = run_reference(architecture, documents)
    with groups.initialized(Layout()):
        model = build(architecture, options)
        length = make_batch(architecture, documents).tokens_S.numel()
        # Padding after the last document must change nothing.
        batch = make_batch(architecture, documents, sequence_length=length + 3)
        logits = model(batch, token_logits)[:length]
        assert relative_difference(logits, torch.cat(expected_logits)) < TOLERANCE
        losses = model(batch)
        assert losses.dtype == torch.float32
        assert torch.equal(losses == 0, batch.labels_S == IGNORED_LABEL)
        assert abs(losses.sum() - expected_loss) < TOLERANCE * expected_loss
        losses.sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, reference in expected.items():
        if reference.abs().max() == 0:
            assert torch.equal(gradients[name], reference), name
        else:
            assert relative_difference(gradients[name], reference) < TOLERANCE, name


@pytest.mark.parametrize("images", GRIDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_transformers(shape: str, images: str) -> None:
    run_ranks(1, lambda rank, size: compare_with_reference(SHAPES[shape], GRIDS[images], ModelOptions()))


@pytest.mark.parametrize(
    "options",
    [{"recompute": "full"}, {"recompute": "full", "recompute_layers": 1}, {"recompute": "selective"}],
    ids=str,
)
def test_recomputation_changes_nothing(options: dict) -> None:
    grids = GRIDS["documents with three, no and one image"]
    run_ranks(1, lambda rank, size: compare_with_reference(SHAPES["silu"], grids, ModelOptions(**options)))


@pytest.mark.parametrize("shape", ["silu", "gelu", "one_kv_head"])
def test_tower_output_is_that_of_transformers(shape: str) -> None:
    architecture = SHAPES[shape]

    def compare(rank: int, size: int) -> None:
        document = documents_of(architecture, [[(1, 1), (4, 3), (2, 6)]])[0]
        inputs = hf_inputs(architecture, document)
        tower = hf_model(architecture, seed=3).model.vision_tower
        expected = tower(inputs["pixel_values"], image_sizes=inputs["image_sizes"]).last_hidden_state[0]
        with groups.initialized(Layout()):
            output = build(architecture).tower(make_batch(architecture, [document]).images)
        assert relative_difference(output, expected) < TOLERANCE

    run_ranks(1, compare)
