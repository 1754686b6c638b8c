"""The one schema of a stage: everything that a run does is said by one YAML file of this shape.

Its sections stand beside it: ``training_sections``, ``data_sections``, ``machine_sections``, ``output_sections``.
Unknown keys are errors. Checks that need only the configuration itself stand here and there, those that also need the
model's shapes or the number of ranks in ``parallel.checks``; neither imports torch, so a job is refused before it is
queued.

The text under each field is its documentation: ``python -m megatron_apriel.config.reference`` prints it as the table
in ``docs/configuration.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator, model_validator

from megatron_apriel.config.choices import Attention
from megatron_apriel.config.data_sections import SMALLEST_WEIGHT, ImagesSection, SourceSection, unique_labels
from megatron_apriel.config.machine_sections import ParallelSection, PrecisionSection, RecomputeSection
from megatron_apriel.config.output_sections import (
    CheckpointSection,
    EvaluateSection,
    FaultSection,
    LoggingSection,
    SamplesSection,
    ValidationSection,
)
from megatron_apriel.config.section import Count, Number, PathValue, Section, Whole, raise_all
from megatron_apriel.config.training_sections import COMPONENTS, OptimizerSection, TrainedParts
from megatron_apriel.errors import listed, printable

MOST_EPOCHS = 10_000
"""Of a stage. Its sequences are laid out one by one before it starts."""
MOST_SEQUENCES = 2**32
"""Of a stage, which numbers them in 32 bits; each takes six bytes of every rank's memory."""


