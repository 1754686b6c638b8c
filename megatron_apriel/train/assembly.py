"""Puts a stage's parts together on this rank, in the order that is the same everywhere.

The data is opened at the right sequence, the model built, its weights loaded, what is frozen frozen, all wrapped for
data parallelism, the optimizer built, and what was saved is resumed.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

from megatron_apriel.checkpoint.loading import load_weights
from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.config.load import to_yaml
from megatron_apriel.config.schedule import learning_rate
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.corpus.answer_format import exported_chat_format
from megatron_apriel.data.loading.loader import TrainingLoader, ValidationLoader
from megatron_apriel.data.loading.mixture import RUN_BEGINS
from megatron_apriel.data.loading.prompts import Prompts
from megatron_apriel.data.loading.sources import Source, check_tokenizer
from megatron_apriel.formats.hf_directory import write_hf_sidecars
from megatron_apriel.formats.kinds import config_for, sidecar_directory
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.formats.run_record import ChangeRecord
from megatron_apriel.formats.sidecar_contents import KeptSidecars
from megatron_apriel.formats.sidecars import chat_template
from megatron_apriel.formats.word_pattern import name_word_fault
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.output_files import replace_file
from megatron_apriel.parallel.agreement import alike
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.planning.beginning import Beginning
from megatron_apriel.planning.changes import check_same_data, what_is_lost
from megatron_apriel.planning.mixture_table import mixture_table
from megatron_apriel.tables import lines_of, standard_output
from megatron_apriel.terminal import say
from megatron_apriel.train.loop import Stage
from megatron_apriel.train.metrics import Metrics
from megatron_apriel.train.output_place import OutputPlace
from megatron_apriel.train.same_everywhere import check_documents, check_output
from megatron_apriel.train.samples import Sampler
from megatron_apriel.train.state_placement import check_copy, placement_in_words
from megatron_apriel.train.trainer import Trainer

WIDTH = 120
"""Of the table at the start."""


@contextlib.contextmanager
def assembled(
    config: StageConfig,
    beginning: Beginning,
    device: Any,
    store: CheckpointStore,
    metrics: Metrics,
    place: OutputPlace | None = None,
) -> Iterator[Stage]:
    """This rank's :class:`Stage`, ready to train from where it stands; closes its loaders."""
    architecture, layout, newest = beginning.architecture, beginning.layout, beginning.newest
    state, resumed = beginning.state, beginning.resumed
    check_output(config.output)
    with contextlib.ExitStack() as stack:
        # Before the weights, whose loading takes minutes: a corpus that does not fit should not wait for them.
        loader, validation = alike(lambda: _loaders(config, beginning, stack))
        check_documents(_opened(loader, validation))
        if dist.get_rank() == 0:
            say(*lines_of(mixture_table(loader.data), standard_output(WIDTH).width))
        for source in loader.sources:
            metrics.write("source", beginning.finished_steps, **source.figures())
        sidecars = alike(lambda: _keep_sidecars(config, beginning))
        sampler = alike(lambda: _sampler(config, beginning, loader))

        def initialise(chunks: list[AprielModel]) -> None:
            loaded = load_weights(chunks, config.init_from, architecture)
            if dist.get_rank() == 0:
                say(*str(loaded).split("\n"))

        trainer = Trainer(architecture, config, layout, initialise if newest is None else None)
        check_copy(trainer.chunks, trainer.optimizer, config, trainer.inputs.host_bytes if trainer.inputs else 0)
        placement = placement_in_words(trainer.optimizer, config, trainer.inputs)
        if placement and dist.get_rank() == 0:
            say(*placement)
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
    for key, (_, now) in change.settings.items():
        if (lost := what_is_lost(key, now)) is not None and dist.get_rank() == 0:
            say(f"{key}: {lost}")
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
    config: StageConfig, beginning: Beginning, stack: contextlib.ExitStack
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
        check_same_data(resumed, first, loader.data, newest)
    validation = None
    if config.validation is not None:
        multiple = layout.pipeline if layout.virtual > 1 else 1
        validation = stack.enter_context(
            ValidationLoader(config, beginning.architecture, place, micro_batch_multiple=multiple, directory=directory)
        )
    if dist.get_rank() == 0:
        manifests = {source.corpus.path: source.corpus.manifest for source in _opened(loader, validation)}
        check_tokenizer(manifests, directory)
    return loader, validation


def _opened(loader: TrainingLoader, validation: ValidationLoader | None) -> list[Source]:
    return [*loader.sources, *(validation.sources if validation is not None else [])]


def _sampler(config: StageConfig, beginning: Beginning, loader: TrainingLoader) -> Sampler | None:
    """What continues the stage's prompts, with the tokenizer of the model that the run begins or resumes from."""
    if config.samples is None:
        return None
    layout, directory = beginning.layout, sidecar_directory(beginning.newest or config.init_from)
    place = DataPlace.of(layout, dist.get_rank())
    rules = (source.corpus.manifest.images for source in loader.sources)
    rule = next((rule for rule in rules if rule is not None), None)
    prompts = Prompts(config, beginning.architecture, place, directory, rule.rounding if rule is not None else "floor")
    return Sampler(config.samples, prompts, place, layout.pipeline if layout.virtual > 1 else 1)


def _keep_sidecars(config: StageConfig, beginning: Beginning) -> KeptSidecars:
    """The run's own copy of what goes beside the weights into every checkpoint and into the result.

    It is of the model that the run begins or resumes from, whose tokenizer and processor its corpora fit,
    and which may change or go while the run trains. The chat template is the one that conversations were rendered by.
    """
    directory, chat_format = RunDirectory(config.output), exported_chat_format()
    if dist.get_rank() != 0:
        return KeptSidecars(directory.sidecars)
    config.output.mkdir(parents=True, exist_ok=True)
    replace_file(directory.resolved_config, to_yaml(config))
    given = sidecar_directory(beginning.newest or config.init_from)
    if (theirs := chat_template(given)) is not None and theirs != chat_format.template.strip():
        say(f"the chat template in {given} is not the one of the corpora, which the run's checkpoints get")
    name_word_fault(given)
    shutil.rmtree(directory.sidecars, ignore_errors=True)  # of an earlier start, maybe from another model
    # Whoever writes weights sets their dtype anew.
    write_hf_sidecars(directory.sidecars, given, config_for(beginning.architecture, given, "bfloat16"), chat_format)
    return KeptSidecars.now(directory.sidecars)
