"""Small files that grow, each refused before it takes memory or time: in a process whose use of both is measured."""

from pathlib import Path

import pytest
from hostile_files import FILES, MIB
from hostile_images import IMAGES
from PIL import Image

from megatron_apriel.data.image_sources import ImageLoader
from megatron_apriel.data.problems import BadRecord
from megatron_apriel.data.raw_chunks import RawRecord
from megatron_apriel.data.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.readers import find_sources
from megatron_apriel.data.record_encoder import RecordEncoder
from megatron_apriel.data.records import recognise
from megatron_apriel.data.stored_images import encode_for_corpus
from megatron_apriel.testing.limits import check_cost, measured, refused_within
from megatron_apriel.visual_tasks.sources import RawImages, read_header


def encoded(path: Path, table, limits: ReadLimits = DEFAULT_LIMITS) -> None:
    """Everything that preparation does with the records of a file, the first bad one an error."""
    encoder = RecordEncoder(table, limits=limits)
    for source in find_sources([path], limits=limits):
        for chunk in source.chunks(("text", "messages", "images")):
            for raw in chunk.records(limits):
                document_of(encoder, raw, path.parent)


def document_of(encoder: RecordEncoder, raw: RawRecord, root: Path) -> object:
    if raw.problem:
        raise BadRecord(f"{raw.place}: {raw.problem}")
    loader = ImageLoader(root, raw.attachments, encoder.limits)
    return encoder.encode(raw.value, recognise(raw.value) or "text", loader)


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
