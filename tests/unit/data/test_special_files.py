"""Pipes, sockets and devices among raw data, images and descriptions: refused by name, and never waited for."""

import json
import os
import socket
from pathlib import Path

import datasets
import pytest
from PIL import Image

from megatron_apriel.data.corpus.format import CorpusManifest
from megatron_apriel.data.corpus.prepare import PrepareOptions, prepare
from megatron_apriel.data.corpus.processor_files import longest_side
from megatron_apriel.data.raw.files.finding import find_inputs
from megatron_apriel.data.raw.pictures.image_references import ImageLoader
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.visual_tasks.raw_images import RawImages, image_files, read_header
from megatron_apriel.data.visual_tasks.refusals import Unreadable
from megatron_apriel.errors import DataError

pytestmark = pytest.mark.timeout(120)

NAMES = ["a.jsonl", "a.json.gz", "a.jsonl.zst", "a.parquet", "a.tar", "a.tar.gz"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_as_an_input(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=rf"input .*{name} cannot be read: it is a pipe, and only regular files"):
        find_inputs([tmp_path / name])


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_in_a_searched_directory_is_not_passed_over(name, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "sub" / name)
    with pytest.raises(DataError, match=rf"sub/{name} cannot be read: it is a pipe"):
        find_inputs([tmp_path])


def test_sockets_devices_and_links_to_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("a.jsonl")
        with pytest.raises(DataError, match="it is a socket"):
            find_inputs([tmp_path])
    Path("a.jsonl").unlink()
    Path("a.jsonl").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="it is a device"):
        find_inputs([tmp_path])


def test_a_file_that_became_a_pipe_after_it_was_found(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(b"x")
    inputs = find_inputs([tmp_path]).readable
    for name in NAMES:
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
    for given in inputs:
        with pytest.raises(DataError, match="it is a pipe"):
            list(given.blocks())


@pytest.mark.parametrize("name", ["dataset_dict.json", "state.json", "dataset_info.json", "manifest.json"])
def test_a_pipe_instead_of_a_description(name, tmp_path):
    if name == "manifest.json":
        (tmp_path / "records.jsonl").write_text('{"text": "a"}\n')
    else:
        datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path)
    place = tmp_path if name in ("dataset_dict.json", "manifest.json") else tmp_path / "train"
    (place / name).unlink(missing_ok=True)
    os.mkfifo(place / name)
    with pytest.raises(DataError, match="it is a pipe"):
        [list(given.blocks()) for given in find_inputs([place]).readable]


def test_a_pipe_among_the_files_of_a_saved_dataset(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.unlink()
    os.mkfifo(file)
    (given,) = find_inputs([tmp_path / "saved"]).readable
    with pytest.raises(DataError, match=r"saved cannot be read to its end: .*it is a pipe"):
        list(given.blocks())


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_an_image_that_is_no_file_is_a_bad_record(make, model, tmp_path, small_photograph):
    make(tmp_path / "a.png")
    small_photograph.save(tmp_path / "b.png")
    for root in (tmp_path, Path("/")):  # links are followed and may not leave the root
        with pytest.raises(BadRecord, match=r"it is a (pipe|device)|leads out of the image root"):
            ImageLoader(root).load(str(tmp_path / "a.png"))
    records = [{"text": "<image>", "images": [name]} for name in ("a.png", "b.png")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = prepare(None, [tmp_path / "a.jsonl"], model, PrepareOptions(max_bad=0.5))
    assert (summary.documents, summary.problems.count) == (1, 1)
    assert "a.jsonl:1: " in str(summary.problems.first[0])


def test_raw_images_that_are_no_files(tmp_path, small_photograph):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    small_photograph.resize((100, 100)).save(tmp_path / "c.png")
    names, _ = image_files(tmp_path)
    problems = [read_header(tmp_path, name).problem for name in names]
    assert "it is a pipe" in problems[0] and "it is a device" in problems[1] and not problems[2]
    with pytest.raises(Unreadable) as caught:
        RawImages(tmp_path, ["a.png"], [(100, 100)], 512).load(0)
    assert "it is a pipe" in caught.value.damage


def test_a_pipe_as_a_corpus_or_processor_file(architecture, tmp_path):
    for name in ("corpus.json", "processor_config.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"corpus\.json cannot be read: .*it is a pipe"):
        CorpusManifest.read(tmp_path)
    with pytest.raises(DataError, match=r"processor_config\.json is not a valid JSON object: .*it is a pipe"):
        longest_side(tmp_path, architecture)


def test_descriptions_beyond_any_size(architecture, tmp_path):
    for name in ("corpus.json", "processor_config.json", "dataset_dict.json"):
        (tmp_path / name).write_text("{}")
        os.truncate(tmp_path / name, 2**40)
    for read in (lambda: CorpusManifest.read(tmp_path), lambda: longest_side(tmp_path, architecture)):
        with pytest.raises(DataError, match="at most 67,108,864 are read of it"):
            read()
    with pytest.raises(DataError, match=r"dataset_dict\.json cannot be read: .*at most 67,108,864"):
        find_inputs([tmp_path])


def test_images_of_a_directory_are_still_images(tmp_path):
    """A regular file behind a link, inside the root."""
    Image.new("RGB", (100, 100)).save(tmp_path / "real.png")
    (tmp_path / "a.png").symlink_to("real.png")
    assert ImageLoader(tmp_path).load("a.png") == (tmp_path / "real.png").read_bytes()
    assert not read_header(tmp_path, "a.png").problem
