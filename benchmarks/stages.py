"""The stage of a measurement: what a stage's file would say, without a file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.cases import CASES, Case, small
from megatron_apriel.config.choices import Compute, Fp8Weights
from megatron_apriel.config.data_sections import SourceSection
from megatron_apriel.config.load import load_stage, to_yaml
from megatron_apriel.config.machine_sections import ParallelSection, PrecisionSection, RecomputeSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.training_sections import OptimizerSection


def stage_config(
    case: Case,
    precision: str,
    parallel: ParallelSection | None = None,
    recompute: RecomputeSection | None = None,
    compute: Compute | None = None,
    fp8_weights: Fp8Weights = "kept",
    host: float | Literal["auto"] = 0.0,
) -> StageConfig:
    """A stage that does nothing but what is measured, one step of the case's micro-batches over all ranks.

    Args:
        case: gives lengths, trained parts and the number of sequences of a step.
        precision: ``bf16`` or a recipe of FP8.
        parallel: the layout; one rank where None.
        recompute: nothing is recomputed where None.
        compute: type of what is not in 8 bits; bf16 on a GPU and fp32 elsewhere where None.
        fp8_weights: whether 8-bit copies of weights are kept over micro-batches.
        host: part of the optimizer's states that lies in host memory.
    """
    nowhere = Path("unused")
    fp8: Any = "none" if precision == "bf16" else precision
    compute = compute or ("bf16" if torch.cuda.is_available() else "fp32")
    return StageConfig(
        stage="benchmark",
        init_from=nowhere,
        output=nowhere,
        train=case.train,
        sequence_length=case.sequence_length,
        batch_tokens=case.sequence_length * case.micro_batches,
        tokens=case.sequence_length * case.micro_batches,
        mixture=[SourceSection(corpus=nowhere)],
        optimizer=OptimizerSection(peak=1e-5, host=host),
        precision=PrecisionSection(compute=compute, fp8=fp8, fp8_weights=fp8_weights),
        parallel=parallel or ParallelSection(),
        recompute=recompute or RecomputeSection(),
    )


def with_settings(config: StageConfig, words: Sequence[str]) -> StageConfig:
    """A stage with what ``key=value`` words replace, as on the trainer's command line. Raises ConfigError."""
    if not words:
        return config
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "benchmark.yaml"
        file.write_text(to_yaml(config), encoding="utf-8")
        return load_stage(file, words)


def stage_of(specification: dict[str, Any], compute: Compute | None = None) -> StageConfig:
    """The stage that trains the whole model on one GPU, with a step of ``more`` micro-batches. Raises ConfigError.

    Args:
        specification: as of ``measure_one_gpu.py``.
        compute: as of :func:`stage_config`.
    """
    case = replace(CASES[specification["case"]], micro_batches=specification["more"])
    case = small(case) if specification["tiny"] else case
    precision, host, recomputed = (specification[name] for name in ("precision", "host", "recomputed"))
    config = stage_config(
        case,
        precision,
        recompute=RecomputeSection() if recomputed == 0 else RecomputeSection(mode="full", layers=recomputed),
        compute=compute,
        fp8_weights="kept" if precision == "bf16" else "remade",
        host=host if host == "auto" else float(host),
    )
    return with_settings(config, specification["settings"])
