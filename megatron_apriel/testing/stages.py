"""Stage configurations for tests that need one and no files."""

from __future__ import annotations

from typing import Any

from megatron_apriel.config.schema import StageConfig


def small_stage(sequence_length: int = 8192, sequences: int = 64, **changes: Any) -> StageConfig:
    """A checked stage that trains the decoder on one corpus; nothing that it names exists.

    Args:
        sequence_length: tokens of a sequence.
        sequences: of an optimizer step.
        changes: settings that replace these, in the form of a stage's file.
    """
    settings: dict[str, Any] = {
        "stage": "trial",
        "init_from": "no/such/model",
        "output": "runs/trial",
        "train": {"decoder": 1},
        "sequence_length": sequence_length,
        "batch_tokens": sequence_length * sequences,
        "tokens": "1B",
        "mixture": [{"corpus": "no/such/corpus"}],
        "optimizer": {"peak": 1e-5},
    }
    return StageConfig.model_validate(settings | changes)
