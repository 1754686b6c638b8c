"""A faulty word pattern is recognised in the tokenizer itself, however it is written, and corrected."""

import json
from pathlib import Path

import mistral_common
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats import word_pattern
from megatron_apriel.formats.word_pattern import corrected, word_fault
from megatron_apriel.testing.tokenizers import small_tokenizer, write_small_tekken
from megatron_apriel.testing.word_patterns import LLAMA3, byte_level, sequence, set_words, split

TEKKEN = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_bytes())["config"][
    "pattern"
]
SPELLED = LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
FAULTY = {
    "sequence": sequence(split(LLAMA3), byte_level(False)),
    "spelled out": sequence(split(SPELLED), byte_level(False)),
    "a group": sequence(split(f"({LLAMA3})"), byte_level(False)),
    "single digits": sequence(split(LLAMA3.replace("{1,3}", "")), byte_level(False)),
    "alone": split(LLAMA3),
    "nested": sequence(sequence(split(LLAMA3)), byte_level(False)),
    "twice": sequence(split(LLAMA3), byte_level(True)),
    "digits before": sequence({"type": "Digits", "individual_digits": True}, split(LLAMA3), byte_level(False)),
}
OTHERWISE = {
    "right and GPT-2's": sequence(split(TEKKEN), byte_level(True)),
    "GPT-2's": byte_level(True),
    "no words": byte_level(False),
    "a space before each": sequence(split(TEKKEN), {**byte_level(False), "add_prefix_space": True}),
}
RIGHT = {
    "as converted": sequence(split(TEKKEN), byte_level(False)),
    "nested": sequence(sequence(split(TEKKEN)), byte_level(False)),
    "a group": sequence(split(f"(?:{TEKKEN})"), byte_level(False)),
}
TEXTS = (
    "Ankara'de it'Sx don't DON'T eBay NaOH 12345 9\u00b2",
    "हिन्दी में है, اً العَرَبِيَّة தமிழ் తెలుగు",
    "a;\n//b\r\n/c */\n/ 'type' x\n\n\n  y\t z   ",
)


@pytest.fixture(scope="module")
def state():
    return json.loads(small_tokenizer(12000).backend_tokenizer.to_str())


def ids(state, text):
    return Tokenizer.from_str(json.dumps(state)).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", FAULTY)
def test_the_older_pattern_is_recognised_and_corrected(name, state):
    fault = word_fault({**state, "pre_tokenizer": FAULTY[name]})
    assert fault is not None and fault.older and fault.lost >= 47
    assert "the faulty word pattern of older conversions" in str(fault)
    assert "".join(fault.pieces) == fault.text and len(fault.pieces) > 1
    # The example is one token of the vocabulary, and not of this tokenizer.
    assert len(ids(state, fault.text)) == 1
    if "alone" not in name:
        assert len(ids({**state, "pre_tokenizer": FAULTY[name]}, fault.text)) > 1
    assert corrected({**state, "pre_tokenizer": FAULTY[name]}) == state


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_words_than_the_vocabularys_are_recognised(name, state):
    fault = word_fault({**state, "pre_tokenizer": OTHERWISE[name]})
    assert fault is not None and not fault.older
    assert "of another vocabulary" in str(fault)


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_pattern_is_no_fault(name, state):
    assert word_fault({**state, "pre_tokenizer": RIGHT[name]}) is None


def test_a_vocabulary_too_small_to_show_it_is_known_by_its_control_tokens():
    state = json.loads(small_tokenizer(1256).backend_tokenizer.to_str())
    faulty = {**state, "pre_tokenizer": FAULTY["sequence"]}
    assert word_fault(faulty) is not None
    named = [{**token, "content": f"<x{token['id']}>"} for token in state["added_tokens"]]
    assert word_fault({**faulty, "added_tokens": named}) is None


def test_the_same_pattern_is_right_for_its_own_vocabulary(state):
    """Llama 3's vocabulary has numbers of three digits and words that begin anew in the middle."""
    made = {name: 12000 + number for number, name in enumerate(["12", "123", "20", "getName", "ĠisEmpty", "toString"])}
    made |= {f"x{number}": 13000 + number for number in range(10, 100)}
    other = {**state, "model": {**state["model"], "vocab": {**state["model"]["vocab"], **made}}}
    assert word_fault({**other, "pre_tokenizer": FAULTY["sequence"]}) is None


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}},
        {"pre_tokenizer": {"type": "Unheard"}},
        {"model": {"type": "Unigram", "vocab": [["a", -1.0]]}},
        {"model": None},
    ],
    ids=str,
)
def test_other_tokenizers_are_not_judged(changed, state):
    small = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": []}
    assert word_fault({**small, "pre_tokenizer": FAULTY["sequence"], **changed}) is None


def test_corrected_ids_are_those_of_transformers_and_mistral_common(state, tmp_path):
    """transformers' own correction, which it makes by model type, size and version only, is called by itself here."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    faulty = {**state, "pre_tokenizer": FAULTY["sequence"]}
    (tmp_path / "config.json").write_text('{"model_type": "mistral", "transformers_version": "4.50.0"}')
    theirs = PreTrainedTokenizerFast._patch_mistral_regex(
        Tokenizer.from_str(json.dumps(faulty)), str(tmp_path), is_local=True, fix_mistral_regex=True
    )
    tekken = Tekkenizer.from_file(write_small_tekken(tmp_path / "tekken.json", 12000))
    for text in TEXTS:
        ours = ids(corrected(faulty), text)
        assert ours == theirs.encode(text, add_special_tokens=False).ids == tekken.encode(text, bos=False, eos=False)
    assert any(ids(faulty, text) != ids(corrected(faulty), text) for text in TEXTS)


def test_a_directory_is_corrected_and_all_else_of_its_file_stays(state, tmp_path, capsys):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**state, "truncation": None}))
    set_words(tmp_path, FAULTY["sequence"])
    assert word_pattern.fault_in_directory(tmp_path) is not None
    word_pattern.correct_directory(tmp_path)
    assert json.loads(file.read_text()) == state
    word_pattern.correct_directory(tmp_path)
    said = capsys.readouterr().err
    assert "it was corrected in the result" in said
    assert "is not faulty; nothing was corrected" in said
    file.write_text("{")
    assert word_pattern.fault_in_directory(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be read"):
        word_pattern.correct_directory(tmp_path)
