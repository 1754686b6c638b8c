"""Puts a stage's parts together on this rank, runs the loop, and exports the result.

Order matters and is the same everywhere: check the configuration, join the process groups, build the model, load
weights (or resume), freeze, wrap for data parallelism, build the optimizer, load its state, open the data at the
right sequence.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_apriel.architecture import Architecture
from megatron_apriel.checkpoint.export import export_hf
from megatron_apriel.checkpoint.hf import architecture_of, load_weights
from megatron_apriel.checkpoint.training import CheckpointStore
from megatron_apriel.config.load import to_yaml
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.chat import exported_chat_template
from megatron_apriel.data.loader import TrainingLoader, ValidationLoader
from megatron_apriel.errors import ConfigError, ExitCode
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.freeze import apply_freezing
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.train.loop import Stage, gathered_parameters, train
from megatron_apriel.train.metrics import Metrics
from megatron_apriel.train.optimizer import build_optimizer, wrap_data_parallel

SAME_ON_RESUME = ("stage", "sequence_length", "batch_tokens", "tokens", "mixture", "train", "optimizer", "seed")
"""Settings that say what is trained on what, in which order: a run that goes on must not change them."""


def run_stage(config: StageConfig) -> ExitCode:
    """Train the stage from its newest checkpoint, or from ``init_from`` where there is none; then export it.

    Raises the project's errors before anything is written where the mistake can be known that early.
    """
    final = config.output / "final"
    store = CheckpointStore(config.output / "checkpoints", config.checkpoint.keep, config.steps)
    newest = store.latest()
    if newest is not None:
        _check_same(config, newest)
    source = newest / "hf" if newest is not None else config.init_from
    architecture = Architecture.from_directory(source) if newest is not None else architecture_of(source)
    layout = check_layout(config, architecture, world_size())
    if newest is not None and _step_of(newest) == config.steps and (final.exists() or not config.checkpoint.export):
        print(f"{config.stage}: all {config.steps} steps are done; the result is in {final}")
        return ExitCode.OK
    with (
        groups.initialized(layout, config.seed) as device,
        contextlib.closing(Metrics(config, dist.get_rank())) as metrics,
        assembled(config, architecture, layout, device, store, newest, metrics) as stage,
    ):
        code = train(stage)
        if code == ExitCode.OK and config.checkpoint.export:
            _export(stage, final)
    return code


def _export(stage: Stage, final: Path) -> None:
    """Write the finished stage as a Hugging Face directory, the only thing that passes to another stage."""
    with gathered_parameters(stage):
        export_hf(
            stage.chunks,
            stage.architecture,
            sidecars=stage.sidecars,
            destination=final,
            max_shard_size=stage.config.checkpoint.max_shard_size,
            chat_template=exported_chat_template(),
            overwrite=final.exists(),
        )


def world_size() -> int:
    """Ranks of this run, as torchrun or Slurm's ``srun`` say."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or "1")


@contextlib.contextmanager
def assembled(
    config: StageConfig,
    architecture: Architecture,
    layout: Layout,
    device: Any,
    store: CheckpointStore,
    newest: Path | None,
    metrics: Metrics,
) -> Any:
    """This rank's :class:`Stage`, ready to train from ``newest`` or from ``config.init_from``; closes its loaders."""
    chunks = build_model(architecture, config, layout)
    say = print if dist.get_rank() == 0 else lambda *words: None
    if newest is None:
        say(load_weights(chunks, config.init_from, architecture))
    apply_freezing(chunks, config.train)
    wrapped = wrap_data_parallel(chunks, config)
    optimizer = build_optimizer(wrapped, config)
    progress: dict[str, Any] = {}
    if newest is not None:
        progress = store.load(newest, chunks, optimizer)
        say(f"resumed from {newest}")
    finished = int(progress.get("sequences", 0)) // config.sequences_per_step
    with contextlib.ExitStack() as stack:
        placement = _data_placement(layout)
        loader = stack.enter_context(
            TrainingLoader(config, architecture, first_sequence=finished * config.sequences_per_step, **placement)
        )
        validation = None
        if config.validation is not None:
            multiple = layout.pipeline if layout.virtual > 1 else 1
            validation = stack.enter_context(
                ValidationLoader(config, architecture, micro_batch_multiple=multiple, **placement)
            )
        yield Stage(
            config=config,
            architecture=architecture,
            layout=layout,
            device=device,
            chunks=chunks,
            wrapped=wrapped,
            optimizer=optimizer,
            loader=loader,
            validation=validation,
            store=store,
            metrics=metrics,
            sidecars=_keep_sidecars(config, newest),
            finished_steps=finished,
            skipped=int(progress.get("skipped", 0)),
            skipped_in_a_row=int(progress.get("skipped_in_a_row", 0)),
        )


def _data_placement(layout: Layout) -> dict[str, Any]:
    """Which batches and which images this rank reads."""
    place = layout.coordinates(dist.get_rank())
    return {
        "data_rank": place.data,
        "data_size": layout.data,
        "share": place.context * layout.tensor + place.tensor,
        "shares": layout.tensor * layout.context,
        "with_images": place.pipeline == 0,
    }


def _keep_sidecars(config: StageConfig, newest: Path | None) -> Path:
    """Directory with the config, tokenizer and processor that go beside the weights into every checkpoint.

    A resumed run takes them from the checkpoint that it goes on from, and keeps its own copy of them: the policy may
    remove that checkpoint before the stage ends.
    """
    sidecars = config.init_from if newest is None else config.output / "hf"
    if dist.get_rank() == 0:
        config.output.mkdir(parents=True, exist_ok=True)
        (config.output / "config.resolved.yaml").write_text(to_yaml(config), encoding="utf-8")
        if newest is not None:
            shutil.copytree(newest / "hf", sidecars, dirs_exist_ok=True)
    return sidecars


def _step_of(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))["step"])


def _check_same(config: StageConfig, newest: Path) -> None:
    """Refuse to go on with a run whose meaning was changed."""
    saved = json.loads((newest / "run.json").read_text(encoding="utf-8"))["extra"]["config"]
    current = config.model_dump(mode="json")
    changed = [key for key in SAME_ON_RESUME if saved.get(key) != current[key]]
    if changed:
        differences = "; ".join(f"{key}: {saved.get(key)} then, {current[key]} now" for key in changed)
        raise ConfigError(
            f"{newest} was made with another configuration ({differences}).",
            "Going on would silently change what the run means.",
            f"Use the same settings, or another output than {config.output}.",
        )
