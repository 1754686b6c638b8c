"""What can be averaged: checkpoints that offer their tensors by rows, and agree in everything but their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_apriel.errors import CheckpointError, listed, printable, shown
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.hf_config import comparable, is_known
from megatron_apriel.formats.json_files import read_json
from megatron_apriel.formats.other_tools import refuse_quantised, refuse_without_config
from megatron_apriel.formats.sidecar_contents import SidecarContents
from megatron_apriel.formats.sidecars import CONFIG
from megatron_apriel.formats.tensor_files import FLOATS, TensorDirectory, TensorSpec
from megatron_apriel.surgery.mean import STORAGE
from megatron_apriel.surgery.reused_memory import ReusedMemory
from megatron_apriel.terminal import note


class TensorReader(Protocol):
    """A checkpoint's tensors under Hugging Face names, read by rows."""

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Name, safetensors dtype and shape of each."""
        ...

    def read(self, name: str, start_row: int, stop_row: int) -> np.ndarray:
        """Rows of a tensor (a scalar is one row), any shape of the right number of elements, row-major.

        In the dtype of ``mean.STORAGE``: bfloat16 as its bits in uint16.
        """
        ...


class DirectoryReader:
    """A Hugging Face directory as a :class:`TensorReader`."""

    def __init__(self, path: str | Path) -> None:
        self._entries = TensorDirectory.open(path, "model").entries
        self.tensors: Mapping[str, TensorSpec] = self._entries
        self._memory = ReusedMemory()

    def read(self, name: str, start_row: int, stop_row: int) -> np.ndarray:
        entry = self._entries[name]
        count = entry.elements // max(entry.rows, 1) * (stop_row - start_row)
        dtype = STORAGE[entry.dtype]
        if not count:
            return np.empty(0, dtype)
        memory = self._memory(count * dtype.itemsize)
        entry.read_into(memory, start_row, stop_row)
        return np.frombuffer(memory, dtype)


@dataclass(frozen=True)
class AverageInput:
    """One checkpoint to be averaged.

    Attributes:
        label: its directory, as tables and messages call it.
        reader: its tensors.
        sidecars: directory with its config.json and, where present, tokenizer and processor files.
        config: that config.
    """

    label: str
    reader: TensorReader
    sidecars: Path
    config: dict[str, Any] = field(repr=False)

    @classmethod
    def from_directory(cls, path: str | Path) -> AverageInput:
        """A Hugging Face directory. Raises CheckpointError if it is damaged."""
        directory = Path(path)
        reader = DirectoryReader(directory)
        refuse_without_config(directory)
        config = read_json(directory / CONFIG)
        refuse_quantised(config, printable(directory / CONFIG))
        return cls(str(path), reader, directory, config)


def check_agreement(inputs: Sequence[AverageInput]) -> None:
    """Raise CheckpointError, naming the first tensor or key, if the inputs do not describe one and the same model."""
    for other in inputs[1:]:
        _check_same_tensors(inputs[0], other)
        _check_same_config(inputs[0], other)
        _check_same_files(inputs[0], other)
    for spec in inputs[0].reader.tensors.values():
        if spec.dtype not in STORAGE:
            raise CheckpointError(
                f"{spec.name} has dtype {spec.dtype}, which cannot be averaged.",
                "Its numbers mean something only together with their scales.",
                f"Averaged are {', '.join(FLOATS)}.",
            )


def _check_same_tensors(first: AverageInput, other: AverageInput) -> None:
    ours, theirs = first.reader.tensors, other.reader.tensors
    for one, two, holder, lacker in ((ours, theirs, first, other), (theirs, ours, other, first)):
        missing = [name for name in one if name not in two]
        if missing:
            raise CheckpointError(
                f"{lacker.label} lacks {missing[0]}, which {holder.label} has ({len(missing)} such tensors).",
                "Only checkpoints of one architecture, under one layout of names, can be averaged.",
                "If only the names differ, tools/convert_checkpoint.py --to hf writes both in one layout.",
            )
    for name, spec in ours.items():
        here, there = (f"{given.dtype} {list(given.shape)}" for given in (spec, theirs[name]))
        if here != there:
            raise CheckpointError(
                f"{name} is {here} in {first.label} and {there} in {other.label}.",
                "Only checkpoints of one architecture and precision can be averaged.",
                "If only the precision differs: tools/convert_checkpoint.py SRC DST --to hf --dtype bfloat16."
                if spec.shape == theirs[name].shape
                else "",
            )


def _check_same_config(first: AverageInput, other: AverageInput) -> None:
    """Raise CheckpointError, naming a setting, if two configs describe different models; name what else differs.

    Versions of transformers say the same in several ways, or leave it to a default; so what configs mean is compared,
    and their keys only where one of them is of a model that is not known here.
    """
    ours, theirs = (_meaning(given) for given in (first, other))
    if ours is None or theirs is None:
        for part in (None, "text_config", "vision_config"):
            _check_same_keys(first, other, part)
    else:
        for part in ours:
            for key in ours[part].keys() | theirs[part].keys():
                values = [meaning[part].get(key) for meaning in (ours, theirs)]
                if values[0] != values[1]:
                    raise CheckpointError(
                        f"{part}'s {key} is {shown(values[0])} by {first.label}'s config and {shown(values[1])} by"
                        f" {other.label}'s.",
                        _OTHER_MODELS,
                    )
    if different := _differing_keys(first.config, other.config):
        note(f"note: config.json differs in {listed(different, 8)}; the result has that of {first.label}")


_POSITIONS = ("rope_type", "rope_factor")
_OTHER_MODELS = "The same weights would mean different models."


def _check_same_keys(first: AverageInput, other: AverageInput, part: str | None) -> None:
    sections = [_section(given, part) if part else given.config for given in (first, other)]
    ours, theirs = map(comparable, sections)
    names = ours.keys() | theirs.keys()
    if not all(map(is_known, sections)):
        # What is absent may have been written out by another version, unless it scales positions.
        names = {name for name in names if name in _POSITIONS or (name in ours and name in theirs)}
    for key in sorted(names):
        if ours.get(key) != theirs.get(key):
            raise CheckpointError(
                f"{f'{part}.' if part else ''}{key} is {shown(ours.get(key))} in {first.label}'s config "
                f"and {shown(theirs.get(key))} in {other.label}'s.",
                _OTHER_MODELS,
                "Correct the config that is wrong, if only that differs.",
            )


def _differing_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> list[str]:
    """Dotted paths of what two configs do not say alike."""
    found = []
    for key in sorted({*ours, *theirs}):
        one, two = ours.get(key), theirs.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            found += _differing_keys(one, two, f"{path}{key}.")
        elif one != two:
            found.append(f"{path}{key}")
    return found


def _check_same_files(first: AverageInput, other: AverageInput) -> None:
    """Raise CheckpointError if tokenizer, chat template or processor differ; name other files that do.

    Text becomes other ids by another tokenizer, so weights of the two mean different things.
    """
    labels = {given.sidecars: given.label for given in (first, other)}
    for found in SidecarContents(first.sidecars).differences(SidecarContents(other.sidecars)):
        if found.kind:
            raise CheckpointError(
                f"the {found.kind} of {other.label} is not that of {first.label}: {found}.",
                "Models that were trained with different ones do not belong together.",
                "Copy the right file into both, if only the file is wrong.",
            )
        state = "differs" if found.only_in is None else f"is only in {labels[found.only_in]}"
        note(f"note: {found.name} {state}; the result has the files of {first.label}")


def _meaning(given: AverageInput) -> dict[str, dict[str, Any]] | None:
    """What the config says of each part of the model, defaults included; None where it is of a model unknown here."""
    try:
        model = Architecture.from_hf_config(given.config, given.label)
    except CheckpointError:
        return None
    parts = {"decoder": model.decoder, "tower": model.tower, "projector": model.projector}
    meaning = {name: asdict(part) if part is not None else {} for name, part in parts.items()}
    del meaning["decoder"]["max_positions"]  # how far a model was trained, not what its weights mean
    return meaning | {"image": {"token": model.image_token_id}}


def _section(given: AverageInput, part: str) -> dict[str, Any]:
    section = given.config.get(part) or {}
    if not isinstance(section, dict):
        raise CheckpointError(f"{given.label}: its config's {part} is {shown(section)}, not an object.")
    return section
