"""Packing plans: every document exactly once, whole, in little padding; the same plan every time."""

from __future__ import annotations

import logging
import multiprocessing
import stat

import numpy as np
import pytest

from megatron_apriel.config.data_sections import SourceSection
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading import plan_cache
from megatron_apriel.data.loading.order import shuffled
from megatron_apriel.data.loading.packing import best_fit_decreasing, make_plan
from megatron_apriel.data.loading.plan_cache import cached_plan, plan_key
from megatron_apriel.data.loading.sources import check_something_to_learn
from megatron_apriel.errors import DataError
from megatron_apriel.testing.corpora import encode, random_pixels, write_corpus


def lognormal(median_log: float, sigma: float, number: int, limit: int, seed: int = 0) -> np.ndarray:
    lengths = np.random.default_rng(seed).lognormal(median_log, sigma, number).astype(int)
    return lengths[(lengths >= 16) & (lengths <= limit)]


def slow_best_fit(lengths: list[int], capacity: int) -> int:
    """Bins of best fit, decreasing, by looking at every bin."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms[rooms.index(min(fitting))] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_equals_the_slow_one(seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 50, generator.integers(1, 120))
    bins, number = best_fit_decreasing(lengths, 50)
    filled = np.bincount(bins, weights=lengths, minlength=number)
    assert filled.max() <= 50 and filled.min() > 0
    assert number == slow_best_fit(lengths.tolist(), 50)


# Short chats (median 400 tokens), reasoning traces (3k), long reasoning (9k); documents that fit into the sequence.
@pytest.mark.parametrize(
    ("median_log", "sigma", "sequence_length"),
    [(6.0, 1.0, length) for length in (8192, 16384, 32768, 49152)]
    + [(8.0, 1.0, length) for length in (8192, 16384, 32768, 49152)]
    + [(9.1, 0.9, length) for length in (16384, 32768, 49152)],
)
def test_padding_is_below_one_percent(median_log, sigma, sequence_length):
    lengths = lognormal(median_log, sigma, 40000, sequence_length)
    _, number = best_fit_decreasing(lengths, sequence_length)
    assert 1 - lengths.sum() / (number * sequence_length) < 0.005


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpora") / "text", lognormal(4, 1, 3000, 512).tolist())


def test_every_document_exactly_once(corpus, monkeypatch):
    monkeypatch.setattr("megatron_apriel.data.loading.packing.WINDOW", 1000)  # several windows
    plan = make_plan(corpus, 512, seed=3)
    lengths = corpus.documents["tokens"]
    packs = [plan.pieces(pack, corpus) for pack in range(plan.num_packs)]
    assert sorted(piece.document for pack in packs for piece in pack) == list(range(len(corpus)))
    for pack, tokens in zip(packs, plan.tokens, strict=True):
        assert sum(piece.length for piece in pack) == tokens <= 512
        assert all(piece.start == 0 and piece.length == lengths[piece.document] for piece in pack)
    assert plan.epoch_tokens == lengths.sum()
    assert plan.padding == 1 - lengths.sum() / (plan.num_packs * 512) < 0.01


def test_epochs_visit_all_packs_in_orders_of_their_own(corpus):
    plan = make_plan(corpus, 512, seed=3)
    orders = [plan.order(epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(plan.num_packs))
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    assert not np.array_equal(orders[0], np.sort(orders[0]))
    assert not np.array_equal(make_plan(corpus, 512, seed=4).order(0), orders[0])


def test_long_and_short_documents_come_mixed(corpus):
    plan = make_plan(corpus, 512, seed=3)
    longest = [max(p.length for p in plan.pieces(int(pack), corpus)) for pack in plan.order(0)]
    # Packs are made longest first; in an epoch's order, neighbours say nothing about each other.
    assert abs(np.corrcoef(longest[1:], longest[:-1])[0, 1]) < 0.1


def test_the_order_is_the_same_for_ever():
    """These numbers are part of what "resume is exact" means: they must never change."""
    assert shuffled(10, 1, 2).tolist() == [3, 9, 8, 4, 2, 6, 7, 0, 1, 5]
    places = np.array([shuffled(50, seed) for seed in range(4000)])
    # Every number at every place equally often: mean of a uniform permutation, to six standard deviations.
    assert np.abs(places.mean(0) - 24.5).max() < 6 * 14.43 / np.sqrt(4000)


def with_long_documents(directory) -> Corpus:
    generator = np.random.default_rng(0)
    # An image of 16 x 16 pixels has 4 x 4 patches and 20 tokens.
    picture = [random_pixels(generator, 16, 16) for _ in range(4)]
    long = [[50, picture[0], 5, picture[1], 100, picture[2], picture[3], 3], 64, 200, 65]
    return write_corpus(directory, [10, 20, *long, 30])


def test_documents_longer_than_the_sequence_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"3 of 7 documents are longer than sequence_length=64.*\n.*\n.*split"):
        make_plan(with_long_documents(tmp_path / "c"), 64, 0)


def pieces_by_document(plan, corpus) -> dict[int, list[tuple[int, int]]]:
    result: dict[int, list[tuple[int, int]]] = {}
    for pack in range(plan.num_packs):
        assert sum(piece.length for piece in plan.pieces(pack, corpus)) <= plan.sequence_length
        for piece in plan.pieces(pack, corpus):
            result.setdefault(piece.document, []).append((piece.start, piece.length))
    return {document: sorted(pieces) for document, pieces in result.items()}


def test_split_keeps_every_token_and_never_cuts_an_image(tmp_path):
    corpus = with_long_documents(tmp_path / "c")
    plan = make_plan(corpus, 64, 0, "split")
    found = pieces_by_document(plan, corpus)
    for document, length in enumerate(corpus.documents["tokens"].tolist()):
        ends = [start + size for start, size in found[document]]
        assert [start for start, _ in found[document]] == [0, *ends[:-1]] and ends[-1] == length
        for row in corpus.images(document):
            assert any(start <= row["start"] and row["start"] + 20 <= start + size for start, size in found[document])
    assert plan.long_documents.documents == 3 and plan.long_documents.dropped_tokens == 0


def test_truncate_and_drop_count_what_they_leave_out(tmp_path):
    corpus = with_long_documents(tmp_path / "c")
    total = int(corpus.documents["tokens"].sum())
    truncated, dropped = make_plan(corpus, 64, 0, "truncate"), make_plan(corpus, 64, 0, "drop")
    found = pieces_by_document(truncated, corpus)
    assert found[2] == [(0, 50)] and found[4] == [(0, 64)] and found[5] == [(0, 64)]  # document 2 ends before its image
    assert truncated.long_documents.dropped_tokens == total - truncated.epoch_tokens == (238 - 50) + 136 + 1
    assert truncated.long_documents.dropped_documents == 0
    assert sorted(pieces_by_document(dropped, corpus)) == [0, 1, 3, 6]
    assert dropped.long_documents.dropped_documents == 3
    assert dropped.long_documents.dropped_tokens == 238 + 200 + 65 == total - dropped.epoch_tokens


def test_an_image_longer_than_the_sequence_cannot_be_split(tmp_path):
    corpus = write_corpus(tmp_path / "c", [[3, random_pixels(np.random.default_rng(0), 16, 16)], 5])
    with pytest.raises(DataError, match="document 0 has an image of more than sequence_length=19 tokens"):
        make_plan(corpus, 19, 0, "split")
    assert pieces_by_document(make_plan(corpus, 19, 0, "truncate"), corpus) == {0: [(0, 3)], 1: [(0, 5)]}


def test_no_document_left_is_an_error(tmp_path):
    """Before there is a plan, too: the dry run makes none."""
    corpus = write_corpus(tmp_path / "c", [9, 10])
    section = SourceSection(corpus=corpus.path, weight="100%", loss="all", long_documents="drop")
    for refused in (lambda: make_plan(corpus, 8, 0, "drop"), lambda: check_something_to_learn(section, corpus, 8)):
        with pytest.raises(DataError, match="none of its 2 documents fits into sequences of 8 tokens"):
            refused()


def slow_cut(length: int, blocks: list[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """(start, length) of a document's pieces, token by token; ends before an image longer than ``limit``."""
    inside = {place for first, size in blocks for place in range(first + 1, first + size)}
    pieces, start = [], 0
    while start < length:
        stop = min(start + limit, length)
        while stop in inside:
            stop -= 1
        if stop == start:
            break
        pieces.append((start, stop - start))
        start = stop
    return pieces


