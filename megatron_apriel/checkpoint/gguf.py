"""A model as GGUF files for llama.cpp, made by llama.cpp's own converter.

The converter is asked twice, for each file in the form of which it makes the right one:

* **the decoder**, with tokenizer and chat template, from Hugging Face's form: from Mistral's it would take a chat
  template of Mistral's own;
* **tower and projector**, from Mistral's form: from Hugging Face's it drops the row of the embedding for [IMG_BREAK],
  which llama.cpp puts between the rows of an image. Of that form only what it reads is written, for a while.

What llama.cpp computes otherwise than the model was trained with is refused before it starts.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_apriel.checkpoint import llama_converter
from megatron_apriel.checkpoint.convert import Conversion, convert, plan_conversion
from megatron_apriel.data.corpus.processor_files import longest_side
from megatron_apriel.errors import CheckpointError, ConfigError, printable
from megatron_apriel.formats.hf_directory import TOKENIZER_CONFIG
from megatron_apriel.formats.json_files import read_json
from megatron_apriel.formats.kinds import Kind, sidecar_directory
from megatron_apriel.formats.other_tools import copied
from megatron_apriel.formats.sidecars import chat_template, missing_readers
from megatron_apriel.formats.tensor_names import Component
from megatron_apriel.formats.word_pattern import has_tekken_words
from megatron_apriel.generate.engines.llama import CONVERTER, IMAGE_FILE, TEXT_FILE
from megatron_apriel.generate.engines.llama_images import size_rule
from megatron_apriel.inputs import open_input
from megatron_apriel.outputs import check_space, whole_directory
from megatron_apriel.terminal import note

_TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_BREAK_ROW = b"v.token_embd.img_break"
_HEADER_BYTES = 1 << 20
"""Of a file with a tower's tensors: its names stand in front, and a tokenizer is not among them."""
_IMAGE_PARTS = frozenset({Component.TOWER, Component.PROJECTOR, Component.EMBEDDING})
_LAST_LINES = 15


@dataclass(frozen=True)
class GgufPlan:
    """What will be made.

    Attributes:
        text: the model in Hugging Face's form, to be written where it is not.
        images: what images go through, in Mistral's form; None of a model without a tower.
        converter: llama.cpp's.
        precision: ``f32``, ``f16`` or ``bf16``.
    """

    text: Conversion
    images: Conversion | None
    converter: Path
    precision: str

    @property
    def size(self) -> int:
        """Bytes that are needed, with what is written for a while."""
        given = self.text.kind is Kind.HF and not self.text.correct_words
        return self.text.size * (1 if given else 2) + (2 * self.images.size if self.images else 0)


def plan_gguf(
    checkpoint: str | Path, llama_cpp: Path, *, dtype: torch.dtype | None = None, correct_words: bool = False
) -> GgufPlan:
    """Check a checkpoint of any form, and that llama.cpp can compute it.

    Args:
        checkpoint: to be converted.
        llama_cpp: folder of llama.cpp's source.
        dtype: of the result; by default the widest of the weights'.
        correct_words: as of :func:`~megatron_apriel.checkpoint.convert.plan_conversion`.

    Raises:
        ConfigError: there is no converter.
        CheckpointError, DataError: the checkpoint is damaged, lacks its tokenizer, or is computed otherwise there.
    """
    converter = llama_cpp / CONVERTER
    if not converter.is_file():
        raise ConfigError(
            f"{printable(converter)} does not exist.",
            "GGUF files are made by llama.cpp's own converter, which lies in its source.",
            "Give the folder of llama.cpp: --llama-cpp FOLDER.",
        )
    text = plan_conversion(checkpoint, Kind.HF, dtype=dtype, correct_words=correct_words)
    sidecars, tower = sidecar_directory(checkpoint), text.architecture.tower
    _check_files(sidecars, tower is not None)
    precision = _TYPES.get(functools.reduce(torch.promote_types, {text.dtype_of(name) for name in text.weights.table}))
    if precision is None:
        raise CheckpointError(
            f"{printable(checkpoint)} has weights that llama.cpp cannot hold.", fix="Give --dtype float32."
        )
    images = None
    if tower is not None:
        images = plan_conversion(checkpoint, Kind.MISTRAL, dtype=dtype, parts=_IMAGE_PARTS)
        _check_images(images)
        side = longest_side(sidecars, text.architecture) or tower.image_size
        note(f"note: {size_rule(tower.patch_size, side)}")
    return GgufPlan(text, images, converter, precision)


