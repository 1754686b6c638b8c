"""The dry run: what a stage would do on any number of ranks, answered at once, without torch and without a GPU.

Everything that can be checked without starting is checked first, so that a job that cannot run is refused before it
waits in a queue. The figures follow :mod:`megatron_apriel.planning.memory` and :mod:`megatron_apriel.formats.flops`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from megatron_apriel.config.data_sections import SourceSection
from megatron_apriel.config.load import to_yaml
from megatron_apriel.config.output_sections import EvaluateSection
from megatron_apriel.config.schedule import warmup_steps
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.training_sections import COMPONENTS
from megatron_apriel.data.loading.mixture import RUN_BEGINS
from megatron_apriel.data.loading.sources import Source, check_tokenizer
from megatron_apriel.data.loading.stage_data import StageData, open_held_out, open_sources
from megatron_apriel.errors import ConfigError
from megatron_apriel.evaluate.benchmarks import chosen_benchmarks
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.flops import model_flops
from megatron_apriel.formats.kinds import Kind, architecture_of, recognise, sidecar_directory
from megatron_apriel.formats.other_tools import copied
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.formats.run_record import change_in_words, newest_checkpoint
from megatron_apriel.formats.sidecars import missing_readers
from megatron_apriel.parallel.balance import rank_loads, resolved_split, stage_extras
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.beginning import Standing, check_weights, standing_of, with_tokens
from megatron_apriel.planning.changes import check_same_data
from megatron_apriel.planning.choosing_moments import chosen_moments
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.memory import RankMemory, rank_memory
from megatron_apriel.planning.mixture_table import mixture_table, unfinished_table
from megatron_apriel.quantities import flop, size
from megatron_apriel.tables import Table, figures, plain, standard_output

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
    standing = Standing()
    if architecture is None and newest_checkpoint(RunDirectory(config.output).checkpoints) is not None:
        config = with_tokens(config)
        standing = standing_of(config, change)
    model, origin = planned_architecture(config, architecture, standing.newest)
    gpu = Hardware()
    config = resolved_split(config, model)
    check_layout(config, model, world_size)
    directory = None
    if architecture is None:
        directory = sidecar_directory(standing.newest or config.init_from)
        if standing.newest is None:
            _check_weights(config.init_from, model)
    absent = _absent_pictures(config, check_data) + _evaluations(config)
    data, opened, notes = _data(config, model, directory, check_data, standing)
    notes += absent
    if data is not None:
        config = data.config
    # Once more: how long epochs are is known only now.
    layout = check_layout(config, model, world_size)
    if os.environ.get("RANK", "0") != "0":
        return
    if config.optimizer.moments == "auto":
        config = chosen_moments(config, model, layout, gpu.available, gpu.host_memory * 2**30, standing.state)
        why = f"the first form that fits a GPU of {gpu.memory:g} GiB and {gpu.host_memory:g} GiB of the host"
        why = why if standing.state is None else "as it was when the run began"
        notes.append(f"optimizer.moments=auto is {config.optimizer.moments} here, {why}.")
    console = console or standard_output(WIDTH)
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    console.print(plain([f"Dry run of stage {config.stage} on {ranks}: nothing is started.", ""]))
    console.print("Resolved configuration", style="bold")
    console.print(plain(to_yaml(config).split("\n")))
    console.print(plain([f"The model's shapes come from {origin}.", ""]), soft_wrap=True)
    for table in (
        layout_table(config, layout, model),
        parameters_table(config, model),
        steps_table(config, layout, model),
        mixture_table(data) if data is not None else unfinished_table(config, opened),
        memory_table(config, model, layout),
    ):
        console.print(table)
        console.print()
    if config.precision.compute == "auto":
        notes.append("precision.compute=auto is planned for GPUs, as bf16; on a CPU it is fp32.")
    if directory is not None and (lacking := missing_readers(directory, model.tower is not None)):
        notes.append(f"init_from {directory} has no {lacking}, and the result will have none. {copied(directory)}")
    if not Path(config.init_from).exists():
        notes.insert(0, f"init_from {config.init_from} does not exist yet.")
    for line in _standing_in_words(standing, config):
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
            "A dry run reads them from there; no weights are needed.",
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


def _absent_pictures(config: StageConfig, refuse: bool) -> list[str]:
    """Remarks on images of ``samples`` that are not there. Raises ConfigError for the first of them if asked to."""
    absent = [
        f"samples.prompts.{number}.image {prompt.image} does not exist."
        for number, prompt in enumerate(config.samples.prompts if config.samples else ())
        if prompt.image is not None and not prompt.image.is_file()
    ]
    if absent and refuse:
        raise ConfigError(absent[0], "The run would refuse it.", "Give a file, or leave the image out.")
    return absent


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


def layout_table(config: StageConfig, layout: Layout, architecture: Architecture) -> Table:
    """Ranks in each kind of parallelism, and the decoder layers and load of every pipeline stage."""
    table = figures("", "ranks", "what each holds", words=(0, 2), title="Parallel layout")
    heads, groups = architecture.decoder.num_heads, architecture.decoder.num_kv_heads
    sequence = ", sequence parallel" if layout.sequence else ""
    table.add_row(
        "tensor", str(layout.tensor), f"{heads // layout.tensor} heads, {groups // layout.tensor} groups{sequence}"
    )
    table.add_row("context", str(layout.context), f"1/{layout.context} of each sequence")
    table.add_row(
        "data", str(layout.data), f"a replica of the model, 1/{layout.optimizer_shards} of the optimizer state"
    )
    table.add_row("pipeline", str(layout.pipeline), f"{layout.virtual} chunk(s) of layers")
    num_layers = architecture.decoder.num_layers
    for stage in range(layout.pipeline):
        chunks = [layout.layers_of(num_layers, stage, chunk) for chunk in range(layout.virtual)]
        layers = ", ".join(f"{chunk.start}-{chunk.stop - 1}" for chunk in chunks)
        first = "tower, projector, embedding, " if stage == 0 and architecture.tower else "embedding, " * (stage == 0)
        last = ", head" if stage == layout.pipeline - 1 else ""
        table.add_row(f"  stage {stage}", str(layout.world_size // layout.pipeline), f"{first}layers {layers}{last}")
    if layout.pipeline > 1:
        layers_per_stage = layout.layers_per_virtual_stage(num_layers)
        extras = stage_extras(config, architecture)
        table.add_row("  split", "", f"layers_per_stage={str(list(layers_per_stage)).replace(' ', '')}")
        table.add_row("  loads", "", _loads(rank_loads(layers_per_stage, layout.pipeline, extras)))
        table.caption = f"loads: the head counts as {extras.last:.2f} layers, tower and projector as {extras.first:.2f}"
        table.caption_justify = "left"
    table.add_row("all", str(layout.world_size), "", end_section=True)
    return table


def _loads(loads: list[float]) -> str:
    """Each pipeline rank's load relative to the mean; the largest one sets the pace."""
    mean = sum(loads) / len(loads)
    each = ", ".join(f"{load / mean:.0%}" for load in loads)
    return f"{each} of the mean: {max(loads) / mean - 1:.0%} slower than an even load"


