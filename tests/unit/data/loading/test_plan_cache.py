"""Kept packing plans that are none of their corpus, and locks that never become free: named, and done without."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest

from megatron_apriel.data.loading import plan_cache
from megatron_apriel.data.loading.packing import make_plan
from megatron_apriel.data.loading.plan_cache import cached_plan, plan_key
from megatron_apriel.testing.corpora import write_corpus

ARRAYS = ("documents", "starts", "lengths", "offsets", "tokens")


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_corpus(tmp_path / "c", [10, 20, 30, 40, 100])


def plan_of(corpus):
    return cached_plan(corpus, 64, 1, "split")


def place_of(corpus) -> Path:
    return corpus.path / ".packing" / f"{plan_key(corpus, 64, 1, 'split')}.npz"


def members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(file: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def array(values, dtype) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values, dtype))
    return buffer.getvalue()


def report(**changes) -> bytes:
    return array(json.dumps({"documents": 1, "dropped_documents": 0, "dropped_tokens": 0} | changes), None)


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    """A header of numpy's format that says what it likes, without values."""
    data = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + version + len(data).to_bytes(2 if version[0] == 1 else 4, "little") + data


def described(shape: str = "(7,)", descr: str = "'<i4'", order: str = "False") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}")


def check_made_again(corpus, caplog, reason: str) -> None:
    """The plan is that of its corpus in spite of what is kept; the reason is said, and then it is kept."""
    expected = make_plan(corpus, 64, 1, "split")
    with caplog.at_level(logging.WARNING):
        plan = plan_of(corpus)
    for name in ARRAYS:
        assert np.array_equal(getattr(plan, name), getattr(expected, name)), name
    assert plan.long_documents == expected.long_documents
    assert str(place_of(corpus)) in caplog.text and reason in caplog.text and "made again" in caplog.text
    caplog.clear()
    plan_of(corpus)
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("documents", array([0, 1, 2, 3, 4, 4], np.int64), "documents holds"),
        ("documents", array([0, 1, 2, 3, 4, 5], np.int32), "its documents are 0 to 5"),
        ("documents", array([[0, 1, 2, 3, 4, 4]], np.int32), "documents holds"),
        ("documents", array([0.0, 1, 2, 3, 4, 4], np.float32), "documents holds"),
        ("documents", array([0, 1, 2, 3, 4, 4], ">i4"), "documents holds"),
        ("documents", described("(6,)", "'|O'") + b"cos\nsystem\n", "documents holds"),
        ("documents", described("(6,)", "[('a', '<i4')]") + bytes(24), "documents holds"),
        ("starts", described("(1000000000000,)"), "starts holds"),
        ("starts", described("(-6,)") + bytes(24), "starts holds"),
        ("starts", described("(10000000000000000000000000000000000,)"), "starts holds"),
        ("starts", described("(4294967296, 4294967296)"), "starts holds"),
        ("starts", described("(6,)") + bytes(28), "starts holds"),
        ("lengths", header("(" * 100), "its header cannot be read"),
        ("lengths", header("{[]: 1}"), "its header cannot be read"),
        ("lengths", b"\x93NUMPY\x03\x00\xff\xff\xff\xff", "its format is version 3.0"),
        ("lengths", b"\x93NUMPY\x01\x00\xff\xff{", "its header cannot be read"),
        ("lengths", b"", "EOF"),
        ("offsets", array([0, 1, 2, 3, 4, 6], np.int64), "packs do not divide"),
        ("tokens", array([64, 64, 64], np.int32), "packs do not divide"),
        ("report", report(dropped_tokens=3), "it reports"),
        ("report", report(documents=True), "report holds"),
        ("report", array("[" * 63, None), "report"),
        ("report", report()[:-4] + (0x110000).to_bytes(4, "little"), "code point not in range"),
        ("report", report()[:-4] + (0xFFFFFFFF).to_bytes(4, "little"), "code point not in range"),
        ("report", report()[:-4] + (0xDC80).to_bytes(4, "little"), "code point in surrogate code point range"),
        ("report", array(7, np.int64), "report holds"),
    ],
)
def test_what_is_no_plan_of_the_corpus_is_named_and_made_again(corpus, caplog, name, content, reason):
    plan_of(corpus)
    stored = members(place_of(corpus))
    assert stored[f"{name}.npy"] != content
    write_members(place_of(corpus), stored | {f"{name}.npy": content})
    check_made_again(corpus, caplog, reason)


