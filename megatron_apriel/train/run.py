"""Runs a stage on this rank: finds out where it stands, puts its parts together, trains, and exports the result.

Order matters and is the same everywhere: meet the other ranks, check the configuration (``planning/beginning.py``),
lock the output, assemble (``assembly.py``), train (``loop.py``), export. What a rank does for itself there ends on all
ranks alike, so that none waits for one that has failed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_apriel.checkpoint.export import export_hf
from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.config.machine_sections import PrecisionSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.corpus.answer_format import exported_chat_format
from megatron_apriel.errors import (
    AprielError,
    ConfigError,
    ExitCode,
    OutputError,
    TransientError,
    brief,
)
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.formats.run_evaluations import RunEvaluations
from megatron_apriel.locks import HeldError, take_lock
from megatron_apriel.model.options import ModelOptions, check_options
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.agreement import alike
from megatron_apriel.planning.beginning import Beginning, beginning_of, ranks_of, with_tokens
from megatron_apriel.terminal import say
from megatron_apriel.train.assembly import assembled
from megatron_apriel.train.ending import ending
from megatron_apriel.train.loop import Stage, train
from megatron_apriel.train.metrics import Metrics
from megatron_apriel.train.optimizer import check_forms
from megatron_apriel.train.output_place import OutputPlace
from megatron_apriel.train.same_everywhere import check_checkpoints, check_model, check_settings, result_exists
from megatron_apriel.train.signals import StopRequest, check_time_left
from megatron_apriel.train.state_placement import with_settled_moments

_PATIENCE_S = 2.0
"""For a command beside the run that holds its lock for a moment, while it writes a score."""


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
        check_settings(config)
        config = alike(partial(with_tokens, config))
        evaluations = RunEvaluations.of(config)
        besides = {"kept_besides": evaluations.kept} if evaluations is not None else {}
        store = CheckpointStore(directory.checkpoints, config.checkpoint.keep, config.steps, **besides)
        beginning = alike(lambda: _checked_beginning(config, change))
        check_checkpoints(beginning.newest)
        if beginning.newest is None:
            check_model(config.init_from, beginning.architecture)
        config = with_settled_moments(config, beginning)
        exported = result_exists(final, outdated)
        if beginning.ended(config) and (exported or not config.checkpoint.export):
            if dist.get_rank() == 0:
                say(*ending(config, final if exported else None, beginning.newest))
            return ExitCode.OK
        if not beginning.ended(config):
            alike(lambda: check_time_left(config.faults.save_before_end_of_job_s))
        if dist.get_rank() == 0:
            say(precision_in_words(asked, on_gpu))
            if evaluations is not None:
                say(f"its checkpoints are evaluated by {following(config.output)}, beside this run or in another job")
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


def _checked_beginning(config: StageConfig, change: bool) -> Beginning:
    """Where the run stands, with what only torch can check of its options."""
    check_options(ModelOptions.from_stage(config))
    check_forms(config)
    return beginning_of(config, ranks_of(os.environ), change)


def precision_in_words(precision: PrecisionSection, on_gpu: bool) -> str:
    """The line that says which numbers a run computes in, and whether the machine has chosen them."""
    compute, device = precision.compute_on(on_gpu), "GPU" if on_gpu else "CPU"
    line = f"precision: {compute}" + (f" and fp8={precision.fp8}" if precision.fp8 != "none" else "")
    if precision.compute == "auto":
        line += f", the default on a {device}"
    if not on_gpu and compute == "bf16":
        line += "; on a CPU that can take many times as long as precision.compute=fp32"
    return line


def following(output: Path) -> str:
    """The command that evaluates a run's checkpoints."""
    return shlex.join(["python", "tools/evaluate.py", "--follow", str(output)])


def _locked(output: Path) -> contextlib.AbstractContextManager[Any]:
    """The run's lock on its output directory, released with it or with its process; held by rank 0.

    Two runs, as from a job that was submitted twice, would remove each other's unfinished checkpoints.
    """
    if dist.get_rank() != 0:
        return contextlib.nullcontext()
    output.mkdir(parents=True, exist_ok=True)
    try:
        lock = take_lock(RunDirectory(output).lock, _PATIENCE_S)
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
            chat_format=exported_chat_format(),
            overwrite=final.exists(),
        )