def parameters_table(config: StageConfig, architecture: Architecture) -> Table:
    """Parameters of each part, trained and frozen."""
    table = figures("part", "parameters", "trained", "frozen", "rate factor", title="Parameters")
    totals = [0, 0]
    for name in COMPONENTS:
        part = getattr(architecture, name)
        if part is None:
            continue
        factor = getattr(config.train, name)
        trained, frozen = (part.parameters, 0) if factor else (0, part.parameters)
        totals = [totals[0] + trained, totals[1] + frozen]
        table.add_row(name, *map(_thousands, (part.parameters, trained, frozen)), f"{factor:g}" if factor else "frozen")
    table.add_section()
    table.add_row("all", *map(_thousands, (sum(totals), *totals)), "")
    return table


def steps_table(config: StageConfig, layout: Layout, architecture: Architecture) -> Table:
    """How the stage's tokens become steps and micro-batches, and what they cost."""
    table = figures("", "", title="Steps")
    length = config.sequence_length
    per_token = model_flops(architecture, length, length**2, [], config.train) / length
    rows = {
        "tokens per step": _thousands(config.batch_tokens),
        "sequences per step": f"{config.sequences_per_step} of {_thousands(length)} tokens",
        "micro-batches per step and rank": str(layout.micro_batches(config.sequences_per_step)),
        **_length(config),
        "checkpoints": f"every {config.checkpoint.every} steps, keep {config.checkpoint.keep}"
        + (", written in the background" if config.checkpoint.background else ""),
        **({"evaluations": _evaluated(config.evaluate, config.checkpoint.every)} if config.evaluate else {}),
        "text, one document a sequence": f"{flop(per_token)} per token",
    }
    if config.tokens is not None:
        rows["the stage, if it were such text"] = f"{per_token * config.steps * config.batch_tokens:.3g} FLOP"
    tower = architecture.tower
    if tower is not None:
        grid = tower.image_size // tower.patch_size
        image = model_flops(architecture, 0, 0, [grid**2], config.train)
        rows[f"tower and projector, image of {tower.image_size} x {tower.image_size}"] = flop(image)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _evaluated(section: EvaluateSection, saved_every: int) -> str:
    """What is evaluated, and when."""
    begin = "at the start, " if section.start else ""
    return f"{begin}every {section.every or saved_every} steps and at the end: {', '.join(section.benchmarks)}"


