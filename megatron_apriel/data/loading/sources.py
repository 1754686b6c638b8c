"""A source of a mixture, opened and checked: its corpus, its packing plan, and whether the model can read it.

What does not fit is refused here, before a run starts: a token outside the model's vocabulary would otherwise read
beyond the embedding, another patch size would end in a shape error at some step, and another image size would train
and serve at different resolutions without any error at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_apriel.config.data_sections import ImagesSection, SourceSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.corpus.chat import exported_template_digest, renders_alike
from megatron_apriel.data.corpus.format import CorpusManifest, TokenizerRecord
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.corpus.processor_files import longest_side
from megatron_apriel.data.corpus.tokens import TOKENIZER_FILES, corrected_digest, load_tokenizer, tokenizer_digest
from megatron_apriel.data.loading.cutting import cut_documents
from megatron_apriel.data.loading.packing import PackingPlan
from megatron_apriel.data.loading.plan_cache import cached_plan
from megatron_apriel.data.loading.targets import Targets, count_targets, images_left
from megatron_apriel.errors import DataError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import named_logger

logger = named_logger(__name__)


@dataclass(frozen=True)
class Lesson:
    """What is learned of a corpus as its source's section says.

    Attributes:
        targets: of its documents; those without any are left out.
        images: how many stand in its sequences.
    """

    targets: Targets
    images: int

    def remarks(self, section: SourceSection, corpus: Corpus) -> list[str]:
        """What somebody should know of it before a run, a line each; none where every target is learned."""
        targets, result = self.targets, []
        if targets.without.size:
            cut = f", {targets.without_as_cut:,} of them because they were cut" if targets.without_as_cut else ""
            result.append(
                f"{_some_of(corpus, targets.without.size, 'has', 'have')} no token to learn (loss: {section.loss})"
                f"{cut}; they are left out (without_targets: {section.without_targets})"
            )
        if targets.lost and section.loss == "responses":
            result.append(
                f"{_some_of(corpus, targets.shortened, 'lost')} {counted(targets.lost, 'token')} of responses"
                f" (long_documents: {section.long_documents})"
            )
        return result


@dataclass(frozen=True)
class Source:
    """One source: what the configuration says of it, its corpus, what there is to learn of it, and its plan."""

    section: SourceSection
    corpus: Corpus
    lesson: Lesson
    plan: PackingPlan

    @property
    def label(self) -> str:
        return self.section.label

    def remarks(self) -> list[str]:
        """What somebody should know of it before a run, a line each: what was left out, and what is not learned."""
        long, result = self.plan.long_documents, []
        if long.documents:
            dropped = (
                f"; {counted(long.dropped_documents, 'document was', 'documents were')} dropped, "
                f"{counted(long.dropped_tokens, 'token')} in all left out"
            )
            result.append(
                f"{_some_of(self.corpus, long.documents, 'is', 'are')} longer than the sequence of"
                f" {self.plan.sequence_length:,} tokens (long_documents: {self.section.long_documents})"
                + dropped
                * (long.dropped_tokens > 0)
            )
        return result + self.lesson.remarks(self.section, self.corpus)

    def figures(self) -> dict[str, Any]:
        """What it holds and what of it is not learned, by name, for the log; fit for JSON."""
        plan, long, targets = self.plan, self.plan.long_documents, self.lesson.targets
        return {
            "source": self.label,
            "documents": len(self.corpus),
            "tokens": plan.epoch_tokens,
            "sequences": plan.num_packs,
            "padding": plan.padding,
            "images": self.lesson.images,
            "long_documents": long.documents,
            "dropped_documents": long.dropped_documents,
            "dropped_tokens": long.dropped_tokens,
            "without_targets": targets.without.size,
            "without_targets_as_cut": targets.without_as_cut,
            "shortened_documents": targets.shortened,
            "lost_targets": targets.lost,
        }


def open_source(section: SourceSection, corpus: Corpus, sequence_length: int, seed: int) -> Source:
    """A source with its packing plan.

    Raises DataError if it has nothing to learn, or has documents without targets or too long ones and nothing says that
    these may go.
    """
    lesson = check_something_to_learn(section, corpus, sequence_length)
    plan = cached_plan(corpus, sequence_length, seed, section.long_documents, lesson.targets.without)
    return Source(section, corpus, lesson, plan)


def check_something_to_learn(section: SourceSection, corpus: Corpus, sequence_length: int) -> Lesson:
    """What is learned of a corpus in sequences of this length. No packing plan is needed to know it.

    Raises DataError if nothing is, or if one of its documents has no target and ``without_targets`` is ``error``; or if
    a document is too long and ``long_documents`` says so.
    """
    cut = cut_documents(corpus, sequence_length, section.long_documents)
    targets = count_targets(corpus, cut, section.loss)
    without, number = targets.without, targets.without.size
    if number == targets.kept > 0:
        found = f"none of its {counted(len(corpus), 'document')} has a token to learn"
        raise _without_targets(section, sequence_length, targets, found, "take it out of the mixture")
    if number and section.without_targets == "error":
        found = f"{_some_of(corpus, number, 'has', 'have')} no token to learn, the first is document {without[0]},"
        raise _without_targets(section, sequence_length, targets, found, "set without_targets=drop for it")
    if number:
        cut = cut_documents(corpus, sequence_length, section.long_documents, without)
    return Lesson(targets, images_left(corpus, cut))


def _some_of(corpus: Corpus, number: int, is_so: str, are_so: str = "") -> str:
    """That so many of a corpus's documents are something, as ``1 of 8 documents is``."""
    return f"{number:,} of {counted(len(corpus), 'document')} {is_so if number == 1 else are_so or is_so}"


