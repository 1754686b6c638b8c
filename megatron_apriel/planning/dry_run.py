"""The dry run: what a stage would do on any number of ranks, answered at once, without torch and without a GPU.

Everything that can be checked without starting is checked first, so that a job that cannot run is refused before it
waits in a queue. The figures follow :mod:`megatron_apriel.planning.memory` and :mod:`megatron_apriel.formats.flops`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from megatron_apriel.config.load import to_yaml
from megatron_apriel.config.schedule import warmup_steps
from megatron_apriel.config.schema import COMPONENTS, SourceSection, StageConfig
from megatron_apriel.data.corpus.format import CorpusManifest
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading.sources import (
    check_fits,
    check_images_to_learn_from,
    check_something_to_learn,
    check_tokenizer,
)
from megatron_apriel.errors import ConfigError, DataError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.flops import model_flops
from megatron_apriel.formats.kinds import architecture_of, sidecar_directory
from megatron_apriel.parallel.balance import rank_loads, resolved_split, stage_extras
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.memory import RankMemory, rank_memory
from megatron_apriel.tables import Table, figures, plain, standard_output

GIB = 2**30
WIDTH = 120


def print_plan(
    config: StageConfig,
    world_size: int,
    architecture: str | None = None,
    check_data: bool = False,
    console: Console | None = None,
) -> None:
    """Check a stage and print what it would do.

    Args:
        config: the stage.
        world_size: ranks to plan for.
        architecture: a preset, used instead of what ``init_from`` holds.
        check_data: whether corpora are opened, and those that are missing or of no use to the model are errors;
            otherwise what their manifests show is noted.
        console: where to print; standard output by default. Under torchrun only rank 0 prints.

    Raises ConfigError, CheckpointError or DataError with everything that does not fit.
    """
    model, origin = planned_architecture(config, architecture)
    config = resolved_split(config, model)
    layout = check_layout(config, model, world_size)
    directory = sidecar_directory(config.init_from) if architecture is None else None
    corpora, notes = _corpora(config, model, directory, check_data)
    if os.environ.get("RANK", "0") != "0":
        return
    console = console or standard_output(WIDTH)
    console.print(plain([f"Dry run of stage {config.stage} on {world_size} ranks: nothing is started.", ""]))
    console.print("Resolved configuration", style="bold")
    console.print(plain(to_yaml(config).split("\n")))
    console.print(plain([f"The model's shapes come from {origin}.", ""]), soft_wrap=True)
    for table in (
        layout_table(config, layout, model),
        parameters_table(config, model),
        steps_table(config, layout, model),
        _sources_table(config, corpora),
        memory_table(config, model, layout),
    ):
        console.print(table)
        console.print()
    if config.precision.compute == "auto":
        notes.append("precision.compute=auto is planned for GPUs, as bf16; on a CPU it is fp32.")
    if not Path(config.init_from).exists():
        notes.insert(0, f"init_from {config.init_from} does not exist yet.")
    for note in notes:
        console.print(plain(f"note: {note}"), soft_wrap=True)


def planned_architecture(config: StageConfig, preset: str | None) -> tuple[Architecture, str]:
    """The model that would be trained, and where its shapes come from. Raises ConfigError, CheckpointError."""
    if preset is not None:
        return Architecture.from_preset(preset), f"preset {preset}"
    if not config.init_from.exists():
        raise ConfigError(
            f"init_from={config.init_from} does not exist, so the model's shapes are not known.",
            "A dry run reads them from there; no weights are needed.",
            "Name a preset to plan with, as in --architecture apriel-15b, or set init_from=DIRECTORY.",
        )
    return architecture_of(config.init_from), str(config.init_from)


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
    steps, length = config.steps, config.sequence_length
    per_token = model_flops(architecture, length, length**2, [], config.train) / length
    rows = {
        "tokens per step": _thousands(config.batch_tokens),
        "sequences per step": f"{config.sequences_per_step} of {_thousands(length)} tokens",
        "micro-batches per step and rank": str(layout.micro_batches(config.sequences_per_step)),
        "steps": _thousands(steps),
        "warm-up steps": _thousands(warmup_steps(steps, config.optimizer)),
        "tokens of the stage": _thousands(steps * config.batch_tokens),
        "checkpoints": f"every {config.checkpoint.every} steps, keep {config.checkpoint.keep}"
        + (", written in the background" if config.checkpoint.background else ""),
        "text, one document a sequence": f"{per_token / 1e9:.1f} GFLOP per token",
        "the stage, if it were such text": f"{per_token * steps * config.batch_tokens:.3g} FLOP",
    }
    tower = architecture.tower
    if tower is not None:
        grid = tower.image_size // tower.patch_size
        image = model_flops(architecture, 0, 0, [grid**2], config.train)
        rows[f"tower and projector, image of {tower.image_size} x {tower.image_size}"] = f"{image / 1e12:.2f} TFLOP"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def memory_table(config: StageConfig, architecture: Architecture, layout: Layout) -> Table:
    """Expected GiB on a rank of each pipeline stage."""
    table = figures(
        "stage", "weights", "gradients", "optimizer", "activations", "logits", "images", "total",
        title="Expected memory per rank, GiB (CUDA, NCCL and allocator add 3 to 6)",
    )  # fmt: skip
    for stage in range(layout.pipeline):
        memory = rank_memory(config, architecture, layout, stage)
        table.add_row(str(stage), *(f"{number / GIB:.2f}" for number in _columns(memory)))
    table.caption = "images: for a sequence full of them; rules: megatron_apriel/planning/memory.py"
    table.caption_justify = "left"
    return table


def _columns(memory: RankMemory) -> Iterator[float]:
    yield from (memory.weights, memory.gradients, memory.optimizer)
    yield from (memory.activations, memory.logits, memory.images, memory.total)


def _sources_table(config: StageConfig, corpora: dict[str, CorpusManifest]) -> Table:
    table = figures("source", "share", "tokens", "loss on", "corpus", "passes", words=(0, 3, 4), title="Mixture")
    total = config.steps * config.batch_tokens
    for source in config.mixture:
        needed = total * source.weight
        manifest = corpora.get(source.label)
        passes = f"{needed / manifest.counts.tokens:.2f}" if manifest and manifest.counts.tokens else "not known"
        table.add_row(
            source.label, f"{source.weight:.1%}", _thousands(round(needed)), source.loss, str(source.corpus), passes
        )
    return table


def _corpora(
    config: StageConfig, architecture: Architecture, directory: Path | None, check: bool
) -> tuple[dict[str, CorpusManifest], list[str]]:
    """Manifests of the mixture's corpora that can be used, and notes on those that cannot, or not as a whole.

    To ``check`` them is to open them too and to look for what there is to learn, as a run does.
    """
    manifests, readable, notes, images = {}, {}, [], 0
    validation = config.validation.corpora if config.validation else []
    problems = []
    for source in [*config.mixture, *validation]:
        try:
            manifest = CorpusManifest.read(source.corpus)
            check_fits(source, manifest, architecture, directory)
            lesson = None
            if check:
                corpus = Corpus.open(source.corpus)
                lesson = check_something_to_learn(source, corpus, config.sequence_length)
                notes += [f"{_role(source, config)} {source.label}: {line}" for line in lesson.remarks(source, corpus)]
        except DataError as error:
            problems.append(str(error))
            notes.append(f"{_role(source, config)} {source.label}: {error.what}")
        else:
            readable[source.corpus] = manifest
            if source in config.mixture:
                manifests[source.label] = manifest
                images += manifest.counts.images if lesson is None else lesson.images
    if check and directory is not None:
        try:
            check_tokenizer(readable, directory)
        except DataError as error:
            problems.append(str(error))
    if check and problems:
        count = len(config.mixture) + len(validation)
        raise DataError(
            f"{len(problems)} of the {count} corpora of stage {config.stage} cannot be used.",
            "\n  ".join(problem.replace("\n", "\n  ") for problem in problems),
            "Prepare them with tools/prepare_data.py, correct the paths, or do what is said of each.",
        )
    for problem in _not_enough(config, manifests, images):
        if check:
            raise problem
        notes.append(problem.what)
    return manifests, notes


def _not_enough(config: StageConfig, manifests: dict[str, CorpusManifest], images: int) -> Iterator[DataError]:
    """What the run would refuse of corpora that are each sound: too few passes allowed, no images among them."""
    for source in config.mixture:
        needed = config.steps * config.batch_tokens * source.weight
        tokens = manifests[source.label].counts.tokens if source.label in manifests else math.inf
        # To a sequence: the mixture is exact to one, and the last one may be padded.
        if source.max_epochs is not None and needed - config.sequence_length > source.max_epochs * tokens:
            yield DataError(
                f"source {source.label!r} has {tokens:,} tokens in each of max_epochs={source.max_epochs:g};"
                f" the run needs {needed:,.0f}.",
                fix="Raise max_epochs of this source, lower its weight, or lower the stage's tokens.",
            )
    if len(manifests) == len(config.mixture):
        try:
            check_images_to_learn_from(config, sum(manifest.counts.images for manifest in manifests.values()), images)
        except DataError as error:
            yield error


def _role(source: SourceSection, config: StageConfig) -> str:
    return "mixture" if source in config.mixture else "validation"


def _thousands(number: int) -> str:
    return f"{number:,}"
