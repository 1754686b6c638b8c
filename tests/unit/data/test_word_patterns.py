"""A tokenizer with the faulty word pattern: named, corrected on request, and never mixed with the right one."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_apriel.config.data_sections import SourceSection
from megatron_apriel.data.corpus.on_disk import Corpus, CorpusManifest
from megatron_apriel.data.corpus.tokens import load_tokenizer
from megatron_apriel.data.loading.sources import check_tokenizer
from megatron_apriel.data.loading.stage_data import open_sources
from megatron_apriel.errors import DataError
from megatron_apriel.formats.word_pattern import correct_directory
from megatron_apriel.testing.stages import small_stage
from megatron_apriel.testing.word_patterns import LLAMA3, byte_level, sequence, set_words, split

TEXT = "\u0627\u064b"
"""One token of Tekken's first 4096; the faulty pattern cuts the mark off its letter."""


@pytest.fixture(scope="module")
def faulty(model, tmp_path_factory) -> Path:
    """The model with its tokenizer as a conversion of 2024 wrote it; its model_type is llava."""
    directory = tmp_path_factory.mktemp("models") / "faulty"
    shutil.copytree(model, directory)
    set_words(directory, sequence(split(LLAMA3), byte_level(False)))
    return directory


@pytest.fixture(scope="module")
def prepared(prepare_data, model, faulty, tmp_path_factory):
    """By name: the right model's corpus, the faulty one's, and the faulty one's corrected."""
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "raw.jsonl").write_text(json.dumps({"text": f"{TEXT} {TEXT}"}) + "\n")
    for name, directory, options in (
        ("right", model, []),
        ("faulty", faulty, []),
        ("corrected", faulty, ["--correct-word-pattern"]),
        ("nothing", model, ["--correct-word-pattern"]),
    ):
        arguments = [folder / name, "--input", folder / "raw.jsonl", "--model", directory, "--workers", "1", *options]
        assert prepare_data(*arguments) == 0
    return {name: Corpus.open(folder / name) for name in ("right", "faulty", "corrected", "nothing")}


def test_preparing_names_the_fault_and_the_way_out(prepare_data, faulty, prepared, tmp_path, capsys):
    raw = prepared["right"].path.parent / "raw.jsonl"
    arguments = [tmp_path / "out", "--input", raw, "--model", faulty, "--workers", "1", "--dry-run"]
    assert prepare_data(*arguments) == 0
    said = capsys.readouterr().err
    assert f"warning: the tokenizer in {faulty} has the faulty word pattern of older conversions" in said
    assert "is cut into '\u0627' and '\u064b'" in said and "--correct-word-pattern" in said
    assert prepare_data(*arguments, "--correct-word-pattern") == 0
    assert "it was corrected for this corpus. Correct the model's too" in capsys.readouterr().err


def test_a_right_tokenizer_is_not_named(prepare_data, model, prepared, tmp_path, capsys):
    raw = prepared["right"].path.parent / "raw.jsonl"
    arguments = [tmp_path / "out", "--input", raw, "--model", model, "--workers", "1", "--dry-run"]
    assert prepare_data(*arguments) == 0
    assert "word pattern" not in capsys.readouterr().err


def test_a_corrected_corpus_is_that_of_the_right_tokenizer(prepared, model):
    right, faulty, corrected, nothing = (prepared[name] for name in ("right", "faulty", "corrected", "nothing"))
    assert right.tokens(0).tolist() == corrected.tokens(0).tolist() == nothing.tokens(0).tolist()
    assert len(faulty.tokens(0)) > len(right.tokens(0))
    assert right.manifest.tokenizer == corrected.manifest.tokenizer == nothing.manifest.tokenizer
    assert faulty.manifest.tokenizer.faulty_words and not right.manifest.tokenizer.faulty_words
    assert faulty.manifest.tokenizer.sha256 != right.manifest.tokenizer.sha256
    # Independent: the tokenizer of the right model, as transformers loads it.
    reference = load_tokenizer(model)(f"{TEXT} {TEXT}", add_special_tokens=False).input_ids
    assert right.tokens(0).tolist() == [1, *reference, 2]


def manifest_of(corpus: Corpus) -> dict[Path, CorpusManifest]:
    return {corpus.path: corpus.manifest}


def test_a_stage_whose_model_has_another_pattern_is_refused(prepared, model, faulty, tmp_path):
    check_tokenizer(manifest_of(prepared["faulty"]), faulty)
    check_tokenizer(manifest_of(prepared["corrected"]), model)
    message = r"prepared with the right word pattern, the tokenizer of the model in .* has the faulty one"
    with pytest.raises(DataError, match=message) as refusal:
        check_tokenizer(manifest_of(prepared["corrected"]), faulty)
    assert "--correct-word-pattern" in str(refusal.value)
    with pytest.raises(DataError, match=r"prepared with tokenizer \w+ and its faulty word pattern, the model"):
        check_tokenizer(manifest_of(prepared["faulty"]), model)
    shutil.copytree(faulty, tmp_path / "corrected")
    correct_directory(tmp_path / "corrected")
    check_tokenizer(manifest_of(prepared["corrected"]), tmp_path / "corrected")


def test_a_mixture_of_both_patterns_is_refused(prepared, architecture):
    sections = [SourceSection(corpus=prepared[name].path, weight=0.5) for name in ("right", "faulty")]
    with pytest.raises(DataError, match=r"faulty was prepared with tokenizer \w+ and its faulty word pattern, .*right"):
        open_sources(sections, architecture, small_stage(64), 0)