@pytest.mark.parametrize("name", [*ARRAYS, "report"])
def test_arrays_that_are_missing_or_compressed_are_refused(corpus, caplog, name):
    plan_of(corpus)
    stored = members(place_of(corpus))
    write_members(place_of(corpus), {key: data for key, data in stored.items() if key != f"{name}.npy"})
    check_made_again(corpus, caplog, f"{name}.npy")
    write_members(place_of(corpus), stored, zipfile.ZIP_DEFLATED)
    check_made_again(corpus, caplog, "documents is compressed")


def test_a_changed_number_is_found_by_the_checksum(corpus, caplog):
    plan = plan_of(corpus)
    content = bytearray(place_of(corpus).read_bytes())
    content[content.index(plan.documents.tobytes())] ^= 1
    place_of(corpus).write_bytes(content)
    check_made_again(corpus, caplog, "CRC")


def test_a_file_larger_than_any_plan_is_not_read(corpus, caplog):
    plan_of(corpus)
    os.truncate(place_of(corpus), 1 << 40)
    check_made_again(corpus, caplog, "it has 1,099,511,627,776 bytes, and a plan of this corpus at most")


@pytest.mark.timeout(120)
def test_pipes_in_place_of_a_plan_and_of_its_lock_are_not_waited_for(corpus, caplog, tmp_path):
    place_of(corpus).parent.mkdir()
    os.mkfifo(place_of(corpus))
    check_made_again(corpus, caplog, "it is a pipe")
    lock = Path(f"{place_of(corpus)}.lock")
    lock.unlink()
    os.mkfifo(lock)
    place_of(corpus).unlink()
    with caplog.at_level(logging.INFO):
        assert plan_of(corpus).num_packs
    assert f"{lock}" in caplog.text and "it is a pipe" in caplog.text
    assert list((tmp_path / "cache" / "megatron_apriel" / "packing").glob("*.npz"))  # kept elsewhere


def test_a_link_in_place_of_the_lock_is_not_followed(corpus, caplog, tmp_path):
    place_of(corpus).parent.mkdir()
    (tmp_path / "somebodys").write_text("text")
    for target in (tmp_path / "somebodys", tmp_path / "absent"):
        lock = Path(f"{place_of(corpus)}.lock")
        lock.unlink(missing_ok=True)
        lock.symlink_to(target)
        with caplog.at_level(logging.INFO):
            assert plan_of(corpus).num_packs
        assert "it is a link" in caplog.text
    assert (tmp_path / "somebodys").read_text() == "text" and not (tmp_path / "absent").exists()


def test_a_lock_that_is_held_is_waited_for_and_then_done_without(corpus, caplog, monkeypatch):
    monkeypatch.setattr(plan_cache, "LOCK_PATIENCE_S", 0.3)
    place_of(corpus).parent.mkdir()
    with Path(f"{place_of(corpus)}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        plan = plan_of(corpus)
        assert f"{place_of(corpus)}.lock is locked by process {os.getpid()} of this host after 0.3 s" in caplog.text
        assert "made without it" in caplog.text and not place_of(corpus).exists()
    assert np.array_equal(plan.documents, make_plan(corpus, 64, 1, "split").documents)
    plan_of(corpus)
    assert place_of(corpus).exists()


def test_what_a_killed_process_left_is_removed(corpus, monkeypatch):
    if (child := os.fork()) == 0:

        def killed(file, **arrays):
            with Path(file).open("wb") if isinstance(file, Path) else file as begun:
                begun.write(bytes(1000))
                begun.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(np, "savez", killed)
        plan_of(corpus)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    folder = place_of(corpus).parent
    assert any(path.stat().st_size == 1000 for path in folder.iterdir()) and not place_of(corpus).exists()
    assert plan_of(corpus).num_packs
    assert {path.name for path in folder.iterdir()} == {place_of(corpus).name, f"{place_of(corpus).name}.lock"}


def test_patience_is_half_a_minute():
    assert plan_cache.LOCK_PATIENCE_S == 30
