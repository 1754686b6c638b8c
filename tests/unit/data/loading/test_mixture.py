"""The mixture holds its shares at every point, recomputed here in exact fractions, and ends where it may not go on."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from megatron_apriel.config.data_sections import SourceSection
from megatron_apriel.data.loading.cutting import LongDocumentsReport
from megatron_apriel.data.loading.mixture import Beginning, Mixture, interleave, sequences_of_epochs, whole_weights
from megatron_apriel.data.loading.packing import PackingPlan
from megatron_apriel.errors import DataError

LENGTH = 1000


def plan(tokens: np.ndarray, seed: int = 0) -> PackingPlan:
    """A plan of packs with the given tokens, one document each."""
    none = np.zeros(0, dtype=np.int32)
    packs = np.arange(len(tokens))
    return PackingPlan(
        LENGTH, seed, packs, none, none, np.arange(len(tokens) + 1), tokens.astype(np.int32), LongDocumentsReport()
    )


def section(weight: float, label: str, max_epochs: float | None = None) -> SourceSection:
    return SourceSection(corpus=Path(label), weight=weight, max_epochs=max_epochs)


def fill(kind: str, packs: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if kind == "full":
        return np.full(packs, LENGTH)
    if kind == "well packed":
        return generator.integers(LENGTH - 10, LENGTH + 1, packs)
    return generator.integers(1, LENGTH + 1, packs)  # anything


@pytest.mark.parametrize("kind", ["full", "well packed", "anything"])
@pytest.mark.parametrize(
    "weights",
    [
        ("50%", "20%", "30%"),
        ("70%", "30%"),
        ("100%",),
        (0.99, 0.01),
        (1 / 3, 1 / 3, 1 / 3),
        (0.9, *[0.01] * 10),
        tuple([0.05] * 20),
        (0.4, 0.0, 0.6),
        (0.123456, 0.876544),
    ],
)
def test_shares_hold_within_one_sequence_at_every_point(weights, kind):
    sections = [section(weight, f"s{number}") for number, weight in enumerate(weights)]
    plans = [plan(fill(kind, 7 + 13 * number, number), seed=number) for number in range(len(weights))]
    mixture = Mixture(sections, plans, 3000)
    shares = [Fraction(source.weight).limit_denominator(10**6) for source in sections]
    shares = [share / sum(shares) for share in shares]
    given = [0] * len(weights)
    for sequence in range(len(mixture)):
        source, pack = mixture.place(sequence)
        given[source] += int(plans[source].tokens[pack])
        total = sum(given)
        for tokens, share in zip(given, shares, strict=True):
            assert abs(tokens - share * total) <= LENGTH, sequence
    assert given == [mixture.tokens_used(source) for source in range(len(weights))]


@pytest.mark.parametrize("epochs", [0.3, 1, 1.1, 2.5, 3])
@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.5), (0.9, 0.1), (1 / 3, 1 / 3, 1 / 3), (0.05, 0.35, 0.6)])
def test_epochs_end_when_the_first_source_has_been_gone_through_so_often(weights, epochs):
    sections = [section(weight, f"s{number}") for number, weight in enumerate(weights)]
    plans = [plan(fill("well packed", 7 + 13 * number, number), seed=number) for number in range(len(weights))]
    number = sequences_of_epochs(sections, plans, epochs)
    wanted = [math.ceil(Fraction(str(epochs)) * plan.num_packs) for plan in plans]
    used, before = (Mixture(sections, plans, sequences).packs_used for sequences in (number, number - 1))
    assert any(packs == most for packs, most in zip(used, wanted, strict=True))
    assert all(packs <= most for packs, most in zip(used, wanted, strict=True))
    assert all(packs < most for packs, most in zip(before, wanted, strict=True))


def test_a_source_goes_through_its_epochs():
    plans = [plan(fill("anything", 9, 1)), plan(fill("anything", 5, 2), seed=7)]
    mixture = Mixture([section(0.5, "a"), section(0.5, "b")], plans, 200)
    places = [mixture.place(sequence) for sequence in range(200)]
    for source, own in enumerate(plans):
        packs = [pack for where, pack in places if where == source]
        for epoch in range(len(packs) // own.num_packs):
            part = packs[epoch * own.num_packs : (epoch + 1) * own.num_packs]
            assert part == own.order(epoch).tolist()


def test_access_is_random_and_a_longer_run_begins_alike():
    sections, plans = [section(0.3, "a"), section(0.7, "b")], [plan(fill("anything", 9, 1)), plan(fill("full", 5, 2))]
    short, long = Mixture(sections, plans, 100), Mixture(sections, plans, 1000)
    expected = [short.place(sequence) for sequence in range(100)]
    assert [long.place(sequence) for sequence in range(100)] == expected
    backwards = Mixture(sections, plans, 100)
    assert [backwards.place(sequence) for sequence in reversed(range(100))] == expected[::-1]


@pytest.mark.parametrize("kind", ["full", "well packed", "anything"])
def test_a_mixture_that_begins_within_a_run_holds_its_shares_from_there_on(kind):
    """Each source behind the packs that it gave before, whatever the shares were then."""
    sections = [section(weight, f"s{number}") for number, weight in enumerate((0.2, 0.3, 0.5))]
    plans = [plan(fill(kind, 9 + 13 * number, number), seed=number) for number in range(3)]
    before = (40, 0, 7)
    mixture = Mixture(sections, plans, 1500, Beginning(100, before))
    assert len(mixture) == 1500 and mixture.packs_before(100) == before
    given, packs = [0, 0, 0], [[], [], []]
    for sequence in range(100, 1500):
        source, pack = mixture.place(sequence)
        given[source] += int(plans[source].tokens[pack])
        packs[source].append(pack)
        for tokens, share in zip(given, (Fraction(1, 5), Fraction(3, 10), Fraction(1, 2)), strict=True):
            assert abs(tokens - share * sum(given)) <= LENGTH, sequence
    for source, own in enumerate(plans):
        order = np.concatenate([own.order(epoch) for epoch in range(200)])
        assert packs[source] == order[before[source] :][: len(packs[source])].tolist()
        assert mixture.packs_before(1500)[source] == before[source] + len(packs[source])
    with pytest.raises(IndexError, match="sequence 99 was of another mixture: this one begins at 100"):
        mixture.place(99)


def test_an_exhausted_source_is_an_error_before_the_run():
    plans = [plan(np.full(10, 900)), plan(np.full(1000, 900))]
    # 100 sequences, half of them from source a: five epochs of its ten packs.
    Mixture([section(0.5, "a", max_epochs=5), section(0.5, "b")], plans, 100)
    with pytest.raises(
        DataError,
        match=r"source 'a' has 40,500 tokens in max_epochs=4\.5; the run needs 45,000\.\n"
        r".*One epoch has 9,000 tokens, and weight=0\.5 of the run takes 5\.00 epochs.*\n.*Raise max_epochs",
    ):
        Mixture([section(0.5, "a", max_epochs=4.5), section(0.5, "b")], plans, 100)


def test_weights_mean_what_is_written():
    assert whole_weights([0.5, 0.2, 0.3]) == [5, 2, 3]
    assert whole_weights([0.1] * 10) == [1] * 10
    assert whole_weights([1.0]) == [1]


def test_equal_weights_and_full_packs_take_turns():
    order = interleave([1, 1, 1], [iter([LENGTH] * 20) for _ in range(3)], 30)
    assert order.tolist() == [0, 1, 2] * 10
