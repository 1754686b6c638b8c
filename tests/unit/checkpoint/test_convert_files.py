"""tools/convert_checkpoint.py: what lies beside the weights, tokenizer, processor, templates and configurations."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from converting import TINY, convert

from megatron_apriel.formats.mistral_params import params_from_architecture
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.tokenizers import write_small_tekken
from megatron_apriel.testing.word_patterns import LLAMA3, byte_level, sequence, set_words, split

LARGE = replace(TINY, decoder=replace(TINY.decoder, vocab_size=1300))
"""With room for Tekken's special tokens."""


def test_tokenizer_and_processor_from_tekken(tmp_path):
    """What Mistral publishes becomes a directory that transformers' own classes load."""
    from transformers import AutoProcessor

    hf = write_hf_checkpoint(tmp_path / "hf", LARGE)
    assert convert(hf, tmp_path / "mistral", "--to", "mistral") == 0
    write_small_tekken(tmp_path / "mistral" / "tekken.json", 1300)
    assert convert(tmp_path / "mistral", tmp_path / "out", "--to", "hf") == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer("Hello")["input_ids"]
    assert processor.image_processor.size["longest_edge"] == 256


def test_the_side_of_images_goes_from_form_to_form(tmp_path, capsys):
    hf = write_hf_checkpoint(tmp_path / "hf", LARGE)
    assert convert(hf, tmp_path / "mistral", "--to", "mistral") == 0
    tekken = write_small_tekken(tmp_path / "mistral" / "tekken.json", 1300)
    table = json.loads(tekken.read_bytes())
    tekken.write_text(json.dumps({**table, "image": {"image_patch_size": 16, "max_image_size": 128}}))
    assert convert(tmp_path / "mistral", tmp_path / "out", "--to", "hf") == 0
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert processor["image_processor"]["size"] == {"longest_edge": 128}
    assert convert(tmp_path / "out", tmp_path / "again", "--to", "mistral") == 0
    (tmp_path / "out" / "tekken.json").unlink()
    capsys.readouterr()
    assert convert(tmp_path / "out", tmp_path / "third", "--to", "mistral") == 1
    assert "images are resized to 128 pixels, and to 256 in Mistral's form" in capsys.readouterr().err


def other_tekken(file: Path) -> None:
    """Tekken's table with [IMG_BREAK] at 14 and [IMG_END] at 15, as Pixtral-Large has them."""
    names = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "[IMG]", 11: "<pad>", 14: "[IMG_BREAK]", 15: "[IMG_END]"}
    names = {rank: names.get(rank, f"<SPECIAL_{rank}>") for rank in range(1000)}
    table = json.loads(write_small_tekken(file, LARGE.decoder.vocab_size).read_bytes())
    table["special_tokens"] = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in names.items()]
    file.write_text(json.dumps(table))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("large") / "hf", LARGE)


def vision_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "params.json").read_text())["vision_encoder"]


@pytest.mark.parametrize("form", ["tekken.json", "tokenizer.json"])
def test_break_and_end_ids_are_those_of_the_tokenizer(large, tmp_path, form):
    from transformers.integrations.mistral import convert_tekken_tokenizer

    shutil.copytree(large, tmp_path / "source")
    other_tekken(tmp_path / "source" / "tekken.json")
    if form == "tokenizer.json":
        tokenizer = convert_tekken_tokenizer(str(tmp_path / "source" / "tekken.json"))
        assert tokenizer.convert_tokens_to_ids(["[IMG_BREAK]", "[IMG_END]"]) == [14, 15]
        tokenizer.save_pretrained(tmp_path / "source")
        (tmp_path / "source" / "tekken.json").unlink()
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "mistral") == 0
    assert {key: id_ for key, id_ in vision_of(tmp_path / "out").items() if key.endswith("_token_id")} == {
        "image_token_id": 10,
        "image_break_token_id": 14,
        "image_end_token_id": 15,
    }
    # The way back says so too, or does not begin.
    assert convert(tmp_path / "out", tmp_path / "back", "--to", "megatron", "--dry-run") == 0


