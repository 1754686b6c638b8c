"""Generation configs beside exported weights: how answers are sampled is kept as given, or the recipe's as a whole."""

import json

import pytest
from transformers import GenerationConfig

from megatron_apriel.formats.hf_directory import SAMPLING, write_hf_sidecars

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11}


def written(folder, given):
    (folder / "given").mkdir()
    if given is not None:
        (folder / "given" / "generation_config.json").write_text(json.dumps(given))
    write_hf_sidecars(folder / "result", folder / "given", {"text_config": {"bos_token_id": 1, "eos_token_id": 2}})
    return json.loads((folder / "result" / "generation_config.json").read_text())


@pytest.mark.parametrize(
    "given",
    [{"do_sample": False}, {"do_sample": True, "top_p": 0.9}, {"temperature": 0.2}, {"num_beams": 4}, {"top_k": 1}],
    ids=str,
)
def test_sampling_is_kept_as_given(tmp_path, given):
    found = written(tmp_path, {**given, "eos_token_id": 5})
    assert found == {**IDS, **given, "eos_token_id": 5}


@pytest.mark.parametrize("place", ["text_config", ""])
def test_sampling_of_an_old_config_is_kept(tmp_path, place):
    """transformers takes it where there is no generation config. Old versions write out defaults, which say nothing."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "top_k": 50, "do_sample": False, "num_beams": 1}
    for number, (said, expected) in enumerate((({}, SAMPLING), ({"temperature": 0.2}, {"temperature": 0.2}))):
        config = {"text_config": {**ids, **said}} if place else {**said, "text_config": ids}
        (given := tmp_path / f"given{number}").mkdir()
        write_hf_sidecars(tmp_path / f"result{number}", given, config)
        assert json.loads((tmp_path / f"result{number}" / "generation_config.json").read_text()) == {**IDS, **expected}


@pytest.mark.parametrize(
    "given",
    [
        None, {}, {"bos_token_id": 1, "transformers_version": "5.0.0"}, {"temperature": None, "max_length": 4096},
        {"use_cache": False, "output_attentions": False, "output_hidden_states": False},
    ],
    ids=str,
)  # fmt: skip
def test_the_recipes_sampling_where_none_is_given(tmp_path, given):
    found = written(tmp_path, given)
    assert found == {**IDS, **(given or {}), **SAMPLING}
    GenerationConfig(**found).validate(strict=given is None)
