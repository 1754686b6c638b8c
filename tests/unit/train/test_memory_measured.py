"""The dry run's memory against what was measured on a GPU: the result files of ``benchmarks/step.py``."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.report import RESULTS, Measurement, newest
from megatron_apriel.architecture import Architecture
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.train.memory import rank_memory

PRECISIONS = {"ours-bf16": "none", "ours-delayed": "delayed", "ours-tensorwise": "tensorwise"}
MEASURED = [one for one in newest(RESULTS) if one.case == "8192" and one.subject in PRECISIONS]


def test_there_are_measurements_of_both_slices() -> None:
    assert {measurement.layers for measurement in MEASURED} == {4, 8}


@pytest.mark.parametrize("measurement", MEASURED, ids=lambda given: f"{given.subject}, {given.layers} layers")
def test_predicted_peak_is_within_five_percent_of_the_measured_one(measurement: Measurement) -> None:
    architecture = Architecture.from_preset("apriel-15b")
    decoder = dataclasses.replace(architecture.decoder, num_layers=measurement.layers)
    architecture = dataclasses.replace(architecture, decoder=decoder, tower=None, projector=None)
    tokens = measurement.tokens
    config = StageConfig.model_validate(
        {
            "stage": "slice",
            "init_from": "model",
            "output": "run",
            "train": {"decoder": 1.0},
            "sequence_length": tokens,
            "batch_tokens": tokens * measurement.micro_batches,
            "tokens": tokens * measurement.micro_batches * 10,
            "optimizer": {"peak": 1e-5},
            "mixture": [{"corpus": "text", "weight": 1.0}],
            "precision": {"compute": "bf16", "fp8": PRECISIONS[measurement.subject]},
        }
    )
    predicted = rank_memory(config, architecture, Layout(), 0)
    assert predicted.total == pytest.approx(measurement.memory["peak"], rel=0.05)
    measured = measurement.memory
    assert predicted.gradients == pytest.approx(measured["main gradients"], rel=0.01)
    assert predicted.optimizer == pytest.approx(measured["optimizer state"], rel=0.01)
