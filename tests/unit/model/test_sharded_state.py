"""What ranks hold, by the names of a distributed checkpoint: every element of every parameter exactly once."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory, is_main_replica
from transformers import LlavaForConditionalGeneration  # noqa: F401  (imported once, before ranks are forked)

from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.megatron_parameters import NORM_KEYS
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.head import token_logits
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import make_batch, random_document
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.layouts import layout_of
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.testing.weights import from_transformers, load_full, named_parameters

ARCHITECTURE = Architecture.from_preset("tiny")
LAYOUTS = ("one", "TP2", "TP2 SP", "PP2", "PP2 uneven", "PP2 VP2", "DP2", "TP2 SP PP2 recompute")
"""Rows of the table whose ranks hold different parts of the model."""


def held(rank: int, size: int, layout: Layout) -> tuple[Counter, dict[str, int], set[str]]:
    """By checkpoint name, elements that this rank would write and elements there are; names of its parameters."""
    written: Counter = Counter()
    total: dict[str, int] = {}
    with groups.initialized(layout):
        chunks = build_model(ARCHITECTURE, ModelOptions(), layout)
        for chunk in chunks:
            for entry in chunk.sharded_state_dict().values():
                shards = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
                for shard in shards:
                    total[shard.key] = math.prod(shard.global_shape)
                    written[shard.key] += shard.data.numel() if is_main_replica(shard.replica_id) else 0
        return written, total, set(named_parameters(chunks))


def checkpoint_name(parameter: str) -> str:
    for local, fused in NORM_KEYS.items():
        parameter = parameter.replace(local, fused)
    return parameter


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_parameter_is_written_once(name: str) -> None:
    layout = layout_of(name)
    written: Counter = Counter()
    total: dict[str, int] = {}
    parameters: set[str] = set()
    for rank_written, rank_total, rank_parameters in run_ranks(layout.world_size, held, layout):
        written.update(rank_written)
        total |= rank_total
        parameters |= rank_parameters
    assert dict(written) == total
    assert set(total) == {checkpoint_name(name) for name in parameters}
    assert sum(total.values()) == ARCHITECTURE.parameters


def test_logits_are_whole_on_every_tensor_parallel_rank() -> None:
    weights = from_transformers(hf_model(ARCHITECTURE).state_dict(), ARCHITECTURE)
    document = random_document(ARCHITECTURE, 12, [(2, 3), (1, 4)], torch.Generator().manual_seed(0))

    def logits(rank: int, size: int, layout: Layout) -> torch.Tensor:
        with groups.initialized(layout), torch.no_grad():
            model = build_model(ARCHITECTURE, ModelOptions(), layout)[0]
            load_full([model], weights)
            batch = make_batch(ARCHITECTURE, [document], sequence_length=32, place=DataPlace.of(layout, rank))
            return model(batch, token_logits)

    expected = run_ranks(1, logits, layout_of("one"))[0]
    assert expected.shape == (32, ARCHITECTURE.decoder.vocab_size)
    for result in run_ranks(2, logits, layout_of("TP2 SP")):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