@pytest.mark.parametrize("seed", range(10))
def test_long_documents_are_cut_as_token_by_token(tmp_path, seed):
    generator = np.random.default_rng(seed)
    documents: list[list] = []
    for _ in range(12):
        document: list = [int(generator.integers(1, 90))]
        for _ in range(int(generator.integers(0, 7))):
            sides = generator.integers(1, 29, 2)
            document += [random_pixels(generator, *sides)]
            document += [int(generator.integers(1, 70))] * int(generator.integers(0, 2))
        documents.append(document)
    corpus = write_corpus(tmp_path / "c", documents)
    for limit in (3, 20, 31, 64):
        expected = {}
        for number, length in enumerate(corpus.documents["tokens"].tolist()):
            rows = corpus.images(number)
            blocks = [(int(row["start"]), int(row["rows"]) * (int(row["columns"]) + 1)) for row in rows]
            expected[number] = slow_cut(length, blocks, limit)
        firsts = {number: pieces[:1] for number, pieces in expected.items() if pieces}
        assert pieces_by_document(make_plan(corpus, limit, seed, "truncate"), corpus) == firsts
        if all(sum(size for _, size in expected[n]) == corpus.documents["tokens"][n] for n in expected):
            assert pieces_by_document(make_plan(corpus, limit, seed, "split"), corpus) == expected
        else:
            with pytest.raises(DataError, match="has an image of more than"):
                make_plan(corpus, limit, seed, "split")