def test_without_a_tokenizer_break_and_end_ids_are_left_out(large, tmp_path, capsys):
    assert convert(large, tmp_path / "out", "--to", "mistral") == 0
    assert not {"image_break_token_id", "image_end_token_id"} & vision_of(tmp_path / "out").keys()
    assert "has no tokenizer: params.json does not name the ids of [IMG_BREAK] and [IMG_END]" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["hf", "mistral", "megatron"])
def test_params_that_contradict_the_tokenizer_are_refused(large, tmp_path, capsys, to):
    assert convert(large, tmp_path / "source", "--to", "mistral") == 0
    params = params_from_architecture(LARGE, (12, 13))
    (tmp_path / "source" / "params.json").write_text(json.dumps(params))
    other_tekken(tmp_path / "source" / "tekken.json")
    assert convert(tmp_path / "source", tmp_path / "out", "--to", to) == 1
    assert "image_break_token_id=12, and the tokenizer beside it says 14" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["image_break_token", "image_end_token"])
def test_a_processor_that_closes_rows_with_another_token_is_refused(large, tmp_path, capsys, name):
    """params.json would name the token of the tokenizer, and the model was trained with the processor's."""
    shutil.copytree(large, tmp_path / "source")
    other_tekken(tmp_path / "source" / "tekken.json")
    (tmp_path / "source" / "processor_config.json").write_text(json.dumps({name: "[ROW]"}))
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "mistral") == 1
    assert f"{name}='[ROW]' is not followed" in " ".join(capsys.readouterr().err.split())
    own = {"image_break_token": "[IMG_BREAK]", "image_end_token": {"content": "[IMG_END]"}}
    (tmp_path / "source" / "processor_config.json").write_text(json.dumps(own))
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "mistral") == 0


def test_an_image_token_that_the_tokenizer_does_not_know_is_refused(large, tmp_path, capsys):
    shutil.copytree(large, tmp_path / "source")
    write_small_tekken(tmp_path / "source" / "tekken.json", 1300)
    config = json.loads((tmp_path / "source" / "config.json").read_text()) | {"image_token_index": 17}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "mistral") == 1
    assert "[IMG] has id 10, the model's config.json says image_token_index=17" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("generation_config.json", "source/generation_config.json cannot be read"),
        ("tekken.json", "the tokenizer in"),
        ("params.json", "source/params.json cannot be read: it is not valid JSON"),
    ],
)
def test_damaged_files_beside_the_weights(mistral, tmp_path, capsys, name, message):
    shutil.copytree(mistral, tmp_path / "source")
    (tmp_path / "source" / name).write_text("{")
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "hf") == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_tokenizer_that_git_did_not_fetch(hf, tmp_path, capsys):
    shutil.copytree(hf, tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n")
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "hf") == 1
    assert "tokenizer.json is a pointer of Git LFS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "", "config.json cannot be read"),
        ("config.json", "{}", "config.json"),
        ("generation_config.json", "", "generation_config.json cannot be read"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(mistral, tmp_path, capsys, name, text, message):
    """Files beside the weights are looked at before gigabytes are written."""
    shutil.copytree(mistral, tmp_path / "source")
    (tmp_path / "source" / name).write_text(text)
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "hf", "--dry-run") == 1
    assert message in capsys.readouterr().err


def test_a_link_to_a_tokenizer_that_is_not_there(hf, tmp_path, capsys):
    shutil.copytree(hf, tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").symlink_to("../blobs/none")
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "hf", "--dry-run") == 1
    assert "tokenizer.json is a link to ../blobs/none, which is not there" in capsys.readouterr().err