def _without_targets(
    section: SourceSection, sequence_length: int, targets: Targets, found: str, otherwise: str
) -> DataError:
    """The error of a corpus in which that was ``found``; the last way out is ``otherwise``."""
    if targets.without_as_cut:
        why = f"What was to be learned in {targets.without_as_cut:,} of them is cut off: prompts fill the sequences."
        fix = f"Use a larger sequence_length, split the long documents of source {section.label!r}"
        fix = f"{fix} (long_documents=split), or {otherwise}."
    elif section.loss == "responses":
        why = "No token of them that is predicted is part of a response."
        fix = f"Prepare source {section.label!r} with what is to be learned in every document, or {otherwise}."
    else:
        why = "They are images alone, or a single token: neither is predicted."
        fix = f"Prepare source {section.label!r} with text in every document, or {otherwise}."
    return DataError(
        f"{section.corpus}: {found} in sequences of {sequence_length:,} tokens, where loss is {section.loss!r} and "
        f"long_documents {section.long_documents!r}.",
        why,
        fix,
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
    if counts.response_tokens and not renders_alike(manifest.chat_template):
        raise DataError(
            f"{section.corpus}: its conversations were rendered by chat template {manifest.chat_template[:12]}, and "
            f"this version of the project exports {exported_template_digest()[:12]}.",
            "The model would be served with another format than it learned.",
            "Prepare the corpus again, or train with the version that prepared it.",
        )
    if not counts.images:
        return
    tower, record = architecture.tower, manifest.images
    if tower is None or record is None:
        raise DataError(
            f"{section.corpus} has {counted(counts.images, 'image')}; the model has no vision tower.",
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


def check_images_to_learn_from(config: StageConfig, stored: int, left: int) -> None:
    """Raises DataError if a part that reads images would train and the mixture has none, unless that is asked for.

    Args:
        config: the stage.
        stored: images in the corpora of the mixture.
        left: how many of them stand in sequences.
    """
    parts = [name for name in config.trained_components if name != "decoder"]
    if left or not parts or not config.images.required:
        return
    lost = f" in its sequences: its {stored:,} are cut off or dropped with their documents" if stored else ""
    raise DataError(
        f"{' and '.join(parts)} would train, and none of the {len(config.mixture)} corpora has images{lost}.",
        "Without images there is no gradient there, and weight decay alone would change the weights.",
        f"Add a corpus with images to the mixture, freeze {' and '.join(parts)}, or set images.required=false.",
    )


def check_largest_image(source: Source, section: ImagesSection) -> None:
    """Raises DataError if a corpus has an image too large to decode, and a damaged image would end the run."""
    rows = source.corpus.image_rows
    pixels = rows["height"].astype(np.int64) * rows["width"]
    if section.damaged != "skip" and pixels.size and pixels.max() > section.max_pixels:
        row = rows[int(pixels.argmax())]
        raise DataError(
            f"{source.corpus.path}: document {row['document']} has an image of {row['height']} x {row['width']} "
            f"pixels, more than images.max_pixels={section.max_pixels}.",
            "Decoding takes 3 bytes for each pixel, and 12 for each that is left after the first resizing.",
            "Raise images.max_pixels, prepare the corpus with a smaller --max-pixels, or set images.damaged=skip.",
        )


def check_tokenizer(corpora: Mapping[Path, CorpusManifest], directory: Path) -> None:
    """Raises DataError if a corpus was not made by the tokenizer in ``directory``; passes where there is none."""
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return
    tokenizer = load_tokenizer(directory)
    digest, right = tokenizer_digest(tokenizer), corrected_digest(tokenizer)
    for path, manifest in corpora.items():
        record = manifest.tokenizer
        if record.sha256 == right != digest:
            raise DataError(
                f"{path} was prepared with the right word pattern, the tokenizer of the model in {directory} has the"
                " faulty one.",
                "The model would be served with other tokens than it learned.",
                f"Train a corrected model: tools/convert_checkpoint.py {directory} DST --to hf --correct-word-pattern.",
            )
        if record.sha256 != digest:
            raise DataError(
                f"{path} was prepared with {_named(record)}, the model in {directory} has {digest[:12]}.",
                "The same token would mean different text to the two, without any other error.",
                "Prepare the corpus with the directory of the model that is trained.",
            )
        for what, id_, said in (
            ("begins", record.bos_id, tokenizer.bos_token_id),
            ("ends", record.eos_id, tokenizer.eos_token_id),
        ):
            if id_ != said:
                raise DataError(
                    f"{path}: a document {what} with token {id_}, with {said} by the tokenizer of the model in"
                    f" {directory}.",
                    "A server begins and stops answers by the model's tokenizer.",
                    "Prepare the corpus with the directory of the model that is trained.",
                )


def _named(record: TokenizerRecord) -> str:
    return f"tokenizer {record.sha256[:12]}" + (" and its faulty word pattern" if record.faulty_words else "")


def check_same_tokenizer(first: Corpus, other: Corpus) -> None:
    """Raises DataError if two corpora were prepared with different tokenizers."""
    if first.manifest.tokenizer.sha256 != other.manifest.tokenizer.sha256:
        raise DataError(
            f"{other.path} was prepared with {_named(other.manifest.tokenizer)}, "
            f"{first.path} with {_named(first.manifest.tokenizer)}.",
            "The same token would mean different text in the two.",
            "Prepare both with the tokenizer of the model that is trained.",
        )


def log_remarks(sources: Sequence[Source]) -> None:
    """Warn of what was left out of sources, and of what is not learned of them."""
    for source in sources:
        for remark in source.remarks():
            logger.warning("source %r: %s", source.label, remark)
