"""Samples of archives: the order of their pages, names that come twice, and what lies beside them."""

import io
import json
import random
import tarfile

import pytest

from megatron_apriel.data.raw.files.finding import find_inputs
from megatron_apriel.data.raw.files.tar_records import TarSample, sample_record
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.conversion import parse_record, recognise


def read(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return [raw for given in find_inputs([path]).readable for block in given.blocks() for raw in block.records()]


@pytest.mark.parametrize("name", ["s.page_{}.png", "s.{}.jpg", "s.{:03}.png", "s.p{}.crop_1.png"])
def test_pages_are_in_the_order_of_their_numbers(name):
    names = [name.format(number) for number in range(12)]
    members = {one: one.encode() for one in sorted(names)}
    found = sample_record(TarSample("s", {**members, "s.json": b'{"text": "x"}'}))
    assert found.value["images"] == [one.encode() for one in names]
    shuffled = list(members.items())
    random.Random(1).shuffle(shuffled)
    assert sample_record(TarSample("s", {**dict(shuffled), "s.txt": b"x"})).value["images"] == found.value["images"]


@pytest.mark.parametrize(
    "names", [("s.png", "s.seg.png"), ("s.left.png", "s.right.png"), ("s.1.png", "s.01.png"), ("s.png", "s.1.png")]
)
def test_images_that_nothing_puts_in_order_are_refused(names):
    members = dict.fromkeys(names, b"x")
    with pytest.raises(BadRecord, match=r"nothing says the order of .*field 'images'"):
        sample_record(TarSample("s", {**members, "s.txt": b"x"}))
    named = json.dumps({"text": "x", "images": list(reversed(names))}).encode()
    assert sample_record(TarSample("s", {**members, "s.json": named})).value["images"] == list(reversed(names))


def test_samples_of_one_name_are_bad_records(tmp_path):
    pair = [("a.png", b"1"), ("a.json", b'{"text": "one"}')]
    (twice,) = read(tmp_path / "a.tar", [*pair, *pair])
    assert "a.png is there twice" in twice.problem
    first, between, last = read(tmp_path / "b.tar", [*pair, ("b.txt", b"two"), *pair])
    assert not first.problem and not between.problem
    assert "an earlier sample of the archive is called a, too" in last.problem


def test_what_describes_the_archive_is_passed_over(tmp_path):
    (only,) = read(
        tmp_path / "a.tar",
        [("__about__", b"x"), ("__keys__.json", b"{}"), ("a.txt", b"one"), ("a/__index__.txt", b"x")],
    )
    assert only.value == {"text": "one"}


def test_other_members_are_counted_and_films_are_refused(tmp_path):
    found = read(
        tmp_path / "a.tar",
        [
            ("1.json", b'{"text": "one"}'), ("1.cls", b"3"), ("1.seg.npy", b"x"),
            ("2.json", b'{"text": "two"}'), ("2.mp4", b"x"),
            ("3.json", b'{"text": "three"}'), ("3.heic", b"x"),
        ],
    )  # fmt: skip
    assert found[0].unused == ("*.cls", "*.seg.npy")
    assert "2.mp4 is a film" in found[1].problem and "3.heic is a film, a sound or a picture" in found[2].problem


def test_what_macos_adds_is_passed_over(tmp_path):
    members = [("._1.png", b"x"), ("1.png", b"1"), ("._1.json", b"x"), ("1.json", b'{"caption": "A door."}')]
    (raw,) = read(tmp_path / "a.tar", [("d/.DS_Store", b"x"), *((f"d/{name}", data) for name, data in members)])
    assert raw.value == {"caption": "A door.", "images": [b"1"]} and not raw.problem


def test_turns_of_megatron_energon(tmp_path):
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "Red."}]
    (raw,) = read(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.json", json.dumps(turns).encode())])
    document = parse_record(raw.value, recognise(raw.value))
    assert document.images == (b"1",) and document.messages[1]["content"] == "Red."


@pytest.mark.parametrize("caption", ["A red door.", "A blue door."])
def test_a_caption_twice(caption, tmp_path):
    about = json.dumps({"caption": "A red door.", "key": "1"}).encode()
    (raw,) = read(tmp_path / "a.tar", [("1.jpg", b"1"), ("1.txt", caption.encode()), ("1.json", about)])
    document = parse_record(raw.value, recognise(raw.value))
    assert document.parts == (None, f"\n{caption}") and document.remarks.unused == {"caption": 1, "key": 1}
    other = json.dumps({"text": "A red door."}).encode()
    (raw,) = read(tmp_path / "b.tar", [("1.txt", caption.encode()), ("1.json", other)])
    assert ("another text" in raw.problem) == (caption == "A blue door.")
