"""Packing plans with a single defect each, as damage or a stranger would make them: none is taken for a plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from megatron_apriel.config.choices import LongDocuments
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading import packing, plan_checks
from megatron_apriel.data.loading.cutting import LongDocumentsReport, cut_documents
from megatron_apriel.data.loading.order import shuffled
from megatron_apriel.data.loading.packing import PackingPlan, make_plan
from megatron_apriel.data.loading.plan_checks import check_plan
from megatron_apriel.testing.corpora import random_pixels, write_corpus

LENGTH, SEED = 64, 3
SIZES = (30, 40, 50, 20, 10, 64)
"""Documents of the corpus in which all are whole."""
PICTURES, TEXT = 60, 62
"""Documents of the other corpus: one of text and images that is cut before an image, one of 200 tokens of text."""

INT32, INT64 = np.iinfo(np.int32), np.iinfo(np.int64)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("plans") / "whole", SIZES)


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Corpus:
    generator = np.random.default_rng(0)
    picture = random_pixels(generator, 16, 16)  # 20 tokens
    short = generator.integers(1, 30, 60).tolist()
    long = [[50, picture, 5, picture, 100, picture, picture, 3], 65, 200]
    return write_corpus(tmp_path_factory.mktemp("plans") / "cut", [*short, *long, 64, *short])


def check(plan: PackingPlan, corpus: Corpus, long_documents: LongDocuments = "split") -> None:
    check_plan(plan, corpus, cut_documents(corpus, LENGTH, long_documents))


def with_values(plan: PackingPlan, **changes: tuple[int, int]) -> PackingPlan:
    """The plan with a value at a place of some of its arrays."""
    arrays = {name: getattr(plan, name).copy() for name in changes}
    for name, (place, value) in changes.items():
        arrays[name][place] = value
    return replace(plan, **arrays)


def plan_of(*packs: list[int], seed: int = SEED) -> PackingPlan:
    """A plan of whole documents in packs chosen by hand; right in all that the packs do not decide."""
    ranks = np.argsort(shuffled(len(SIZES), seed, 0))
    ordered = [sorted(pack, key=lambda document: ranks[document]) for pack in packs]
    none = np.zeros(0, np.int32)
    return PackingPlan(
        sequence_length=LENGTH,
        seed=seed,
        documents=np.concatenate(ordered).astype(np.int32),
        starts=none,
        lengths=none,
        offsets=np.cumsum([0, *map(len, ordered)]),
        tokens=np.array([sum(SIZES[document] for document in pack) for pack in ordered], np.int32),
        long_documents=LongDocumentsReport(),
    )


GOOD = ([5], [2, 4], [1, 3], [0])


@pytest.mark.parametrize("policy", ["split", "truncate", "drop"])
@pytest.mark.parametrize("together", [1, 7, 1 << 20])
def test_plans_as_they_are_made_pass(cut, policy, together, monkeypatch):
    monkeypatch.setattr(plan_checks, "_PIECES", together)
    for seed in range(5):
        check(make_plan(cut, LENGTH, seed, policy), cut, policy)


def test_plans_of_several_windows_pass(cut, monkeypatch):
    for module in (packing, plan_checks):
        monkeypatch.setattr(module, "WINDOW", 10)
    check(make_plan(cut, LENGTH, SEED, "split"), cut)


def test_other_packs_than_our_own_pass_if_they_are_as_full(whole):
    """What cannot be seen without packing again, as the docstring says."""
    check(plan_of(*GOOD), whole)
    check(plan_of([5], [2], [1, 4], [0, 3]), whole)


@pytest.mark.parametrize(
    ("packs", "reason"),
    [
        (([5], [2, 4], [0, 1], [3]), r"holds more than 64 tokens \(pack 2\)"),
        (([0, 1, 2, 3, 4, 5],), "holds more than 64 tokens"),
        (([0], [1], [2], [3], [4], [5]), "3 packs are half empty, where 1 may be"),
        (([5], [2, 4], [1, 4], [0]), "in no pack, and another one twice"),
        (([5], [4, 4], [1, 3], [0]), "not in the order of the seed"),
        (([5], [2, 4], [1, 3]), "it has 5 pieces, and the corpus gives 6"),
        (([5], [2, 4], [1, 3], [0], [4]), "it has 7 pieces, and the corpus gives 6"),
    ],
)
def test_packs_that_no_plan_has_are_refused(whole, packs, reason):
    with pytest.raises(ValueError, match=reason):
        check(plan_of(*packs), whole)


def test_packs_in_another_order_than_the_seeds_are_refused(whole):
    plan = plan_of(*GOOD)
    with pytest.raises(ValueError, match=r"not in the order of the seed \(piece 1\)"):
        check(replace(plan, documents=plan.documents[[0, 2, 1, 3, 4, 5]]), whole)
    with pytest.raises(ValueError, match="not in the order of the seed"):
        check(replace(plan_of([5], [0, 3, 4], [2], [1]), seed=SEED + 1), whole)


@pytest.mark.parametrize("value", [-1, len(SIZES), INT32.max, INT32.min])
def test_document_numbers_out_of_range_are_refused(whole, value):
    with pytest.raises(ValueError, match=r"its documents are .*, and the corpus has 6"):
        check(with_values(plan_of(*GOOD), documents=(2, value)), whole)


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (0, 1, "do not divide"),
        (0, -1, "do not divide"),
        (-1, 5, "do not divide"),
        (-1, INT64.max, "do not divide"),
        (1, 3, "a pack is empty"),  # the next one begins there as well
        (2, 0, "a pack is empty"),
        (2, INT64.min, "a pack is empty"),
        (2, INT64.max, "a pack is empty"),
        (2, 2, "holds more than|is not the sum"),
    ],
)
def test_offsets_that_do_not_divide_the_pieces_are_refused(whole, place, value, reason):
    with pytest.raises(ValueError, match=reason):
        check(with_values(plan_of(*GOOD), offsets=(place, value)), whole)


@pytest.mark.parametrize("value", [0, -1, 61, 59, 60 + 2**31 - 2**32, INT32.max, INT32.min])
def test_token_numbers_of_packs_that_are_no_sums_are_refused(whole, value):
    with pytest.raises(ValueError, match=r"number of tokens is not the sum of its pieces \(pack 1\)"):
        check(with_values(plan_of(*GOOD), tokens=(1, value)), whole)


def test_arrays_of_other_sizes_are_refused(whole, cut):
    plan, parted = plan_of(*GOOD), make_plan(cut, LENGTH, SEED, "split")
    none = plan.starts
    for wrong in (
        replace(plan, tokens=plan.tokens[:-1]),
        replace(plan, offsets=plan.offsets[:-1]),
        replace(plan, offsets=plan.offsets[:0], tokens=none),
        replace(plan, documents=none, offsets=np.zeros(1, np.int64), tokens=none),
        replace(plan, starts=np.zeros(6, np.int32)),
        replace(plan, starts=np.zeros(6, np.int32), lengths=np.array(SIZES, np.int32)[plan.documents]),
    ):
        with pytest.raises(ValueError, match=r"do not divide|it has"):
            check(wrong, whole)
    for wrong in (replace(parted, starts=none), replace(parted, starts=none, lengths=none)):
        with pytest.raises(ValueError, match=r"it has .* starts and .* lengths"):
            check(wrong, cut)


def piece(plan: PackingPlan, document: int, part: int = 0) -> int:
    """The place in the plan of a document's piece."""
    places = np.flatnonzero(plan.documents == document)
    return int(places[np.argsort(plan.starts[places])[part]])


