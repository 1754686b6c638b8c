"""A source of a mixture, opened and checked: its corpus, its packing plan, and whether the model can read it.

What does not fit is refused here, before a run starts: a token outside the model's vocabulary would otherwise read
beyond the embedding, another patch size would end in a shape error at some step, and another image size would train
and serve at different resolutions without any error at all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_apriel.architecture import Architecture
from megatron_apriel.config.schema import SourceSection
from megatron_apriel.data.corpus import Corpus
from megatron_apriel.data.packing import PackingPlan
from megatron_apriel.data.plan_cache import cached_plan
from megatron_apriel.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One source: what the configuration says of it, its corpus and its plan."""

    section: SourceSection
    corpus: Corpus
    plan: PackingPlan

    @property
    def label(self) -> str:
        return self.section.label


def open_sources(
    sections: Sequence[SourceSection], architecture: Architecture, sequence_length: int, seed: int
) -> list[Source]:
    """Open all corpora, check them, and make or read their packing plans.

    Raises DataError if a corpus is damaged, was made for another model, by another tokenizer than the first of them,
    or cannot be packed as configured.
    """
    corpora = [Corpus.open(section.corpus) for section in sections]
    for corpus in corpora:
        check_fits_model(corpus, architecture)
        _check_same_tokenizer(corpora[0], corpus)
    return [
        Source(section, corpus, cached_plan(corpus, sequence_length, seed, section.long_documents))
        for section, corpus in zip(sections, corpora, strict=True)
    ]


def check_fits_model(corpus: Corpus, architecture: Architecture) -> None:
    """Raises DataError, with both values, if the corpus was prepared for another vocabulary or other images."""
    vocab_size = architecture.decoder.vocab_size
    if corpus.manifest.tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"{corpus.path}: its tokenizer has {corpus.manifest.tokenizer.vocab_size} tokens, "
            f"the model's vocabulary {vocab_size}.",
            "Tokens beyond the vocabulary have no embedding.",
            "Prepare the corpus with the tokenizer of the model that is trained.",
        )
    if not corpus.manifest.counts.images:
        return
    tower, record = architecture.tower, corpus.manifest.images
    if tower is None or record is None:
        raise DataError(
            f"{corpus.path} has {corpus.manifest.counts.images} images; the model has no vision tower.",
            fix="Train a model with a tower, or take the corpus out of the mixture.",
        )
    for what, corpus_value, model_value in (
        ("image token", record.image_token_id, architecture.image_token_id),
        ("patch size", record.patch_size, tower.patch_size),
        ("image size", record.image_size, tower.image_size),
    ):
        if corpus_value != model_value:
            raise DataError(
                f"{corpus.path}: prepared for {what} {corpus_value}, the model has {what} {model_value}.",
                "The number and place of image tokens depend on it, and so does what the model is served with.",
                "Prepare the corpus with the directory of the model that is trained.",
            )


def _check_same_tokenizer(first: Corpus, other: Corpus) -> None:
    if first.manifest.tokenizer.sha256 != other.manifest.tokenizer.sha256:
        raise DataError(
            f"{other.path} was prepared with tokenizer {other.manifest.tokenizer.sha256[:12]}, "
            f"{first.path} with {first.manifest.tokenizer.sha256[:12]}.",
            "The same token would mean different text in the two.",
            "Prepare both with the tokenizer of the model that is trained.",
        )


def log_sources(sources: Sequence[Source]) -> None:
    """Say what each source holds and what packing did to it; what was left out is a warning."""
    for source in sources:
        plan, long = source.plan, source.plan.long_documents
        logger.info(
            "source %r: %d documents, %d tokens, %d sequences per epoch, %.2f%% padding",
            source.label,
            len(source.corpus),
            plan.epoch_tokens,
            plan.num_packs,
            100 * plan.padding,
        )
        if long.documents:
            logger.warning(
                "source %r: %d of %d documents are longer than the sequence of %d tokens (long_documents: %s);"
                " %d documents were dropped, %d tokens in all left out",
                source.label,
                long.documents,
                len(source.corpus),
                plan.sequence_length,
                source.section.long_documents,
                long.dropped_documents,
                long.dropped_tokens,
            )
