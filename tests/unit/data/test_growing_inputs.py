"""Small files that grow, each refused before it takes memory or time: in a process whose use of both is measured."""

import json
from pathlib import Path

import pytest
from hostile_files import FILES, MIB
from hostile_images import IMAGES
from PIL import Image

from megatron_apriel.data.corpus.record_encoder import RecordEncoder
from megatron_apriel.data.corpus.stored_images import encode_for_corpus
from megatron_apriel.data.raw.files.finding import find_inputs
from megatron_apriel.data.raw.pictures.image_references import ImageLoader
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.conversion import recognise
from megatron_apriel.data.visual_tasks.raw_images import RawImages, read_header
from megatron_apriel.testing.limits import check_cost, measured, refused_within


def encoded(path: Path, table) -> None:
    """Everything that preparation does with the records of a file, the first bad one an error."""
    encoder = RecordEncoder(table)
    for given in find_inputs([path]).readable:
        for block in given.blocks():
            for raw in block.records():
                if raw.problem:
                    raise BadRecord(f"{raw.place}: {raw.problem}")
                encoder.encode(raw.value, recognise(raw.value) or "text", ImageLoader(path.parent, raw.attachments))


@pytest.fixture(autouse=True, scope="module")
def pillow() -> None:
    """Its plugins, loaded before processes are forked."""
    Image.init()


@pytest.mark.parametrize("name", FILES)
def test_files_that_grow_are_refused(name, table, tmp_path):
    expected, make = FILES[name]
    path = make(tmp_path)
    assert path.is_dir() or path.stat().st_blocks * 512 < 17 * MIB
    with pytest.raises(BadRecord, match=expected):
        raise BadRecord(refused_within(encoded, path, table))


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_grow_are_refused(name):
    expected, make = IMAGES[name]
    data = make()
    assert len(data) < 18 * MIB
    with pytest.raises(BadRecord, match=rf"BadRecord: .*{expected}"):
        raise BadRecord(refused_within(encode_for_corpus, data))


@pytest.mark.parametrize("name", IMAGES)
def test_raw_images_that_grow_are_passed_over(name, tmp_path):
    """The folder's headers are read without pixels; where that shows nothing, the first use does, smaller by then."""
    (tmp_path / "a.jpg").write_bytes(IMAGES[name][1]())

    def look() -> str:
        header = read_header(tmp_path, "a.jpg")
        if not header.problem:
            images = RawImages(tmp_path, ["a.jpg"], [(header.width, header.height)], 512)
            images.load(0)
        return header.problem

    check_cost(measured(look))


def test_many_references_to_one_image(table, tmp_path):
    """Each is small; all together are looked at before the first is decoded."""
    Image.new("RGB", (2000, 2000)).save(tmp_path / "a.png")
    record = {"text": "<image>" * 1000, "images": [f"{'./' * number}a.png" for number in range(1000)]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    message = refused_within(encoded, tmp_path / "a.jsonl", table)
    assert "its 1000 images have more than 10 x 100,000,000 pixels; --max-pixels allows more" in message
