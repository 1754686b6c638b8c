"""Configurations of the layers: FP8 recipes, recomputation, pipeline splits, and what cannot be run."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.model import flash_attention, options, specs
from megatron_apriel.model.flash_attention import FlashCoreAttention
from megatron_apriel.model.options import ModelOptions, decoder_config, tower_config
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.stages import small_stage

ARCHITECTURE = Architecture.from_preset("tiny")


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options.dist, "get_backend", lambda: "gloo")


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU with Transformer Engine, as far as configurations go."""
    layers = specs.Layers("transformer_engine", *[torch.nn.Identity] * 3)
    monkeypatch.setattr(options, "choose_layers", lambda *_: layers)


@pytest.mark.parametrize(
    ("recipe", "number_format"), [("delayed", "hybrid"), ("tensorwise", "hybrid"), ("blockwise", "e4m3")]
)
def test_fp8_is_for_the_decoder_only(fused: None, recipe: str, number_format: str) -> None:
    how = ModelOptions(dtype=torch.bfloat16, fp8=recipe)
    config = decoder_config(ARCHITECTURE.decoder, how, Layout())
    assert (config.fp8, config.fp8_recipe, config.first_last_layers_bf16) == (number_format, recipe, False)
    assert not config.fp8_dot_product_attention
    assert tower_config(ARCHITECTURE.tower, how).fp8 is None


def test_first_and_last_layers_can_stay_in_bfloat16(fused: None) -> None:
    how = ModelOptions(dtype=torch.bfloat16, fp8="tensorwise", bf16_layers_at_start=1, bf16_layers_at_end=2)
    config = decoder_config(ARCHITECTURE.decoder, how, Layout())
    assert config.first_last_layers_bf16
    assert (config.num_layers_at_start_in_bf16, config.num_layers_at_end_in_bf16) == (1, 2)


