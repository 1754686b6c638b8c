"""What cannot run is refused before it starts, with the values, the reason and the choices."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from megatron_apriel.config.retention import steps_to_keep
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.checks import check_layout, sequence_multiple
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.stages import small_stage

APRIEL = Architecture.from_preset("apriel-15b")


def stage(**changes: Any) -> StageConfig:
    return small_stage(**{"sequence_length": 16384, "batch_tokens": 16384 * 64} | changes)


def refusal(config: StageConfig, architecture: Architecture = APRIEL, world_size: int = 64) -> str:
    with pytest.raises(ConfigError) as caught:
        check_layout(config, architecture, world_size)
    return str(caught.value)


@pytest.mark.parametrize(
    ("parallel", "world_size", "data"),
    [
        ({}, 1, 1),
        ({"tensor": 8, "sequence": True}, 64, 8),
        ({"tensor": 4, "pipeline": 4, "virtual": 3}, 64, 4),
        ({"pipeline": 3, "layers_per_stage": [15, 17, 16]}, 6, 2),
    ],
)
def test_what_can_run(parallel: dict[str, Any], world_size: int, data: int) -> None:
    layout = check_layout(stage(parallel=parallel), APRIEL, world_size)
    assert isinstance(layout, Layout) and layout.data == data


def test_tensor_must_divide_everything() -> None:
    assert refusal(stage(parallel={"tensor": 3}), world_size=3 * 64) == (
        "parallel.tensor=3 does not divide the decoder's 32 attention heads, 8 key-value groups, 14336 feed-forward"
        " units, 131072 vocabulary entries.\n"
        "  Every tensor-parallel rank must own whole ones, equally many. Possible here: 1, 2, 4, 8.\n"
        "  Set it in the stage's file, or parallel.tensor=... on the command line."
    )
    assert "the decoder's 8 key-value groups." in refusal(stage(parallel={"tensor": 16}))


def test_user_buffers_are_for_the_gpus_of_one_host() -> None:
    decoder = replace(APRIEL.decoder, num_kv_heads=32)
    parallel = {"tensor": 16, "sequence": True, "tensor_overlap": True}
    said = refusal(stage(parallel=parallel), replace(APRIEL, decoder=decoder))
    assert said.startswith("parallel.tensor_overlap=true with parallel.tensor=16: at most 8 ranks can")
    check_layout(stage(parallel=parallel | {"tensor": 8}), replace(APRIEL, decoder=decoder), 64)


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("num_kv_heads", 6, "6 key-value groups"),
        ("ffn_hidden_size", 14338, "14338 feed-forward units"),
        ("vocab_size", 131073, "131073 vocabulary entries"),
    ],
)
def test_odd_shapes(field: str, value: int, found: str) -> None:
    architecture = replace(APRIEL, decoder=replace(APRIEL.decoder, **{field: value}))
    assert f"parallel.tensor=4 does not divide the decoder's {found}." in refusal(
        stage(parallel={"tensor": 4}), architecture
    )


def test_layers_and_ranks_and_batches() -> None:
    assert "48 decoder layers do not divide over 5 pipeline stages" in refusal(
        stage(parallel={"pipeline": 5}), world_size=5
    )
    assert "12 ranks cannot be divided into model replicas of 8 ranks" in refusal(
        stage(parallel={"tensor": 8}), world_size=12
    )
    assert "64 sequences per step" in refusal(stage(), world_size=96)
    text = refusal(stage(parallel={"pipeline": 4, "virtual": 2}), world_size=128)
    assert "2 micro-batches per step is not a multiple of parallel.pipeline=4" in text


@pytest.mark.parametrize(
    ("parallel", "fp8", "multiple"),
    [
        ({}, "none", 1),
        ({"tensor": 4}, "none", 1),
        ({"tensor": 4, "sequence": True}, "none", 4),
        ({"tensor": 4, "sequence": True}, "tensorwise", 64),
        ({"tensor": 4}, "delayed", 16),
        ({"tensor": 8, "sequence": True}, "blockwise", 1024),
        ({"context": 2}, "none", 4),
        ({"tensor": 2, "sequence": True, "context": 2}, "blockwise", 1024),
    ],
)
def test_sequence_multiple(parallel: dict[str, Any], fp8: str, multiple: int) -> None:
    precision = {"fp8": fp8}
    config = stage(parallel=parallel, precision=precision)
    assert sequence_multiple(config)[0] == multiple
    check_layout(config, APRIEL, config.parallel.tensor * config.parallel.context)
    if multiple > 1:
        length = 16384 + multiple // 2
        odd = stage(parallel=parallel, precision=precision, sequence_length=length, batch_tokens=length * 64)
        text = refusal(odd, world_size=config.parallel.tensor * config.parallel.context)
        assert f"sequence_length={length} is not a multiple of {multiple} (" in text
        assert f"Nearest: 16384 or {16384 + multiple};" in text


def test_lengths_that_are_offered_are_within_the_models_positions() -> None:
    def advice(length: int, limit: int) -> str:
        architecture = replace(APRIEL, decoder=replace(APRIEL.decoder, max_positions=limit))
        parallel = {"tensor": 8, "sequence": True, "context": 4}
        config = stage(parallel=parallel, sequence_length=length, batch_tokens=length * 64)
        return refusal(config, architecture, 32)

    assert "Nearest: 4032 or 4096;" in advice(4095, 4100)
    assert "Nearest: 4096;" in advice(4097, 4100)
    assert "No length up to the model's 60 positions is one: split over fewer ranks." in advice(50, 60)


def test_fp8() -> None:
    kept = stage(precision={"fp8": "tensorwise", "bf16_layers_at_start": 40, "bf16_layers_at_end": 9})
    assert "precision keeps 49 layers in bf16, the decoder has 48." in refusal(kept)
    architecture = replace(APRIEL, decoder=replace(APRIEL.decoder, ffn_hidden_size=14344))
    assert check_layout(stage(), architecture, 1)
    text = refusal(stage(precision={"fp8": "blockwise"}), architecture)
    assert "per rank the decoder's feed-forward width 14344 is not a multiple of 16." in text
    assert "No parallel.tensor helps; set precision.fp8=none." in text


def test_the_choices_of_tensor_under_fp8_can_be_taken() -> None:
    """1824 feed-forward units are 114 tiles of 16: over two ranks they come out whole, over four they do not."""
    architecture = replace(APRIEL, decoder=replace(APRIEL.decoder, ffn_hidden_size=1824))
    text = refusal(stage(precision={"fp8": "tensorwise"}, parallel={"tensor": 4}), architecture)
    assert "feed-forward width 456 is not a multiple of 16." in text
    assert "Set parallel.tensor to one of 1, 2, or set precision.fp8=none." in text
    for tensor in (1, 2):
        config = stage(precision={"fp8": "tensorwise"}, parallel={"tensor": tensor})
        assert check_layout(config, architecture, 64).tensor == tensor


@pytest.mark.parametrize("end", ["start", "end"])
def test_bf16_layers_of_a_pipeline(end: str) -> None:
    """Megatron's TransformerConfig takes no more at either end than one pipeline rank's share."""
    name = f"bf16_layers_at_{end}"

    def configured(number: int, pipeline: int) -> StageConfig:
        return stage(precision={"fp8": "tensorwise", name: number}, parallel={"pipeline": pipeline})

    text = refusal(configured(10, 8))
    assert f"precision.{name}=10 is more than 6, the 48 decoder layers divided by parallel.pipeline=8." in text
    assert f"Set precision.{name} to 6 or less, or parallel.pipeline to 4 or less." in text
    for number, pipeline in ((6, 8), (10, 4)):
        assert check_layout(configured(number, pipeline), APRIEL, 64).pipeline == pipeline


def test_positions() -> None:
    architecture = replace(APRIEL, decoder=replace(APRIEL.decoder, max_positions=8192))
    assert "sequence_length=16384 is more than the model's 8192 positions" in refusal(stage(), architecture)


def test_a_text_model_has_no_tower() -> None:
    text_model = Architecture(APRIEL.decoder)
    assert check_layout(stage(), text_model, 1)
    text = refusal(stage(train={"tower": 1, "projector": 0.5, "decoder": 1}), text_model)
    assert "train.tower=1, and the model of no/such/model is text only." in text
    assert "Set train.projector=frozen, or start from a model with images." in text


def test_checkpoints_to_average_must_exist() -> None:
    config = stage(checkpoint={"every": 500, "keep": "equispaced 6"})
    assert config.steps == 954
    text = refusal(config)
    assert "checkpoint.every=500 saves 2 times in 954 steps." in text
    assert "Set checkpoint.every to 159 or less." in text
    assert check_layout(stage(checkpoint={"every": 159, "keep": "equispaced 6"}), APRIEL, 1)
    # Of 103 steps 51.5 and 68.7 are the third and fourth sixth: step 60 is the nearest saved one to both.
    text = refusal(stage(tokens=103 * 2**20, batch_tokens=2**20, checkpoint={"every": 20, "keep": "equispaced 6"}))
    assert "saves 6 times in 103 steps, of which 5 stay: one is the nearest to two parts of the run." in text
    assert "Set checkpoint.every to 17 or less." in text
    short = stage(tokens="2M", checkpoint={"every": 1, "keep": "equispaced 6"})
    assert "Set checkpoint.keep='last 1', or train for at least 6 steps." in refusal(short)


@pytest.mark.parametrize("number", [2, 3, 4, 6])
def test_what_passes_is_there_when_the_run_ends(number: int) -> None:
    """Against the run itself: what is kept after every save, for all numbers of steps between two saves."""
    keep = f"equispaced {number}"
    verdicts = set()
    for steps in range(number, 26):
        for every in range(1, steps + 1):
            config = stage(batch_tokens=2**19, tokens=steps * 2**19, checkpoint={"every": every, "keep": keep})
            kept: set[int] = set()
            for saved in [*range(every, steps, every), steps]:
                kept = steps_to_keep(kept | {saved}, config.checkpoint.keep, steps)
            try:
                check_layout(config, APRIEL, 1)
            except ConfigError:
                assert len(kept) < number, (steps, every)
                verdicts.add(False)
            else:
                assert len(kept) == number, (steps, every)
                verdicts.add(True)
    assert verdicts == {True, False}


def test_all_findings_in_one_message() -> None:
    config = stage(
        train={"tower": 1},
        parallel={"tensor": 3, "sequence": True, "pipeline": 5},
        precision={"fp8": "tensorwise"},
        sequence_length=1000,
        batch_tokens=64000,
    )
    text = refusal(config, Architecture(APRIEL.decoder), 64)
    assert text.startswith("stage trial cannot run as configured on 64 ranks; 5 things do not fit.\n  - train.tower=1")
    assert len(re.findall(r"^  - ", text, re.MULTILINE)) == 5
    assert "\n    Every data-parallel rank is a whole replica of the model." in text