def write_gguf(plan: GgufPlan, destination: str | Path, *, overwrite: bool = False) -> list[str]:
    """Make the files; the destination is whole or as it was.

    Args:
        plan: from :func:`plan_gguf`.
        destination: directory to be made.
        overwrite: replace an earlier result there.

    Returns:
        Names of the files in it.

    Raises:
        CheckpointError: the converter failed; nothing was written.
    """
    with whole_directory(destination, overwrite, TEXT_FILE, [plan.text.path]) as partial:
        check_space(destination, plan.size)
        scratch = partial / "scratch"
        scratch.mkdir()
        model = plan.text.path
        if plan.text.kind is not Kind.HF or plan.text.correct_words:
            model = scratch / "model"
            convert(plan.text, model)
        _run(plan, model, partial / TEXT_FILE)
        if plan.images is not None:
            convert(plan.images, scratch / "images")
            _run(plan, scratch / "images", partial / IMAGE_FILE, "--mistral-format", "--mmproj")
            _check_break_row(partial / IMAGE_FILE)
        shutil.rmtree(scratch)
        return sorted(file.name for file in partial.iterdir())


def _check_files(sidecars: Path, tower: bool) -> None:
    if lacking := missing_readers(sidecars, tower):
        raise CheckpointError(
            f"{printable(sidecars)} has no {lacking}, which a GGUF file contains.", fix=copied(sidecars)
        )
    if chat_template(sidecars) is None:
        note(f"note: {sidecars} has no chat template, so llama.cpp takes one of its own, which was not trained")
    file = sidecars / TOKENIZER_CONFIG
    if file.exists() and read_json(file).get("auto_map"):
        raise CheckpointError(
            f"{printable(file)} has auto_map: its tokenizer is code of its own.",
            "llama.cpp's converter would run it.",
            "Give a tokenizer that transformers knows.",
        )


def _check_images(images: Conversion) -> None:
    """Raise CheckpointError for what llama.cpp has fixed, or takes from the decoder, and is otherwise here."""
    decoder, tower, params = images.architecture.decoder, images.architecture.tower, images.params
    assert tower is not None and params is not None, "planned for Mistral's form, of a model with a tower"
    for what, value, there in (
        ("rope_theta", tower.rope_theta, 1e4),
        ("norm_eps", tower.norm_eps, decoder.norm_eps),
    ):
        if value != there:
            raise CheckpointError(
                f"the tower's {what} is {value:g}, and llama.cpp computes it with {there:g}.",
                "It has no place for another one: images would be seen otherwise than in training.",
                "Serve this model with vLLM or transformers.",
            )
    if params["vision_encoder"].get("image_break_token_id") is None:
        raise CheckpointError(
            f"{printable(images.path)} does not say which token is [IMG_BREAK].",
            "llama.cpp puts its row of the embedding between the rows of an image.",
            "Give a model with its tokenizer.",
        )


def _run(plan: GgufPlan, model: Path, file: Path, *options: str) -> None:
    runner = [str(Path(llama_converter.__file__))] if has_tekken_words(model) else []
    command = [
        *(sys.executable, *runner, str(plan.converter), str(model)),
        *("--outfile", str(file), "--outtype", plan.precision, *options),
    ]
    note(f"running {CONVERTER} for {file.name}")
    # Nothing of it is downloaded, whatever a tokenizer's files name.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not file.is_file():
        lines = (done.stdout + done.stderr).splitlines()[-_LAST_LINES:]
        raise CheckpointError(
            f"llama.cpp's {CONVERTER} ended with exit code {done.returncode} and made no {file.name}.",
            "It printed last:" + "".join(f"\n    {printable(line)}" for line in lines),
            "A tokenizer that it does not recognise, and that splits text otherwise than Tekken, is not converted.",
        )


def _check_break_row(file: Path) -> None:
    """Raise CheckpointError if a converter of another version left out the row that this route is for."""
    with open_input(file) as stream:
        if _BREAK_ROW not in stream.read(_HEADER_BYTES):
            raise CheckpointError(
                f"llama.cpp's {CONVERTER} left the row of [IMG_BREAK] out of {file.name}.",
                "Images would be read as if they had one row.",
                "Take llama.cpp of build 10434 or near it, with which this was tried.",
            )
