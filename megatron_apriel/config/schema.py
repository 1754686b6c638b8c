"""The one schema of a stage: everything that a run does is said by one YAML file of this shape.

Unknown keys are errors. Checks that need only the configuration itself stand here, those that also need the model's
shapes or the number of ranks in ``config.checks``; neither imports torch, so a job is refused before it is queued.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from megatron_apriel.config.quantities import ByteCount, Count, Fraction

COMPONENTS = ("tower", "projector", "decoder")
"""The parts that are trained or frozen as a whole; the decoder includes the embedding, final norm and head."""


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _factor(value: Any) -> float:
    if value == "frozen":
        return 0.0
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is neither 'frozen' nor a learning-rate factor such as 1.0") from None


Factor = Annotated[float, BeforeValidator(_factor), Field(ge=0)]
"""Learning-rate factor of a component; ``frozen`` (0) means no gradient, no optimizer state, no update."""


class TrainedParts(Section):
    """Which parts train, each with a factor on the learning rate."""

    tower: Factor = 0.0
    projector: Factor = 0.0
    decoder: Factor = 0.0

    @model_validator(mode="after")
    def _something_trains(self) -> TrainedParts:
        if not any((self.tower, self.projector, self.decoder)):
            raise ValueError("every part is frozen; give at least one of tower, projector, decoder a factor above 0")
        return self


class OptimizerSection(Section):
    """AdamW and the learning-rate schedule. Warm-up is a fraction of the stage's steps."""

    peak: Annotated[float, Field(gt=0)]
    minimum: Fraction = 0.1  # assumption: the recipe does not state it; as a fraction of peak
    warmup: Fraction = 0.1
    decay: Literal["linear", "cosine", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)  # assumption
    eps: float = 1e-8  # assumption
    weight_decay: float = 0.1  # assumption; none on norms and biases
    clip: Annotated[float, Field(gt=0)] = 1.0  # assumption


class SourceSection(Section):
    """One source of a mixture: a prepared corpus and its share of the tokens."""

    corpus: Path
    weight: Fraction = 1.0
    loss: Literal["all", "responses"] = "all"
    name: str = ""
    """How the source is called in logs; the corpus directory's name where empty."""
    long_documents: Literal["split", "truncate", "drop", "error"] = "error"
    """What happens to a document longer than the sequence."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Most passes over the corpus; more would be an error. None: as many as its share of the tokens needs."""

    @property
    def label(self) -> str:
        return self.name or self.corpus.name


def _unique_labels(sources: list[SourceSection]) -> list[SourceSection]:
    labels = [source.label for source in sources]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"two sources are called {label!r}; give each its own name")
    return sources


class ImagesSection(Section):
    """How images are decoded and resized; must agree with the tower that reads them."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    threads: Annotated[int, Field(ge=1)] = 4
    damaged: Literal["error", "skip"] = "error"
    """A damaged image ends the run, or its patches are left grey and the event is counted and logged."""


class ParallelSection(Section):
    """How the work is laid out over ranks; data parallelism takes what the others leave."""

    tensor: Annotated[int, Field(ge=1)] = 1
    sequence: bool = False
    pipeline: Annotated[int, Field(ge=1)] = 1
    virtual: Annotated[int, Field(ge=1)] = 1
    """Model chunks per pipeline rank (interleaved schedule) where above 1."""
    layers_per_stage: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Decoder layers of each of the pipeline x virtual stages in order; None: as many on each."""
    context: Annotated[int, Field(ge=1)] = 1
    overlap: bool = True
    """Overlap gradient reduction and parameter gathering with computation."""


class PrecisionSection(Section):
    """Numbers that the model computes in."""

    compute: Literal["bf16", "fp32"] = "bf16"
    fp8: Literal["none", "delayed", "tensorwise", "blockwise"] = "none"
    bf16_layers_at_start: Annotated[int, Field(ge=0)] = 0
    bf16_layers_at_end: Annotated[int, Field(ge=0)] = 0


class RecomputeSection(Section):
    """Activations computed again in the backward pass instead of kept."""

    mode: Literal["none", "selective", "full"] = "none"
    layers: Annotated[int, Field(ge=1)] | None = None
    """With ``full``: how many layers of each pipeline chunk; None means all."""


def _keep(value: Any) -> Any:
    if isinstance(value, str):
        kind, _, number = value.partition(" ")
        if kind not in ("all", "last", "equispaced") or (kind != "all") != number.isdigit():
            raise ValueError(f"{value!r} is no policy; write 'all', 'last 3' or 'equispaced 6'")
        return {"policy": kind, "number": int(number or 0)}
    return value


