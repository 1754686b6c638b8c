"""The one rule by which this project counts floating-point operations; it stands behind every TFLOP/s figure.

Counted are matrix products: of the decoder's layers and head (not of the input embedding, which is a look-up), and of
the tower and projector for images. A product of [m, k] and [k, n] is 2*m*k*n operations. Causal attention is counted
half, and packed documents by the sum of their squared lengths, since no token sees another document; the tower's
attention is whole and stays inside an image. A trained part costs three times its forward pass: forward, gradient of
its input, gradient of its weights. A frozen part with trained parts below it computes no gradient of its weights: its
linear layers cost twice their forward pass, attention, which has no weights, still three times. A frozen part with
nothing trained below costs its forward pass only. Recomputed activations are never counted, so that the figure says
how fast the model learns and not how busy the machine is.

With 48 layers of the Apriel decoder, everything trained and one document a sequence, this gives 92.2 GFLOP per token
at 8192 tokens, 101.9 at 16384, 121.2 at 32768 and 140.5 at 49152. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture, TowerArchitecture

if TYPE_CHECKING:
    from megatron_apriel.batch import Batch


class Trained(Protocol):
    """Learning-rate factors of the parts, 0 for a frozen one; the configuration's ``train`` section is one."""

    @property
    def tower(self) -> float: ...
    @property
    def projector(self) -> float: ...
    @property
    def decoder(self) -> float: ...


def decoder_forward(decoder: DecoderArchitecture, tokens: int, sum_squared_lengths: int) -> tuple[int, int]:
    """Forward operations of the decoder and its head: of linear layers, and of attention.

    Args:
        decoder: its shapes.
        tokens: tokens that go through it.
        sum_squared_lengths: sum of the squared lengths of the documents among them.
    """
    norms = 2 * decoder.hidden_size
    weights = decoder.num_layers * (decoder.layer_parameters - norms) + decoder.embedding_parameters
    # Scores and weighted values: 2 products of 2 operations, halved by the causal mask.
    attention = decoder.num_layers * 2 * sum_squared_lengths * decoder.num_heads * decoder.head_dim
    return 2 * tokens * weights, attention


def tower_forward(tower: TowerArchitecture, patches: int, sum_squared_patches: int) -> tuple[int, int]:
    """Forward operations of the tower over images of so many patches: of linear layers, and of attention."""
    norms = 2 * tower.hidden_size
    weights = tower.num_layers * (tower.layer_parameters - norms) + tower.patch_values * tower.hidden_size
    return 2 * patches * weights, tower.num_layers * 4 * sum_squared_patches * tower.hidden_size


def model_flops(
    architecture: Architecture,
    tokens: int,
    sum_squared_lengths: int,
    image_patches: Sequence[int],
    trained: Trained,
) -> int:
    """Operations of a forward and backward pass by the rule above.

    Args:
        architecture: the model.
        tokens: tokens through the decoder, image tokens and padding included.
        sum_squared_lengths: sum of squared document lengths.
        image_patches: patches of each image.
        trained: which parts train.
    """
    squared = sum(number**2 for number in image_patches)
    text = _decoder_flops(architecture, tokens, sum_squared_lengths, trained)
    return text + _image_flops(architecture, sum(image_patches), squared, trained)


def step_flops(architecture: Architecture, trained: Trained, batch: Batch) -> int:
    """:func:`model_flops` of one micro-batch: the whole of it, on whichever rank that shares it."""
    lengths = batch.cu_seqlens.diff().tolist()
    text = _decoder_flops(architecture, sum(lengths), sum(length**2 for length in lengths), trained)
    return text + image_flops(architecture, trained, batch)


def image_flops(architecture: Architecture, trained: Trained, batch: Batch) -> int:
    """Of :func:`step_flops`, what tower and projector take."""
    return _image_flops(architecture, batch.images.num_patches, batch.images.sum_squared_patches, trained)


def _decoder_flops(architecture: Architecture, tokens: int, sum_squared_lengths: int, trained: Trained) -> int:
    linear, attention = decoder_forward(architecture.decoder, tokens, sum_squared_lengths)
    return _with_backward(linear, attention, bool(trained.decoder), bool(trained.projector or trained.tower))


def _image_flops(architecture: Architecture, patches: int, sum_squared_patches: int, trained: Trained) -> int:
    if architecture.tower is None or architecture.projector is None or not patches:
        return 0
    linear, attention = tower_forward(architecture.tower, patches, sum_squared_patches)
    total = _with_backward(linear, attention, bool(trained.tower), False)
    projector = architecture.projector
    linear = 2 * patches * (projector.input_size + projector.output_size) * projector.output_size
    return total + _with_backward(linear, 0, bool(trained.projector), bool(trained.tower))


def _with_backward(linear: int, attention: int, is_trained: bool, below_trains: bool) -> int:
    if is_trained:
        return 3 * (linear + attention)
    return 2 * linear + 3 * attention if below_trains else linear + attention
