"""Puts a stage's parts together on this rank, runs the loop, and exports the result.

Order matters and is the same everywhere: meet the other ranks, check the configuration, open the data at the right
sequence, build the model, load weights, freeze, wrap for data parallelism, build the optimizer, resume. What a rank
does for itself there ends on all ranks alike, so that none waits for one that has failed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_apriel.checkpoint.export import export_hf
from megatron_apriel.checkpoint.loading import load_weights
from megatron_apriel.checkpoint.store import CheckpointStore, newest_checkpoint
from megatron_apriel.checkpoint.weights import open_weights
from megatron_apriel.config.load import to_yaml
from megatron_apriel.config.machine_sections import PrecisionSection
from megatron_apriel.config.schedule import learning_rate
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.corpus.chat import exported_chat_template
from megatron_apriel.data.loading.loader import TrainingLoader, ValidationLoader
from megatron_apriel.data.loading.mixture import RUN_BEGINS
from megatron_apriel.data.loading.prompts import Prompts
from megatron_apriel.data.loading.sources import check_tokenizer
from megatron_apriel.data.loading.stage_data import StageData
from megatron_apriel.errors import (
    AprielError,
    CheckpointError,
    ConfigError,
    ExitCode,
    OutputError,
    TransientError,
    brief,
)
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.hf_directory import write_hf_sidecars
from megatron_apriel.formats.kinds import architecture_of, config_for, sidecar_directory
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.formats.run_record import ChangeRecord, RunState, read_run_file, run_state
from megatron_apriel.formats.sidecar_contents import KeptSidecars
from megatron_apriel.formats.sidecars import chat_template
from megatron_apriel.formats.word_pattern import name_word_fault
from megatron_apriel.locks import HeldError, take_lock
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.model.options import ModelOptions, check_options
from megatron_apriel.outputs import check_destination
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.agreement import alike
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.parallel.layout import Layout, started_ranks
from megatron_apriel.planning.mixture_table import mixture_table
from megatron_apriel.tables import lines_of
from megatron_apriel.terminal import say
from megatron_apriel.train.changes import Resumption, check_data, resumption
from megatron_apriel.train.ending import ending
from megatron_apriel.train.loop import Stage, train
from megatron_apriel.train.metrics import Metrics
from megatron_apriel.train.output_place import OutputPlace
from megatron_apriel.train.samples import Sampler
from megatron_apriel.train.signals import StopRequest, check_time_left
from megatron_apriel.train.state_placement import placement_in_words
from megatron_apriel.train.trainer import Trainer

WIDTH = 120
"""Of the table at the start."""


@dataclass(frozen=True)
class _Beginning:
    """Where a stage stands before it starts: its model, layout, and the checkpoint that it resumes from, if any.

    ``state`` is the run's own in that checkpoint, as :func:`megatron_apriel.train.loop.train` saved it; ``resumed``
    what it continues with.
    """

    architecture: Architecture
    layout: Layout
    newest: Path | None
    state: RunState | None
    resumed: Resumption | None
    finished_steps: int

    def ended(self, config: StageConfig) -> bool:
        """Whether all steps are done, and the run was not made so short only now."""
        new = self.resumed.new if self.resumed is not None else None
        return self.finished_steps == config.steps and not (new is not None and "tokens" in new.settings)


def run_stage(config: StageConfig, change: bool = False) -> ExitCode:
    """Train the stage from its newest checkpoint, or from ``init_from`` where there is none; then export it.

    With ``change``, what may change within a run may differ from the checkpoint (``changes.py``).

    Raises the project's errors before anything is written where the mistake can be known that early; on all ranks,
    also where only one of them can see it.
    """
    on_gpu = torch.cuda.is_available()
    asked, config = config.precision, config.with_compute_on(on_gpu)
    directory = RunDirectory(config.output)
    final, outdated = directory.final, directory.outdated
    with groups.joined():
        config = alike(partial(_with_tokens, config))
        store = CheckpointStore(directory.checkpoints, config.checkpoint.keep, config.steps)
        beginning = alike(lambda: _beginning(config, store, change))
        _check_same_everywhere(beginning.newest)
        exported = final.exists() and not outdated.exists()
        if beginning.ended(config) and (exported or not config.checkpoint.export):
            if dist.get_rank() == 0:
                say(*ending(config, final if exported else None, beginning.newest))
            return ExitCode.OK
        if not beginning.ended(config):
            alike(lambda: check_time_left(config.faults.save_before_end_of_job_s))
        if dist.get_rank() == 0:
            say(precision_in_words(asked, on_gpu))
        with (
            # First: a request that comes while weights are loaded is met before the first step, not by dying.
            StopRequest(config.faults.save_before_end_of_job_s, directory.checkpoints, dist.get_rank()) as stop,
            alike(lambda: _locked(config.output)),
            alike(lambda: _place(config.output)) as place,
            groups.initialized(beginning.layout, config.seed) as device,
            contextlib.closing(alike(lambda: Metrics(config, dist.get_rank()))) as metrics,
            assembled(config, beginning, device, store, metrics, place) as stage,
            contextlib.closing(store),
        ):
            if final.exists() and dist.get_rank() == 0:
                outdated.touch()
            with _located(stage):
                code = train(stage, stop)
                if code == ExitCode.REQUEUE:
                    alike(lambda: _check_progress(stage, directory, beginning.finished_steps, stop.reason))
            # A first request to stop that comes now is not acted on: the export is nearly all that is left to do.
            stop.when = "after the export"
            if code == ExitCode.OK and config.checkpoint.export:
                _export(stage, final)
                if dist.get_rank() == 0:
                    outdated.unlink(missing_ok=True)
        if code == ExitCode.OK and dist.get_rank() == 0:
            say(*ending(config, final if config.checkpoint.export else None, store.latest()))
    return code


def precision_in_words(precision: PrecisionSection, on_gpu: bool) -> str:
    """The line that says which numbers a run computes in, and whether the machine has chosen them."""
    compute, device = precision.compute_on(on_gpu), "GPU" if on_gpu else "CPU"
    line = f"precision: {compute}" + (f" and fp8={precision.fp8}" if precision.fp8 != "none" else "")
    if precision.compute == "auto":
        line += f", the default on a {device}"
    if not on_gpu and compute == "bf16":
        line += "; on a CPU that can take many times as long as precision.compute=fp32"
    return line


def _with_tokens(config: StageConfig) -> StageConfig:
    """The stage with its ``epochs`` counted: once, when it begins. A run that has as many epochs keeps its tokens."""
    if config.epochs is None:
        return config
    newest = newest_checkpoint(RunDirectory(config.output).checkpoints)
    if newest is not None:
        saved = run_state(newest, read_run_file(newest)).config
        if saved.tokens is not None and saved.epochs == config.epochs:
            return config.lasting(saved.tokens)
    begun = newest or config.init_from
    return StageData.open(config, architecture_of(begun), sidecar_directory(begun)).config


def _beginning(config: StageConfig, store: CheckpointStore, change: bool) -> _Beginning:
    check_options(ModelOptions.from_stage(config))
    # Checked as the first thing that is made below the output, with or without an export.
    check_destination(RunDirectory(config.output).final, overwrite=True)
    newest = store.latest()
    if newest is None:
        architecture = architecture_of(config.init_from)
        # The weights must be those of the config before memory is taken for a model of its shapes.
        open_weights(config.init_from, architecture)
        return _Beginning(architecture, check_layout(config, architecture, _ranks()), None, None, None, 0)
    record = read_run_file(newest)
    state = run_state(newest, record)
    resumed = resumption(config, newest, record.step, state, change)
    _check_position(config, newest, record.step, state.sequences)
    architecture = architecture_of(newest)
    layout = check_layout(config, architecture, _ranks())
    return _Beginning(architecture, layout, newest, state, resumed, record.step)


def _check_position(config: StageConfig, newest: Path, step: int, sequences: int) -> None:
    """Steps and sequences say the same, and neither lies behind the run's end."""
    if step > config.steps or sequences != step * config.sequences_per_step:
        raise CheckpointError(
            f"{newest} is of step {step} after {sequences} sequences; the run has {config.steps} steps of "
            f"{config.sequences_per_step} sequences.",
            "Its run.json was changed.",
            f"Remove or rename {newest} to resume from the checkpoint before it.",
        )