def test_plans_are_kept_and_found(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "c", [10, 20, 30, 40])
    first = cached_plan(corpus, 64, 1, "error")
    monkeypatch.setattr(plan_cache, "make_plan", lambda *a: pytest.fail("made again"))
    again = cached_plan(corpus, 64, 1, "error")
    for name in ("documents", "starts", "lengths", "offsets", "tokens"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert getattr(first, name).dtype == getattr(again, name).dtype
    assert first.long_documents == again.long_documents


def test_every_input_of_a_plan_is_in_its_key(tmp_path):
    corpora = [write_corpus(tmp_path / str(number), lengths) for number, lengths in enumerate(([10, 90], [90, 10]))]
    pictures = [random_pixels(np.random.default_rng(0), 16, 16)]
    corpora += [write_corpus(tmp_path / str(40 + n), [[n, *pictures, 90 - n]]) for n in (40, 50)]
    keys = {
        plan_key(corpus, *rest) for corpus in corpora for rest in ((64, 1, "split"), (64, 2, "split"), (64, 1, "drop"))
    }
    keys |= {plan_key(corpora[0], 65, 1, "split")}
    assert len(keys) == 13


def test_damaged_plans_are_made_again(tmp_path, caplog):
    corpus = write_corpus(tmp_path / "c", [10, 20, 30, 40])
    plan = cached_plan(corpus, 64, 1, "error")
    (file,) = (corpus.path / ".packing").glob("*.npz")
    whole = file.read_bytes()
    encrypted, unknown = bytearray(whole), bytearray(whole)
    encrypted[whole.index(b"PK\x01\x02") + 8] |= 1  # flags and method in the first entry of the zip's directory
    unknown[whole.index(b"PK\x01\x02") + 10] = 77
    for content in (whole[:-40], b"", b"nonsense", encrypted, unknown):
        file.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            assert np.array_equal(cached_plan(corpus, 64, 1, "error").documents, plan.documents)
        assert "is damaged" in caplog.text and file.stat().st_size > 500
        caplog.clear()


def test_a_corpus_that_cannot_be_written_keeps_its_plans_elsewhere(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "c", [10, 20])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (corpus.path / ".packing").write_text("in the way")  # also stops root, who may write anywhere
    cached_plan(corpus, 64, 1, "error")
    (file,) = (tmp_path / "cache" / "megatron_apriel" / "packing").glob("*.npz")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    monkeypatch.setenv("XDG_CACHE_HOME", str(corpus.path / ".packing"))
    assert cached_plan(corpus, 64, 1, "error").num_packs == 1  # nowhere to keep it: made anew


def _plan_in_process(path, results):
    results.put(cached_plan(Corpus.open(path), 512, 1, "error").documents.tolist())


def test_ranks_that_start_together_get_the_same_plan(corpus):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_plan_in_process, args=(corpus.path, results)) for _ in range(4)]
    for process in processes:
        process.start()
    plans = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert plans == [make_plan(corpus, 512, 1).documents.tolist()] * 4
    assert not list((corpus.path / ".packing").glob(".*"))  # nothing half-written


def test_images_do_not_matter_while_documents_fit(tmp_path):
    picture = random_pixels(np.random.default_rng(0), 16, 16)
    corpora = [write_corpus(tmp_path / str(n), [[n, encode(picture), 30 - n]]) for n in (1, 2)]
    assert plan_key(corpora[0], 64, 1, "split") == plan_key(corpora[1], 64, 1, "split")


def test_plans_need_no_home_directory(tmp_path, monkeypatch):
    """As in a container that runs under a number without an account."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    corpus = write_corpus(tmp_path / "c", [10, 20])
    assert cached_plan(corpus, 64, 1, "error").num_packs == 1
