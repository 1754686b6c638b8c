"""What a run writes as it goes: checkpoints, held-out losses, answers, scores, figures; and when it ends early."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_serializer, model_validator

from megatron_apriel.config.choices import Kept, Wandb
from megatron_apriel.config.data_sections import SourceSection, unique_labels
from megatron_apriel.config.section import ByteCount, Count, Number, PathValue, Section, Whole
from megatron_apriel.errors import shown

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
    """Which checkpoints stay on disk: all, the last N, or N equally spaced over the run and the newest."""

    policy: Kept
    """`all`, `last` or `equispaced`."""
    number: Annotated[Whole, Field(ge=0, le=10_000)] = 0
    """How many, for `last` and `equispaced`."""

    @model_validator(mode="after")
    def _number_given(self) -> KeepPolicy:
        if self.policy != "all" and self.number < 1:
            raise ValueError(f"'{self.policy}' needs a number above 0, as in '{self.policy} 3'")
        if self.policy == "all" and self.number:
            raise ValueError(f"'all' has no number, not {self.number}; write 'all', or 'last {self.number}'")
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
    """Which checkpoints stay: `all`, `last 3`, or `equispaced 6` over the whole run and the newest."""
    background: bool = False
    """Continue training while a checkpoint is written: wait only for its copy to host memory."""
    export: bool = True
    """Write the last step as a Hugging Face directory, ``OUTPUT/final``."""
    max_shard_size: Annotated[ByteCount, Field(ge=1)] = 5 * 10**9
    """Largest safetensors file of an export."""


class ValidationSection(Section):
    """Loss on held-out data, at the start, every so many steps, and at the end."""

    corpora: Annotated[list[SourceSection], Field(min_length=1)]
    """Held-out corpora, each with the settings of a source of the mixture; `weight` and `max_epochs` are not used."""
    every: Annotated[Whole, Field(ge=1)] = 500
    """Steps between two validations."""
    sequences: Annotated[Whole, Field(ge=1)] = 64
    """Sequences of each corpus, the same ones every time."""

    _labels = field_validator("corpora")(unique_labels)


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


class EvaluateSection(Section):
    """Benchmarks of saved checkpoints, by a command beside the run: ``tools/evaluate.py --follow OUTPUT``."""

    benchmarks: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(min_length=1, max_length=64)]
    """Their names, as docs/evaluation.md has them."""
    every: Annotated[Whole, Field(ge=1)] | None = None
    """Steps between two evaluations, a multiple of `checkpoint.every`; `null`: of every checkpoint. The last step is
    always evaluated."""
    start: bool = True
    """Evaluate what the stage begins from too, as step 0."""
    waiting: Annotated[Whole, Field(ge=0, le=10_000)] = 2
    """Most checkpoints that stay on disk for this alone, beyond `checkpoint.keep`; of more, the oldest go."""
    data: PathValue = Path("data/benchmarks")
    """A folder for each benchmark in it."""
    pictures: PathValue | None = None
    """Raw pictures that the visual tasks are made from; no picture that training sees."""
    samples: Annotated[Whole, Field(ge=1)] = 1000
    """Visual tasks."""
    limit: Annotated[Whole, Field(ge=1)] | None = None
    """Items of each benchmark; `null`: all."""
    runs: Annotated[Whole, Field(ge=1)] | None = None
    """How often each item is asked; `null`: as published."""
    temperature: Annotated[Number, Field(ge=0)] = 0.6
    """Of the answers; 0: the likeliest tokens."""
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    """Longest answer; `null`: what the model allows."""


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
