"""Where a stage stands before it starts: what it begins or resumes from, on which layout, after how many steps.

No torch, so that a mistake is known in a second: a dry run asks here, a run of one host asks before it loads torch, and
every run asks once more when its ranks have met.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.stage_data import StageData, open_corpora
from megatron_apriel.errors import CheckpointError, ConfigError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind, architecture_of, recognise, sidecar_directory
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.formats.run_record import RunState, newest_checkpoint, read_run_file, run_state
from megatron_apriel.formats.tensor_accounts import open_accounted
from megatron_apriel.outputs import check_destination
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.parallel.layout import Layout, started_ranks
from megatron_apriel.planning.changes import Resumption, resumption
from megatron_apriel.planning.disk_room import check_room


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        newest: the checkpoint that it resumes from, if there is any.
        state: the run's own in that checkpoint, as :func:`megatron_apriel.train.loop.train` saved it.
        resumed: what it continues with.
        finished_steps: of all that it has.
    """

    newest: Path | None = None
    state: RunState | None = None
    resumed: Resumption | None = None
    finished_steps: int = 0

    def ended(self, config: StageConfig) -> bool:
        """Whether all steps are done, and the run was not made so short only now."""
        new = self.resumed.new if self.resumed is not None else None
        return self.finished_steps == config.steps and not (new is not None and "tokens" in new.settings)


@dataclass(frozen=True, kw_only=True)
class Beginning(Standing):
    """What a run starts with: how far it is, its model, and its layout."""

    architecture: Architecture
    layout: Layout


def standing_of(config: StageConfig, change: bool) -> Standing:
    """Compare a stage with its newest checkpoint. Raises the project's errors.

    Args:
        config: the stage.
        change: whether what may change within a run may differ from that checkpoint.
    """
    newest = newest_checkpoint(RunDirectory(config.output).checkpoints)
    if newest is None:
        return Standing()
    record = read_run_file(newest)
    state = run_state(newest, record)
    resumed = resumption(config, newest, record.step, state, change)
    _check_position(config, newest, record.step, state.sequences)
    return Standing(newest, state, resumed, record.step)


def beginning_of(config: StageConfig, ranks: int, change: bool) -> Beginning:
    """What a run of so many ranks starts with, checked; ``change`` as for :func:`standing_of`.

    Raises the project's errors.
    """
    # Checked as the first thing that is made below the output, with or without an export.
    check_destination(RunDirectory(config.output).final, overwrite=True)
    standing = standing_of(config, change)
    architecture = architecture_of(standing.newest or config.init_from)
    if standing.newest is None:
        # The weights must be those of the config before memory is taken for a model of its shapes.
        check_weights(config.init_from, architecture)
    layout = check_layout(config, architecture, ranks)
    if not standing.ended(config):
        check_room(config, architecture)
    return Beginning(**vars(standing), architecture=architecture, layout=layout)


def check_weights(directory: Path, architecture: Architecture) -> None:
    """Raise CheckpointError, by name, if the tensors in a directory are not those of a model. Reads no weights."""
    kind = recognise(directory)
    if kind is Kind.MEGATRON:
        read_run_file(directory)
        return
    open_accounted(directory, architecture, "consolidated" if kind is Kind.MISTRAL else "model")


def with_tokens(config: StageConfig) -> StageConfig:
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


def check_early(config: StageConfig, environment: Mapping[str, str], change: bool) -> None:
    """Raise for what a run would be refused for, before it has loaded torch, where all its ranks are on one host.

    Ranks of several hosts must be refused together, by whichever host sees the mistake, or the others wait for it;
    they look when they have met.

    Args:
        config: the stage.
        environment: of the process; a launcher says there how many ranks and hosts there are.
        change: as for :func:`standing_of`.
    """
    ranks = ranks_of(environment)
    one_host = environment.get("LOCAL_WORLD_SIZE") == str(ranks) or environment.get("SLURM_NNODES") == "1"
    if ranks > 1 and not one_host:
        return
    config = with_tokens(config)
    beginning = beginning_of(config, ranks, change)
    if not beginning.ended(config):
        directory = sidecar_directory(beginning.newest or config.init_from)
        for corpora in (config.mixture, config.validation.corpora if config.validation is not None else []):
            open_corpora(corpora, beginning.architecture, config, directory)
        check_pictures(config)


def absent_pictures(config: StageConfig) -> list[str]:
    """A sentence on each image of ``samples`` that is not there."""
    return [
        f"samples.prompts.{number}.image {prompt.image} does not exist."
        for number, prompt in enumerate(config.samples.prompts if config.samples else ())
        if prompt.image is not None and not prompt.image.is_file()
    ]


def check_pictures(config: StageConfig) -> None:
    """Raise ConfigError for the first image of ``samples`` that is not there."""
    if absent := absent_pictures(config):
        raise ConfigError(absent[0], "The run would refuse it.", "Give a file, or leave the image out.")


def ranks_of(environment: Mapping[str, str]) -> int:
    """Ranks that a launcher started, by its own words; 1 without any."""
    return started_ranks(environment, "WORLD_SIZE", "SLURM_NTASKS")


def _check_position(config: StageConfig, newest: Path, step: int, sequences: int) -> None:
    """Steps and sequences say the same, and neither lies behind the run's end."""
    if step > config.steps or sequences != step * config.sequences_per_step:
        raise CheckpointError(
            f"{newest} is of step {step} after {sequences} sequences; the run has {config.steps} steps of "
            f"{config.sequences_per_step} sequences.",
            "Its run.json was changed.",
            f"Remove or rename {newest} to resume from the checkpoint before it.",
        )