def _length(config: StageConfig) -> dict[str, str]:
    """How long the stage is; what its epochs are without corpora cannot be known."""
    epochs = {"epochs": f"{config.epochs:g}, of the source that its weight uses up first"} if config.epochs else {}
    if config.tokens is None:
        unknown = "not known: epochs are counted with the corpora, and some are missing"
        return epochs | {"steps, tokens of the stage": unknown}
    return epochs | {
        "steps": _thousands(config.steps),
        "warm-up steps": _thousands(warmup_steps(config.steps, config.optimizer)),
        "tokens of the stage": _thousands(config.steps * config.batch_tokens),
    }


def memory_table(config: StageConfig, architecture: Architecture, layout: Layout) -> Table:
    """Expected memory of a rank of each pipeline stage."""
    names = ["stage", "weights", "gradients", "optimizer", "activations", "logits", "images", "total"]
    on_host = config.optimizer.host != 0 or config.recompute.inputs == "host"
    title = "Expected memory per rank (CUDA, NCCL and allocator add 3 to 6 GiB)"
    table = figures(*names, *["on the host"] * on_host, title=title)
    gpu = Hardware()
    for stage in range(layout.pipeline):
        memory = rank_memory(config, architecture, layout, stage, gpu.available)
        table.add_row(str(stage), *map(size, _columns(memory)), *[size(memory.on_host)] * on_host)
    table.caption = "images: for a sequence full of them; rules: megatron_apriel/planning/memory.py"
    if config.optimizer.host == "auto":
        table.caption += f"\noptimizer.host=auto: for a GPU of {gpu.memory:g} GiB, {gpu.reserve:g} of them left free"
    table.caption_justify = "left"
    return table


def _columns(memory: RankMemory) -> Iterator[float]:
    yield from (memory.weights, memory.gradients, memory.optimizer)
    yield from (memory.activations, memory.logits, memory.images, memory.total)


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
    return f"{source.corpus} does not exist yet, so its documents are not counted."


def _role(source: SourceSection, config: StageConfig) -> str:
    return "mixture" if source in config.mixture else "validation"


def _thousands(number: int) -> str:
    return f"{number:,}"
