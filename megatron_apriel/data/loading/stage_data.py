"""What a stage trains on, counted before it starts: the one arithmetic of the dry run and of the run. No torch.

Both open the corpora, make the packing plans and lay out the mixture here, so that what one of them counts or refuses,
the other does too, in the same words.

How long ``epochs`` are depends on the plans. Sources are taken by weight, so they are not gone through together: the
stage ends when the first of them has been gone through so many times. So the documents of none are met more often than
asked for, but for the last step, which is filled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_apriel.config.data_sections import SourceSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading.mixture import RUN_BEGINS, Beginning, Mixture, sequences_of_epochs
from megatron_apriel.data.loading.sources import (
    Source,
    check_fits,
    check_images_to_learn_from,
    check_largest_image,
    check_same_tokenizer,
    open_source,
)
from megatron_apriel.errors import DataError
from megatron_apriel.formats.architecture import Architecture

VALIDATION_SEED = 0
"""Held-out sequences do not depend on the run's seed, so that runs can be compared."""


@dataclass(frozen=True)
class StageData:
    """The data of a stage.

    Attributes:
        config: the stage, its ``tokens`` known.
        sources: of the mixture, opened.
        mixture: which of them gives each sequence.
    """

    config: StageConfig
    sources: Sequence[Source]
    mixture: Mixture

    @classmethod
    def open(
        cls,
        config: StageConfig,
        architecture: Architecture,
        directory: Path | None = None,
        beginning: Beginning = RUN_BEGINS,
    ) -> StageData:
        """Open the mixture of a stage and count its sequences; ``epochs`` without ``tokens`` are counted first.

        Args:
            config: the stage.
            architecture: of the model that reads it.
            directory: with the model's processor files, if there are any.
            beginning: where the mixture begins, if it was changed within the run.

        Raises DataError as :func:`open_sources`, and if the mixture lacks images, or tokens within ``max_epochs``.
        """
        sources = open_sources(config.mixture, architecture, config, config.seed, directory)
        stored = sum(source.corpus.manifest.counts.images for source in sources)
        check_images_to_learn_from(config, stored, sum(source.lesson.images for source in sources))
        plans = [source.plan for source in sources]
        if config.tokens is None and config.epochs is not None:
            config = config.lasting(sequences_of_epochs(config.mixture, plans, config.epochs) * config.sequence_length)
        number = config.steps * config.sequences_per_step
        return cls(config, sources, Mixture(config.mixture, plans, number, beginning))


def open_held_out(config: StageConfig, architecture: Architecture, directory: Path | None = None) -> list[Source]:
    """The sources of a stage's held-out data, if it has any. Raises DataError as :func:`open_sources`."""
    corpora = config.validation.corpora if config.validation is not None else []
    return open_sources(corpora, architecture, config, VALIDATION_SEED, directory)


def open_sources(
    sections: Sequence[SourceSection],
    architecture: Architecture,
    config: StageConfig,
    seed: int,
    directory: Path | None = None,
) -> list[Source]:
    """Open all corpora, check them, and make or read their packing plans.

    Args:
        directory: with the model's processor files, which may ask for smaller images than its tower could read.

    Raises DataError, with all that is wrong, if a corpus is damaged, was made for another model, by another tokenizer
    than the first of them, has nothing to learn, has documents without targets or too long ones and nothing says that
    these may go, or has an image that is too large.
    """
    corpora = open_corpora(sections, architecture, config, directory)
    sources: list[Source] = []
    with _together(config, len(sections)) as problems:
        for section, corpus in zip(sections, corpora, strict=True):
            with _collected(problems):
                source = open_source(section, corpus, config.sequence_length, seed)
                check_largest_image(source, config.images)
                sources.append(source)
    return sources


def open_corpora(
    sections: Sequence[SourceSection], architecture: Architecture, config: StageConfig, directory: Path | None = None
) -> list[Corpus]:
    """Open all corpora and check that they are the model's, without looking at their documents.

    Raises DataError, with all that is wrong, if a corpus is damaged, was made for another model, or by another
    tokenizer than the first of them.
    """
    corpora: list[Corpus] = []
    with _together(config, len(sections)) as problems:
        for section in sections:
            with _collected(problems):
                corpus = Corpus.open(section.corpus)
                check_fits(section, corpus.manifest, architecture, directory)
                check_same_tokenizer(corpora[0] if corpora else corpus, corpus)
                corpora.append(corpus)
    return corpora


@contextlib.contextmanager
def _collected(problems: list[DataError]) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        problems.append(error)


@contextlib.contextmanager
def _together(config: StageConfig, corpora: int) -> Iterator[list[DataError]]:
    """A list of what is wrong with so many corpora; raised at the end if anything is."""
    problems: list[DataError] = []
    yield problems
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DataError(
            f"{len(problems)} of the {corpora} corpora of stage {config.stage} cannot be used.",
            "\n  ".join(str(problem).replace("\n", "\n  ") for problem in problems),
            "Prepare them with tools/prepare_data.py, correct the paths, or follow the advice under each.",
        )
