"""What sequences hold, and how their attention divides over context-parallel ranks, beside counting it pair by pair."""

from __future__ import annotations

import random

import pytest

from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.context_parts import blocks_of_rank
from megatron_apriel.planning.workload import Content, Workload, busiest_part, parts_seen
from megatron_apriel.testing.stages import small_stage


def test_documents() -> None:
    work = Workload.of(small_stage(100), document_tokens=30)
    assert work.documents(100) == (30, 30, 30, 10)
    assert Workload.of(small_stage(100), document_tokens=300).documents(100) == (100,)
    assert Workload.of(small_stage(100)).image_tokens == 0
    assert Workload.of(small_stage(100, train={"projector": 1})).image_tokens == 15


def test_images_are_the_largest_and_a_rest() -> None:
    model = Architecture.from_preset("apriel-15b")
    assert Workload(100, 10000).images(model) == (4096, 4096, 1808)
    assert Workload(100, 0).images(model) == ()
    assert Workload(100, 10).images(Architecture(model.decoder)) == ()


def test_known_sequences() -> None:
    contents = [Content((60, 40), (16, 16)), Content((100,))]
    work = Workload.known(contents)
    assert work.contents == tuple(contents) == work.of_a_step(small_stage(100), Architecture.from_preset("tiny"))
    assert (work.document_tokens, work.image_tokens) == (round((60**2 + 40**2 + 100**2) / 200), 16)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_pairs_and_keys_of_each_rank(ranks: int) -> None:
    """A query and its key on the diagonal count half, as in the FLOPs rule."""
    draw = random.Random(ranks)
    for _ in range(5):
        cuts = sorted(draw.sample(range(1, 48), 4))
        documents = tuple(end - start for start, end in zip([0, *cuts], [*cuts, 48], strict=True))
        document_of = [number for number, length in enumerate(documents) for _ in range(length)]
        seen = parts_seen(documents, ranks)
        for rank in range(ranks):
            pairs, keys = 0.0, 0
            for block in blocks_of_rank(48, ranks, rank):
                of_block = set()
                for query in block:
                    own = [key for key in range(query + 1) if document_of[key] == document_of[query]]
                    pairs += len(own) - 0.5
                    of_block |= set(own)
                keys += len(of_block)
            assert seen[rank].pairs == pytest.approx(pairs)
            assert seen[rank].keys == keys
        assert sum(part.pairs for part in seen) == pytest.approx(Content(documents).squared_lengths / 2)


def test_one_document_is_even() -> None:
    assert len({part.pairs for part in parts_seen((4096,), 8)}) == 1
    assert busiest_part(Content((4096,), assumed=True), 2).pairs == 4096**2 / 4


def test_assumed_documents_begin_anywhere() -> None:
    """Two of 64 tokens fit the four blocks of two ranks exactly, and would make no difference between them."""
    documents = (64, 64)
    assert {part.pairs for part in parts_seen(documents, 2)} == {64**2 / 2}
    found = busiest_part(Content(documents, assumed=True), 2)
    cuts = [(first, 64, 64 - first) if first < 64 else documents for first in range(8, 65, 8)]
    shares = [max(part.pairs for part in parts_seen(cut, 2)) / sum(length**2 / 2 for length in cut) for cut in cuts]
    assert found.pairs == pytest.approx(64**2 * sum(shares) / 8)
    assert found.pairs > 64**2 / 2 == busiest_part(Content(documents), 2).pairs