class StageConfig(Section):
    """Everything about one stage."""

    stage: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    """Name of the stage in logs: letters, digits, `_`, `.`, `-`."""
    init_from: PathValue
    """Any Hugging Face directory, a directory in Mistral's own form, or a run's checkpoint (weights only)."""
    output: PathValue
    """Directory of this run: checkpoints, logs, result. The same command again resumes from its newest checkpoint."""
    train: TrainedParts
    """Which parts train."""
    sequence_length: Count
    """Tokens of one packed sequence, which is one micro-batch."""
    batch_tokens: Count
    """Tokens per optimizer step over all ranks; a multiple of sequence_length x data-parallel ranks."""
    tokens: Count | None = None
    """Tokens of the whole stage, padding included; rounded up to whole steps. Either these or `epochs` are given."""
    epochs: Annotated[Number, Field(gt=0, le=MOST_EPOCHS)] | None = Field(default=None, validate_default=True)
    """Instead of `tokens`: the stage ends when one source of the mixture, the one that its weight uses up first, has
    been gone through so many times; rounded up to whole steps."""
    mixture: Annotated[list[SourceSection], Field(min_length=1)]
    """Sources of the training data."""
    optimizer: OptimizerSection
    """Optimizer and schedule."""
    images: ImagesSection = ImagesSection()
    """Image decoding."""
    parallel: ParallelSection = ParallelSection()
    """Parallel layout."""
    precision: PrecisionSection = PrecisionSection()
    """Number formats."""
    attention: Attention = "auto"
    """Attention's kernels on a GPU: FlashAttention-4, or cuDNN through Transformer Engine; `auto`: the first on Hopper
    GPUs where `flash-attn-4` is installed."""
    recompute: RecomputeSection = RecomputeSection()
    """Recomputed activations."""
    checkpoint: CheckpointSection = CheckpointSection()
    """Saving."""
    validation: ValidationSection | None = None
    """Held-out loss; `null`: not measured."""
    samples: SamplesSection | None = None
    """Generations of fixed prompts; `null`: none."""
    evaluate: EvaluateSection | None = None
    """Benchmarks of its checkpoints; `null`: none."""
    logging: LoggingSection = LoggingSection()
    """Logging."""
    faults: FaultSection = FaultSection()
    """Faults and the end of a job."""
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 1234
    """Seed of the order of the data and of whatever else is drawn."""

    _labels = field_validator("mixture")(unique_labels)

    @field_validator("mixture")
    @classmethod
    def _shared(cls, value: list[SourceSection]) -> list[SourceSection]:
        """A source of weight 0 is no part of the run: its corpus need not even be there. Others may share evenly."""
        used = [source for source in value if source.weight]
        if not used:
            raise ValueError("every source has weight 0, which leaves it out; give one of them another, or none to any")
        without = [source for source in used if "weight" not in source.model_fields_set]
        if len(without) == len(used):
            return [source.model_copy(update={"weight": 1 / len(used)}) for source in used]
        if without:
            rest = 1 - sum(source.weight for source in used if source not in without)
            names = f"{listed((source.label for source in without), 20)} {'have' if len(without) > 1 else 'has'}"
            advice = (
                f"write {'each ' * (len(without) > 1)}weight: {rest / len(without):.8g} for what the others leave"
                if rest >= SMALLEST_WEIGHT * len(without)
                else "the others leave nothing for it: lower theirs"
            )
            raise ValueError(f"{names} no weight, and other sources have one; {advice}, or give none to any")
        return used

    @field_validator("sequence_length", "batch_tokens", "tokens")
    @classmethod
    def _above_zero(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("epochs")
    @classmethod
    def _one_length(cls, value: float | None, info: ValidationInfo) -> float | None:
        tokens = info.data.get("tokens", "wrong, and found already")
        if value is None and tokens is None:
            raise ValueError("neither tokens nor epochs is given; write how long the stage is, as tokens: 1B")
        if value is not None and isinstance(tokens, int):
            raise ValueError(
                f"tokens={tokens} and epochs={value:g} cannot both say how long the stage is; set one null"
            )
        return value

    @model_validator(mode="after")
    def _adds_up(self) -> StageConfig:
        problems = []
        total = sum(source.weight for source in self.mixture)
        if abs(total - 1) > 1e-6:
            shares = listed((f"{printable(source.label)} {source.weight:.4%}" for source in self.mixture), 20)
            problems.append(f"the mixture's weights sum to {total:.4%}, not 100% ({shares})")
        problems += [
            f"the weight of {printable(source.label)}, {source.weight:g}, cannot be distinguished from 0; give at least"
            f" {SMALLEST_WEIGHT:g}, or 0 to leave the source out"
            for source in self.mixture
            if 0 < source.weight < SMALLEST_WEIGHT
        ]
        if self.attention == "flash" and self.precision.compute == "fp32":
            problems.append(
                f"attention=flash needs precision.compute=bf16, not {self.precision.compute}; set attention=auto"
            )
        if self.optimizer.host != 0 and self.checkpoint.background:
            problems.append(
                f"checkpoint.background=true needs optimizer.host=0, not {self.optimizer.host}: there is no host memory"
                " for a copy of what lies on the host already; set checkpoint.background=false, and states are written"
                " piece by piece"
            )
        if self.precision.compute == "fp32":
            problems += [
                f"optimizer.{name}=24bit needs precision.compute=bf16, not fp32: 24 bits are a bf16 number and eight"
                f" bits more; set optimizer.{name}=float32"
                for name in self.kept_in_24_bits
            ]
        every = self.evaluate.every if self.evaluate is not None else None
        if every is not None and every % self.checkpoint.every:
            below = every // self.checkpoint.every * self.checkpoint.every
            choices = [number for number in (below, below + self.checkpoint.every) if number]
            problems.append(
                f"evaluate.every={every} is not a multiple of checkpoint.every={self.checkpoint.every}, and what is"
                f" evaluated are checkpoints; nearest: {' or '.join(map(str, choices))}"
            )
        if self.samples is not None and self.precision.fp8 == "delayed":
            problems.append(
                "samples need another precision.fp8 than delayed: its scales follow all passes, and those of samples"
                " would change what is trained; set samples=null, or fp8=tensorwise or blockwise"
            )
        problems += self._against_user_buffers()
        if self.batch_tokens % self.sequence_length:
            below = self.batch_tokens // self.sequence_length * self.sequence_length
            choices = [size for size in (below, below + self.sequence_length) if size]
            problems.append(
                f"batch_tokens={self.batch_tokens} is not a multiple of sequence_length={self.sequence_length}; "
                f"nearest: {' or '.join(map(str, choices))}"
            )
        elif self.tokens is not None and (number := self.steps * self.sequences_per_step) > MOST_SEQUENCES:
            problems.append(
                f"tokens={self.tokens} are {number:,} sequences of {self.sequence_length}, and a stage has at most"
                f" {MOST_SEQUENCES:,}; give at most {MOST_SEQUENCES * self.sequence_length} tokens, or longer sequences"
            )
        raise_all(problems)
        return self

    def _against_user_buffers(self) -> Iterator[str]:
        """What does not go with ``parallel.tensor_overlap``, whose buffers are of one size and of one kind."""
        if not self.parallel.tensor_overlap:
            return
        precision = self.precision
        if precision.fp8 == "blockwise":
            yield (
                "parallel.tensor_overlap=true cannot gather numbers of fp8=blockwise, which have a scale for each"
                " block; set it to false, or fp8=tensorwise or delayed"
            )
        if precision.bf16_layers_at_start or precision.bf16_layers_at_end:
            yield (
                "parallel.tensor_overlap=true gathers all layers' numbers in 8 bits or none; set it to false, or"
                " bf16_layers_at_start and bf16_layers_at_end to 0"
            )
        if self.samples is not None:
            yield (
                "parallel.tensor_overlap=true has buffers for whole sequences, and samples are shorter; set it to"
                " false, or samples=null"
            )

    @property
    def sequences_per_step(self) -> int:
        return self.batch_tokens // self.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage: enough to reach ``tokens``, which must be known."""
        assert self.tokens is not None, "epochs are not counted yet: data.loading.stage_data"
        return -(-self.tokens // self.batch_tokens)

    def lasting(self, tokens: int) -> StageConfig:
        """The stage with its ``epochs`` counted: so many tokens."""
        return self.model_copy(update={"tokens": tokens})

    def with_compute_on(self, gpu: bool) -> StageConfig:
        """The stage with ``precision.compute`` named, for a GPU or a CPU."""
        compute = self.precision.compute_on(gpu)
        return self.model_copy(update={"precision": self.precision.model_copy(update={"compute": compute})})

    @property
    def kept_in_24_bits(self) -> tuple[str, ...]:
        """Those of ``optimizer.master`` and ``optimizer.gradients`` that need weights in bf16."""
        return tuple(name for name in ("master", "gradients") if getattr(self.optimizer, name) == "24bit")

    @property
    def trained_components(self) -> tuple[str, ...]:
        """Names of the components that train."""
        return tuple(name for name in COMPONENTS if getattr(self.train, name) > 0)
