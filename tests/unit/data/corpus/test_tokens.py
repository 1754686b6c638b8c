"""Tokenizers of model directories: what fits, what is refused, and what identifies one."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from megatron_apriel.data.corpus.processor_files import longest_side
from megatron_apriel.data.corpus.special_tokens import other_ends
from megatron_apriel.data.corpus.tokens import TokenTable, load_tokenizer, tokenizer_digest
from megatron_apriel.errors import DataError
from megatron_apriel.testing.tokenizers import small_tokenizer, write_small_tekken

TEXTS = ("Hello, world!\n", "日本語 naïve 🐧\r\n\t x", "def f(x):\n    return x+1  # </s>", "  /  //\n/")


@pytest.fixture(scope="module")
def tekken_directory(tmp_path_factory):
    return write_small_tekken(tmp_path_factory.mktemp("tekken") / "tekken.json").parent


def test_tokenizer_is_the_one_that_transformers_loads(model, tekken_directory, tmp_path):
    """From tokenizer.json, from tekken.json, and from both side by side."""
    both = tmp_path / "both"
    shutil.copytree(model, both)
    shutil.copy(tekken_directory / "tekken.json", both)
    reference = AutoTokenizer.from_pretrained(model)
    loaded = [load_tokenizer(directory) for directory in (model, tekken_directory, both)]
    for tokenizer in loaded:
        assert tokenizer.is_fast
        for text in TEXTS:
            assert tokenizer(text, add_special_tokens=False).input_ids == reference.encode(
                text, add_special_tokens=False
            )
    assert len({tokenizer_digest(tokenizer) for tokenizer in loaded}) == 1


def test_plain_text_equals_mistral_common(tekken_directory, table):
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    tekken = Tekkenizer.from_file(tekken_directory / "tekken.json")
    for text in (*TEXTS, "[IMG]</s>[INST]"):
        assert table.encode_text(text).tolist() == tekken.encode(text, bos=False, eos=False)


def test_digest_tells_tokenizers_apart():
    assert tokenizer_digest(small_tokenizer(4096)) != tokenizer_digest(small_tokenizer(4097))


def test_record_and_image_rule(table, architecture):
    record = table.record
    assert (record.bos_id, record.eos_id, record.pad_id, record.vocab_size) == (1, 2, 11, 4096)
    assert table.images.token_ids == (10, 12, 13)
    assert (table.images.patch_size, table.images.image_size, table.images.rounding) == (16, 128, "floor")
    assert TokenTable(table.tokenizer, replace(architecture, tower=None, projector=None)).images is None


def without(tokenizer, **changes):
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def with_dropout(tokenizer):
    tokenizer.backend_tokenizer.model.dropout = 0.5
    return tokenizer


@pytest.mark.parametrize(
    ("build", "change", "message"),
    [
        (lambda: small_tokenizer(4097), {}, "largest id 4096 does not fit the model's vocabulary of 4096"),
        (lambda: without(small_tokenizer(2000), bos_token=None), {}, "the tokenizer has no bos_token"),
        (lambda: with_dropout(small_tokenizer(2000)), {}, "its model has dropout=0.5"),
        (lambda: small_tokenizer(2000), {"image_token_id": 14}, "has id 10, the model's config.json says .*=14"),
    ],
)
def test_tokenizers_that_do_not_fit(build, change, message, architecture):
    with pytest.raises(DataError, match=message):
        TokenTable(build(), replace(architecture, **change))


def test_tokenizer_without_image_tokens(architecture, tekken_directory, tmp_path):
    tekken = json.loads((tekken_directory / "tekken.json").read_text())
    tekken["config"]["default_num_special_tokens"] = 1000
    tekken["special_tokens"] = [
        {"rank": rank, "token_str": name, "is_control": True}
        for rank, name in enumerate(["<unk>", "<s>", "</s>", "<pad>", *(f"<x{index}>" for index in range(996))])
    ]
    (tmp_path / "tekken.json").write_text(json.dumps(tekken))
    with pytest.raises(DataError, match=r"lacks the special tokens \[IMG\], \[IMG_BREAK\], \[IMG_END\]"):
        TokenTable(load_tokenizer(tmp_path), architecture)


def test_no_or_damaged_tokenizer(model, tmp_path):
    with pytest.raises(DataError, match=r"has no tokenizer: neither tokenizer.json nor tekken.json"):
        load_tokenizer(tmp_path)
    shutil.copytree(model, tmp_path / "cut")
    text = (model / "tokenizer.json").read_text()
    (tmp_path / "cut" / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="cut cannot be loaded: "):
        load_tokenizer(tmp_path / "cut")
    shutil.copytree(model, tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe" / "added_tokens.json")
    with pytest.raises(DataError, match="it is a pipe"):
        load_tokenizer(tmp_path / "pipe")


def test_files_that_name_different_ends_are_refused(model, tmp_path):
    shutil.copytree(model, tmp_path / "cut")
    special = tmp_path / "cut" / "special_tokens_map.json"
    special.write_text(json.dumps({"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}))
    assert load_tokenizer(tmp_path / "cut").eos_token == "</s>"
    special.write_text(json.dumps({"eos_token": {"content": "<pad>"}}))
    with pytest.raises(DataError, match=r"tokenizer_config.json has the eos_token '</s>', and special_tokens_map.json"):
        load_tokenizer(tmp_path / "cut")


def test_ids_that_a_config_gives_otherwise_are_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"bos_token_id": 1, "eos_token_id": 7}}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], "bos_token_id": None}))
    said = other_ends(tmp_path, {"bos_token_id": 1, "eos_token_id": 2})
    assert said == ["config.json: text_config: eos_token_id=7, the tokenizer's is 2"]


@pytest.mark.parametrize(
    ("file", "settings", "expected"),
    [
        ("preprocessor_config.json", {"size": {"longest_edge": 96}, "patch_size": {"height": 16, "width": 16}}, 96),
        ("processor_config.json", {"image_processor": {"size": {"longest_edge": 64}, "patch_size": 16}}, 64),
        ("processor_config.json", {"patch_size": 16}, 128),
        ("preprocessor_config.json", {"size": {"longest_edge": 129}}, None),
        ("preprocessor_config.json", {"patch_size": 14}, None),
        ("preprocessor_config.json", {"size": {"longest_edge": 8}}, None),
    ],
)
def test_longest_side(file, settings, expected, architecture, tmp_path):
    (tmp_path / file).write_text(json.dumps(settings))
    if expected:
        assert longest_side(tmp_path, architecture) == expected
        return
    with pytest.raises(DataError, match=r"the vision tower's (image_size=128 and patch_size=16|patch_size is 16)"):
        longest_side(tmp_path, architecture)


HONEST = {
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "do_center_crop": None,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "PixtralImageProcessorFast", "patch_size": {"height": 16, "width": 16}, "resample": 3,
    "processor_class": "PixtralProcessor", "rescale_factor": 0.00392156862745098, "size": {"longest_edge": 96},
    "data_format": "channels_first", "default_to_square": True, "crop_size": None, "disable_grouping": None,
}  # fmt: skip
"""As Pixtral's own file and transformers 5 write them."""