def _ranks() -> int:
    return started_ranks(os.environ, "WORLD_SIZE", "SLURM_NTASKS")


def _check_same_everywhere(newest: Path | None) -> None:
    """Refuse to start where hosts see different checkpoints; collective."""
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, newest.name if newest is not None else "none")
    other = next((rank for rank, name in enumerate(everywhere) if name != everywhere[0]), None)
    if other is not None:
        raise CheckpointError(
            f"the newest checkpoint is {everywhere[0]} for rank 0 and {everywhere[other]} for rank {other}.",
            "Ranks that resume from different steps would train different models.",
            "The output directory must lie on a file system that all hosts share.",
        )


def _locked(output: Path) -> contextlib.AbstractContextManager[Any]:
    """The run's lock on its output directory, released with it or with its process; held by rank 0.

    Two runs, as from a job that was submitted twice, would remove each other's unfinished checkpoints.
    """
    if dist.get_rank() != 0:
        return contextlib.nullcontext()
    output.mkdir(parents=True, exist_ok=True)
    try:
        lock = take_lock(RunDirectory(output).lock)
    except HeldError as error:
        raise TransientError(
            f"another run is writing to {output}: {error}.",
            "Two runs would remove each other's checkpoints.",
            "Wait until it has ended, or give another output.",
        ) from None
    except OSError as error:
        raise OutputError(
            f"{output} cannot be locked: {error}.",
            "A run locks the file .lock in its output directory, so that no second run writes there.",
            "Remove what stands in that file's place, check its permissions, or give another output.",
        ) from None
    if lock.problem is not None:
        say(f"{output} cannot be locked ({lock.problem}): make sure that no other run writes to it")
    return lock


