"""The dry run: what a stage would do on any number of ranks, answered at once, without torch and without a GPU.

Everything that can be checked without starting is checked first, so that a job that cannot run is refused before it
waits in a queue. The tables are those of ``dry_run_tables.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from megatron_apriel.config.data_sections import SourceSection
from megatron_apriel.config.load import to_yaml
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.mixture import RUN_BEGINS
from megatron_apriel.data.loading.sources import Source, check_tokenizer
from megatron_apriel.data.loading.stage_data import StageData, open_held_out, open_sources
from megatron_apriel.errors import ConfigError
from megatron_apriel.evaluate.benchmarks import chosen_benchmarks
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind, architecture_of, recognise, sidecar_directory
from megatron_apriel.formats.other_tools import copied
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.formats.run_record import change_in_words, newest_checkpoint
from megatron_apriel.formats.sidecars import missing_readers
from megatron_apriel.inputs import what_was_meant
from megatron_apriel.parallel.balance import resolved_split
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.beginning import (
    Standing,
    absent_pictures,
    check_pictures,
    check_weights,
    standing_of,
    with_tokens,
)
from megatron_apriel.planning.changes import check_same_data
from megatron_apriel.planning.choosing_moments import chosen_moments
from megatron_apriel.planning.disk_room import lacking_room
from megatron_apriel.planning.dry_run_tables import layout_table, memory_table, parameters_table, steps_table
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.mixture_table import mixture_table, unfinished_table
from megatron_apriel.quantities import counted
from megatron_apriel.tables import plain, standard_output

WIDTH = 120


def print_plan(
    config: StageConfig,
    world_size: int,
    architecture: str | None = None,
    check_data: bool = False,
    change: bool = False,
    console: Console | None = None,
) -> None:
    """Check a stage and print what it would do.

    Args:
        config: the stage.
        world_size: ranks to plan for.
        architecture: a preset, used instead of what ``init_from`` holds.
        check_data: whether missing corpora are errors. Those that are there are opened, and the data counted and
            refused as by the run.
        change: whether what may change within a run may differ from its newest checkpoint, if there is one.
        console: where to print; standard output by default. Under torchrun only rank 0 prints.

    Raises ConfigError, CheckpointError or DataError with everything that does not fit.
    """
    found = _checked(config, world_size, architecture, check_data, change)
    if os.environ.get("RANK", "0") == "0":
        found = _with_chosen_moments(found)
        _print(found, _notes(found), console or standard_output(WIDTH))


@dataclass(frozen=True)
class _Checked:
    """A stage that can run, and what was found out about it.

    Attributes:
        config: with everything that follows from model and data.
        model, origin: the model, and where its shapes come from.
        layout: of the ranks that are planned for.
        directory: of the model's sidecars; None where a preset stands in for a model.
        standing: how far the run in the output directory is.
        data: of the stage, if all corpora of its mixture are there.
        opened: those of its sources that are.
        remarks: on data and evaluation.
    """

    config: StageConfig
    model: Architecture
    origin: str
    layout: Layout
    directory: Path | None
    standing: Standing
    data: StageData | None
    opened: list[Source]
    remarks: list[str]


def _checked(
    config: StageConfig, world_size: int, architecture: str | None, check_data: bool, change: bool
) -> _Checked:
    """Everything that can be checked without starting; see :func:`print_plan`."""
    standing = Standing()
    if architecture is None and newest_checkpoint(RunDirectory(config.output).checkpoints) is not None:
        config = with_tokens(config)
        standing = standing_of(config, change)
    model, origin = planned_architecture(config, architecture, standing.newest)
    config = resolved_split(config, model)
    check_layout(config, model, world_size)
    directory = None
    if architecture is None:
        directory = sidecar_directory(standing.newest or config.init_from)
        if standing.newest is None:
            _check_weights(config.init_from, model)
    if check_data:
        check_pictures(config)
    absent = absent_pictures(config) + _evaluations(config)
    data, opened, remarks = _data(config, model, directory, check_data, standing)
    if data is not None:
        config = data.config
    # Once more: how long epochs are is known only now.
    layout = check_layout(config, model, world_size)
    return _Checked(config, model, origin, layout, directory, standing, data, opened, remarks + absent)


def _with_chosen_moments(found: _Checked) -> _Checked:
    """The same with ``optimizer.moments=auto`` decided for the GPUs that are planned for."""
    config, gpu, state = found.config, Hardware(), found.standing.state
    if config.optimizer.moments != "auto":
        return found
    host = gpu.host_available(found.layout.world_size, config.optimizer.host_memory)
    config = chosen_moments(config, found.model, found.layout, gpu.available, host, state)
    why = f"the first form that fits a GPU of {gpu.memory:g} GiB and {host / 2**30:.3g} GiB of the host"
    why = why if state is None else "as it was when the run began"
    remark = f"optimizer.moments=auto is {config.optimizer.moments} here, {why}."
    return replace(found, config=config, remarks=[*found.remarks, remark])


def _notes(found: _Checked) -> list[str]:
    """Remarks on data and evaluation, and on what the result would lack or differ in."""
    config, directory, notes = found.config, found.directory, list(found.remarks)
    if config.precision.compute == "auto":
        notes.append("precision.compute=auto is planned for GPUs, as bf16; on a CPU it is fp32.")
    if directory is not None and (lacking := missing_readers(directory, found.model.tower is not None)):
        notes.append(f"init_from {directory} has no {lacking}, and the result will have none. {copied(directory)}")
    goes_on = found.standing.newest is None or not found.standing.ended(config)
    if goes_on and (lacking := lacking_room(config, found.model)):
        notes.append(lacking)
    if not Path(config.init_from).exists():
        notes.insert(0, f"init_from {config.init_from} does not exist yet.")
    return notes


def _print(found: _Checked, notes: list[str], console: Console) -> None:
    config, model, layout = found.config, found.model, found.layout
    console.print(
        plain([f"Dry run of stage {config.stage} on {counted(layout.world_size, 'rank')}: nothing is started.", ""])
    )
    console.print("Resolved configuration", style="bold")
    console.print(plain(to_yaml(config).split("\n")))
    console.print(plain([f"The model's shapes come from {found.origin}.", ""]), soft_wrap=True)
    for table in (
        layout_table(config, layout, model),
        parameters_table(config, model),
        steps_table(config, layout, model),
        mixture_table(found.data) if found.data is not None else unfinished_table(config, found.opened),
        memory_table(config, model, layout),
    ):
        console.print(table)
        console.print()
    for line in _standing_in_words(found.standing, config):
        console.print(plain(line), soft_wrap=True)
    for note in notes:
        console.print(plain(f"note: {note}"), soft_wrap=True)


def planned_architecture(
    config: StageConfig, preset: str | None, newest: Path | None = None
) -> tuple[Architecture, str]:
    """The model that would be trained, and where its shapes come from. Raises ConfigError, CheckpointError.

    Args:
        config: the stage.
        preset: used instead of what a directory holds.
        newest: the checkpoint that the stage resumes from, if there is any.
    """
    if preset is not None:
        return Architecture.from_preset(preset), f"preset {preset}"
    if newest is not None:
        return architecture_of(newest), str(newest)
    if not config.init_from.exists():
        raise ConfigError(
            f"init_from={config.init_from} does not exist, so the model's shapes are not known.",
            what_was_meant(config.init_from, "model") or "A dry run reads them from there; no weights are needed.",
            "Make it first, or set init_from=DIRECTORY; to plan without it, name a preset: --architecture apriel-15b.",
        )
    return architecture_of(config.init_from), str(config.init_from)


def _check_weights(directory: Path, model: Architecture) -> None:
    """Raise CheckpointError if the weights in a directory, where it has any, are not those of the model.

    A plan needs none.
    """
    if recognise(directory) is Kind.MEGATRON or any(directory.glob("*.safetensors")):
        check_weights(directory, model)


def _standing_in_words(standing: Standing, config: StageConfig) -> Iterator[str]:
    """How far the run in the output directory is, and what would change in it; nothing where none was begun."""
    if standing.newest is None or standing.resumed is None:
        return
    of_all = f"step {standing.finished_steps} of {config.steps}"
    if standing.ended(config):
        yield f"The run is complete: {standing.newest} is of {of_all}."
        return
    yield f"The run would resume from {standing.newest}, {of_all}."
    if standing.resumed.new is not None:
        for name, (then, now) in standing.resumed.new.settings.items():
            yield f"  changed: {change_in_words(name, then, now)}"


def _evaluations(config: StageConfig) -> list[str]:
    """Remarks on how checkpoints are evaluated. Raises ConfigError for benchmarks that there are not."""
    if config.evaluate is None:
        return []
    chosen_benchmarks(",".join(config.evaluate.benchmarks))
    remarks = [f"checkpoints are evaluated by python tools/evaluate.py --follow {config.output}, beside the run."]
    for name in ("data", "pictures"):
        place = getattr(config.evaluate, name)
        if place is not None and not place.is_dir():
            remarks.append(f"evaluate.{name} {place} does not exist yet.")
    return remarks


def _data(
    config: StageConfig, architecture: Architecture, directory: Path | None, refuse_absent: bool, standing: Standing
) -> tuple[StageData | None, list[Source], list[str]]:
    """The stage's data if all corpora of the mixture are there, those of its sources that are, and remarks on them.

    What is there is opened and counted as a run does. What is not is refused where ``refuse_absent`` says so.
    """
    held_out = config.validation.corpora if config.validation is not None else []
    absent = [] if refuse_absent else [source for source in [*config.mixture, *held_out] if not source.corpus.exists()]
    notes = [f"{_role(source, config)} {source.label}: {_absence(source)}" for source in absent]
    here = [source for source in config.mixture if source not in absent]
    data = None
    if here == config.mixture:
        resumed = standing.resumed
        data = StageData.open(config, architecture, directory, resumed.mixture if resumed else RUN_BEGINS)
        if resumed is not None and standing.newest is not None and standing.state is not None:
            check_same_data(resumed, standing.state.sequences, data, standing.newest)
        opened = list(data.sources)
    else:
        opened = open_sources(here, architecture, config, config.seed, directory)
    if held_out and not any(source in absent for source in held_out):
        sources = [*opened, *open_held_out(config, architecture, directory)]
    else:
        sources = opened
    if directory is not None and sources:
        check_tokenizer({source.corpus.path: source.corpus.manifest for source in sources}, directory)
    for source in sources:
        notes += [f"{_role(source.section, config)} {source.label}: {line}" for line in source.remarks()]
    return data, opened, notes


def _absence(source: SourceSection) -> str:
    meant = what_was_meant(source.corpus)
    return f"{source.corpus} does not exist yet, so its documents are not counted.{f' {meant}' if meant else ''}"


def _role(source: SourceSection, config: StageConfig) -> str:
    return "mixture" if source in config.mixture else "validation"
