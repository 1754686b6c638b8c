"""How many decoder layers each pipeline stage gets, where the first also has the tower and the last the head.

A pipeline goes at the pace of its slowest rank, so layers move away from the ranks that have more than layers to do.
Everything is counted in units of one decoder layer, by :mod:`megatron_apriel.formats.flops` and by what 8 bits gain;
layers cost alike, so dealing them out one at a time to the least loaded stage gives the smallest possible maximum. With
an interleaved schedule a rank runs all its chunks for every micro-batch: the load of a rank is made even first, then
that of its chunks.

No torch. This file may know configuration, shapes and the FLOPs rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture, TowerArchitecture
from megatron_apriel.formats.flops import decoder_forward, model_flops, tower_forward
from megatron_apriel.quantities import counted

ASSUMED_IMAGE_SHARE = 0.15
# assumption: half of the tokens of the recipe's 30% multimodal data are image tokens; corpora do not say it beforehand.
"""Share of image tokens that is planned with where the tower or the projector trains."""

FP8_SPEED = {"none": 1.0, "delayed": 1.7, "tensorwise": 1.6, "blockwise": 1.36}
"""How much faster than in bf16 a decoder layer's matrix products are, with all beside them; measured on one H200 (rates
in ``planning/hardware.py``). Head, attention and tower stay in bf16."""


class Extras(NamedTuple):
    """What the first and the last stage do besides decoder layers, in units of one layer."""

    first: float
    last: float


def image_share(config: StageConfig) -> float:
    """The share of image tokens to plan with where nobody says it: none where only the decoder trains."""
    return ASSUMED_IMAGE_SHARE if config.train.tower or config.train.projector else 0.0


def largest_image(architecture: Architecture, patches: int) -> int:
    """Patches of the images that so many patches are taken to consist of: the largest that the tower reads."""
    tower = architecture.tower
    return min((tower.image_size // tower.patch_size) ** 2, patches) if tower else 0


def stage_extras(config: StageConfig, architecture: Architecture, share: float | None = None) -> Extras:
    """Tower with projector, and head, in units of one decoder layer at this stage's sequence length.

    Args:
        config: the stage.
        architecture: the model.
        share: part of the tokens that are image tokens; :func:`image_share` by default.
    """
    length, mode = config.sequence_length, config.recompute.mode
    head = model_flops(architecture.with_layers(0), length, length**2, [], config.train)
    one = architecture.with_layers(1).decoder
    attention = decoder_forward(one, length, length**2)[1]
    linear = 2.0 * length * (one.layer_parameters - 2 * one.hidden_size)
    # What is computed again in the backward pass costs its forward pass once more; the head never is.
    again = recomputed_flops(one, mode if config.recompute.layers is None else "none", length, attention)
    products = (3 if config.train.decoder else 2) * linear + again[0]
    layer = products / FP8_SPEED[config.precision.fp8] + 3 * attention + again[1]
    patches = round(length * (image_share(config) if share is None else share))
    size = largest_image(architecture, patches)
    images = model_flops(architecture, 0, 0, [size], config.train) * patches / size if size else 0.0
    if size and architecture.tower is not None and config.train.tower:
        whole = tower_forward(architecture.tower, patches, patches * size)[1]
        images += sum(recomputed_flops(architecture.tower, mode, patches, whole))
    return Extras(images / layer, head / layer)


def recomputed_flops(
    part: DecoderArchitecture | TowerArchitecture, mode: str, tokens: int, attention: float
) -> tuple[float, float]:
    """Operations of the forward passes that the backward pass repeats: of linear layers, and of attention.

    Args:
        part: decoder or tower; one that has a backward pass.
        mode: as in ``recompute.mode``: of all layers, or of their MLPs.
        tokens: tokens or patches.
        attention: forward operations of attention in all layers.
    """
    if mode == "none":
        return 0.0, 0.0
    mlp = 3 * part.hidden_size * part.ffn_hidden_size
    if mode == "selective":
        return 2.0 * tokens * part.num_layers * mlp, 0.0
    return 2.0 * tokens * part.num_layers * (part.layer_parameters - 2 * part.hidden_size), attention


def balanced_layers(num_layers: int, pipeline: int, virtual: int, extras: Extras) -> tuple[int, ...]:
    """Layers of each virtual stage, in order, so that the most loaded pipeline rank has as little as possible.

    Raises ConfigError where there are more stages than layers.
    """
    if pipeline * virtual > num_layers:
        raise ConfigError(
            f"{pipeline * virtual} pipeline stages (parallel.pipeline={pipeline} x parallel.virtual={virtual}) for"
            f" {counted(num_layers, 'decoder layer')}.",
            "Every stage holds at least one layer.",
            f"At most {counted(num_layers, 'stage is', 'stages are')} possible.",
        )
    ranks = _dealt(num_layers, [virtual] * pipeline, _with_ends([0.0] * pipeline, extras))
    counts = [0] * (pipeline * virtual)
    for rank, layers in enumerate(ranks):
        chunks = [0.0] * virtual
        chunks[0] += extras.first if rank == 0 else 0
        chunks[-1] += extras.last if rank == pipeline - 1 else 0
        counts[rank::pipeline] = _dealt(layers, [1] * virtual, chunks)
    return tuple(counts)


def rank_loads(layers: Sequence[int], pipeline: int, extras: Extras) -> list[float]:
    """What each pipeline rank has to do for a micro-batch, in units of one decoder layer.

    Args:
        layers: decoder layers of each virtual stage.
        pipeline: pipeline ranks.
        extras: what the first and the last stage do besides.
    """
    return _with_ends([float(sum(layers[rank::pipeline])) for rank in range(pipeline)], extras)


def resolved_split(config: StageConfig, architecture: Architecture) -> StageConfig:
    """The stage with ``parallel.layers_per_stage=balanced`` replaced by numbers; as it is where it says anything else.

    Raises ConfigError where there are more stages than layers.
    """
    parallel = config.parallel
    if parallel.layers_per_stage != "balanced":
        return config
    extras = stage_extras(config, architecture)
    layers = balanced_layers(architecture.decoder.num_layers, parallel.pipeline, parallel.virtual, extras)
    return config.model_copy(update={"parallel": parallel.model_copy(update={"layers_per_stage": layers})})


def _with_ends(loads: list[float], extras: Extras) -> list[float]:
    loads[0] += extras.first
    loads[-1] += extras.last
    return loads


def _dealt(layers: int, least: list[int], extra: list[float]) -> list[int]:
    """So many layers over stages with a load of their own; of equal stages the later one, which keeps less, gets it."""
    counts = list(least)
    for _ in range(layers - sum(least)):
        stage = min(range(len(counts)), key=lambda stage: (counts[stage] + extra[stage], -stage))
        counts[stage] += 1
    return counts
