"""Converts a checkpoint between Hugging Face's form, Mistral's own, and a run's distributed checkpoint.

The numbers are not touched unless another dtype is asked for: only names, the order of rows and the cutting into files
change. Everything is streamed, a few megabytes of rows at a time, and appears at its destination when it is whole.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_apriel.checkpoint.image_tokens import break_and_end_ids
from megatron_apriel.checkpoint.tekken_processor import TEKKEN, check_same_vocabulary, settle_tekken
from megatron_apriel.checkpoint.tensor_bytes import SAFETENSORS_NAMES, as_bytes, cast
from megatron_apriel.checkpoint.weights import Weights, open_weights
from megatron_apriel.data.corpus.processor_files import longest_side, tekken_side
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.hf_directory import write_hf_sidecars
from megatron_apriel.formats.json_files import read_json, write_json
from megatron_apriel.formats.kinds import (
    Kind,
    architecture_of,
    config_for,
    recognise,
    sidecar_directory,
)
from megatron_apriel.formats.mistral_params import architecture_from_params, params_from_architecture
from megatron_apriel.formats.other_tools import copied
from megatron_apriel.formats.run_directory import RUN_FILE, SIDECAR_DIRECTORY
from megatron_apriel.formats.run_record import read_run_file, write_run_file
from megatron_apriel.formats.sidecars import (
    CONFIG,
    MISTRAL_SENTENCEPIECE,
    PARAMS,
    check_sidecars,
    missing_readers,
    write_sidecars,
)
from megatron_apriel.formats.tensor_files import Base, TensorSpec
from megatron_apriel.formats.tensor_names import Component, Form, Weight, component_of, pairs_from_halves
from megatron_apriel.formats.word_pattern import name_word_fault
from megatron_apriel.outputs import check_destination, check_space, whole_directory
from megatron_apriel.progress import progress
from megatron_apriel.surgery.shards import Room, plan_shards, write_tensors
from megatron_apriel.terminal import note

MARKERS = {Kind.HF: CONFIG, Kind.MISTRAL: PARAMS, Kind.MEGATRON: RUN_FILE}
"""File that distinguishes an earlier result of each form from a directory of somebody's."""

_PIECE_BYTES = 32 << 20


