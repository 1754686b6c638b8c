"""``run.json``: what a distributed checkpoint says of itself and of the run that wrote it. No torch."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.json_files import write_json
from megatron_apriel.formats.run_directory import RUN_FILE, checkpoints_in
from megatron_apriel.formats.sidecars import sha256_of
from megatron_apriel.inputs import read_input

FORMAT = 1
"""Of ``run.json``."""
SHARD_SUFFIX = ".distcp"
"""Of the files with weights and optimizer state, as torch names them."""


def _inside(name: str) -> str:
    """Refuse the name of a file that is not in the checkpoint."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path == PurePosixPath(".") or "\0" in name:
        raise ValueError(f"{name!r} is no file in the checkpoint")
    return name


_Name = Annotated[str, AfterValidator(_inside)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Format(BaseModel):
    format: int


class LayoutRecord(BaseModel):
    """Sizes of the process groups that wrote a checkpoint."""

    model_config = ConfigDict(extra="forbid")

    world_size: Annotated[int, Field(ge=1)]
    tensor: Annotated[int, Field(ge=1)]
    pipeline: Annotated[int, Field(ge=1)]
    virtual: Annotated[int, Field(ge=1)]
    context: Annotated[int, Field(ge=1)]


class OptimizerGroup(BaseModel):
    """Step count and rates of one of the optimizer's parameter groups; what else a group has are plain values."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, bool | int | _Finite | str | list[bool | int | _Finite | str | None] | None]

    step: _Count | Annotated[_Finite, Field(ge=0)] = 0
    lr: _Finite = 0.0
    max_lr: _Finite | None = None
    min_lr: _Finite | None = None
    lr_mult: _Finite = 1.0
    wd_mult: _Finite = 1.0
    weight_decay: _Finite = 0.0
    eps: _Finite = 0.0
    betas: tuple[_Finite, _Finite] = (0.0, 0.0)

    @model_validator(mode="after")
    def _of_no_parameters(self) -> OptimizerGroup:
        if "params" in (self.__pydantic_extra__ or {}):
            raise ValueError("it names parameters (params), which are the model's to say")
        return self


class RunRecord(BaseModel):
    """What ``run.json`` says of a checkpoint.

    Attributes:
        step: finished optimizer steps.
        layout: that wrote it; None where it was converted.
        optimizer_groups: of the optimizer; None where only weights were saved.
        extra: the run's own state, as it was given; see :class:`RunState`.
        versions: of the libraries that wrote it.
        files: bytes of each file, by its name in the checkpoint.
        sha256: of each file that is no shard. Checkpoints of early versions have none.
    """

    model_config = ConfigDict(extra="forbid")

    format: int
    step: _Count
    layout: LayoutRecord | None
    optimizer_groups: list[OptimizerGroup] | None
    extra: dict[str, Any]
    versions: dict[str, str] = {}
    files: dict[_Name, _Count]
    sha256: dict[_Name, str] = {}

    @model_validator(mode="after")
    def _listed(self) -> RunRecord:
        if unlisted := self.sha256.keys() - self.files.keys():
            raise ValueError(f"digests of files that it does not list: {sorted(unlisted)}")
        return self


class SavedSource(BaseModel):
    """A source of a mixture as it was saved; what else it has are its settings."""

    model_config = ConfigDict(extra="allow")

    corpus: str = ""
    name: str = ""
    weight: _Finite = 1.0
    max_epochs: Annotated[_Finite | None, Field(validation_alias=AliasChoices("max_epochs", "epochs"))] = None
    """Early versions called it ``epochs``."""

    @property
    def label(self) -> str:
        """As of a source's section in the configuration."""
        return self.name or PurePosixPath(self.corpus).name or self.corpus


class _SavedSettings(BaseModel):
    """A run's configuration as it was saved: compared with today's, not used."""

    model_config = ConfigDict(extra="allow")

    tokens: _Count | None = None
    epochs: _Finite | None = None
    mixture: list[SavedSource] = []


class GivenRecord(BaseModel):
    """How far a run had come in one of its sources.

    Attributes:
        name: of the source.
        corpus: fingerprint of its corpus.
        settings: of the source, but for its name, place, weight and bound of epochs.
        packs: that it had given.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    corpus: str
    settings: dict[str, Any]
    packs: _Count


class ChangeRecord(BaseModel):
    """Settings that were changed within a run.

    Attributes:
        step: finished optimizer steps at the change.
        settings: by dotted name, the value before and the one after.
        given: where the mixture was changed, the sources that it has since then, in order, and behind them those that
            the run took from earlier.
    """

    model_config = ConfigDict(extra="forbid")

    step: _Count
    settings: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]]
    given: list[GivenRecord] | None = None


class RunState(BaseModel):
    """A run's own state in its checkpoints.

    Attributes:
        sequences: of the mixture that were trained on.
        skipped, skipped_in_a_row: steps whose loss or gradient was not finite.
        empty: steps without a target.
        config: the configuration that the run has, its changes in it.
        corpora: fingerprints of the mixture's corpora.
        packs: that each source of the mixture has given. Checkpoints of early versions have none.
        changes: in order.
        validation_due: whether held-out loss is to be measured before the next step: it was due when the run was
            asked to stop.
    """

    model_config = ConfigDict(extra="forbid")

    sequences: _Count
    skipped: _Count = 0
    skipped_in_a_row: _Count = 0
    empty: _Count = 0
    config: _SavedSettings
    corpora: list[str] = []
    packs: list[_Count] = []
    changes: list[ChangeRecord] = []
    validation_due: bool = False


def change_in_words(name: str, then: Any, now: Any) -> str:
    """``optimizer.peak: 0.001 -> 0.0005``."""
    before, after = (value if isinstance(value, str) else json.dumps(value) for value in (then, now))
    return f"{name}: {before} -> {after}"


def write_run_file(checkpoint: Path, record: dict[str, Any]) -> None:
    """Write ``run.json``, the last file to be written: ``record``, plain, and the size of every file that is there.

    Of all but the shards, whose pieces have checksums of their own, the SHA-256 too.
    """
    files = {str(file.relative_to(checkpoint)): file for file in sorted(checkpoint.rglob("*")) if file.is_file()}
    sizes = {name: file.stat().st_size for name, file in files.items()}
    digests = {name: sha256_of(file) for name, file in files.items() if not name.endswith(SHARD_SUFFIX)}
    write_json(checkpoint / RUN_FILE, {"format": FORMAT, **record, "files": sizes, "sha256": digests})


def read_run_file(path: Path) -> RunRecord:
    """``run.json`` of a checkpoint whose files all have the sizes and the digests that it records.

    Raises:
        CheckpointError: naming the file that is missing, changed, damaged, outside of the checkpoint or of another
            size.
    """
    record = _record(path)
    for name, size in record.files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise CheckpointError(f"{path / name} {state}; {size:,} were written.", "The checkpoint is damaged.")
    for name, digest in record.sha256.items():
        if sha256_of(path / name) != digest:
            raise CheckpointError(f"{path / name} was changed after it was written.", "Its SHA-256 is another.")
    return record


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint in a run's folder of them, its files verified by size; None if there is none.

    Raises:
        CheckpointError: it is damaged; the message names the file and the newest whole one before it.
    """
    paths = list(checkpoints_in(directory).values())
    if not paths:
        return None
    try:
        read_run_file(paths[-1])
    except CheckpointError as error:
        whole = next((path for path in reversed(paths[:-1]) if _is_whole(path)), None)
        instead = f"to resume from {whole.name}" if whole else "to begin the run again"
        raise CheckpointError(
            error.what, "It was complete when it was written.", f"Remove or rename {paths[-1]} {instead}."
        ) from None
    return paths[-1]


def _is_whole(path: Path) -> bool:
    try:
        read_run_file(path)
    except CheckpointError:
        return False
    return True


def _record(path: Path) -> RunRecord:
    file = path / RUN_FILE
    try:
        data = read_input(file)
        # Before all else: another format may have other fields.
        if (known := _Format.model_validate_json(data).format) != FORMAT:
            raise CheckpointError(f"{file} is of format {known!r}; this version of the project reads {FORMAT}.")
        return RunRecord.model_validate_json(data, strict=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} does not exist." if path.is_dir() else f"{path} does not exist.",
            "A run's checkpoint has one; it is written last.",
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        raise CheckpointError(f"{file} is damaged: {first_mistake(error)}.") from None


def run_state(path: Path, record: RunRecord) -> RunState:
    """The run's own state in the record of the checkpoint at ``path``.

    Raises:
        CheckpointError: it was converted and is of no run, or what it says cannot be.
    """
    if "config" not in record.extra:
        raise CheckpointError(
            f"{path} holds weights and nothing of a run: it was converted, not saved by one.",
            "There is nothing in it to resume.",
            f"Move it out of {path.parent} and give it as init_from.",
        )
    try:
        return RunState.model_validate(record.extra, strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{path / RUN_FILE} is damaged: extra.{first_mistake(error)}.") from None


def first_mistake(error: ValidationError) -> str:
    """Where in a record something is wrong, and what."""
    mistake = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, mistake["loc"]))[:200]
    return f"{place}: {mistake['msg']}" if place else mistake["msg"]