def test_head_size_is_its_own_number() -> None:
    decoder = Architecture.from_preset("apriel-15b").decoder
    config = decoder_config(decoder, ModelOptions(), Layout())
    assert (config.kv_channels, config.hidden_size // config.num_attention_heads) == (128, 160)


def test_recomputation() -> None:
    def fields(**how: object) -> tuple:
        config = decoder_config(ARCHITECTURE.decoder, ModelOptions(**how), Layout())
        return config.recompute_granularity, config.recompute_method, config.recompute_num_layers

    assert fields() == (None, None, None)
    assert fields(recompute="full") == ("full", "uniform", 1)
    assert fields(recompute="full", recompute_layers=3) == ("full", "block", 3)
    assert fields(recompute="selective") == ("selective", None, None)
    assert tower_config(ARCHITECTURE.tower, ModelOptions(recompute="full", recompute_layers=3)).recompute_method == (
        "uniform"
    )


def test_exact_gelu_is_never_fused(monkeypatch: pytest.MonkeyPatch, fused: None) -> None:
    monkeypatch.setattr(options.torch.cuda, "is_available", lambda: True)
    fields = {
        name: options._shared_fields(name, ModelOptions(), ModelOptions().chosen_layers()) for name in ("silu", "gelu")
    }
    assert fields["silu"]["use_te_activation_func"]
    assert not fields["gelu"]["use_te_activation_func"]
    assert not fields["gelu"]["bias_activation_fusion"]
    assert fields["gelu"]["activation_func"] is torch.nn.functional.gelu


def test_user_buffers_hold_the_tokens_of_a_tensor_parallel_group(fused: None) -> None:
    parallel = {"tensor": 2, "sequence": True, "context": 2}
    for overlapped, tokens in ((True, 64), (False, None)):
        stage = small_stage(128, 1, parallel=parallel | {"tensor_overlap": overlapped})
        how = replace(ModelOptions(), overlapped_tokens=ModelOptions.from_stage(stage).overlapped_tokens)
        assert how.overlapped_tokens == tokens
        config = decoder_config(ARCHITECTURE.decoder, how, Layout(4, tensor=2, sequence=True, context=2))
        assert (config.tp_comm_overlap, config.tp_comm_overlap_ag, config.tp_comm_overlap_rs) == (
            overlapped,
            True,
            True,
        )
        assert not tower_config(ARCHITECTURE.tower, how).tp_comm_overlap


@pytest.mark.parametrize(
    ("how", "layout", "message"),
    [
        (ModelOptions(fp8="delayed"), Layout(), "precision.fp8=delayed needs Transformer Engine on a CUDA device"),
        (ModelOptions(fuse_weight_gradients=True), Layout(), "fused weight gradients need Transformer Engine"),
        (
            ModelOptions(overlapped_tokens=64),
            Layout(2, tensor=2, sequence=True),
            "parallel.tensor_overlap=true needs Transformer Engine on a CUDA device",
        ),
        (ModelOptions(layers="transformer_engine"), Layout(), "cannot be used: no CUDA device"),
        (
            ModelOptions(attention="flash"),
            Layout(),
            "attention=flash needs Transformer Engine's layers.*no CUDA device",
        ),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has Transformer Engine's layers")
def test_what_cannot_be_run_is_refused(how: ModelOptions, layout: Layout, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decoder_config(ARCHITECTURE.decoder, how, layout)


def test_choice_of_layers_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    specs.choose_layers.cache_clear()
    with caplog.at_level("INFO", logger=specs.__name__):
        assert [specs.choose_layers("local").name for _ in range(2)] == ["local", "local"]
    assert [record.getMessage() for record in caplog.records] == [
        "layers: Megatron's own, torch's attention (as asked for)"
    ]


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Hopper GPU with FlashAttention-4 installed."""
    monkeypatch.setattr(flash_attention, "version", lambda package: "4.0.0b40")
    monkeypatch.setattr(flash_attention.importlib, "import_module", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


CUDNN = type("CuDNN", (), {})


@pytest.mark.parametrize(
    ("asked", "dtype", "capability", "chosen", "said"),
    [
        ("auto", torch.bfloat16, (9, 0), FlashCoreAttention, "FlashAttention-4 (it is installed, and this is a Hopper"),
        ("flash", torch.bfloat16, (10, 0), FlashCoreAttention, "FlashAttention-4 (as asked for)"),
        ("cudnn", torch.bfloat16, (9, 0), CUDNN, "cuDNN, through Transformer Engine (as asked for)"),
        ("auto", torch.bfloat16, (10, 0), CUDNN, "was measured on Hopper GPUs, not on compute capability 10.0"),
        ("auto", torch.float32, (9, 0), CUDNN, "computes in bfloat16, and the model in float32"),
    ],
)
def test_attention_is_chosen_and_the_reason_said(
    hopper: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    asked: str, dtype: torch.dtype, capability: tuple[int, int], chosen: type, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with caplog.at_level("INFO", logger=specs.__name__):
        assert specs._choose_attention(asked, dtype, CUDNN) is chosen
    assert said in caplog.text


def test_flash_attention_that_is_asked_for_and_cannot_run_is_an_error(
    hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise (PackageNotFoundError if name == flash_attention.PACKAGE else ImportError)(f"no {name}")

    monkeypatch.setattr(flash_attention.importlib, "import_module", absent)
    with pytest.raises(
        ConfigError, match=r"attention=flash cannot be used: flash-attn-4 cannot be imported: no flash_"
    ):
        specs._choose_attention("flash", torch.bfloat16, CUDNN)
    monkeypatch.setattr(flash_attention, "version", lambda package: "4.0.0b24")
    with pytest.raises(
        ConfigError, match=r"flash-attn-4 4.0.0b24 is installed, and 4.0.0b36 is the oldest that was te"
    ):
        specs._choose_attention("flash", torch.bfloat16, CUDNN)
    monkeypatch.setattr(flash_attention, "version", absent)
    with pytest.raises(ConfigError, match=r"attention=flash cannot be used: flash-attn-4 is not installed"):
        specs._choose_attention("flash", torch.bfloat16, CUDNN)
    assert specs._choose_attention("auto", torch.bfloat16, CUDNN) is CUDNN