class KeepPolicy(Section):
    """Which checkpoints stay on disk, besides the newest: all, the last N, or N equally spaced over the run."""

    policy: Literal["all", "last", "equispaced"]
    number: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _number_given(self) -> KeepPolicy:
        if self.policy != "all" and self.number < 1:
            raise ValueError(f"'{self.policy}' needs a number above 0, as in '{self.policy} 3'")
        return self

    def __str__(self) -> str:
        return self.policy if self.policy == "all" else f"{self.policy} {self.number}"


class CheckpointSection(Section):
    """Saving of the training state and of the stage's result."""

    every: Annotated[int, Field(ge=1)] = 500
    keep: Annotated[KeepPolicy, BeforeValidator(_keep)] = KeepPolicy(policy="last", number=2)
    export: bool = True
    """Write the last step as a Hugging Face directory, ``OUTPUT/final``."""
    max_shard_size: ByteCount = 5 * 10**9


class ValidationSection(Section):
    """Loss on held-out data, at the start, every so many steps, and at the end."""

    corpora: Annotated[list[SourceSection], Field(min_length=1)]
    every: Annotated[int, Field(ge=1)] = 500
    sequences: Annotated[int, Field(ge=1)] = 64
    """Sequences of each corpus, the same ones every time."""

    _labels = field_validator("corpora")(_unique_labels)


class LoggingSection(Section):
    """Where figures go, besides the console and ``OUTPUT/metrics.jsonl``."""

    every: Annotated[int, Field(ge=1)] = 1
    tensorboard: bool = True
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "megatron_apriel"


class FaultSection(Section):
    """What happens when a step goes wrong, or the machine is about to be taken away."""

    max_skipped_in_a_row: Annotated[int, Field(ge=1)] = 5
    """Steps with a non-finite loss or gradient that are skipped before the run ends."""
    save_before_end_of_job_s: Annotated[int, Field(ge=0)] = 300
    """Seconds before Slurm's time limit at which the run saves and asks to be requeued."""


class StageConfig(Section):
    """Everything about one stage."""

    stage: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    init_from: Path
    """Any Hugging Face directory, a directory in Mistral's own form, or a run's checkpoint (weights only)."""
    output: Path
    train: TrainedParts
    sequence_length: Count
    batch_tokens: Count
    """Tokens per optimizer step over all ranks; a multiple of sequence_length x data-parallel ranks."""
    tokens: Count
    """Tokens of the whole stage; rounded up to whole steps."""
    mixture: Annotated[list[SourceSection], Field(min_length=1)]
    optimizer: OptimizerSection
    images: ImagesSection = ImagesSection()
    parallel: ParallelSection = ParallelSection()
    precision: PrecisionSection = PrecisionSection()
    recompute: RecomputeSection = RecomputeSection()
    checkpoint: CheckpointSection = CheckpointSection()
    validation: ValidationSection | None = None
    logging: LoggingSection = LoggingSection()
    faults: FaultSection = FaultSection()
    seed: int = 1234

    _labels = field_validator("mixture")(_unique_labels)

    @field_validator("sequence_length", "batch_tokens", "tokens")
    @classmethod
    def _above_zero(cls, value: int) -> int:
        if value < 1:
            raise ValueError("must be at least 1")
        return value

    @model_validator(mode="after")
    def _adds_up(self) -> StageConfig:
        total = sum(source.weight for source in self.mixture)
        if abs(total - 1) > 1e-6:
            shares = ", ".join(f"{source.label} {source.weight:.4%}" for source in self.mixture)
            raise ValueError(f"the mixture's weights sum to {total:.4%}, not 100% ({shares})")
        if self.batch_tokens % self.sequence_length:
            below = self.batch_tokens // self.sequence_length * self.sequence_length
            choices = [size for size in (below, below + self.sequence_length) if size]
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is not a multiple of sequence_length={self.sequence_length}; "
                f"nearest: {' or '.join(map(str, choices))}"
            )
        if self.parallel.virtual > 1 and self.parallel.pipeline == 1:
            raise ValueError(f"parallel.virtual={self.parallel.virtual} needs parallel.pipeline above 1")
        return self

    @property
    def sequences_per_step(self) -> int:
        return self.batch_tokens // self.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage: enough to reach ``tokens``."""
        return -(-self.tokens // self.batch_tokens)

    @property
    def trained_components(self) -> tuple[str, ...]:
        """Names of the components that train."""
        return tuple(name for name in COMPONENTS if getattr(self.train, name) > 0)
