"""Accounts for every tensor that is found in files: which weight of the table it is, what is missing or left over.

No torch, no numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_apriel.errors import CheckpointError, listed
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.tensor_files import FLOATS, Base, TensorDirectory, TensorEntry
from megatron_apriel.formats.tensor_names import (
    IMAGE_PREFIXES,
    Component,
    Form,
    component_of,
    decoder_layers,
    is_buffer,
    weights,
)
from megatron_apriel.quantities import counted

_TELLTALES: dict[Form, tuple[str, ...]] = {
    Form.LEGACY: ("language_model.",),
    Form.TRANSFORMERS_5: ("model.language_model.",),
    Form.TEXT_ONLY: ("model.layers.", "model.embed_tokens."),
    Form.MISTRAL: ("layers.", "tok_embeddings.", "output."),
}
"""Prefixes of decoder weights that only one form has."""

_MIXED: dict[Form, tuple[Form, ...]] = {
    Form.LEGACY: (Form.LEGACY, Form.TRANSFORMERS_5),
    Form.TRANSFORMERS_5: (Form.TRANSFORMERS_5, Form.LEGACY),
}
"""transformers 5 writes a weight that it did not read, such as a head that was tied, under its name in memory."""


@dataclass(frozen=True)
class Resolution:
    """A file's tensor names compared with the table.

    Attributes:
        form: how the names are spelled.
        stored: legacy name -> name in the file, of every weight that is there.
        missing: names that a whole checkpoint of this shape would also have, spelled as the file would.
        unexpected: names in the file that belong to nothing in a model of this shape.
        skipped: names of tower and projector, where a text-only model is asked for.
        buffers: names of tables that follow from the configuration and are not weights.
    """

    form: Form
    stored: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    skipped: tuple[str, ...]
    buffers: tuple[str, ...]


def recognise_form(names: Iterable[str]) -> Form | None:
    """The form whose decoder names are most frequent among ``names``; None if there are none of any form."""
    names = list(names)
    counts = {form: sum(name.startswith(telltales) for name in names) for form, telltales in _TELLTALES.items()}
    best = max(counts, key=lambda form: counts[form])
    return best if counts[best] else None


def resolve(names: Iterable[str], architecture: Architecture, origin: str) -> Resolution:
    """Hold the tensor names found in ``origin`` against those of ``architecture``.

    Raises:
        CheckpointError: no name looks like a decoder's weight in any known form.
    """
    found = set(names)
    form = recognise_form(found)
    if form is None:
        raise CheckpointError(
            f"{origin}: none of its {counted(len(found), 'tensor')} is a decoder weight in a known form"
            + (f" (first: {', '.join(sorted(found)[:3])})." if found else "."),
            fix=f"Known forms: {'; '.join(Form)}.",
        )
    stored, missing = {}, []
    for name, weight in weights(architecture).items():
        spelled = [weight.stored_as(spelling) for spelling in _MIXED.get(form, (form,))]
        there = next((one for one in spelled if one in found), None)
        if there is None:
            missing.append(spelled[0])
        else:
            stored[name] = there
    surplus = sorted(found.difference(stored.values()))
    text_only = architecture.tower is None
    buffers = tuple(name for name in surplus if is_buffer(name))
    skipped = tuple(name for name in surplus if text_only and name.startswith(IMAGE_PREFIXES) and name not in buffers)
    return Resolution(
        form=form,
        stored=stored,
        missing=tuple(missing),
        unexpected=tuple(name for name in surplus if name not in buffers and name not in skipped),
        skipped=skipped,
        buffers=buffers,
    )


def open_accounted(path: Path, architecture: Architecture, base: Base) -> tuple[TensorDirectory, Resolution]:
    """The tensors of a checkpoint, all of which are weights of ``architecture``; headers are read and no numbers.

    Args:
        path: of the checkpoint.
        architecture: of the model. Where it is text-only, tower and projector may be there too.
        base: as of :meth:`~megatron_apriel.formats.tensor_files.TensorDirectory.open`.

    Raises:
        CheckpointError: missing, left over or misshapen tensors, or quantised ones, by name.
    """
    directory = TensorDirectory.open(path, base)
    resolution = resolve(directory.entries, architecture, str(path))
    check_complete(resolution, path)
    for name, weight in weights(architecture).items():
        _check_entry(directory.entries[resolution.stored[name]], weight.shape)
    return directory, resolution


def _check_entry(entry: TensorEntry, shape: tuple[int, ...]) -> None:
    if entry.shape != shape:
        raise CheckpointError(
            f"{entry.file}: {entry.name} has shape {list(entry.shape)}, the architecture says {list(shape)}.",
            "Configuration and weights are not of the same model.",
        )
    if entry.dtype not in FLOATS:
        raise CheckpointError(
            f"{entry.file}: {entry.name} is stored as {entry.dtype}.",
            "Quantised weights cannot be trained further.",
            f"Give a checkpoint in one of {', '.join(FLOATS)}.",
        )


def check_complete(resolution: Resolution, path: Path) -> None:
    """Raise CheckpointError, by name, if a weight is missing or a tensor is left over."""
    problems = []
    if resolution.missing:
        problems.append(f"{len(resolution.missing)} missing ({listed(resolution.missing)})")
    if resolution.unexpected:
        problems.append(f"{len(resolution.unexpected)} left over ({listed(resolution.unexpected)})")
    if problems:
        raise CheckpointError(
            f"{path}: its tensors are not those of the architecture: {'; '.join(problems)}.",
            f"The names are spelled as {resolution.form}; {len(resolution.stored)} agree.",
            _fix(resolution),
        )


def _fix(resolution: Resolution) -> str:
    """What made the difference, where the names tell."""
    layers, surplus = decoder_layers(resolution.form), resolution.unexpected
    known = [place[0] for name in resolution.stored.values() if (place := layers.split(name))]
    places = [layers.split(name) for name in surplus]
    if not resolution.missing and all(place is not None and place[0] > max(known, default=-1) for place in places):
        return (
            "These are further decoder layers. mergekit's passthrough leaves num_hidden_layers in text_config as it"
            " was: set it in config.json to the number that the files have."
        )
    if not surplus and all(component_of(name) is Component.HEAD for name in resolution.missing):
        return (
            "AutoModel and the model inside another are saved without their head: save the whole one, by"
            " save_pretrained() of LlavaForConditionalGeneration or MistralForCausalLM."
        )
    return "Give the directory's own config.json and a whole set of files."
