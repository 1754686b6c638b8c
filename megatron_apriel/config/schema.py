"""The one schema of a stage: everything that a run does is said by one YAML file of this shape.

Unknown keys are errors. Checks that need only the configuration itself stand here, those that also need the model's
shapes or the number of ranks in ``parallel.checks``; neither imports torch, so a job is refused before it is queued.

The text under each field is its documentation: ``python -m megatron_apriel.config.reference`` prints it as the table
in ``docs/configuration.md``. Several findings about one section are raised together, one a line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from megatron_apriel.config.choices import (
    Attention,
    Balanced,
    Compute,
    ComputeType,
    Damaged,
    Decay,
    Fp8Recipe,
    ImageDevice,
    Kept,
    LongDocuments,
    LossOn,
    Recompute,
    Wandb,
    WithoutTargets,
)
from megatron_apriel.errors import listed, printable, shown
from megatron_apriel.quantities import (
    LARGEST,
    parse_bytes,
    parse_count,
    parse_fraction,
    parse_path,
    spelled,
)

MOST_EPOCHS = 10_000
"""Of a stage. Its sequences are laid out one by one before it starts."""
SMALLEST_WEIGHT = 1e-6
"""Of a source in a mixture: weights become fractions of whole numbers up to a million (``data/loading/mixture.py``)."""

COMPONENTS = ("tower", "projector", "decoder")
"""The parts that are trained or frozen as a whole; the decoder includes the embedding, final norm and head."""


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Settings by the names that they no longer have: what to write instead, as a sentence."""


def _number(value: Any) -> Any:
    """Refuse ``true`` where a number is meant; it would otherwise count as 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number")
    return value


Whole = Annotated[int, BeforeValidator(_number), Field(ge=-LARGEST, le=LARGEST)]
Number = Annotated[float, BeforeValidator(_number)]
Count = Annotated[int, BeforeValidator(parse_count)]
ByteCount = Annotated[int, BeforeValidator(parse_bytes)]
Fraction = Annotated[float, BeforeValidator(parse_fraction)]
PathValue = Annotated[Path, BeforeValidator(parse_path), PlainSerializer(spelled, return_type=str, when_used="json")]


def _raise_all(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise ValueError("\n".join(found))


def parse_factor(value: Any) -> float:
    """``frozen`` -> 0, otherwise the number. Raises ValueError."""
    if value == "frozen":
        return 0.0
    try:
        return float(_number(value))
    except (TypeError, ValueError):
        raise ValueError(f"{shown(value)} is neither 'frozen' nor a learning-rate factor such as 1.0") from None


Factor = Annotated[float, BeforeValidator(parse_factor), Field(ge=0)]
"""Learning-rate factor of a component; ``frozen`` (0) means no gradient, no optimizer state, no update."""


class TrainedParts(Section):
    """Which parts train, each with a factor on the learning rate; `frozen` (or 0): no gradient and no update."""

    tower: Factor = 0.0
    """Vision tower: patch embedding and transformer."""
    projector: Factor = 0.0
    """The two linear layers between tower and decoder."""
    decoder: Factor = 0.0
    """Text decoder with embedding, final norm and head."""

    @model_validator(mode="after")
    def _something_trains(self) -> TrainedParts:
        if not any((self.tower, self.projector, self.decoder)):
            raise ValueError("every part is frozen; give at least one of tower, projector, decoder a factor above 0")
        return self


class OptimizerSection(Section):
    """AdamW and the learning-rate schedule."""

    peak: Annotated[Number, Field(gt=0)]
    """Highest learning rate, reached at the end of the warm-up; times the part's factor."""
    minimum: Fraction = 0.1  # assumption: the recipe does not state it
    """Last learning rate, as a fraction of `peak`."""
    warmup: Fraction = 0.1
    """Fraction of the stage's steps over which the rate rises linearly."""
    decay: Decay = "cosine"
    """Shape of the way from `peak` to `minimum`; `constant` stays at `peak`."""
    betas: tuple[Annotated[Number, Field(ge=0, lt=1)], Annotated[Number, Field(ge=0, lt=1)]] = (0.9, 0.95)  # assumption
    """AdamW's decay of the first and second moment."""
    eps: Annotated[Number, Field(gt=0)] = 1e-8  # assumption
    """AdamW's epsilon."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.1  # assumption
    """Decoupled weight decay; none on norms and biases."""
    clip: Annotated[Number, Field(gt=0)] = 1.0  # assumption
    """Largest norm of the whole gradient; a longer one is scaled down to it."""


class SourceSection(Section):
    """One source of a mixture: a prepared corpus and its share of the tokens."""

    corpus: PathValue
    """Directory that `tools/prepare_data.py` wrote."""
    weight: Fraction = 1.0
    """Share of the stage's tokens; the weights of a mixture sum to 100%, and 0 leaves the source out. Where no source
    has one, all have the same."""
    loss: LossOn = "all"
    """Which tokens are targets: every text token, or those of responses. Image tokens never are."""
    name: str = ""
    """How the source is called in logs; the corpus directory's name where empty."""
    long_documents: LongDocuments = "error"
    """What happens to a document longer than the sequence."""
    without_targets: WithoutTargets = "error"
    """What happens to a document that has no target, or none that is left where it was cut."""
    max_epochs: Annotated[Number, Field(gt=0)] | None = None
    """Most passes over the corpus; more would be an error. `null`: as many as its share of the tokens needs."""

    renamed: ClassVar[Mapping[str, str]] = {
        "epochs": "A source has max_epochs, a bound: a run that would need more is refused. A stage has epochs."
    }

    @property
    def label(self) -> str:
        return self.name or Path(spelled(self.corpus)).name or spelled(self.corpus)