def _place(output: Path) -> contextlib.AbstractContextManager[OutputPlace | None]:
    """The output directory as it is now; rank 0 looks after it."""
    return OutputPlace(output) if dist.get_rank() == 0 else contextlib.nullcontext()


@contextlib.contextmanager
def _located(stage: Stage) -> Iterator[None]:
    """Let what the program did not foresee say where it happened and how to resume, below its traceback."""
    try:
        yield
    except AprielError:
        raise
    except Exception as error:
        config, rank, ranks = stage.config, dist.get_rank(), dist.get_world_size()
        error.add_note(f"{config.stage}: rank {rank} of {ranks}, after step {stage.finished_steps} of {config.steps}.")
        if isinstance(error, torch.OutOfMemoryError):
            error.add_note(
                "  Less memory: recompute.mode, a larger parallel.tensor, pipeline or context, a shorter"
                " sequence_length; --dry-run predicts what each needs, tools/plan.py compares them."
            )
        elif ranks > 1:
            error.add_note("  If it lost another rank, the cause is in the output of the one that ended first.")
        error.add_note(f"  The same command resumes from the newest whole checkpoint in {stage.store.directory}.")
        raise


def _check_progress(stage: Stage, directory: RunDirectory, begun_at: int, reason: str) -> None:
    """Refuse to be started again, by raising ConfigError, if this start and the one before finished no step.

    Whatever stops a run before its first step may stop it there for ever, and a scheduler would start it for ever.
    """
    if dist.get_rank() != 0:
        return
    mark, here = directory.stopped_early, f"step {begun_at}: "
    if stage.finished_steps > begun_at:
        mark.unlink(missing_ok=True)
        return
    before = mark.read_text(encoding="utf-8", errors="replace").strip() if mark.exists() else ""
    if not before.startswith(here):
        mark.write_text(f"{here}{reason}\n", encoding="utf-8")
        return
    mark.unlink()
    raise ConfigError(
        f"two starts in a row were stopped before they finished a step after step {begun_at}:"
        f" {brief(before.removeprefix(here))}; {reason}.",
        "A third would most likely end there too, so none is asked for.",
        "Give the job more time (sbatch --time), or find out what stops it; then start the same command again.",
    )


def _export(stage: Stage, final: Path) -> None:
    """Write the finished stage as a Hugging Face directory, the only thing that passes to another stage."""
    with stage.trainer.gathered_parameters():
        export_hf(
            stage.trainer.chunks,
            stage.architecture,
            sidecars=alike(stage.sidecars.checked),
            destination=final,
            max_shard_size=stage.config.checkpoint.max_shard_size,
            chat_template=exported_chat_template(),
            overwrite=final.exists(),
        )


@contextlib.contextmanager
def assembled(
    config: StageConfig,
    beginning: _Beginning,
    device: Any,
    store: CheckpointStore,
    metrics: Metrics,
    place: OutputPlace | None = None,
) -> Any:
    """This rank's :class:`Stage`, ready to train from where it stands; closes its loaders."""
    architecture, layout, newest = beginning.architecture, beginning.layout, beginning.newest
    state, resumed = beginning.state, beginning.resumed
    with contextlib.ExitStack() as stack:
        # Before the weights, whose loading takes minutes: a corpus that does not fit should not wait for them.
        loader, validation = alike(lambda: _loaders(config, beginning, stack))
        if dist.get_rank() == 0:
            say(*lines_of(mixture_table(loader.data), WIDTH))
        for source in loader.sources:
            metrics.write("source", beginning.finished_steps, **source.figures())
        sidecars = alike(lambda: _keep_sidecars(config, beginning))
        sampler = alike(lambda: _sampler(config, beginning, loader))

        def initialise(chunks: list[AprielModel]) -> None:
            report = load_weights(chunks, config.init_from, architecture)
            if dist.get_rank() == 0:
                say(*str(report).split("\n"))

        trainer = Trainer(architecture, config, layout, initialise if newest is None else None)
        placement = placement_in_words(trainer.optimizer)
        if placement is not None and dist.get_rank() == 0:
            say(placement)
        if newest is not None:
            started = time.perf_counter()
            store.load(newest, trainer.chunks, trainer.optimizer, resumed.peaks if resumed is not None else None)
            seconds = time.perf_counter() - started
            metrics.write("resumed", beginning.finished_steps, steps=config.steps, path=str(newest), seconds=seconds)
            if resumed is not None and resumed.new is not None:
                _record_change(config, metrics, resumed.new)
        yield Stage(
            config=config,
            trainer=trainer,
            device=device,
            loader=loader,
            validation=validation,
            store=store,
            metrics=metrics,
            sidecars=sidecars,
            sampler=sampler,
            place=place,
            finished_steps=beginning.finished_steps,
            skipped=state.skipped if state is not None else 0,
            skipped_in_a_row=state.skipped_in_a_row if state is not None else 0,
            empty=state.empty if state is not None else 0,
            validation_due=state.validation_due if state is not None else True,
            changes=resumed.changes if resumed is not None else [],
        )


