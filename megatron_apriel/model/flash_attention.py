"""FlashAttention-4's kernels for packed sequences: the fastest attention that was found for Hopper GPUs.

Beside cuDNN's, forward and backward took 15 to 17% less time and 7 to 19% less energy on an H200, for causal documents
of 2 to 32 thousand tokens with 32 query and 8 key-value heads of 128 (``benchmarks/attention.py``). Energy counts as
much as time on a GPU that runs at its power limit.

They are called directly and not through Transformer Engine, whose 2.20 passes causal attention on as a window of -1
tokens to the left; FlashAttention-4 takes that for a window that no token is in, and returns zeros.

Kernels are compiled at their first use, a few seconds each: one set for the decoder and one for the tower.
"""

from __future__ import annotations

import enum
import importlib
from importlib.metadata import PackageNotFoundError, version

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from packaging.version import Version
from torch import Tensor

from megatron_apriel.model.attention import CoreAttention

PACKAGE, OLDEST = "flash-attn-4", Version("4.0.0b36")
HOPPER = (9, 0)
"""Compute capability of the GPUs that these kernels were measured on."""


def why_not_flash_attention(dtype: torch.dtype, *, asked_for: bool) -> str:
    """Why these kernels are not the choice on this process's CUDA device; empty if they are.

    Args:
        dtype: of the activations.
        asked_for: they may run where they were not measured, too.
    """
    if dtype != torch.bfloat16:
        return f"FlashAttention-4 computes in bfloat16, and the model in {str(dtype).removeprefix('torch.')}"
    try:
        installed = Version(version(PACKAGE))
    except PackageNotFoundError:
        return f"{PACKAGE} is not installed"
    if installed < OLDEST:
        return f"{PACKAGE} {installed} is installed, and {OLDEST} is the oldest that was tested"
    try:
        importlib.import_module("flash_attn.cute")
    except ImportError as error:
        return f"{PACKAGE} cannot be imported: {error}"
    capability = torch.cuda.get_device_capability()
    if capability != HOPPER and not asked_for:
        return (
            f"FlashAttention-4 was measured on Hopper GPUs, not on compute capability {capability[0]}.{capability[1]}"
        )
    return ""


class FlashCoreAttention(CoreAttention):
    """Attention within each document or image, called as Megatron calls its own."""

    def forward(
        self,
        query_SND: Tensor,
        key_TGD: Tensor,
        value_TGD: Tensor,
        attention_mask: None,
        *,
        attn_mask_type: enum.Enum,
        attention_bias: None,
        packed_seq_params: PackedSeqParams,
    ) -> Tensor:
        """[S, N, D] in bfloat16; the causal diagonal ends in the lower right corner of each document."""
        from flash_attn.cute import flash_attn_varlen_func

        output_SND, _ = flash_attn_varlen_func(
            query_SND,
            key_TGD,
            value_TGD,
            cu_seqlens_q=packed_seq_params.cu_seqlens_q,
            cu_seqlens_k=packed_seq_params.cu_seqlens_kv,
            max_seqlen_q=packed_seq_params.max_seqlen_q,
            max_seqlen_k=packed_seq_params.max_seqlen_kv,
            causal=self.causal,
        )
        return output_SND
