"""What a rank is predicted to hold, against sums by hand, and against what a graph really keeps."""

from __future__ import annotations

import torch

from megatron_apriel.config.choices import Recompute
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.memory import layer_elements, rank_memory
from megatron_apriel.testing.batches import make_batch
from megatron_apriel.testing.stages import small_stage

APRIEL = Architecture.from_preset("apriel-15b")


def test_what_is_at_work() -> None:
    """Of 8192 tokens the loss, or the gradients of gate and up and what one layer computes again."""
    loss, gradients, layer = 2**29 + 8192 * 5120, 8192 * 2 * 14336, 8192 * (4 * 5120 + 10240 + 3 * 14336)

    def working(layout: Layout | None = None, rank: int = 0, **recompute: object) -> float:
        return rank_memory(small_stage(recompute=recompute), APRIEL, layout or Layout(), rank).working / 2

    assert working() == max(loss, gradients) == loss
    assert working(mode="selective") == gradients + 8192 * 3 * 14336 > loss
    assert working(mode="full") == gradients + layer
    # The layers that keep everything are the last ones: they have gone back before one is computed again.
    assert working(mode="full", layers=47) == loss
    pipeline = Layout(2, pipeline=2)
    assert working(pipeline) == gradients
    assert working(pipeline, 1) == loss
    assert working(pipeline, mode="full", layers=24) == gradients + layer
    assert working(pipeline, mode="full", layers=23) == gradients


def bytes_of_a_layer(mode: Recompute) -> float:
    """What waits for the backward pass of a layer with 128 tokens, as its graph holds it."""

    def held(layers: int) -> int:
        storages: dict[int, int] = {}
        waiting = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            waiting.append(tensor)  # so that no storage takes the place of another
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        shape = Architecture(DecoderArchitecture(64, layers, 4, 2, 16, 160, 128), image_token_id=5)
        with groups.initialized(Layout()):
            model = build_model(shape, ModelOptions(dtype=torch.float32, recompute=mode), Layout())[0]
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                losses = model(make_batch(shape, [list(range(6, 106))], sequence_length=128))
        assert losses.requires_grad
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        return sum(size for place, size in storages.items() if place not in own)

    return (held(3) - held(1)) / 2


def test_what_a_layer_keeps_on_a_cpu() -> None:
    """Attention and SwiGLU keep more there than on a GPU; the rest is what is predicted."""
    none, selective, full = (bytes_of_a_layer(mode) for mode in ("none", "selective", "full"))
    shape, element = DecoderArchitecture(64, 1, 4, 2, 16, 160, 128), 4 * 128
    predicted = layer_elements(shape, "none", 1, False, True) - layer_elements(shape, "selective", 1, False, True)
    # Five widths of an MLP for the three of the kernel that does SwiGLU at once; none of the hidden states.
    assert none - selective == element * (predicted + 2 * 160)
    assert full == element * layer_elements(shape, "full", 1, False, True)