def _record_change(config: StageConfig, metrics: Metrics, change: ChangeRecord) -> None:
    sources = (change.given or [])[: len(config.mixture)]
    metrics.write(
        "changed",
        change.step,
        steps=config.steps,
        settings=change.settings,
        lr=learning_rate(change.step, config.steps, config.optimizer),
        given={source.name: source.packs for source in sources},
    )


def _loaders(
    config: StageConfig, beginning: _Beginning, stack: contextlib.ExitStack
) -> tuple[TrainingLoader, ValidationLoader | None]:
    """This rank's loaders, closed with ``stack``; their corpora must be the model's, and those of the run so far."""
    layout, newest = beginning.layout, beginning.newest
    state, resumed = beginning.state, beginning.resumed
    directory = sidecar_directory(newest or config.init_from)
    place = DataPlace.of(layout, dist.get_rank())
    first = state.sequences if state is not None else 0
    loader = stack.enter_context(
        TrainingLoader(
            config,
            beginning.architecture,
            place,
            first_sequence=first,
            beginning=resumed.mixture if resumed is not None else RUN_BEGINS,
            directory=directory,
        )
    )
    if resumed is not None and newest is not None:
        check_data(resumed, first, loader, newest)
    validation = None
    if config.validation is not None:
        multiple = layout.pipeline if layout.virtual > 1 else 1
        validation = stack.enter_context(
            ValidationLoader(config, beginning.architecture, place, micro_batch_multiple=multiple, directory=directory)
        )
    if dist.get_rank() == 0:
        sources = [*loader.sources, *(validation.sources if validation is not None else [])]
        check_tokenizer({source.corpus.path: source.corpus.manifest for source in sources}, directory)
    return loader, validation


def _sampler(config: StageConfig, beginning: _Beginning, loader: TrainingLoader) -> Sampler | None:
    """What continues the stage's prompts, with the tokenizer of the model that the run begins or resumes from."""
    if config.samples is None:
        return None
    layout, directory = beginning.layout, sidecar_directory(beginning.newest or config.init_from)
    place = DataPlace.of(layout, dist.get_rank())
    rules = (source.corpus.manifest.images for source in loader.sources)
    rule = next((rule for rule in rules if rule is not None), None)
    prompts = Prompts(config, beginning.architecture, place, directory, rule.rounding if rule is not None else "floor")
    return Sampler(config.samples, prompts, place, layout.pipeline if layout.virtual > 1 else 1)


def _keep_sidecars(config: StageConfig, beginning: _Beginning) -> KeptSidecars:
    """The run's own copy of what goes beside the weights into every checkpoint and into the result.

    It is of the model that the run begins or resumes from, whose tokenizer and processor its corpora fit,
    and which may change or go while the run trains. The chat template is the one that conversations were rendered by.
    """
    directory, template = RunDirectory(config.output), exported_chat_template()
    if dist.get_rank() != 0:
        return KeptSidecars(directory.sidecars)
    config.output.mkdir(parents=True, exist_ok=True)
    directory.resolved_config.write_text(to_yaml(config), encoding="utf-8")
    given = sidecar_directory(beginning.newest or config.init_from)
    if (theirs := chat_template(given)) is not None and theirs != template.strip():
        say(f"the chat template in {given} is not the one of the corpora, which the run's checkpoints get")
    name_word_fault(given)
    shutil.rmtree(directory.sidecars, ignore_errors=True)  # of an earlier start, maybe from another model
    # Whoever writes weights sets their dtype anew.
    write_hf_sidecars(directory.sidecars, given, config_for(beginning.architecture, given, "bfloat16"), template)
    return KeptSidecars.now(directory.sidecars)