def _unique_labels(sources: list[SourceSection]) -> list[SourceSection]:
    labels = Counter(source.label for source in sources)
    twice = sorted(label for label, count in labels.items() if count > 1)
    _raise_all(f"two sources are called {shown(label)}; give each its own name" for label in twice)
    return sources


class ImagesSection(Section):
    """How images are decoded and resized; must agree with the tower that reads them."""

    device: ImageDevice = "auto"
    """Where DALI decodes; `auto`: on the GPU where there is one."""
    threads: Annotated[Whole, Field(ge=1, le=1024)] = 4
    """Decoding threads of each rank."""
    required: bool = True
    """Tower and projector train only on a mixture with images; `false`: on any, where weight decay may be all."""
    damaged: Damaged = "error"
    """A damaged image ends the run, or its patches are left grey and the event is counted and logged."""
    max_pixels: Annotated[Whole, Field(ge=1)] = 100_000_000
    """Largest image that is decoded, height x width of the stored file; `--max-pixels` of `tools/prepare_data.py`."""


def _split(value: Any) -> Any:
    if value == "balanced" or isinstance(value, list | tuple):
        return value
    raise ValueError(f"{shown(value)} is neither 'balanced' nor a list such as [13,12,12,11]; null is an even split")


# The tags are written in brackets so that findings are placed at the setting and not at a member of the union.
LayersPerStage = Annotated[
    Annotated[Balanced, Tag("(word)")] | Annotated[tuple[Annotated[Whole, Field(ge=1)], ...], Tag("(list)")],
    Discriminator(lambda value: "(word)" if isinstance(value, str) else "(list)"),
    BeforeValidator(_split),
]
"""Decoder layers of each virtual pipeline stage, or the word that asks to compute them."""


class ParallelSection(Section):
    """How the work is laid out over ranks; data parallelism takes what the others leave."""

    tensor: Annotated[Whole, Field(ge=1)] = 1
    """Ranks over which every decoder layer is split."""
    sequence: bool = False
    """Split the activations between tensor-parallel regions along the sequence."""
    pipeline: Annotated[Whole, Field(ge=1)] = 1
    """Ranks over which the stack of decoder layers is split."""
    virtual: Annotated[Whole, Field(ge=1)] = 1
    """Model chunks per pipeline rank (interleaved schedule) where above 1."""
    layers_per_stage: LayersPerStage | None = None
    """Decoder layers of each of the pipeline x virtual stages in order; `null`: as many on each; `balanced`: computed,
    with fewer layers beside the tower and the head. A dry run prints the numbers."""
    context: Annotated[Whole, Field(ge=1)] = 1
    """Ranks over which the tokens of a sequence are divided."""
    overlap: bool = True
    """Overlap gradient reduction and parameter gathering with computation."""

    @model_validator(mode="after")
    def _consistent(self) -> ParallelSection:
        problems = []
        if self.virtual > 1 and self.pipeline == 1:
            problems.append(
                f"virtual={self.virtual} needs pipeline above 1; model chunks interleave over pipeline ranks"
            )
        if self.sequence and self.tensor == 1:
            problems.append("sequence=true needs tensor above 1; set sequence=false, or split the layers over ranks")
        _raise_all(problems)
        return self


