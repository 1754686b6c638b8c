"""Whether a stage fits a model and a number of ranks: checked before anything starts, without torch.

Each check yields its findings instead of raising, so that one run of the command shows all of them. Numbers that must
divide are given with where they come from and the choices that are possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from megatron_apriel.config.retention import steps_to_keep
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.parallel.balance import resolved_split
from megatron_apriel.parallel.layout import Layout, divisors
from megatron_apriel.quantities import counted

FP8_TOKEN_MULTIPLE = {"delayed": 16, "tensorwise": 16, "blockwise": 128}
"""Tokens per rank must be a multiple of this: the tile of the 8-bit matrix products of each scaling recipe."""

FP8_WEIGHT_MULTIPLE = 16
"""Both sides of an 8-bit weight matrix must be a multiple of this on every rank (Transformer Engine, cuBLASLt)."""

MOST_IN_USER_BUFFERS = 8
"""Ranks whose memory CUDA shares between processes for Transformer Engine's user buffers."""


def check_layout(config: StageConfig, architecture: Architecture, world_size: int) -> Layout:
    """The parallel layout of a stage, after every check that needs the model's shapes or the number of ranks.

    Raises ConfigError that names all findings.
    """
    config = resolved_split(config, architecture)
    findings = [
        *_model_parts(config, architecture),
        *_positions(config, architecture),
        *_tensor(config, architecture),
        *_sequence_length(config, architecture.decoder.max_positions),
        *_fp8(config, architecture),
        *_kept_checkpoints(config),
    ]
    layout: Layout | None = None
    try:
        layout = Layout.from_config(config.parallel, world_size)
    except ConfigError as error:
        findings.append(error)
    else:
        findings += _layout(config, architecture, layout)
    if layout is None or findings:
        raise _together(config, world_size, findings)
    return layout


def _together(config: StageConfig, world_size: int, findings: list[ConfigError]) -> ConfigError:
    if len(findings) == 1:
        return findings[0]
    listing = "\n  ".join("- " + str(finding).replace("\n", "\n  ") for finding in findings)
    return ConfigError(
        f"stage {config.stage} cannot run as configured on {counted(world_size, 'rank')};"
        f" {len(findings)} things do not fit.",
        listing,
    )


def _layout(config: StageConfig, architecture: Architecture, layout: Layout) -> Iterator[ConfigError]:
    try:
        layout.layers_per_virtual_stage(architecture.decoder.num_layers)
    except ConfigError as error:
        yield error
    try:
        layout.micro_batches(config.sequences_per_step)
    except ConfigError as error:
        yield error


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _model_parts(config: StageConfig, architecture: Architecture) -> Iterator[ConfigError]:
    for name in ("tower", "projector"):
        if getattr(config.train, name) > 0 and getattr(architecture, name) is None:
            yield ConfigError(
                f"train.{name}={getattr(config.train, name):g}, and the model of {config.init_from} is text only.",
                f"There is no {name} to train.",
                f"Set train.{name}=frozen, or start from a model with images.",
            )


def _positions(config: StageConfig, architecture: Architecture) -> Iterator[ConfigError]:
    limit = architecture.decoder.max_positions
    if config.sequence_length > limit:
        yield ConfigError(
            f"sequence_length={config.sequence_length} is more than the model's {limit} positions"
            " (max_position_embeddings).",
            "A document may fill a whole sequence, and the model was made for no longer one.",
            f"Set sequence_length to {limit} or less.",
        )


def _divided(decoder: DecoderArchitecture) -> dict[str, int]:
    """What tensor parallelism deals out, whole ones to each rank."""
    return {
        "attention heads": decoder.num_heads,
        "key-value groups": decoder.num_kv_heads,
        "feed-forward units": decoder.ffn_hidden_size,
        "vocabulary entries": decoder.vocab_size,
    }


def _tensor(config: StageConfig, architecture: Architecture) -> Iterator[ConfigError]:
    sizes, tensor = _divided(architecture.decoder), config.parallel.tensor
    uneven = [f"{size} {what}" for what, size in sizes.items() if size % tensor]
    if uneven:
        yield ConfigError(
            f"parallel.tensor={tensor} does not divide the decoder's {', '.join(uneven)}.",
            f"Every tensor-parallel rank must own whole ones, equally many."
            f" Possible here: {_listed(divisors(math.gcd(*sizes.values())))}.",
            "Set it in the stage's file, or parallel.tensor=... on the command line.",
        )
    if config.parallel.tensor_overlap and tensor > MOST_IN_USER_BUFFERS:
        yield ConfigError(
            f"parallel.tensor_overlap=true with parallel.tensor={tensor}: at most {MOST_IN_USER_BUFFERS} ranks can"
            " write into each other's memory.",
            "They are GPUs of one host.",
            f"Set parallel.tensor to {MOST_IN_USER_BUFFERS} or less, or parallel.tensor_overlap=false.",
        )


