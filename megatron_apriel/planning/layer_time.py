"""Predicted seconds of a decoder layer and of the images on one rank of a layout. No torch.

Everything is that of the rank with most to do, since the ranks that share a layer wait for each other in each of them:

* matrix products divide evenly over T tensor- and C context-parallel ranks;
* attention divides evenly over the tensor-parallel ranks, and over the context-parallel ones as evenly as the blocks
  that they own see keys. One document makes their work the same, several do not: of packs of about seven documents the
  busier of two ranks has 52 to 67% (``parallel/context_parts.py``);
* images are dealt whole, so the largest share counts (``parallel/image_shares.py``).

Beside attention, a context-parallel layer copies: keys and values into one tensor to be gathered, what each block sees
out of the gathered ones, and the way back for their gradients (``model/context.py``). That is memory traffic of the
*whole* sequence's keys and values on each rank, which does not fall with more ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.formats.flops import decoder_forward, model_flops, tower_forward
from megatron_apriel.parallel.balance import recomputed_flops
from megatron_apriel.parallel.image_shares import share_images
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.workload import Content, busiest_part

TERA, GIGA, MICRO = 1e12, 1e9, 1e-6


class LayerSeconds(NamedTuple):
    """Of one layer: a forward and a backward pass, and the forward passes that are done again in the latter."""

    forward: float
    backward: float
    again: float


def layer_seconds(
    config: StageConfig, architecture: Architecture, layout: Layout, gpu: Hardware, content: Content, fp8: str
) -> LayerSeconds:
    """A layer on the busiest rank, over a sequence that holds this."""
    length, decoder = sum(content.documents), architecture.with_layers(1).decoder
    linear = decoder_forward(decoder, length, 0)[0] - 2 * length * decoder.embedding_parameters
    products = linear / (gpu.linear(fp8) * TERA) / (layout.tensor * layout.context)
    scores_forward, scores_backward = _attention_seconds(decoder, layout, gpu, content)
    copied_forward, copied_backward = context_seconds(decoder, layout, gpu, content)
    forward, backward = products + scores_forward + copied_forward, 0.0
    if config.train.decoder or config.train.projector or config.train.tower:
        passes = 2 if config.train.decoder else 1 + gpu.beside_products
        backward = passes * products + scores_backward + copied_backward
    mlp = 3 * decoder.hidden_size * decoder.ffn_hidden_size / (decoder.layer_parameters - 2 * decoder.hidden_size)
    again = {"none": 0.0, "selective": mlp * products, "full": forward}[config.recompute.mode]
    if fp8 != "none" and config.precision.fp8_weights == "remade":
        copies = gpu.remade_bytes * (decoder.layer_parameters - 2 * decoder.hidden_size) / (gpu.copy_bandwidth * GIGA)
        copies /= layout.tensor  # every context-parallel rank has all weights
        # Backward too, be it in the forward pass that is done again.
        forward, backward = forward + copies, backward + copies
        again += {"none": 0.0, "selective": mlp * copies, "full": 0.0}[config.recompute.mode]
    return LayerSeconds(forward, backward, again)


def host_seconds(layout: Layout, gpu: Hardware, fp8: str, repeated: bool) -> tuple[float, float]:
    """In which the host starts a layer's kernels, forward and backward: a third and two thirds.

    Where the forward pass of the whole layer is ``repeated`` in the backward pass, a third again.
    """
    bits = "bf16" if fp8 == "none" else "fp8"
    milliseconds = getattr(gpu, f"host_layer_{bits}")
    milliseconds += getattr(gpu, f"host_tensor_{bits}") if layout.tensor > 1 else 0.0
    milliseconds += getattr(gpu, f"host_context_{bits}") if layout.context > 1 else 0.0
    third = 1e-3 * milliseconds / 3
    return third, (3 if repeated else 2) * third


def _attention_seconds(
    decoder: DecoderArchitecture, layout: Layout, gpu: Hardware, content: Content
) -> tuple[float, float]:
    """Forward and backward, on the busiest rank."""
    pairs = busiest_part(content, layout.context).pairs if layout.context > 1 else content.squared_lengths / 2
    # Scores and weighted values: two products of two operations.
    flops = 4 * decoder.num_heads * decoder.head_dim / layout.tensor
    queries = sum(content.documents) / layout.context
    forward, backward = gpu.attention()
    return forward.seconds(flops, pairs, queries), backward.seconds(2 * flops, pairs, queries)


def context_seconds(
    decoder: DecoderArchitecture, layout: Layout, gpu: Hardware, content: Content
) -> tuple[float, float]:
    """What a context-parallel layer copies beside attention, forward and backward.

    In ``model/context.py``, with k bytes of keys and values a token and q of queries, over S tokens of a rank, T of the
    sequence and B keys that its blocks see, each byte once read and once written:

    forward: ``S k`` joined to be gathered, ``B k`` taken out, ``S q`` outputs joined;
    backward: ``T k`` zeros written; ``B k`` added to them, which reads twice; ``S q`` gradients joined.
    """
    if layout.context == 1:
        return 0.0, 0.0
    length, heads = sum(content.documents), 2 * decoder.head_dim / layout.tensor
    keys, queries = heads * 2 * decoder.num_kv_heads, heads * decoder.num_heads
    own, seen = length / layout.context, busiest_part(content, layout.context).keys
    forward = 2 * own * keys + 2 * seen * keys + 2 * own * queries
    backward = length * keys + 3 * seen * keys + 2 * own * queries
    return forward / (gpu.copy_bandwidth * GIGA), backward / (gpu.copy_bandwidth * GIGA)


def sums_seconds(config: StageConfig, architecture: Architecture, gpu: Hardware, bytes_each: float) -> float:
    """Adding the gradients of a whole layer's matrices to their sums in 24 bits, on one GPU."""
    if config.optimizer.gradients == "float32" or not config.train.decoder:
        return 0.0
    decoder = architecture.decoder
    return bytes_each * (decoder.layer_parameters - 2 * decoder.hidden_size) / (gpu.copy_bandwidth * GIGA)