@pytest.mark.parametrize(
    ("document", "part", "start", "length", "reason"),
    [
        (5, 0, 1, None, "a document that fits is not whole"),
        (5, 0, -1, None, "a document that fits is not whole"),
        (5, 0, INT32.min, None, "a document that fits is not whole"),
        (5, 0, None, 0, "a document that fits is not whole"),
        (5, 0, None, -7, "a document that fits is not whole"),
        (5, 0, None, INT32.max, "a document that fits is not whole"),
        (TEXT, 1, 63, None, "a long document is cut elsewhere"),
        (TEXT, 1, -64, None, "a long document is cut elsewhere"),
        (TEXT, 1, INT32.max, None, "a long document is cut elsewhere"),
        (TEXT, 3, None, 9, "a long document is cut elsewhere"),  # beyond the document's end
        (TEXT, 3, None, 7, "a long document is cut elsewhere"),
        (TEXT, 0, None, 0, "a long document is cut elsewhere"),
        (TEXT, 0, None, -1, "a long document is cut elsewhere"),
        (TEXT, 0, None, INT32.max, "a long document is cut elsewhere"),
        (TEXT, 1, 0, None, "a long document is cut elsewhere"),  # the first piece twice
    ],
)
def test_pieces_that_no_cutting_gives_are_refused(cut, document, part, start, length, reason):
    plan = make_plan(cut, LENGTH, SEED, "split")
    place = piece(plan, document, part)
    values = {"starts": start, "lengths": length}
    with pytest.raises(ValueError, match=reason):
        check(with_values(plan, **{name: (place, v) for name, v in values.items() if v is not None}), cut)


def test_a_cut_inside_an_image_is_refused(cut):
    plan = make_plan(cut, LENGTH, SEED, "split")
    first, second = piece(plan, PICTURES), piece(plan, PICTURES, 1)
    assert (plan.lengths[first], plan.starts[second]) == (50, 50)  # 64 tokens would end in the image
    moved = with_values(plan, starts=(second, 60), lengths=(first, 60))
    moved = with_values(moved, lengths=(second, int(plan.lengths[second]) - 10))
    with pytest.raises(ValueError, match="a long document is cut elsewhere"):
        check(moved, cut)


def test_a_plan_of_another_policy_is_refused(cut):
    for policy in ("split", "truncate", "drop"):
        plan = make_plan(cut, LENGTH, SEED, policy)
        for other in {"split", "truncate", "drop"} - {policy}:
            with pytest.raises(ValueError, match="pieces"):
                check(plan, cut, other)


def test_a_dropped_document_in_place_of_a_whole_one_is_refused(cut):
    plan = make_plan(cut, LENGTH, SEED, "drop")
    with pytest.raises(ValueError, match="1 pieces are of documents that are cut or left out, and the corpus gives 0"):
        check(with_values(plan, documents=(3, TEXT)), cut, "drop")


def test_lengths_that_add_up_only_if_they_wrap_are_refused(cut):
    """32 bits: the sum of the pack is as before."""
    plan = make_plan(cut, LENGTH, SEED, "split")
    pack = int(np.argmax(np.diff(plan.offsets) > 2))
    first = int(plan.offsets[pack])
    lengths = plan.lengths.copy()
    with np.errstate(over="ignore"):
        lengths[first : first + 2] += np.array([INT32.min, INT32.min], np.int32)
    assert int(lengths[first : plan.offsets[pack + 1]].sum(dtype=np.int32)) == plan.tokens[pack]
    with pytest.raises(ValueError, match=r"not whole|cut elsewhere"):
        check(replace(plan, lengths=lengths), cut)
