"""Generation configs beside exported weights: how answers are sampled is kept as given, or the recipe's as a whole."""

import json

import pytest
from transformers import GenerationConfig

from megatron_apriel.formats.hf_directory import SAMPLING, write_hf_sidecars

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11}


CONFIG = {"text_config": {"bos_token_id": 1, "eos_token_id": 2}}


def written(folder, given, config=CONFIG):
    (folder / "given").mkdir()
    if given is not None:
        (folder / "given" / "generation_config.json").write_text(json.dumps(given))
    write_hf_sidecars(folder / "result", folder / "given", config)
    return json.loads((folder / "result" / "generation_config.json").read_text())


@pytest.mark.parametrize(
    "given",
    [{"do_sample": False}, {"do_sample": True, "top_p": 0.9}, {"num_beams": 4}, {"repetition_penalty": 1.1}],
    ids=str,
)
def test_sampling_is_kept_as_given(tmp_path, given):
    found = written(tmp_path, {**given, "eos_token_id": 5})
    assert found == {**IDS, **given, "eos_token_id": 5}


@pytest.mark.parametrize(
    "given",
    [{"temperature": 0.9, "top_p": 0.6}, {"top_k": 1}, {"do_sample": False, "temperature": 0.9, "min_p": 0.1},
     {"do_sample": False, "temperature": 0.0}, {"do_sample": False, "temperature": 1.0, "top_p": 1.0}],
    ids=str,
)  # fmt: skip
def test_sampling_does_not_contradict_itself(tmp_path, given, capsys):
    """transformers refuses to save a temperature of answers that are not sampled, as Vicuna's files have it."""
    found = written(tmp_path, given)
    GenerationConfig(**found).validate(strict=True)
    if "do_sample" in given:
        assert found == {**IDS, "do_sample": False}
    else:
        assert found == {**IDS, **given, "do_sample": True}
    named = [name for name, value in given.items() if value not in (False, 1.0)] or [""]
    assert all(name in capsys.readouterr().err for name in named[:1])


@pytest.mark.parametrize("given", [{"temperature": 0.0}, {"temperature": 0, "do_sample": True, "top_p": 0.9}], ids=str)
def test_a_temperature_of_zero_is_the_most_likely_token(tmp_path, given, capsys):
    """transformers ends at once when it is to sample with it."""
    found = written(tmp_path, given)
    assert found == {**IDS, "do_sample": False}
    assert "temperature=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token_id": [2, 4], "pad_token_id": 5, "bos_token_id": 3},
        {"eos_token_id": [2, 4], "pad_token_id": 5, "text_config": {"eos_token_id": 7, "bos_token_id": 3}},
        {"eos_token_id": None, "pad_token_id": 5, "text_config": {"eos_token_id": [2, 4], "bos_token_id": 3}},
        {"text_config": {"eos_token_id": [2, 4], "bos_token_id": 3, "pad_token_id": 5}},
    ],
    ids=str,
)
def test_ids_of_a_config_are_those_that_transformers_takes(tmp_path, config):
    theirs = GenerationConfig.from_model_config(json.loads(json.dumps(config)))
    for number, given in enumerate((None, {"do_sample": True}, {"do_sample": True, "eos_token_id": None})):
        (tmp_path / str(number)).mkdir()
        found = written(tmp_path / str(number), given, config)
        assert {name: found[name] for name in IDS} == {name: getattr(theirs, name) for name in IDS}


@pytest.mark.parametrize("place", ["text_config", ""])
def test_sampling_of_an_old_config_is_kept(tmp_path, place):
    """transformers takes it where there is no generation config. Old versions write out defaults, which say nothing."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "top_k": 50, "do_sample": False, "num_beams": 1}
    for number, (said, expected) in enumerate(
        (({}, SAMPLING), ({"temperature": 0.2}, {"temperature": 0.2, "do_sample": True}))
    ):
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