@dataclass(frozen=True)
class Conversion:
    """All that will be done, checked before anything is.

    Attributes:
        path, kind: the checkpoint and its form.
        to: form of the result.
        architecture: of the model.
        weights: of the checkpoint, all accounted for.
        dtype: to cast to; None keeps each tensor's own.
        max_shard_size: bytes per safetensors file; None for one file.
        params: what goes into ``params.json``, where the result has one.
        correct_words: write a tokenizer with a faulty word pattern with the right one.
        parts: of the model that are written to safetensors; None for all.
    """

    path: Path
    kind: Kind
    to: Kind
    architecture: Architecture
    weights: Weights
    dtype: torch.dtype | None
    max_shard_size: int | None
    params: dict[str, Any] | None = None
    correct_words: bool = False
    parts: frozenset[Component] | None = None

    @property
    def size(self) -> int:
        """Bytes of the result's tensors."""
        return sum(spec.size for spec in self.specs.values())

    @property
    def form(self) -> Form:
        """How the result spells names, where it is safetensors."""
        if self.to is Kind.MISTRAL:
            return Form.MISTRAL
        return Form.TEXT_ONLY if self.architecture.tower is None else Form.LEGACY

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """What safetensors would hold, by legacy name."""
        return {
            name: TensorSpec(weight.stored_as(self.form), SAFETENSORS_NAMES[self.dtype_of(name)], weight.shape)
            for name, weight in self.weights.table.items()
            if self.parts is None or component_of(name) in self.parts
        }

    def dtype_of(self, name: str) -> torch.dtype:
        """Dtype of a weight in the result."""
        return self.dtype or self.weights.dtypes[name]

    def rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """A weight in pieces of whole heads: first row, and rows in the result's order and dtype."""
        weight, dtype = self.weights.table[name], self.dtype_of(name)
        row_bytes, unit = weight.matrix[1] * 4, weight.interleaved_head or 1
        count = max(1, _PIECE_BYTES // (row_bytes * unit)) * unit
        for start in range(0, weight.matrix[0], count):
            rows = self.weights.read(name, start, min(start + count, weight.matrix[0]))
            yield start, self.stored(cast(rows, dtype, name), weight)

    def stored(self, rows: Tensor, weight: Weight) -> Tensor:
        """Whole heads of a weight in the order in which the result keeps them."""
        in_pairs = self.form is Form.MISTRAL and weight.interleaved_head
        return pairs_from_halves(rows, weight.interleaved_head) if in_pairs else rows


def plan_conversion(
    checkpoint: str | Path,
    to: Kind,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | None = None,
    correct_words: bool = False,
    parts: frozenset[Component] | None = None,
) -> Conversion:
    """Recognise the checkpoint, account for all of its tensors and compare them with their checksums, where it has any.

    Raises:
        CheckpointError: no checkpoint, damaged, incomplete, or of a model that the other form cannot say; or a run's,
            whose words are to be corrected after it has trained on them.
    """
    path = Path(checkpoint)
    kind, architecture = recognise(path), architecture_of(path)
    weights, sidecars = open_weights(path, architecture), sidecar_directory(path)
    check_sidecars(sidecars)
    if correct_words:
        _check_not_trained(path, kind)
    else:
        name_word_fault(sidecars)
    params = _params(sidecars, architecture) if to is Kind.MISTRAL else None
    conversion = Conversion(path, kind, to, architecture, weights, dtype, max_shard_size, params, correct_words, parts)
    if to is Kind.MISTRAL and parts is None and not _has_mistral_tokenizer(sidecars):
        note(
            f"note: {sidecars} has no {TEKKEN}, so the result has no tokenizer that Mistral's tools and vLLM read."
            f" Copy the {TEKKEN} of the model that training began from into it; Pixtral's is in"
            " mistralai/Pixtral-12B-2409 on Hugging Face."
        )
    if to is Kind.MISTRAL and parts is None:
        check_same_vocabulary(sidecars)
    if to is not Kind.MISTRAL:
        _config(conversion)
        if lacking := missing_readers(sidecars, architecture.tower is not None):
            note(f"note: {sidecars} has no {lacking}, and the result will have none. {copied(sidecars)}")
        if (sidecars / PARAMS).is_file():
            break_and_end_ids(sidecars, architecture)
    conversion.weights.verify()
    return conversion


def _has_mistral_tokenizer(sidecars: Path) -> bool:
    return any(next(sidecars.glob(pattern), None) for pattern in (TEKKEN, *MISTRAL_SENTENCEPIECE))


def convert(conversion: Conversion, destination: str | Path, *, overwrite: bool = False, verify: bool = False) -> None:
    """Write the result; the destination is whole or as it was.

    Args:
        conversion: from :func:`plan_conversion`.
        destination: directory to be made.
        overwrite: replace an earlier result of the same form there.
        verify: also read everything again and compare, before it is put in place.

    Raises:
        CheckpointError, OutputError: nothing was written.
    """
    marker = MARKERS[conversion.to]
    check_destination(destination, overwrite, marker, [conversion.path])
    with whole_directory(destination, overwrite, marker, [conversion.path]) as partial:
        check_space(destination, conversion.size)
        with progress("converting", total=conversion.size, unit="byte") as step:
            if conversion.to is Kind.MEGATRON:
                from megatron_apriel.checkpoint.write_distributed import write_distributed

                write_distributed(partial, conversion.weights, conversion.architecture, conversion.dtype, step)
            else:
                _write_safetensors(conversion, partial, step)
        _WRITE_SIDECARS[conversion.to](conversion, partial)
        if verify:
            _verify(conversion, partial)


def _write_safetensors(conversion: Conversion, directory: Path, step: Any) -> None:
    base: Base = "consolidated" if conversion.to is Kind.MISTRAL else "model"
    specs = conversion.specs
    names = {spec.name: name for name, spec in specs.items()}

    def contents(spec: TensorSpec, room: Room) -> Iterator[memoryview]:
        for _, rows in conversion.rows(names[spec.name]):
            yield as_bytes(rows)

    write_tensors(
        directory, plan_shards(specs.values(), conversion.max_shard_size, base), contents, base=base, step=step
    )


def _hf_sidecars(conversion: Conversion, directory: Path) -> None:
    given = sidecar_directory(conversion.path)
    write_hf_sidecars(directory, given, _config(conversion), correct_words=conversion.correct_words)
    settle_tekken(directory, conversion.architecture)


def _mistral_sidecars(conversion: Conversion, directory: Path) -> None:
    assert conversion.params is not None, "planned for Mistral's form"
    write_sidecars(directory, sidecar_directory(conversion.path), conversion.params, PARAMS, conversion.correct_words)


def _megatron_sidecars(conversion: Conversion, directory: Path) -> None:
    given, sidecars = sidecar_directory(conversion.path), directory / SIDECAR_DIRECTORY
    write_sidecars(sidecars, given, _config(conversion), correct_words=conversion.correct_words)
    if conversion.kind is Kind.MISTRAL:
        # Mistral's description of the model goes along, so that the way back gives the same file.
        write_json(sidecars / PARAMS, read_json(given / PARAMS))
    # No layout wrote it and no optimizer belongs to it: weights to begin a run from.
    write_run_file(directory, {"step": 0, "layout": None, "optimizer_groups": None, "extra": {}})


_WRITE_SIDECARS = {Kind.HF: _hf_sidecars, Kind.MISTRAL: _mistral_sidecars, Kind.MEGATRON: _megatron_sidecars}


def _check_not_trained(path: Path, kind: Kind) -> None:
    """A run's checkpoint is served with the tokenizer that made the run's corpora."""
    if kind is Kind.MEGATRON and "config" in read_run_file(path).extra:
        raise CheckpointError(
            f"{path} is of a run, which trained on the words of its tokenizer; they are not corrected behind it.",
            "The model would be served with other tokens than it learned.",
            "Correct the model that the next run begins from, and prepare its corpora with it.",
        )


def _config(conversion: Conversion) -> dict[str, object]:
    dtypes = {conversion.dtype_of(name) for name in conversion.weights.table}
    # Of several dtypes the narrowest into which all fit.
    widest = functools.reduce(torch.promote_types, dtypes)
    given = sidecar_directory(conversion.path)
    return config_for(conversion.architecture, given, str(widest).removeprefix("torch."))


def _params(sidecars: Path, architecture: Architecture) -> dict[str, Any]:
    """The given ``params.json`` where it is of this model, else one with the ids of the tokenizer."""
    ids, tower = break_and_end_ids(sidecars, architecture), architecture.tower
    if tower is not None and (side := longest_side(sidecars, architecture)) != (said := tekken_side(sidecars, tower)):
        raise CheckpointError(
            f"{sidecars}: images are resized to {side} pixels, and to {said} in Mistral's form.",
            f"That form says it in {TEKKEN} alone, by max_image_size, and takes the tower's image_size where that is"
            " absent: a server would show the model other images than it was trained on.",
            f"Give the model a {TEKKEN} with image.max_image_size={side}.",
        )
    params = params_from_architecture(architecture, ids)
    file = sidecars / PARAMS
    if file.is_file() and architecture_from_params(file) == architecture:
        return read_json(file)
    if tower is not None and ids is None:
        note(f"note: {sidecars} has no tokenizer: {PARAMS} does not name the ids of [IMG_BREAK] and [IMG_END].")
    return params


def _verify(conversion: Conversion, directory: Path) -> None:
    """Read the result as any user would, and compare every number with what was given."""
    written = open_weights(directory, conversion.architecture)
    with progress("verifying", total=conversion.size, unit="byte") as step:
        for name, weight in conversion.weights.table.items():
            for start, rows in conversion.rows(name):
                found = written.read(name, start, start + rows.shape[0])
                found = conversion.stored(found, weight)
                if found.dtype != rows.dtype or not torch.equal(_bits(found), _bits(rows)):
                    raise CheckpointError(
                        f"{name}, from row {start}, came out otherwise than it went in.",
                        "A disk or memory is at fault, or the checkpoint was changed meanwhile.",
                    )
                step(rows.numel() * rows.element_size())


def _bits(tensor: Tensor) -> Tensor:
    """As bytes, so that NaN equals itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)
