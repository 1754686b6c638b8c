"""What lies in a Hugging Face directory beside the weights: config, generation config, chat template."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_apriel.errors import listed
from megatron_apriel.formats.json_files import read_json, write_json
from megatron_apriel.formats.sidecars import FURTHER_TEMPLATES, GENERATION, write_sidecars
from megatron_apriel.formats.word_pattern import TOKENIZER_FILE
from megatron_apriel.terminal import note

SAMPLING = {"do_sample": True, "temperature": 0.6}
"""How the published model's answers were sampled (arXiv 2510.01141, evaluation)."""
TOKENIZER_CONFIG = "tokenizer_config.json"
_TEKKEN_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11}
_ANSWERS = {
    "do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "top_h": None, "min_p": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": None,
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
}  # fmt: skip
"""What a generation config says of how answers are chosen, with the defaults that old configs write out."""

_SAMPLED = ("temperature", "top_p", "top_k", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Those that only mean something where answers are sampled."""


@dataclass(frozen=True)
class ChatFormat:
    """How conversations are written and answers are read.

    Attributes:
        template: text of ``chat_template.jinja``.
        response: ``response_template`` of ``tokenizer_config.json``, by which transformers divides an answer.
    """

    template: str
    response: dict[str, Any]


def write_hf_sidecars(
    directory: Path,
    given: Path,
    config: dict[str, object],
    chat_format: ChatFormat | None = None,
    correct_words: bool = False,
) -> None:
    """Write config, tokenizer, processor, chat template and generation config into a Hugging Face directory."""
    write_sidecars(directory, given, config, correct_words=correct_words)
    chosen = read_json(given / GENERATION) if (given / GENERATION).exists() else _chosen_in(config)
    given_ids = {name: chosen[name] for name in _TEKKEN_IDS if chosen.get(name) is not None}
    ids = {**_TEKKEN_IDS, **_said_in(config, _TEKKEN_IDS), **given_ids}
    # All of it as given, or all of it the recipe's: halves of two would contradict each other.
    sampling = SAMPLING if all(chosen.get(name) is None for name in _ANSWERS) else {}
    write_json(directory / GENERATION, {**ids, **_agreeing(chosen), **ids, **sampling})
    set_tokenizer_class(directory)
    if chat_format is not None:
        set_chat_format(directory, chat_format)


def set_tokenizer_class(directory: Path) -> None:
    """Name the generic tokenizer as transformers 4 and 5 both know it, and what it gives that models take.

    Version 5 writes ``TokenizersBackend``, which version 4 does not know; that in turn gives ``token_type_ids`` where
    it is not told otherwise, which ``generate`` refuses, and wants further special tokens under their older name.
    """
    file = directory / TOKENIZER_CONFIG
    if not file.exists() or not (directory / TOKENIZER_FILE).exists():
        return
    given = read_json(file)
    if given.get("tokenizer_class") not in (None, "TokenizersBackend", "PreTrainedTokenizerFast"):
        return
    fields = {"model_input_names": ["input_ids", "attention_mask"], **given}
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):
        fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    if fields != given:
        write_json(file, fields)


def _chosen_in(config: dict[str, object]) -> dict[str, object]:
    """How answers are chosen by the config itself, where transformers looks if there is no generation config."""
    return {name: value for name, value in _said_in(config, _ANSWERS).items() if value != _ANSWERS[name]}


def _said_in(config: dict[str, object], names: Collection[str]) -> dict[str, object]:
    """What a config says under ``names``: as transformers reads it, that of the whole before the decoder's."""
    text = config.get("text_config")
    parts = (text if isinstance(text, dict) else {}, config)
    return {name: part[name] for part in parts for name in names if part.get(name) is not None}


def _agreeing(chosen: dict[str, object]) -> dict[str, object]:
    """How answers are chosen, without contradictions, which transformers refuses to save; they are named.

    Where answers are not sampled, what says how to sample them means nothing; where nothing says whether they are, it
    says that they are. A temperature of 0 means greedy decoding, as it does to servers.
    """
    said = [name for name in _SAMPLED if chosen.get(name) not in (None, _ANSWERS[name])]
    if chosen.get("do_sample") is False:
        if said:
            note(f"note: {GENERATION} says do_sample=false, under which {listed(said, 8)} means nothing; left out")
        return {name: value for name, value in chosen.items() if name not in _SAMPLED}
    if chosen.get("temperature") == 0:
        note(f"note: {GENERATION} says temperature=0, which is the most likely token; the result says do_sample=false")
        return {name: value for name, value in chosen.items() if name not in _SAMPLED} | {"do_sample": False}
    if chosen.get("do_sample") is None and said:
        note(f"note: {GENERATION} gives {listed(said, 8)} and no do_sample; the result says do_sample=true")
        return {**chosen, "do_sample": True}
    return chosen


def set_chat_format(directory: Path, chat_format: ChatFormat) -> None:
    """Write a chat format's two templates, each in one place.

    transformers 5 reads that of prompts from chat_template.jinja, and older places would contradict it, as would
    templates for tools or documents in a folder, which are taken before it; that of answers stands in the tokenizer's
    configuration.
    """
    shutil.rmtree(directory / FURTHER_TEMPLATES, ignore_errors=True)
    (directory / "chat_template.jinja").write_text(chat_format.template, encoding="utf-8")
    (directory / "chat_template.json").unlink(missing_ok=True)
    for name, further in (
        (TOKENIZER_CONFIG, {"response_template": chat_format.response}),
        ("processor_config.json", {}),
    ):
        file = directory / name
        if not file.exists():
            continue
        given = read_json(file)
        fields = {key: value for key, value in given.items() if key != "chat_template"} | further
        if fields != given:
            write_json(file, fields)
