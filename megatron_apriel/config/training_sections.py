"""What a stage trains and how fast: its parts, the optimizer and the schedule."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from megatron_apriel.config.choices import Automatic, Decay, Moments, Wide
from megatron_apriel.config.section import ByteCount, Fraction, Number, Section, not_a_flag
from megatron_apriel.errors import shown
from megatron_apriel.quantities import parse_fraction

COMPONENTS = ("tower", "projector", "decoder")
"""The parts that are trained or frozen as a whole; the decoder includes the embedding, final norm and head."""


def parse_factor(value: Any) -> float:
    """``frozen`` -> 0, otherwise the number. Raises ValueError."""
    if value == "frozen":
        return 0.0
    try:
        return float(not_a_flag(value))
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


def parse_host_share(value: Any) -> float | str:
    """``auto``, or a fraction as :func:`~megatron_apriel.quantities.parse_fraction` reads it. Raises ValueError."""
    if value == "auto":
        return "auto"
    try:
        return parse_fraction(value)
    except ValueError as error:
        raise ValueError(f"{error}; or auto, for as much as does not fit on the GPU") from None


# The tags are written in brackets so that findings are placed at the setting and not at a member of the union.
HostShare = Annotated[
    Annotated[Automatic, Tag("(word)")] | Annotated[float, Tag("(number)")],
    Discriminator(lambda value: "(word)" if value == "auto" else "(number)"),
    BeforeValidator(parse_host_share),
]
"""Part of the optimizer's states that lies in host memory, or the word that asks to choose it."""


LARGEST_BETA = 0.99
"""Of moments narrower than float32. With it an update brings a moment 1% of the way to the gradient; bfloat16 cannot
show changes of a number by less than 0.2 to 0.4%."""
SMALLEST_EPS = 1e-18
"""In float32 a number's square is 0 where the number is below it, and an epsilon of 1e-46 is itself 0."""
SMALLEST_EPS_IN_8_BITS = 1e-12
"""Of moments in 8 bits."""


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
    moments: Moments | Automatic = "float32"
    """Form of both moments: `bfloat16` takes 2 bytes less a moment and `int8` 3; docs/one_gpu.md says at what cost.
    `auto`: the first of the three with which the run fits, chosen once, when it begins."""
    master: Wide = "float32"
    """Masters of bf16 weights: whole, or in `24bit`, which is one byte less, rounded by chance; vectors stay whole."""
    gradients: Wide = "float32"
    """Sums of a step's gradients; in `24bit`, matrices of decoder layers have them in 3 bytes instead of 4."""
    host: HostShare = 0.0
    """Part of the optimizer's states that lies in host memory, as 60%; `auto`: as much as does not fit on the GPU. An
    update brings them to the GPU and back, up to 10 bytes a parameter each way, and its numbers are the same."""
    host_memory: ByteCount | None = None
    """Most host memory for them on each machine, and for inputs of layers that wait there (`recompute.inputs`) or the
    copy of `checkpoint.background`; `null`: what machine and control group have free, less a tenth."""

    @model_validator(mode="after")
    def _moments_move(self) -> OptimizerSection:
        if self.moments != "float32" and max(self.betas) > LARGEST_BETA:
            raise ValueError(
                f"moments={self.moments} needs betas of at most {LARGEST_BETA}, not {list(self.betas)}: a moment that"
                " changes by less than half of a narrow number's last place does not change; set moments=float32"
            )
        if self.eps < SMALLEST_EPS:
            raise ValueError(
                f"eps={self.eps} is below {SMALLEST_EPS}: an update divides by the root of the second moment and eps,"
                " and in float32 the first of them is 0 for gradients as small; set eps=1e-8, or 1e-15"
            )
        if self.moments in ("int8", "auto") and self.eps < SMALLEST_EPS_IN_8_BITS:
            raise ValueError(
                f"moments={self.moments} needs eps of at least {SMALLEST_EPS_IN_8_BITS}, not {self.eps}: in 8 bits,"
                " second moments whose roots are far below that are 0; set moments=float32 or bfloat16"
            )
        return self
