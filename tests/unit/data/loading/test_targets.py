"""What there is to learn of documents, against a look at every token of every piece, and against the batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from loader_cases import LENGTH, MODEL, stage

from megatron_apriel.config.choices import LongDocuments, LossOn
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading import targets as targets_module
from megatron_apriel.data.loading.cutting import CutDocuments, cut_documents
from megatron_apriel.data.loading.loader import TrainingLoader
from megatron_apriel.data.loading.packing import make_plan
from megatron_apriel.data.loading.plan_cache import cached_plan, plan_key
from megatron_apriel.data.loading.plan_checks import check_plan
from megatron_apriel.data.loading.targets import count_targets, images_left
from megatron_apriel.testing.corpora import IMAGES, random_pixels, write_corpus

LIMIT = 40


def random_corpus(directory, seed: int) -> Corpus:
    """Short and long documents, some of images alone, with few tokens of responses, or many, or none."""
    generator = np.random.default_rng(seed)
    documents: list[list] = []
    for _ in range(40):
        document: list = [int(generator.integers(1, 4))] if generator.random() < 0.7 else []
        for _ in range(int(generator.integers(0, 4))):
            document.append(random_pixels(generator, *generator.integers(1, 20, 2)))
            document += [int(generator.integers(1, 60))] * int(generator.integers(0, 2))
        documents.append(document or [1])

    def responses(size: int) -> np.ndarray:
        kind = generator.random()
        flags = np.zeros(size, dtype=bool)
        if kind < 0.2:
            return flags
        if kind < 0.5:
            flags[generator.integers(size)] = True
            return flags
        return generator.random(size) < (kind / 5 if kind < 0.8 else kind)

    return write_corpus(directory, documents, seed=seed, responses=responses)


def slow_counts(corpus: Corpus, cut: CutDocuments, loss: LossOn) -> dict[str, object]:
    """The same by looking at each token."""
    silent = {IMAGES.image_token_id, IMAGES.break_token_id, IMAGES.end_token_id}
    parts: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(corpus))}
    for document, start, length in zip(*cut.pieces, strict=True):
        parts[int(document)].append((int(start), int(length)))
    without, without_as_cut, shortened, lost, kept, images = [], 0, 0, 0, 0, 0
    for document in range(len(corpus)):
        tokens, flags = corpus.tokens(document).tolist(), corpus.responses(document).tolist()
        if cut.whole[document]:
            parts[document] = [(0, len(tokens))]
        left = {start + place for start, length in parts[document] for place in range(length)}
        predicted = left - {start for start, _ in parts[document]}
        learned = [token not in silent and (flag or loss == "all") for token, flag in zip(tokens, flags, strict=True)]
        gone = [flags[place] or loss == "all" for place in range(len(tokens)) if place not in left]
        kept += bool(left)
        shortened += any(gone)
        lost += sum(gone)
        images += sum(int(row["start"]) in left for row in corpus.images(document))
        if left and not any(learned[place] for place in predicted):
            without.append(document)
            without_as_cut += any(gone)
    return {
        "without": without, "without_as_cut": without_as_cut, "shortened": shortened, "lost": lost, "kept": kept,
        "images": images,
    }  # fmt: skip


@pytest.mark.parametrize("together", [1, 100, 1 << 22])
@pytest.mark.parametrize("loss", ["all", "responses"])
@pytest.mark.parametrize("long_documents", ["split", "truncate", "drop"])
def test_counts_are_those_of_a_look_at_every_token(
    tmp_path, monkeypatch, long_documents: LongDocuments, loss: LossOn, together: int
):
    monkeypatch.setattr(targets_module, "_TOKENS", together)
    found_some = 0
    for seed in range(6):
        corpus = random_corpus(tmp_path / str(seed), seed)
        cut = cut_documents(corpus, LIMIT, long_documents)
        found, expected = count_targets(corpus, cut, loss), slow_counts(corpus, cut, loss)
        images = expected.pop("images")
        assert {name: getattr(found, name) for name in expected} | {"without": found.without.tolist()} == expected
        assert images_left(corpus, cut) == images
        found_some += bool(expected["without_as_cut"])
        # Left out, they leave the same of the others.
        rest = cut_documents(corpus, LIMIT, long_documents, found.without)
        again = count_targets(corpus, rest, loss)
        assert (again.without.size, again.kept) == (0, found.kept - found.without.size)
        assert images_left(corpus, rest) == slow_counts(corpus, rest, loss)["images"]
    assert found_some or long_documents != "truncate"


@pytest.mark.parametrize("loss", ["all", "responses"])
@pytest.mark.parametrize("long_documents", ["split", "truncate", "drop"])
def test_a_document_is_without_targets_where_its_batches_have_no_label(tmp_path, long_documents, loss):
    corpus = random_corpus(tmp_path / "c", 7)
    source = {"corpus": corpus.path, "loss": loss, "long_documents": long_documents, "without_targets": "drop"}
    config = stage({}, sources=[source], sequence_length=LIMIT, batch_tokens=LIMIT, tokens=LIMIT * 500)
    labelled: set[int] = set()
    seen: set[int] = set()
    with TrainingLoader(config, MODEL) as loader:
        for batch in loader:
            for sample, (start, stop) in zip(
                batch.samples, itertools.pairwise(batch.cu_seqlens.tolist()), strict=False
            ):
                seen.add(sample)
                labelled |= {sample} if (batch.labels_S[start:stop] >= 0).any() else set()
        without = loader.sources[0].lesson.targets.without
    assert seen == labelled
    assert not seen & set(without.tolist()) and len(without)


def test_most_documents_are_not_read(tmp_path, monkeypatch):
    """Their numbers of response tokens say that there is something to learn."""
    corpus = write_corpus(tmp_path / "c", [30, 200, [9, np.zeros((8, 8, 3), np.uint8), 40], LENGTH, 5000])
    monkeypatch.setattr(Corpus, "responses", lambda *_: pytest.fail("flags were read"))
    monkeypatch.setattr(Corpus, "tokens", lambda *_: pytest.fail("tokens were read"))
    for loss, how in (("responses", "split"), ("responses", "drop"), ("all", "truncate"), ("all", "split")):
        assert not count_targets(corpus, cut_documents(corpus, LENGTH, how), loss).without.size


@pytest.mark.parametrize("policy", ["split", "truncate", "drop"])
def test_plans_leave_documents_out_and_are_kept_apart(tmp_path, policy):
    corpus = write_corpus(tmp_path / "c", [10, 100, 20, 30, 90, 40])
    left_out = np.array([0, 3, 4])
    plan = cached_plan(corpus, 64, 1, policy, left_out)
    found = {piece.document for pack in range(plan.num_packs) for piece in plan.pieces(pack, corpus)}
    assert found == ({1, 2, 5} if policy != "drop" else {2, 5})
    whole = cached_plan(corpus, 64, 1, policy)
    keys = {plan_key(corpus, 64, 1, policy, numbers) for numbers in (left_out, left_out[:2], left_out[:0])}
    assert len(keys) == 3 and plan_key(corpus, 64, 1, policy) in keys
    again = cached_plan(corpus, 64, 1, policy, left_out)
    for name in ("documents", "starts", "lengths", "offsets", "tokens"):
        assert np.array_equal(getattr(plan, name), getattr(again, name))
    assert plan.long_documents == whole.long_documents
    for one, other in ((plan, left_out[:0]), (whole, left_out)):
        with pytest.raises(ValueError, match="pieces"):
            check_plan(one, corpus, cut_documents(corpus, 64, policy, other))


def test_a_document_that_is_left_out_is_not_taken_for_another(tmp_path):
    """In a plan from a stranger, in the place of its neighbour: the number of pieces is right."""
    corpus = write_corpus(tmp_path / "c", [10, 10, 10])
    cut = cut_documents(corpus, 64, "error", np.array([1]))
    plan = make_plan(corpus, 64, 1, "error", np.array([1]))
    check_plan(plan, corpus, cut)
    plan.documents[plan.documents == 0] = 1
    with pytest.raises(ValueError, match="1 pieces are of documents that are cut or left out, and the corpus gives 0"):
        check_plan(plan, corpus, cut)