def _kept_checkpoints(config: StageConfig) -> Iterator[ConfigError]:
    if config.tokens is None:
        return  # of epochs that are not counted
    keep, every, steps = config.checkpoint.keep, config.checkpoint.every, config.steps
    if keep.policy != "equispaced" or every * keep.number <= steps:
        return  # at least one save for each part of the run
    saved = {*range(every, steps, every), steps}
    kept = steps_to_keep(saved, keep, steps)
    if len(kept) < keep.number:
        possible = steps // keep.number
        lost = f", of which {len(kept)} stay: one is the nearest to two parts of the run" * (len(saved) > len(kept))
        yield ConfigError(
            f"checkpoint.keep='{keep}' cannot be met: checkpoint.every={every} saves {len(saved)} times in"
            f" {steps} steps{lost}.",
            "What is to be averaged later must have been saved.",
            f"Set checkpoint.every to {possible} or less."
            if possible
            else f"Set checkpoint.keep='last 1', or train for at least {keep.number} steps.",
        )


def sequence_multiple(config: StageConfig) -> tuple[int, str]:
    """What ``sequence_length`` must be a multiple of, and why, in words."""
    parallel, fp8 = config.parallel, config.precision.fp8
    factors = []
    if parallel.sequence:
        factors.append((parallel.tensor, f"parallel.tensor={parallel.tensor} with parallel.sequence=true"))
    if parallel.context > 1:
        # Causal attention is balanced by giving each rank one early and one late piece of the sequence.
        factors.append((2 * parallel.context, f"2 x parallel.context={parallel.context}"))
    if fp8 != "none":
        factors.append((FP8_TOKEN_MULTIPLE[fp8], f"{FP8_TOKEN_MULTIPLE[fp8]} tokens per rank for fp8={fp8}"))
    return math.prod(number for number, _ in factors), " x ".join(reason for _, reason in factors)


def _sequence_length(config: StageConfig, limit: int) -> Iterator[ConfigError]:
    multiple, reason = sequence_multiple(config)
    if config.sequence_length % multiple:
        below = config.sequence_length // multiple * multiple
        choices = [size for size in (below, below + multiple) if 0 < size <= limit]
        nearest = f"Nearest: {' or '.join(map(str, choices))}; batch_tokens must stay a multiple of it."
        yield ConfigError(
            f"sequence_length={config.sequence_length} is not a multiple of {multiple} ({reason}).",
            "Every rank must own equally many tokens, in whole tiles of its matrix products.",
            nearest if choices else f"No length up to the model's {limit} positions is one: split over fewer ranks.",
        )


def _fp8(config: StageConfig, architecture: Architecture) -> Iterator[ConfigError]:
    precision, decoder, tensor = config.precision, architecture.decoder, config.parallel.tensor
    if precision.fp8 == "none":
        return
    yield from _bf16_layers(config, decoder.num_layers)
    uneven = _uneven_sides(decoder, tensor)
    if uneven:
        possible = [
            size for size in divisors(math.gcd(*_divided(decoder).values())) if not _uneven_sides(decoder, size)
        ]
        choice = f"Set parallel.tensor to one of {_listed(possible)}, or" if possible else "No parallel.tensor helps;"
        yield ConfigError(
            f"precision.fp8={precision.fp8} with parallel.tensor={tensor}: per rank the decoder's {', '.join(uneven)}"
            f" is not a multiple of {FP8_WEIGHT_MULTIPLE}.",
            "8-bit matrix products work on whole tiles.",
            f"{choice} set precision.fp8=none.",
        )


def _bf16_layers(config: StageConfig, num_layers: int) -> Iterator[ConfigError]:
    precision, pipeline = config.precision, config.parallel.pipeline
    kept = precision.bf16_layers_at_start + precision.bf16_layers_at_end
    if kept > num_layers:
        yield ConfigError(
            f"precision keeps {kept} layers in bf16, the decoder has {num_layers}.",
            fix="Lower precision.bf16_layers_at_start or bf16_layers_at_end; or set both to 0, and precision.fp8=none.",
        )
        return
    most = num_layers // pipeline
    for name in ("bf16_layers_at_start", "bf16_layers_at_end"):
        number = getattr(precision, name)
        if number > most:
            yield ConfigError(
                f"precision.{name}={number} is more than {most}, the {num_layers} decoder layers divided by"
                f" parallel.pipeline={pipeline}.",
                "Megatron Core keeps at most one pipeline rank's layers in bf16 at either end.",
                f"Set precision.{name} to {most} or less, or parallel.pipeline to {num_layers // number} or less.",
            )


def _uneven_sides(decoder: DecoderArchitecture, tensor: int) -> list[str]:
    """Sides of a rank's weight matrices that 8-bit products cannot tile."""
    sides = {
        "hidden size": decoder.hidden_size,
        "query, key and value width": (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim // tensor,
        "attention output width": decoder.num_heads * decoder.head_dim // tensor,
        "feed-forward width": decoder.ffn_hidden_size // tensor,
    }
    return [f"{what} {size}" for what, size in sides.items() if size % FP8_WEIGHT_MULTIPLE]
