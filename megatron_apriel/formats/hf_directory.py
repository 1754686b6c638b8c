"""What lies in a Hugging Face directory beside the weights: config, generation config, chat template."""

from __future__ import annotations

from pathlib import Path

from megatron_apriel.formats.json_files import read_json, write_json
from megatron_apriel.formats.sidecars import GENERATION, write_sidecars

SAMPLING = {"do_sample": True, "temperature": 0.6}
"""How the published model's answers were sampled (arXiv 2510.01141, evaluation)."""
_BOS, _EOS, _PAD = 1, 2, 11
"""Tekken's ids."""
_ANSWERS = (
    *("do_sample", "temperature", "top_p", "top_k", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("num_beams", "num_beam_groups", "penalty_alpha", "repetition_penalty", "no_repeat_ngram_size"),
)
"""What a generation config says of how answers are chosen."""


def write_hf_sidecars(
    directory: Path,
    given: Path,
    config: dict[str, object],
    chat_template: str | None = None,
    correct_words: bool = False,
) -> None:
    """Write config, tokenizer, processor, chat template and generation config into a Hugging Face directory."""
    write_sidecars(directory, given, config, correct_words=correct_words)
    chosen = read_json(given / GENERATION) if (given / GENERATION).exists() else {}
    text = config.get("text_config")
    ids = text if isinstance(text, dict) else config
    standard = {
        "bos_token_id": ids.get("bos_token_id", _BOS),
        "eos_token_id": ids.get("eos_token_id", _EOS),
        "pad_token_id": _PAD,
    }
    # All of it as given, or all of it the recipe's: halves of two would contradict each other.
    sampling = SAMPLING if all(chosen.get(name) is None for name in _ANSWERS) else {}
    write_json(directory / GENERATION, {**standard, **chosen, **sampling})
    if chat_template is not None:
        _set_chat_template(directory, chat_template)


def _set_chat_template(directory: Path, template: str) -> None:
    """One template in one place: transformers 5 reads chat_template.jinja, and older places would contradict it."""
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    (directory / "chat_template.json").unlink(missing_ok=True)
    for name in ("tokenizer_config.json", "processor_config.json"):
        file = directory / name
        if file.exists():
            fields = read_json(file)
            if fields.pop("chat_template", None) is not None:
                write_json(file, fields)