class PrecisionSection(Section):
    """Numbers that the model computes in."""

    compute: Compute = "auto"
    """Type of weights and activations; `auto`: bf16 on a GPU, fp32 on a CPU, where bf16 can take many times as long.
    Main gradients and optimizer state are fp32 in any case."""
    fp8: Fp8Recipe = "none"
    """Scaling recipe for the decoder's matrix products in 8 bits (Transformer Engine; Hopper or newer)."""
    bf16_layers_at_start: Annotated[Whole, Field(ge=0)] = 0
    """With fp8: so many first decoder layers stay in bf16."""
    bf16_layers_at_end: Annotated[Whole, Field(ge=0)] = 0
    """With fp8: so many last decoder layers stay in bf16."""

    @model_validator(mode="after")
    def _consistent(self) -> PrecisionSection:
        problems = []
        if self.fp8 != "none" and self.compute == "fp32":
            problems.append(
                f"fp8={self.fp8} needs compute=bf16, not {self.compute}; what is not in 8 bits runs in bf16"
            )
        if self.fp8 == "delayed" and (self.bf16_layers_at_start or self.bf16_layers_at_end):
            problems.append(
                f"fp8=delayed cannot keep layers in bf16 (bf16_layers_at_start={self.bf16_layers_at_start},"
                f" bf16_layers_at_end={self.bf16_layers_at_end}): it is one context around all layers; set both to 0,"
                " or fp8=tensorwise or blockwise"
            )
        _raise_all(problems)
        return self

    def compute_on(self, gpu: bool) -> ComputeType:
        """The type that ``compute`` means on a GPU, or on a CPU."""
        if self.compute != "auto":
            return self.compute
        return "bf16" if gpu else "fp32"

    def in_8_bits(self, layer: int, num_layers: int) -> bool:
        """Whether a decoder layer, counted from 0, runs in 8 bits."""
        kept_at_end = layer >= num_layers - self.bf16_layers_at_end
        return self.fp8 != "none" and layer >= self.bf16_layers_at_start and not kept_at_end


class RecomputeSection(Section):
    """Activations computed again in the backward pass instead of kept."""

    mode: Recompute = "none"
    """`selective`: the MLPs, whose activations are the widest; `full`: whole layers, tower included."""
    layers: Annotated[Whole, Field(ge=1)] | None = None
    """With `full`: how many layers of each pipeline chunk; `null`: all."""

    @model_validator(mode="after")
    def _consistent(self) -> RecomputeSection:
        if self.layers is not None and self.mode != "full":
            raise ValueError(
                f"layers={self.layers} has no meaning with mode={self.mode}; set mode=full, or layers=null"
            )
        return self


_POLICY = re.compile(r"all|(last|equispaced) ([0-9]{1,9})")


def _keep(value: Any) -> Any:
    if isinstance(value, str):
        match = _POLICY.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{shown(value)} is no policy; write 'all', 'last 3' or 'equispaced 6'")
        return {"policy": match[1] or "all", "number": int(match[2] or 0)}
    if not isinstance(value, dict | KeepPolicy):
        raise ValueError(f"{shown(value)} is no policy; write 'all', 'last 3' or 'equispaced 6'")
    return value


