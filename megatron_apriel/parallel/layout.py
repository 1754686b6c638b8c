"""Where a rank stands and what it holds: rank arithmetic as plain data, without torch and without process groups.

Ranks are numbered in megatron-core's default order ``tp-cp-ep-dp-pp`` (no experts here): tensor-parallel neighbours
have adjacent numbers, because they talk most and must share a node; then context, then data; pipeline stages are
farthest apart, because they talk least::

    rank = tensor + T * (context + C * (data + D * pipeline))

Decoder layers are dealt out to pipeline * virtual *virtual stages*. Virtual stage ``v`` is chunk ``v // pipeline`` of
pipeline rank ``v % pipeline``: with 8 layers, two pipeline ranks and two chunks, rank 0 holds layers 0-1 and 4-5. The
embedding, tower and projector stand on the first virtual stage, final norm and head on the last.

This file may know the configuration's parallel section and the errors, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, NamedTuple

from megatron_apriel.errors import ConfigError
from megatron_apriel.quantities import counted

if TYPE_CHECKING:
    from megatron_apriel.config.machine_sections import ParallelSection

_OFFERED = 8
"""Most numbers of replicas that a message offers."""
_MOST_TRIED = 10**6
"""Largest number that is tried as the smaller of two divisors."""


class Coordinates(NamedTuple):
    """A rank's place in each kind of parallelism."""

    tensor: int
    context: int
    data: int
    pipeline: int


def started_ranks(environment: Mapping[str, str], *names: str) -> int:
    """How many ranks a launcher says there are, by the first of the variables that is set; 1 where none is.

    ``torchrun`` sets ``WORLD_SIZE``, Slurm's ``srun`` ``SLURM_NTASKS``. Raises ConfigError for what is no number.
    """
    name = next((name for name in names if environment.get(name)), None)
    if name is None:
        return 1
    value = environment[name].strip()
    if not (value.isascii() and value.isdigit() and int(value)):
        raise ConfigError(
            f"the environment variable {name}={environment[name]!r} is no number of ranks.",
            "Launchers set it to a whole number above 0.",
            "Unset it, or start the run by torchrun or srun.",
        )
    return int(value)