def head_seconds(config: StageConfig, architecture: Architecture, gpu: Hardware) -> float:
    """Head and loss on one GPU, forward and backward; a frozen head leaves out the gradient of its weights."""
    logits = config.sequence_length * architecture.decoder.vocab_size
    passes = 3 if config.train.decoder else 2
    products = passes * 2 * logits * architecture.decoder.hidden_size / (gpu.head * TERA)
    return products + gpu.loss_bytes * logits / (gpu.copy_bandwidth * GIGA)


def image_seconds(
    config: StageConfig, architecture: Architecture, layout: Layout, gpu: Hardware, content: Content
) -> tuple[float, float]:
    """Tower and projector on the rank with most of a sequence's images, forward and backward."""
    shares = layout.tensor * layout.context
    images = content.images if content.assumed else _busiest_share(content.images, shares)
    if architecture.tower is None or architecture.projector is None or not images:
        return 0.0, 0.0
    projector, patches = architecture.projector, sum(images)
    linear, attention = tower_forward(architecture.tower, patches, sum(size**2 for size in images))
    forward = linear + attention + 2 * patches * (projector.input_size + projector.output_size) * projector.output_size
    backward = model_flops(architecture, 0, 0, images, config.train) - forward
    again = 0.0
    if config.train.tower:
        again = sum(recomputed_flops(architecture.tower, config.recompute.mode, patches, attention))
    rate = gpu.tower * TERA * (shares if content.assumed else 1)
    return forward / rate, (backward + again) / rate


def _busiest_share(images: Sequence[int], shares: int) -> list[int]:
    """The images of the rank that has most of them, dealt whole."""
    return max(([images[number] for number in share] for share in share_images(images, shares)), key=sum)
