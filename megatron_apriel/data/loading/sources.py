"""A source of a mixture, opened and checked: its corpus, its packing plan, and whether the model can read it.

What does not fit is refused here, before a run starts: a token outside the model's vocabulary would otherwise read
beyond the embedding, another patch size would end in a shape error at some step, and another image size would train
and serve at different resolutions without any error at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_apriel.config.schema import ImagesSection, SourceSection, StageConfig
from megatron_apriel.data.corpus.format import CorpusManifest
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.corpus.processor_files import longest_side
from megatron_apriel.data.corpus.tokens import TOKENIZER_FILES, load_tokenizer, tokenizer_digest
from megatron_apriel.data.loading.packing import PackingPlan
from megatron_apriel.data.loading.plan_cache import cached_plan
from megatron_apriel.errors import DataError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.terminal import named_logger

logger = named_logger(__name__)


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
    sections: Sequence[SourceSection],
    architecture: Architecture,
    sequence_length: int,
    seed: int,
    directory: Path | None = None,
) -> list[Source]:
    """Open all corpora, check them, and make or read their packing plans.

    Args:
        directory: with the model's processor files, which may ask for smaller images than its tower could read.

    Raises DataError if a corpus is damaged, was made for another model, by another tokenizer than the first of them,
    has no responses where the loss is on them, or cannot be packed as configured.
    """
    corpora = [Corpus.open(section.corpus) for section in sections]
    for section, corpus in zip(sections, corpora, strict=True):
        check_fits(section, corpus.manifest, architecture, directory)
        _check_same_tokenizer(corpora[0], corpus)
    opened = [
        Source(section, corpus, cached_plan(corpus, sequence_length, seed, section.long_documents))
        for section, corpus in zip(sections, corpora, strict=True)
    ]
    for source in opened:
        check_something_to_learn(source)
    return opened


def check_something_to_learn(source: Source) -> None:
    """Raises DataError if the loss is on responses and the packs of a source have none.

    A corpus may have responses, and all of them behind the place where its documents are cut. Reads as far as the first
    token to learn, which nearly always is in the first pack.
    """
    if source.section.loss != "responses":
        return
    corpus, plan = source.corpus, source.plan
    for pack in range(plan.num_packs):
        for piece in plan.pieces(pack, corpus):
            # The first token of a piece is never predicted.
            if corpus.responses(piece.document, piece.start, piece.length)[1:].any():
                return
    raise DataError(
        f"{source.section.corpus}: none of its {plan.num_packs:,} sequences of {plan.sequence_length:,} tokens has a "
        f"token to learn: loss is 'responses', and no response is left where long_documents is "
        f"{source.section.long_documents!r}.",
        "Prompts fill the sequences, and what was to be learned is cut off.",
        f"Use a larger sequence_length, or split the long documents of source {source.label!r} (long_documents=split).",
    )


def check_fits(
    section: SourceSection, manifest: CorpusManifest, architecture: Architecture, directory: Path | None = None
) -> None:
    """Raises DataError, with both values, if a corpus is of no use to the model: by its manifest, reading no data."""
    counts, vocab_size = manifest.counts, architecture.decoder.vocab_size
    if manifest.tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"{section.corpus}: its tokenizer has {manifest.tokenizer.vocab_size} tokens, "
            f"the model's vocabulary {vocab_size}.",
            "Tokens beyond the vocabulary have no embedding.",
            "Prepare the corpus with the tokenizer of the model that is trained.",
        )
    if section.loss == "responses" and counts.response_tokens == 0:
        raise DataError(
            f"{section.corpus}: none of its {counts.tokens:,} tokens is part of a response, and loss is 'responses'.",
            "There would be nothing to learn from: plain documents have no responses, only conversations do.",
            f"Set loss of source {section.label!r} to all, or prepare conversations.",
        )
    if section.loss == "all" and (marked := manifest.usage.marked):
        raise DataError(
            f"{section.corpus}: {marked:,} of its documents say which of their words are learned, and loss is 'all'.",
            "Words that are marked as not to be learned would be learned.",
            f"Set loss of source {section.label!r} to responses, or prepare the corpus with --ignore for the marks.",
        )
    if not counts.images:
        return
    tower, record = architecture.tower, manifest.images
    if tower is None or record is None:
        raise DataError(
            f"{section.corpus} has {counts.images} images; the model has no vision tower.",
            fix="Train a model with a tower, or take the corpus out of the mixture.",
        )
    image_size = longest_side(directory, architecture) if directory is not None else tower.image_size
    for what, corpus_value, model_value in (
        ("image token", record.image_token_id, architecture.image_token_id),
        ("patch size", record.patch_size, tower.patch_size),
        ("image size", record.image_size, image_size),
    ):
        if corpus_value != model_value:
            raise DataError(
                f"{section.corpus}: prepared for {what} {corpus_value}, the model has {what} {model_value}.",
                "The number and place of image tokens depend on it, and so does what the model is served with.",
                "Prepare the corpus with the directory of the model that is trained.",
            )


def check_images_to_learn_from(config: StageConfig, manifests: Sequence[CorpusManifest]) -> None:
    """Raises DataError if only what reads images would train, and no corpus of the mixture has any."""
    if config.train.decoder or any(manifest.counts.images for manifest in manifests):
        return
    trained = " and ".join(config.trained_components)
    raise DataError(
        f"only {trained} would train, and none of the {len(manifests)} corpora has images.",
        "Without images there is no gradient there, and weight decay alone would change the weights.",
        "Add a corpus with images to the mixture, or train the decoder.",
    )


def check_largest_image(sources: Sequence[Source], section: ImagesSection) -> None:
    """Raises DataError if a corpus has an image too large to decode, and a damaged image would end the run."""
    if section.damaged == "skip":
        return
    for source in sources:
        rows = source.corpus.image_rows
        pixels = rows["height"].astype(np.int64) * rows["width"]
        if pixels.size and pixels.max() > section.max_pixels:
            row = rows[int(pixels.argmax())]
            raise DataError(
                f"{source.corpus.path}: document {row['document']} has an image of {row['height']} x {row['width']} "
                f"pixels, more than images.max_pixels={section.max_pixels}.",
                "Decoding takes 3 bytes for each pixel, and 12 for each that is left after the first resizing.",
                "Raise images.max_pixels, prepare the corpus with a smaller --max-pixels, or set images.damaged=skip.",
            )


def check_tokenizer(sources: Sequence[Source], directory: Path) -> None:
    """Raises DataError if a corpus was not made by the tokenizer in ``directory``; passes where there is none."""
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return
    digest = tokenizer_digest(load_tokenizer(directory))
    for source in sources:
        if source.corpus.manifest.tokenizer.sha256 != digest:
            raise DataError(
                f"{source.corpus.path} was prepared with tokenizer {source.corpus.manifest.tokenizer.sha256[:12]}, "
                f"the model in {directory} has {digest[:12]}.",
                "The same token would mean different text to the two, without any other error.",
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
