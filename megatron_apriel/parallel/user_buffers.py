"""Transformer Engine's user buffers: memory of tensor-parallel GPUs that each of them writes into while others compute.

Under sequence parallelism a layer gathers its tokens before a product and scatters sums behind one, and NCCL does that
before or after the whole product. With user buffers both are divided into one part a rank. A gather passes parts around
in a ring: the rank's own tokens are multiplied while the next rank's arrive. A scatter is a ring the other way: the
part that another rank needs is computed first, and travels while the next is computed. Copy engines move the parts, so
that no multiprocessor is taken from the products. Backward, the gathers before products are divided the same way; the
other gathers and scatters run beside a product in any case.

The buffers are of one size, that of a micro-batch's hidden states, and made once for all layers: 13 times those states
in bfloat16 over two ranks, 9 times where what is gathered has 8 bits.

They can be written through NVLink multicast, or through addresses that CUDA opens between processes. The second is what
is asked for here: it does the same work for a ring, and a program that ends badly with the first can leave a host's
GPUs unusable.

No torch at import: planning knows their size.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SCATTERS = ("proj_fprop", "fc2_fprop")
"""Products of the forward pass with a scatter behind them, as Transformer Engine names them."""


class _Made:
    """What the buffers of this process were made for: Transformer Engine has one set for all models."""

    as_asked: tuple[Any, ...] = ()


def make(shape: tuple[int, int], tensor: int, dtype: torch.dtype, in_8_bits: bool) -> None:
    """Make the buffers of this process; collective. Those of the same kind are used on, others are given back first.

    Args:
        shape: tokens of a micro-batch, over all ranks of a tensor-parallel group, and hidden size.
        tensor: ranks of a group.
        dtype: of hidden states.
        in_8_bits: what layers gather is in 8 bits.
    """
    from transformer_engine.pytorch.module import base

    wanted = (shape, tensor, dtype, in_8_bits)
    if base.is_ub_initialized() and _Made.as_asked == wanted:
        return
    release()
    os.environ["UB_SKIPMC"] = "1"
    modes = base.UserBufferQuantizationMode
    ring: dict[str, Any] = {"method": "ring_exchange", "num_sm": 1, "cga_size": 1, "set_sm_margin": False}
    base.initialize_ub(
        list(shape),
        tensor,
        quantization_modes=[modes.FP8 if in_8_bits else modes.NONE],
        dtype=dtype,
        ub_cfgs={name: {**ring, "num_splits": tensor} for name in SCATTERS},
        bootstrap_backend="gloo",
    )
    _Made.as_asked = wanted


def release() -> None:
    """Give the buffers back, if there are any; collective. The process groups must still exist."""
    base = sys.modules.get("transformer_engine.pytorch.module.base")
    if base is not None and base.is_ub_initialized():
        import torch

        torch.cuda.synchronize()
        base.destroy_ub()


def bytes_of(elements: float, tensor: int, in_8_bits: bool) -> float:
    """Bytes of all buffers on a rank: eight that gather, two that scatter, two that scatter in a ring.

    Args:
        elements: of a micro-batch's hidden states, over all ranks of a tensor-parallel group.
        tensor: ranks of a group.
        in_8_bits: what layers gather is in 8 bits.
    """
    gathers, scatters, in_a_ring = (4 if in_8_bits else 8), 2, 2 * (2 * tensor - 1) / tensor
    return 2 * elements * (gathers + scatters + in_a_ring)