@pytest.mark.parametrize("place", ["older", "nested", "top"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_resize", False), ("do_rescale", False), ("do_normalize", False), ("do_convert_rgb", False),
        ("do_center_crop", True), ("image_mean", [0.5, 0.5, 0.5]), ("image_std", [1, 1, 1]), ("image_std", 1),
        ("rescale_factor", 1.0), ("resample", 2), ("spatial_merge_size", 2), ("patch_size", 14),
        ("patch_size", {"height": 16, "width": 14}), ("patch_size", [16, 14]), ("patch_size", []),
        ("size", {"height": 96, "width": 96}), ("size", 96),
        ("size", {"shortest_edge": 96, "longest_edge": 96}), ("image_processor_type", "CLIPImageProcessor"),
        ("do_image_splitting", True), ("max_pixels", 1000), ("antialias", False), ("keep_aspect_ratio", False),
        ("processor_class", "LlavaProcessor"), ("image_token", "<image>"), ("image_break_token", {"content": "x"}),
    ],
    ids=str,
)  # fmt: skip
def test_what_training_does_otherwise_is_refused(name, value, place, architecture, tmp_path):
    settings = {**HONEST, name: value}
    files = {
        "older": ("preprocessor_config.json", settings),
        "nested": ("processor_config.json", {"image_processor": settings, "processor_class": "PixtralProcessor"}),
        "top": ("processor_config.json", {"image_processor": HONEST, name: value}),
    }
    file, content = files[place]
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{file}: {name}=.* is not followed in training"):
        longest_side(tmp_path, architecture)
    (tmp_path / file).write_text(json.dumps(HONEST if place == "older" else {"image_processor": HONEST}))
    assert longest_side(tmp_path, architecture) == 96


@pytest.mark.parametrize("given", ["PixtralImageProcessor", [1], 3], ids=str)
def test_settings_that_are_no_object(given, architecture, tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": given}))
    with pytest.raises(DataError, match=r"image_processor=.* its settings are expected there"):
        longest_side(tmp_path, architecture)


def test_two_processor_files_that_disagree(architecture, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HONEST))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": HONEST}))
    assert longest_side(tmp_path, architecture) == 96
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": {"longest_edge": 64}}}))
    with pytest.raises(DataError, match=r"two sizes of images: processor_config.json 64 and preprocessor_config.json"):
        longest_side(tmp_path, architecture)


@pytest.mark.parametrize("part", ["image", "multimodal"])
def test_mistrals_tokenizer_says_the_side_where_no_processor_does(part, architecture, tmp_path):
    def write(**settings):
        (tmp_path / "tekken.json").write_text(json.dumps({"vocab": [], part: {"image_patch_size": 16, **settings}}))

    for said, side in ((64, 64), (1024, 128)):  # the tower has positions for 128
        write(max_image_size=said, spatial_merge_size=1)
        assert longest_side(tmp_path, architecture) == side
    for name, value in (("spatial_merge_size", 2), ("image_patch_size", 14), ("max_image_size", 0), ("tiles", 4)):
        write(**{"max_image_size": 64, name: value})
        with pytest.raises(DataError, match=rf"tekken.json: {name}={value} is not followed in training"):
            longest_side(tmp_path, architecture)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HONEST))
    assert longest_side(tmp_path, architecture) == 96


def test_longest_side_without_processor_files(architecture, tmp_path):
    assert longest_side(tmp_path, architecture) == 128
    assert longest_side(tmp_path, replace(architecture, tower=None, projector=None)) is None
    (tmp_path / "preprocessor_config.json").write_text("[")
    with pytest.raises(DataError, match="is not a valid JSON object"):
        longest_side(tmp_path, architecture)


def test_a_tower_of_other_colours_is_refused(architecture, tmp_path):
    with pytest.raises(DataError, match="num_channels is 4"):
        longest_side(tmp_path, replace(architecture, tower=replace(architecture.tower, channels=4)))
