"""Which source gives sequence n of a run: a mixture by tokens, exact at every point.

A stage asks for shares of *tokens*: 50% text, 20% replay, 30% images. Drawing sources at random gives those shares only
on average, and counting sequences instead of tokens gives them only if every sequence is equally full. Here the order
of sources is computed instead, such that after every single sequence each source has given its share of all tokens so
far, padding not counted, to within one sequence.

The rule is that of fair packet scheduling, where several connections share a line (WF2Q: Bennett and Zhang, "Worst-case
Fair Weighted Fair Queueing", INFOCOM 1996). Imagine an ideal run that takes from all sources at once, each at its own
rate. A source may give its next sequence only if the ideal run has begun that sequence already, i.e. if the source has
not given more than its share so far; of those, the one goes first whose sequence the ideal run finishes first. Then no
source is ever more than one sequence ahead of its share (the first condition) or behind it (their theorem). Taking the
largest deficit instead looks as good, but lets sources fall behind by more, the more sources there are.

Tokens and weights are integers throughout, so that the order is the same on every machine. Sources are described by
the tokens of their packs only; nothing is read.

The mixture of a run may be changed while it is under way. Then another one begins at that sequence: shares hold from
there on, and every source goes on behind the packs that it has given before (:class:`Beginning`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.config.data_sections import SMALLEST_WEIGHT, SourceSection
from megatron_apriel.data.loading.packing import PackingPlan
from megatron_apriel.errors import DataError


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers in the same proportion; 0.3 means three tenths, not the nearest binary fraction."""
    fractions = [Fraction(weight).limit_denominator(round(1 / SMALLEST_WEIGHT)) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    return [int(fraction * scale) for fraction in fractions]


def interleave(weights: Sequence[int], tokens: Sequence[Iterable[int]], number: int) -> NDArray[np.uint16]:
    """The source of each of the first ``number`` sequences, uint16 [number]; arguments as of :func:`source_order`."""
    active = [source for source, weight in enumerate(weights) if weight > 0]
    if len(active) == 1:
        return np.full(number, active[0], dtype=np.uint16)
    return np.fromiter(islice(source_order(weights, tokens), number), dtype=np.uint16, count=number)


def source_order(weights: Sequence[int], tokens: Sequence[Iterable[int]]) -> Iterator[int]:
    """The source of each sequence, one after the other without end.

    Args:
        weights: whole-numbered weight of each source; at least one above 0.
        tokens: for each source the tokens of its packs in order; endless, or at least as many as are taken.
    """
    active = [source for source, weight in enumerate(weights) if weight > 0]
    streams = [iter(tokens[source]) for source in active]
    # Everything is counted in units in which one token of a source takes scale / weight, and the ideal run's clock
    # advances by `tick` per token of the whole: all whole numbers.
    total, scale = sum(weights), math.lcm(*(weights[source] for source in active))
    tick = scale
    costs = [scale // weights[source] * total for source in active]
    begins = [0] * len(active)
    sizes = [next(stream) for stream in streams]
    ends = [size * cost for size, cost in zip(sizes, costs, strict=True)]
    clock = 0
    places = range(len(active))
    while True:
        best, best_end = -1, 0
        for place in places:
            if begins[place] <= clock and (best < 0 or ends[place] < best_end):
                best, best_end = place, ends[place]
        yield active[best]
        clock += sizes[best] * tick
        begins[best] = best_end
        sizes[best] = size = next(streams[best])
        ends[best] = best_end + size * costs[best]


def sequences_of_epochs(sections: Sequence[SourceSection], plans: Sequence[PackingPlan], epochs: float) -> int:
    """Sequences until the first of the sources has been gone through ``epochs`` times."""
    wanted = [max(1, math.ceil(_exact(epochs) * plan.num_packs)) for plan in plans]
    if len(plans) == 1:
        return wanted[0]
    given = [0] * len(plans)
    weights = whole_weights([section.weight for section in sections])
    for number, source in enumerate(source_order(weights, [endless_tokens(plan) for plan in plans]), start=1):
        given[source] += 1
        if given[source] == wanted[source]:
            return number
    raise AssertionError("the order of sources has no end")


@dataclass(frozen=True)
class Beginning:
    """Where a mixture begins within a run.

    Attributes:
        sequence: of the run, the mixture's first.
        packs: that each of its sources gave before; none at all where empty.
    """

    sequence: int = 0
    packs: tuple[int, ...] = ()


RUN_BEGINS = Beginning()


class Mixture:
    """The sources of a run, sequence by sequence, with random access.

    Takes 2 + 4 bytes per sequence of the run: 14 MB for 20 billion tokens in sequences of 8192.
    """

    def __init__(
        self,
        sections: Sequence[SourceSection],
        plans: Sequence[PackingPlan],
        sequences: int,
        beginning: Beginning = RUN_BEGINS,
    ) -> None:
        """Plan a run of ``sequences`` sequences, from ``beginning`` on.

        Raises DataError if a source would be used for more epochs than its section allows.
        """
        self._plans, self._sequences, self._first = list(plans), sequences, beginning.sequence
        self._given = beginning.packs or (0,) * len(plans)
        streams = [endless_tokens(plan, given) for plan, given in zip(plans, self._given, strict=True)]
        own = sequences - self._first
        self.sources = interleave(whole_weights([section.weight for section in sections]), streams, own)
        # Number of each sequence among those of its own source.
        self._numbers = np.empty(own, dtype=np.uint32)
        self.packs_used = self.packs_before(sequences)
        for source, (given, used) in enumerate(zip(self._given, self.packs_used, strict=True)):
            self._numbers[self.sources == source] = np.arange(given, used, dtype=np.uint32)
            _check_epochs(sections[source], plans[source], used)
        # A run visits the epochs in order; two per source cover the change from one to the next.
        self._order = lru_cache(maxsize=2 * len(plans))(lambda source, epoch: self._plans[source].order(epoch))

    def __len__(self) -> int:
        return self._sequences

    def place(self, sequence: int) -> tuple[int, int]:
        """Source and pack of a sequence of the run, which the mixture must have begun with or before."""
        own = sequence - self._first
        if own < 0:
            raise IndexError(f"sequence {sequence} was of another mixture: this one begins at {self._first}")
        source = int(self.sources[own])
        epoch, index = divmod(int(self._numbers[own]), self._plans[source].num_packs)
        return source, int(self._order(source, epoch)[index])

    def packs_before(self, sequence: int) -> tuple[int, ...]:
        """Packs that each source has given before a sequence of the run, whatever the mixture was then."""
        counts = np.bincount(self.sources[: sequence - self._first], minlength=len(self._plans))
        return tuple(given + int(count) for given, count in zip(self._given, counts, strict=True))

    def tokens_used(self, source: int) -> int:
        """Tokens, padding excluded, that the whole run takes from a source."""
        return _tokens_of_first(self._plans[source], self.packs_used[source])


def endless_tokens(plan: PackingPlan, given: int = 0) -> Iterator[int]:
    """Tokens of a source's packs, epoch after epoch, behind the first ``given`` of them."""
    epoch, index = divmod(given, plan.num_packs)
    while True:
        yield from plan.tokens[plan.order(epoch)[index:]].tolist()
        epoch, index = epoch + 1, 0


def _exact(epochs: float) -> Fraction:
    """1.1 means eleven tenths, not the nearest binary fraction."""
    return Fraction(epochs).limit_denominator(10**6)


def _tokens_of_first(plan: PackingPlan, packs: int) -> int:
    epochs, rest = divmod(packs, plan.num_packs)
    return epochs * plan.epoch_tokens + int(plan.tokens[plan.order(epochs)[:rest]].sum(dtype=np.int64))


def _check_epochs(section: SourceSection, plan: PackingPlan, used: int) -> None:
    if section.max_epochs is None:
        return
    available = int(_exact(section.max_epochs) * plan.num_packs)
    if used <= available:
        return
    enough, needed = _tokens_of_first(plan, available), _tokens_of_first(plan, used)
    raise DataError(
        f"source {section.label!r} has {enough:,} tokens in max_epochs={section.max_epochs:g}; "
        f"the run needs {needed:,}.",
        f"One epoch has {plan.epoch_tokens:,} tokens, and weight={section.weight:g} of the run takes "
        f"{used / plan.num_packs:.2f} epochs of it.",
        "Raise max_epochs of this source, lower its weight, or lower the stage's tokens.",
    )
