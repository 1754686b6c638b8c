"""Attention by blocks against attention of the whole sequence, each rank's turn after another's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.model.attention import LocalCoreAttention, packed
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.context import attend_by_blocks
from megatron_apriel.model.options import ModelOptions, decoder_config
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import gathered_parts, make_batch, owned_positions
from megatron_apriel.testing.ranks import run_ranks

ARCHITECTURE = Architecture(DecoderArchitecture(32, 2, 4, 2, 16, 48, 64))
LENGTHS = [5, 1, 40, 2, 16, 32]


@pytest.mark.parametrize("contexts", [2, 4, 8])
def test_blocks_of_all_ranks_are_the_whole(contexts: int) -> None:
    generator = torch.Generator().manual_seed(0)
    documents = [[20] * length for length in LENGTHS]
    inputs = [torch.randn(sum(LENGTHS), heads, 16, generator=generator).requires_grad_() for heads in (4, 2, 2)]
    weight = torch.randn(sum(LENGTHS), 4, 16, generator=generator)
    core = LocalCoreAttention(None, 1, AttnMaskType.causal, "self")  # type: ignore[arg-type]
    whole = make_batch(ARCHITECTURE, documents)
    params: PackedSeqParams = packed(whole.cu_seqlens, whole.max_document)
    expected = core(*inputs, None, attn_mask_type=AttnMaskType.causal, attention_bias=None, packed_seq_params=params)
    gradients = torch.autograd.grad((expected * weight).sum(), inputs)
    query, key, value = inputs
    gathered = gathered_parts(key, value, contexts)
    found = torch.zeros_like(expected)
    for context in range(contexts):
        part = make_batch(ARCHITECTURE, documents, place=DataPlace(context=context, contexts=contexts)).part
        owned = owned_positions(sum(LENGTHS), context, contexts)
        assert part is not None
        assert [block.length for block in part.blocks] == [len(owned) // 2] * 2
        attended = attend_by_blocks(core, query[owned], gathered, part.blocks)
        found = found.index_copy(0, torch.tensor(owned), attended)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), inputs), gradients)


class _Written(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make or fill, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not function.is_view:
            self.bytes += result.nbytes
        return result


@pytest.mark.parametrize("contexts", [2, 8])
def test_gradients_come_back_without_zeros_for_each_piece(contexts: int) -> None:
    """They are added to one tensor; autograd would make one like the whole, and smaller ones, for every piece."""
    documents = [[20] * length for length in LENGTHS]
    gathered = torch.randn(2 * contexts, sum(LENGTHS) // contexts, 2, 16).requires_grad_()
    query = torch.randn(sum(LENGTHS) // contexts, 4, 16)
    part = make_batch(ARCHITECTURE, documents, place=DataPlace(contexts=contexts)).part
    assert part is not None
    seen: list[torch.Tensor] = []

    def core(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen.extend((key, value))
        return query

    attend_by_blocks(core, query, gathered, part.blocks)
    gradients = [torch.ones_like(one) for one in seen]
    with _Written() as written:
        torch.autograd.grad(seen, gathered, gradients)
    assert written.bytes == gathered.nbytes + sum(one.nbytes for one in seen)


def test_core_attention_is_not_told_of_context_parallelism() -> None:
    """Transformer Engine's would divide the sequence for itself."""

    def sizes(rank: int, size: int) -> list[int]:
        layout = Layout(2, context=2)
        with groups.initialized(layout):
            (model,) = build_model(ARCHITECTURE, ModelOptions(), layout)
            assert isinstance(model.decoder.layers[0].self_attention.pg_collection, ProcessGroupCollection)
            attention = model.decoder.layers[0].self_attention
            return [
                decoder_config(ARCHITECTURE.decoder, ModelOptions(), layout).context_parallel_size,
                model.config.context_parallel_size,
                attention.config.context_parallel_size,
                attention.pg_collection.cp.size(),
            ]

    assert run_ranks(2, sizes) == [[2, 2, 1, 2]] * 2
