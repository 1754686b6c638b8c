"""The tables of a dry run: layout, parameters, steps and memory of a stage that has been checked.

Figures follow :mod:`megatron_apriel.planning.memory` and :mod:`megatron_apriel.formats.flops`.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_apriel.config.output_sections import EvaluateSection
from megatron_apriel.config.schedule import warmup_steps
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.training_sections import COMPONENTS
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.flops import model_flops
from megatron_apriel.parallel.balance import rank_loads, stage_extras
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.memory import RankMemory, rank_memory
from megatron_apriel.quantities import counted, flop, size
from megatron_apriel.tables import Table, figures


def layout_table(config: StageConfig, layout: Layout, architecture: Architecture) -> Table:
    """Ranks in each kind of parallelism, and the decoder layers and load of every pipeline stage."""
    table = figures("", "ranks", "what each holds", words=(0, 2), title="Parallel layout")
    heads, groups = architecture.decoder.num_heads, architecture.decoder.num_kv_heads
    sequence = ", sequence parallel" if layout.sequence else ""
    own = counted(heads // layout.tensor, "head"), counted(groups // layout.tensor, "group")
    table.add_row("tensor", str(layout.tensor), f"{own[0]}, {own[1]}{sequence}")
    table.add_row("context", str(layout.context), f"1/{layout.context} of each sequence")
    table.add_row(
        "data", str(layout.data), f"a replica of the model, 1/{layout.optimizer_shards} of the optimizer state"
    )
    table.add_row("pipeline", str(layout.pipeline), f"{counted(layout.virtual, 'chunk')} of layers")
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
        "checkpoints": f"every {counted(config.checkpoint.every, 'step')}, keep {config.checkpoint.keep}"
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
    return (
        f"{begin}every {counted(section.every or saved_every, 'step')} and at the end: {', '.join(section.benchmarks)}"
    )


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
    names = ["stage", "weights", "gradients", "optimizer", "activations", "at work", "images", "total"]
    on_host = config.optimizer.host != 0 or config.recompute.inputs == "host" or config.checkpoint.background
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
    yield from (memory.activations, memory.working, memory.images, memory.total)


def _thousands(number: int) -> str:
    return f"{number:,}"