def test_chat_templates_that_differ_are_named(hf, tmp_path, capsys):
    (source := tmp_path / "source").mkdir()
    for file in hf.iterdir():
        (source / file.name).hardlink_to(file)
    (source / "chat_template.jinja").write_text("{{ messages }}\n")
    for template, named in (("{{ messages }}", False), ("{{ messages[0] }}", True)):
        (source / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        assert convert(source, tmp_path / "out", "--to", "hf", "--dry-run") == 0
        said = capsys.readouterr().err
        assert (f"chat_template.jinja and chat_template.json in {source} hold different" in said) == named


@pytest.mark.parametrize("to", ["hf", "mistral", "megatron"])
def test_a_faulty_word_pattern_is_named_and_corrected_on_request(to, tmp_path, capsys):
    large = replace(TINY, decoder=replace(TINY.decoder, vocab_size=4096))
    hf = write_hf_checkpoint(tmp_path / "hf", large, dtype="bfloat16", processor=True)
    right = json.loads((hf / "tokenizer.json").read_text())
    set_words(hf, sequence(split(LLAMA3), byte_level(False)))
    faulty = (hf / "tokenizer.json").read_bytes()
    assert convert(hf, tmp_path / "kept", "--to", to) == 0
    assert "hf has the faulty word pattern of older conversions" in capsys.readouterr().err
    assert convert(hf, tmp_path / "out", "--to", to, "--correct-word-pattern") == 0
    assert "it was corrected in the result" in capsys.readouterr().err
    folder = "hf" if to == "megatron" else "."
    assert (tmp_path / "kept" / folder / "tokenizer.json").read_bytes() == faulty
    assert json.loads((tmp_path / "out" / folder / "tokenizer.json").read_text()) == right
    if to == "megatron":
        # A converted checkpoint is of no run, and one that a run saved is served as it was trained.
        assert convert(tmp_path / "kept", tmp_path / "back", "--to", "hf", "--correct-word-pattern") == 0
        record = json.loads((tmp_path / "kept" / "run.json").read_text())
        record["extra"] = {"sequences": 1, "config": {}}
        (tmp_path / "kept" / "run.json").write_text(json.dumps(record))
        assert convert(tmp_path / "kept", tmp_path / "again", "--to", "hf", "--correct-word-pattern") == 1
        assert "is of a run, which trained on the words of its tokenizer" in capsys.readouterr().err


TEXTS = ("LICENSE.md", "LICENCE", "License.txt", "NOTICE.txt", "USE_POLICY.md", "CHAT_SYSTEM_PROMPT.txt")


@pytest.mark.parametrize("to", ["hf", "mistral"])
def test_texts_that_go_with_a_model_are_kept(hf, tmp_path, to):
    source = shutil.copytree(hf, tmp_path / "source")
    for name in (*TEXTS, "tokenizer.mm.model.v2"):
        (source / name).write_text(name)
    assert convert(source, tmp_path / "out", "--to", to) == 0
    assert all((tmp_path / "out" / name).read_text() == name for name in (*TEXTS, "tokenizer.mm.model.v2"))


@pytest.mark.parametrize("name", ["tokenizer.model.v3", "tokenizer.mm.model.v2"])
def test_a_sentencepiece_model_is_a_tokenizer_of_the_form_that_reads_it(mistral, tmp_path, capsys, name):
    source = shutil.copytree(mistral, tmp_path / "source")
    (source / name).write_text("pieces")
    assert convert(source, tmp_path / "mistral", "--to", "mistral") == 0
    assert "no tokenizer that Mistral's tools" not in " ".join(capsys.readouterr().err.split())
    assert convert(source, tmp_path / "hf", "--to", "hf") == 0
    assert "has no tokenizer and processor" in " ".join(capsys.readouterr().err.split())


def test_two_tokenizers_that_contradict_each_other_are_not_passed_on(tmp_path, capsys):
    """Mistral's tools would read another one than the model was trained with."""
    source = write_hf_checkpoint(tmp_path / "source", LARGE, processor=True)
    assert (source / "tokenizer.json").is_file()
    write_small_tekken(source / "tekken.json", 1300)
    assert convert(source, tmp_path / "same", "--to", "mistral") == 0
    table = json.loads((source / "tekken.json").read_text())
    for one, other in ((280, 281), (290, 291)):
        names = ("token_bytes", "token_str")
        both = [{name: table["vocab"][rank][name] for name in names} for rank in (one, other)]
        table["vocab"][one] |= both[1]
        table["vocab"][other] |= both[0]
    (source / "tekken.json").write_text(json.dumps(table))
    assert convert(source, tmp_path / "out", "--to", "mistral") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "tekken.json: token 1280 is" in said and "(4 such tokens)" in said and not (tmp_path / "out").exists()