def divisors(number: int) -> list[int]:
    """All divisors of a positive number in rising order; beyond 10^12, those up to a million and what they go with.

    Ranks and sequences are never so many: then it is a mistake, and its message need not wait for all of them.
    """
    small = [value for value in range(1, min(isqrt(number), _MOST_TRIED) + 1) if number % value == 0]
    return small + [number // value for value in reversed(small) if value * value != number]


@dataclass(frozen=True)
class Layout:
    """How ``world_size`` ranks share the work. Raises ConfigError where that cannot come out even.

    Attributes:
        world_size: ranks of the run.
        tensor, pipeline, context: ranks over which a layer, the stack of layers, and a sequence are split.
        virtual: model chunks per pipeline rank (interleaved schedule where above 1).
        sequence: whether activations between tensor-parallel regions are split along the sequence.
        layers_per_stage: decoder layers of each virtual stage in order, or None for an even split.
    """

    world_size: int = 1
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    context: int = 1
    sequence: bool = False
    layers_per_stage: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.world_size < 1 or self.world_size % self.model_ranks:
            above = -(-max(self.world_size, 1) // self.model_ranks) * self.model_ranks
            below = above - self.model_ranks
            choices = " or ".join(str(size) for size in (below, above) if size)
            raise ConfigError(
                f"{counted(self.world_size, 'rank')} cannot be divided into model replicas of"
                f" {counted(self.model_ranks, 'rank')}"
                f" (parallel.tensor={self.tensor} x parallel.context={self.context}"
                f" x parallel.pipeline={self.pipeline}).",
                "Every data-parallel rank is a whole replica of the model.",
                f"Start {choices} ranks, or choose sizes whose product is one of"
                f" {', '.join(map(str, divisors(max(self.world_size, 1))))}.",
            )
        if self.layers_per_stage is not None and len(self.layers_per_stage) != self.virtual_stages:
            raise ConfigError(
                f"parallel.layers_per_stage={list(self.layers_per_stage)} has"
                f" {counted(len(self.layers_per_stage), 'entry', 'entries')} for"
                f" {counted(self.virtual_stages, 'stage')}"
                f" (parallel.pipeline={self.pipeline} x parallel.virtual={self.virtual}).",
                "Each virtual pipeline stage needs its number of decoder layers, in order.",
                f"Give {self.virtual_stages} that sum to the layers, or set parallel.layers_per_stage=balanced.",
            )

    @classmethod
    def from_config(cls, parallel: ParallelSection, world_size: int) -> Layout:
        """The layout of a configuration's ``parallel`` section over ``world_size`` ranks.

        Raises ConfigError where it does not come out even, or where a balanced split has not been computed before.
        """
        if parallel.layers_per_stage == "balanced":
            raise ConfigError(
                "parallel.layers_per_stage=balanced is not resolved into numbers.",
                "They depend on the model's shapes.",
                "Set the list that a dry run prints, as in parallel.layers_per_stage=[13,12,12,11].",
            )
        return cls(
            world_size=world_size,
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            virtual=parallel.virtual,
            context=parallel.context,
            sequence=parallel.sequence,
            layers_per_stage=parallel.layers_per_stage,
        )

    @property
    def model_ranks(self) -> int:
        """Ranks of one replica of the model."""
        return self.tensor * self.context * self.pipeline

    @property
    def data(self) -> int:
        """Data-parallel ranks: replicas of the model, each with its own sequences."""
        return self.world_size // self.model_ranks

    @property
    def optimizer_shards(self) -> int:
        """Ranks over which the distributed optimizer splits its state: data x context, as in megatron-core."""
        return self.data * self.context

    @property
    def virtual_stages(self) -> int:
        return self.pipeline * self.virtual

    def coordinates(self, rank: int) -> Coordinates:
        """The place of a global rank."""
        self._check_rank(rank)
        rest, tensor = divmod(rank, self.tensor)
        rest, context = divmod(rest, self.context)
        pipeline, data = divmod(rest, self.data)
        return Coordinates(tensor=tensor, context=context, data=data, pipeline=pipeline)

    def rank_of(self, place: Coordinates) -> int:
        """The global rank at a place; inverse of :meth:`coordinates`."""
        return place.tensor + self.tensor * (place.context + self.context * (place.data + self.data * place.pipeline))

    def micro_batches(self, sequences_per_step: int) -> int:
        """Micro-batches (sequences) that each data-parallel rank runs per step.

        Raises ConfigError where the sequences do not divide over the data-parallel ranks, or where the interleaved
        schedule cannot take their number.
        """
        if sequences_per_step < 1 or sequences_per_step % self.data:
            possible = divisors(max(sequences_per_step, 1))
            # Large batches have many; those nearest to what was tried are of use.
            nearest = sorted(sorted(possible, key=lambda number: abs(number - self.data))[:_OFFERED])
            replicas = ", ".join(map(str, nearest)) + (" and others" if len(possible) > _OFFERED else "")
            raise ConfigError(
                f"{sequences_per_step} sequences per step (batch_tokens / sequence_length) do not divide over"
                f" {self.data} data-parallel ranks ({self.world_size} ranks / {self.model_ranks} per replica).",
                "Every replica runs the same number of sequences in a step.",
                f"Set batch_tokens to a multiple of sequence_length x {self.data}, or run with a number of replicas"
                f" out of {replicas}.",
            )
        count = sequences_per_step // self.data
        if self.virtual > 1 and count % self.pipeline:
            raise ConfigError(
                f"{count} micro-batches per step is not a multiple of parallel.pipeline={self.pipeline}"
                f" with parallel.virtual={self.virtual}.",
                "The interleaved schedule deals micro-batches out in rounds of one per pipeline rank.",
                f"Set batch_tokens to a multiple of sequence_length x {self.data * self.pipeline},"
                " or parallel.virtual=1.",
            )
        return count

    def layers_per_virtual_stage(self, num_layers: int) -> tuple[int, ...]:
        """Decoder layers of each virtual stage, in order; they sum to ``num_layers``. Raises ConfigError."""
        if self.layers_per_stage is not None:
            if sum(self.layers_per_stage) != num_layers or min(self.layers_per_stage) < 1:
                raise ConfigError(
                    f"parallel.layers_per_stage={list(self.layers_per_stage)} sums to {sum(self.layers_per_stage)}"
                    f" layers, the decoder has {num_layers}.",
                    "Every layer stands on exactly one stage, and no stage is empty.",
                    self._split_suggestion(num_layers),
                )
            return self.layers_per_stage
        if num_layers % self.virtual_stages:
            raise ConfigError(
                f"{num_layers} decoder layers do not divide over {self.virtual_stages} pipeline stages"
                f" (parallel.pipeline={self.pipeline} x parallel.virtual={self.virtual}).",
                "Without parallel.layers_per_stage every stage holds the same number of layers.",
                f"Choose pipeline x virtual out of {', '.join(map(str, divisors(num_layers)))}."
                f" {self._split_suggestion(num_layers)}",
            )
        return (num_layers // self.virtual_stages,) * self.virtual_stages

    def layers_of(self, num_layers: int, pipeline_rank: int, chunk: int = 0) -> range:
        """Global numbers of the decoder layers in a chunk of a pipeline rank.

        Args:
            num_layers: decoder layers of the whole model.
            pipeline_rank: the pipeline rank.
            chunk: which of its ``virtual`` model chunks.
        """
        if not (0 <= pipeline_rank < self.pipeline and 0 <= chunk < self.virtual):
            raise ValueError(f"no chunk {chunk} of pipeline rank {pipeline_rank} in {self}")
        counts = self.layers_per_virtual_stage(num_layers)
        stage = chunk * self.pipeline + pipeline_rank
        first = sum(counts[:stage])
        return range(first, first + counts[stage])

    def megatron_layer_layout(self, num_layers: int) -> list[list[str]] | None:
        """For megatron-core's ``pipeline_model_parallel_layout``; None where its own even split is meant."""
        if self.layers_per_stage is None or self.virtual_stages == 1:
            return None
        stages = [["decoder"] * count for count in self.layers_per_virtual_stage(num_layers)]
        stages[0].insert(0, "embedding")
        stages[-1].append("loss")
        return stages

    def holds_input(self, pipeline_rank: int, chunk: int = 0) -> bool:
        """Whether a chunk holds the embedding, tower and projector."""
        return pipeline_rank == 0 and chunk == 0

    def holds_output(self, pipeline_rank: int, chunk: int = 0) -> bool:
        """Whether a chunk holds the final norm and the head."""
        return pipeline_rank == self.pipeline - 1 and chunk == self.virtual - 1

    def _check_rank(self, rank: int) -> None:
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside 0 ... {self.world_size - 1}")

    def _split_suggestion(self, num_layers: int) -> str:
        """An explicit split as even as possible: first and last stage, which hold more than layers, get the fewest."""
        stages = self.virtual_stages
        if stages > num_layers:
            return f"At most {counted(num_layers, 'stage is', 'stages are')} possible."
        counts = [num_layers // stages] * stages
        inner_first = sorted(range(stages), key=lambda stage: (stage in (0, stages - 1), stage))
        for stage in inner_first[: num_layers % stages]:
            counts[stage] += 1
        explicit = str(counts).replace(" ", "")
        return (
            f"An explicit split: parallel.layers_per_stage={explicit}; parallel.layers_per_stage=balanced computes one."
        )
