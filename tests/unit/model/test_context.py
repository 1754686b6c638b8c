"""Attention by blocks against attention of the whole sequence, each rank's turn after another's."""

from __future__ import annotations

import pytest
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType

from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.model.attention import LocalCoreAttention, packed
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.context import attend_by_blocks
from megatron_apriel.model.options import ModelOptions, decoder_config
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import make_batch, owned_positions
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
    found = torch.zeros_like(expected)
    for context in range(contexts):
        part = make_batch(ARCHITECTURE, documents, place=DataPlace(context=context, contexts=contexts)).part
        owned = owned_positions(sum(LENGTHS), context, contexts)
        assert part is not None
        assert [block.length for block in part.blocks] == [len(owned) // 2] * 2
        found = found.index_copy(0, torch.tensor(owned), attend_by_blocks(core, query[owned], key, value, part.blocks))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), inputs), gradients)


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