class KeepPolicy(Section):
    """Which checkpoints stay on disk, besides the newest: all, the last N, or N equally spaced over the run."""

    policy: Kept
    """`all`, `last` or `equispaced`."""
    number: Annotated[Whole, Field(ge=0, le=10_000)] = 0
    """How many, for `last` and `equispaced`."""

    @model_validator(mode="after")
    def _number_given(self) -> KeepPolicy:
        if self.policy != "all" and self.number < 1:
            raise ValueError(f"'{self.policy}' needs a number above 0, as in '{self.policy} 3'")
        return self

    @model_serializer
    def _as_written(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return self.policy if self.policy == "all" else f"{self.policy} {self.number}"


class CheckpointSection(Section):
    """Saving of the training state and of the stage's result."""

    every: Annotated[Whole, Field(ge=1)] = 500
    """Steps between two saves; the last step is always saved."""
    keep: Annotated[KeepPolicy, BeforeValidator(_keep)] = KeepPolicy(policy="last", number=2)
    """Which checkpoints stay besides the newest: `all`, `last 3`, or `equispaced 6` over the whole run."""
    background: bool = False
    """Continue training while a checkpoint is written: wait only for its copy to host memory."""
    export: bool = True
    """Write the last step as a Hugging Face directory, ``OUTPUT/final``."""
    max_shard_size: Annotated[ByteCount, Field(ge=1)] = 5 * 10**9
    """Largest safetensors file of an export."""


class ValidationSection(Section):
    """Loss on held-out data, at the start, every so many steps, and at the end."""

    corpora: Annotated[list[SourceSection], Field(min_length=1)]
    """Held-out corpora, each with the settings of a source of the mixture; weights are not used."""
    every: Annotated[Whole, Field(ge=1)] = 500
    """Steps between two validations."""
    sequences: Annotated[Whole, Field(ge=1)] = 64
    """Sequences of each corpus, the same ones every time."""

    _labels = field_validator("corpora")(_unique_labels)


class SamplePrompt(Section):
    """Something to say to the model: a text, or a text and an image."""

    text: Annotated[str, Field(min_length=1, max_length=10_000)]
    """What the model is asked, or a text that it continues."""
    image: PathValue | None = None
    """File of an image that stands before the text."""


def _prompt(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


class SamplesSection(Section):
    """What the model says to fixed prompts, its likeliest token each time, every so many steps and at the end."""

    prompts: Annotated[list[Annotated[SamplePrompt, BeforeValidator(_prompt)]], Field(min_length=1, max_length=32)]
    """Texts, or sections with `text` and `image`."""
    every: Annotated[Whole, Field(ge=1)] = 500
    """Steps between two times."""
    max_tokens: Annotated[Whole, Field(ge=1, le=4096)] = 64
    """Longest answer. Each token of it takes a forward pass over prompt and answer."""
    chat: bool = True
    """A prompt is a user's turn, answered by the assistant; `false`: a plain text, continued."""


class LoggingSection(Section):
    """Where figures go, besides the console and ``OUTPUT/metrics.jsonl``."""

    every: Annotated[Whole, Field(ge=1)] = 1
    """Steps between two records."""
    tensorboard: bool = True
    """Write TensorBoard files to ``OUTPUT/tensorboard``."""
    wandb: Wandb = "off"
    """Weights & Biases; `offline` writes below the output directory and needs no network."""
    wandb_project: str = "megatron_apriel"
    """Weights & Biases project."""


class FaultSection(Section):
    """What happens when a step goes wrong, or the machine is about to be taken away."""

    max_skipped_in_a_row: Annotated[Whole, Field(ge=1)] = 5
    """Steps with a non-finite loss or gradient that are skipped before the run ends."""
    save_before_end_of_job_s: Annotated[Whole, Field(ge=0)] = 300
    """Seconds before Slurm's time limit at which the run saves and asks to be requeued."""


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
    logging: LoggingSection = LoggingSection()
    """Logging."""
    faults: FaultSection = FaultSection()
    """Faults and the end of a job."""
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] = 1234
    """Seed of the order of the data and of whatever else is drawn."""

    _labels = field_validator("mixture")(_unique_labels)

    @field_validator("mixture")
    @classmethod
    def _shared(cls, value: list[SourceSection]) -> list[SourceSection]:
        """A source of weight 0 is no part of the run: its corpus need not even be there. Others may share evenly."""
        used = [source for source in value if source.weight]
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
        if self.samples is not None and self.precision.fp8 == "delayed":
            problems.append(
                "samples need another precision.fp8 than delayed: its scales follow all passes, and those of samples"
                " would change what is trained; set samples=null, or fp8=tensorwise or blockwise"
            )
        if self.batch_tokens % self.sequence_length:
            below = self.batch_tokens // self.sequence_length * self.sequence_length
            choices = [size for size in (below, below + self.sequence_length) if size]
            problems.append(
                f"batch_tokens={self.batch_tokens} is not a multiple of sequence_length={self.sequence_length}; "
                f"nearest: {' or '.join(map(str, choices))}"
            )
        _raise_all(problems)
        return self

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
    def trained_components(self) -> tuple[str, ...]:
        """Names of the components that train."""
        return tuple(name for name in COMPONENTS if getattr(self.train, name) > 0)
