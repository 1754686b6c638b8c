"""What serving takes of memory: weights, and keys and values of every token that is in a conversation."""

from __future__ import annotations

from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.quantities import counted, size

WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a number, by the dtype that is computed in."""
_SHARE = 0.85
"""Of a GPU's memory; engines keep a tenth free, and activations need some of the rest. # assumption"""
CPU_CONTEXT = 8192
"""Tokens of a conversation on a CPU where none are said: their memory is taken at once."""
_LEAST_CONTEXT = 4096


def cached_bytes(decoder: DecoderArchitecture, dtype: str) -> int:
    """Of the keys and values of one token."""
    return 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * WIDTHS[dtype]


def longest_context(architecture: Architecture, dtype: str, memory: list[int]) -> int:
    """Most tokens of a conversation that the model reads and that has room beside the weights.

    Args:
        architecture: of the model.
        dtype: that is computed in.
        memory: bytes of the GPUs that the model is divided over; empty for a CPU.

    Raises:
        ConfigError: there is room for no conversation.
    """
    most = architecture.decoder.max_positions
    if not memory:
        return min(most, CPU_CONTEXT)
    weights, room = architecture.parameters * WIDTHS[dtype], int(sum(memory) * _SHARE)
    fits = max(0, room - weights) // cached_bytes(architecture.decoder, dtype) // 1024 * 1024
    if fits < min(most, _LEAST_CONTEXT):
        raise ConfigError(
            f"the weights have {size(weights)} in {dtype}, and {counted(len(memory), 'GPU has', 'GPUs have')}"
            f" {size(room)} for them and for conversations.",
            fix="Divide the model over more with --gpus.",
        )
    return min(most, fits)
