"""The table of weight names: which part of a model a name is of, and which layer of which form."""

from __future__ import annotations

import pytest

from megatron_apriel.formats.tensor_names import Component, Form, component_of, decoder_layers, is_buffer, layer_shapes


@pytest.mark.parametrize(
    ("name", "component", "trained_as"),
    [
        # Hugging Face's three spellings
        ("vision_tower.transformer.layers.0.attention.q_proj.weight", "tower", "tower"),
        ("model.vision_tower.patch_conv.weight", "tower", "tower"),
        ("multi_modal_projector.linear_1.bias", "projector", "projector"),
        ("model.multi_modal_projector.linear_2.weight", "projector", "projector"),
        ("language_model.model.embed_tokens.weight", "embedding", "decoder"),
        ("model.language_model.embed_tokens.weight", "embedding", "decoder"),
        ("model.embed_tokens.weight", "embedding", "decoder"),
        ("model.language_model.layers.3.mlp.up_proj.weight", "decoder", "decoder"),
        ("model.layers.3.mlp.up_proj.weight", "decoder", "decoder"),
        ("language_model.model.norm.weight", "decoder", "decoder"),
        ("language_model.lm_head.weight", "head", "decoder"),
        ("lm_head.weight", "head", "decoder"),
        # Mistral's form
        ("vision_encoder.transformer.layers.0.attention.wq.weight", "tower", "tower"),
        ("vision_language_adapter.w_in.weight", "projector", "projector"),
        ("tok_embeddings.weight", "embedding", "decoder"),
        ("layers.0.feed_forward.w1.weight", "decoder", "decoder"),
        ("output.weight", "head", "decoder"),
        # parameters of Megatron's model, wrapped or not
        ("tower.transformer.layers.0.mlp.linear_fc1.weight", "tower", "tower"),
        ("module.module.projector.linear_1.bias", "projector", "projector"),
        ("module.decoder.layers.3.mlp.linear_fc1.weight", "decoder", "decoder"),
        ("embedding.word_embeddings.weight", "embedding", "decoder"),
        ("output_layer.weight", "head", "decoder"),
    ],
)
def test_component_of_a_name(name: str, component: str, trained_as: str) -> None:
    assert component_of(name) is Component(component)
    assert component_of(name).trained_as == trained_as


@pytest.mark.parametrize(
    ("form", "name", "place"),
    [
        (Form.LEGACY, "language_model.model.layers.7.self_attn.o_proj.weight", (7, "self_attn.o_proj.weight")),
        (Form.TRANSFORMERS_5, "model.language_model.layers.40.mlp.up_proj.weight", (40, "mlp.up_proj.weight")),
        (Form.TEXT_ONLY, "model.layers.0.input_layernorm.weight", (0, "input_layernorm.weight")),
        (Form.MISTRAL, "layers.10.attention.wq.weight", (10, "attention.wq.weight")),
        # the tower's layers, another form's, and what is no number
        (Form.LEGACY, "vision_tower.transformer.layers.7.attention.o_proj.weight", None),
        (Form.MISTRAL, "vision_encoder.transformer.layers.7.attention.wq.weight", None),
        (Form.TEXT_ONLY, "language_model.model.layers.7.self_attn.o_proj.weight", None),
        (Form.TEXT_ONLY, "model.layers.07.self_attn.o_proj.weight", None),
        (Form.TEXT_ONLY, "model.layers.x.self_attn.o_proj.weight", None),
        (Form.TEXT_ONLY, f"model.layers.{'9' * 5000}.self_attn.o_proj.weight", None),  # more digits than int() takes
    ],
)
def test_layer_of_a_name(form: Form, name: str, place: tuple[int, str] | None) -> None:
    layers = decoder_layers(form)
    assert layers.split(name) == place
    if place is not None:
        assert layers.join(*place) == name


def test_what_writes_into_the_residual_stream() -> None:
    assert decoder_layers().residual_outputs == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    assert decoder_layers(Form.MISTRAL).residual_outputs == {"attention.wo.weight", "feed_forward.w2.weight"}


def test_shapes_of_sizes_that_are_not_stated() -> None:
    shapes = layer_shapes(32, None, 64, None)
    assert (shapes["q"], shapes["k"], shapes["o"]) == ((64, 32), (None, 32), (32, 64))
    assert (shapes["up"], shapes["down"], shapes["mlp norm"]) == ((None, 32), (32, None), (32,))


def test_tables_of_frequencies() -> None:
    assert is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert is_buffer("rotary_emb.inv_freq")
    assert not is_buffer("model.layers.0.self_attn.my_rotary_emb.inv_freq")
    assert not is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq.weight")
