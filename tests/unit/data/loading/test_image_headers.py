"""Images that would cost more than the corpus says are refused by their headers; nothing of them is decoded."""

from __future__ import annotations

import logging
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from loader_cases import load, stage
from PIL import Image

from megatron_apriel.config.data_sections import ImagesSection
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading import images as images_module
from megatron_apriel.data.loading.image_headers import MAX_SCANS, ImageRequest, too_many_scans
from megatron_apriel.data.loading.images import ImageDecoder
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS
from megatron_apriel.errors import DataError
from megatron_apriel.testing.corpora import encode, random_pixels, write_corpus

PATCH = 16


def request(data: bytes, height: int = 16, width: int = 16, rows: int = 1, columns: int = 1) -> ImageRequest:
    return ImageRequest(np.frombuffer(data, np.uint8), height, width, rows, columns, "corpus c, document 7, image 2")


def png_of(height: int, width: int) -> bytes:
    """A PNG whose header declares any size; of its pixels there are none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_of(height: int, width: int, **options: object) -> bytes:
    """A JPEG of 16 x 16 pixels whose header declares another size."""
    data = encode(np.zeros((16, 16, 3), np.uint8), "JPEG", **options)
    place = data.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def with_scans(number: int, between: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan comes again and again, ``number`` scans in all."""
    data = encode(np.zeros((16, 16), np.uint8), "JPEG", progressive=True)
    first, last = data.index(b"\xff\xda"), data.rindex(b"\xff\xda")
    scan = data[last:-2]
    missing = number - data[first:].count(b"\xff\xda")
    return data[:-2] + (between + scan) * missing + data[-2:]


@pytest.fixture
def decoder(monkeypatch):
    """Refuses to decode anything."""
    monkeypatch.setattr(images_module, "_build_pipeline", lambda *a: pytest.fail("decoded"))
    with ImageDecoder(PATCH, device="cpu", threads=1) as decoder:
        yield decoder


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (png_of(60000, 60000), "it has 60000 x 60000 pixels"),
        (png_of(2**31 - 1, 1), ""),
        (jpeg_of(60000, 60000), "it has 60000 x 60000 pixels"),
        (jpeg_of(16, 65000, progressive=True), "it has 16 x 65000 pixels"),
        (png_of(15, 16), "it has 15 x 16 pixels"),
        (encode(np.zeros((16, 16, 3), np.uint8), "BMP"), "it is neither a JPEG nor a PNG"),
        (encode(np.zeros((16, 16, 3), np.uint8), "TIFF"), "it is neither a JPEG nor a PNG"),
        (encode(np.zeros((16, 16, 3), np.uint8), "WEBP"), "it is neither a JPEG nor a PNG"),
        (b"\0", "it is neither a JPEG nor a PNG"),
        (b"\xff\xd8\xff", ""),
        (b"\x89PNG\r\n\x1a\n", ""),
        (with_scans(MAX_SCANS + 1), "it has more than 100 scans"),
        (with_scans(MAX_SCANS + 1, b"\xff\xfe\x00\x04\xff\xd9"), "it has more than 100 scans"),  # comments like an end
        (b"\xff\xd8" + b"\xff\xfe\x00\x02" * 20_000, "it has more than 100 scans or 10000 segments"),
    ],
)
def test_what_is_not_as_the_table_says_is_not_decoded(decoder, data, found):
    with pytest.raises(DataError, match=rf"corpus c, document 7, image 2 cannot be decoded: .*{found}"):
        decoder.patches([request(data)])


def test_more_pixels_than_the_limit_are_not_decoded_even_if_the_table_has_them(decoder):
    with pytest.raises(DataError, match=r"its 60000 x 60000 pixels are more than images\.max_pixels=100000000"):
        decoder.patches([request(png_of(60000, 60000), 60000, 60000)])


def test_honest_images_beside_such_ones_are_kept(caplog):
    good = request(encode(np.full((16, 16, 3), 200, np.uint8)))
    bad = [request(data) for data in (png_of(60000, 60000), b"\0", jpeg_of(15, 16), b"\xff\xd8\xff\xe0")]
    with ImageDecoder(PATCH, device="cpu", threads=1, damaged="skip") as decoder:
        (alone,) = decoder.patches([good])
        patches = decoder.patches([good, *bad, good, *bad * 20, good])
        assert decoder.skipped == 21 * len(bad)
    kept = [0, 5, len(patches) - 1]
    assert (patches[kept] == alone).all() and not np.delete(patches.numpy(), kept, 0).any()
    assert "it has 60000 x 60000 pixels" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        encode(np.zeros((16, 16, 3), np.uint8), "JPEG"),
        encode(np.zeros((16, 16, 3), np.uint8), "JPEG", progressive=True, exif=b"Exif\0\0" + b"\xff\xda" * 200),
        encode(random_pixels(np.random.default_rng(0), 400, 400), "JPEG", quality=100, restart_marker_blocks=1),
        encode(np.zeros((16, 16, 3), np.uint8), "JPEG")
        + b"\0\2"
        + b"\xff\xda\0\2" * 200,  # a film behind the picture, as of phones
        with_scans(MAX_SCANS),
    ],
)
def test_scans_of_honest_images_are_few(data):
    assert not too_many_scans(data)


def test_scans_are_counted_as_pillow_writes_them():
    for image in (Image.new("L", (40, 40)), Image.new("RGB", (40, 40))):
        data = encode(image, "JPEG", progressive=True)
        extra = MAX_SCANS - data.count(b"\xff\xda")
        scan = data[data.rindex(b"\xff\xda") : -2]
        assert not too_many_scans(data[:-2] + scan * extra + data[-2:])
        assert too_many_scans(data[:-2] + scan * (extra + 1) + data[-2:])


@pytest.fixture
def large(tmp_path) -> Corpus:
    return write_corpus(tmp_path / "large", [[20, random_pixels(np.random.default_rng(0), 40, 50)], [7]])


def test_images_larger_than_the_limit_end_the_run_before_it_starts_or_are_left_grey(large, caplog):
    def images(**settings):
        return {"device": "cpu", "threads": 1} | settings

    sources = [{"corpus": large.path}]
    with pytest.raises(
        DataError,
        match=r"large: document 0 has an image of 40 x 50 pixels, more than images\.max_pixels=1999\.(?s:.*)max-pixels",
    ):
        load(stage({}, sources=sources, images=images(max_pixels=1999)))
    assert load(stage({}, sources=sources, images=images(max_pixels=2000), steps=1))[0].images.patches_PC.any()
    with caplog.at_level(logging.WARNING):
        batches = load(stage({}, sources=sources, images=images(max_pixels=1999, damaged="skip"), steps=1))
    assert not batches[0].images.patches_PC.any() and batches[0].images.num_patches
    assert "its 40 x 50 pixels are more than images.max_pixels=1999" in caplog.text


def test_thin_images_take_no_memory_by_their_length():
    """The kernel's weight inside the image, by all of its taps where that is possible."""
    for source, target in ((7, 16), (100, 16), (3000, 1024), (40_000, 64)):
        stretch = max(source / target, 1.0)
        taps = np.arange(-3 * source - 9, 4 * source + 9)
        for place, share in enumerate(images_module._inside_weight(source, target).tolist()):
            if 3 < place < target - 4 and target > 16:
                continue
            weights = images_module._cubic((taps + 0.5 - (place + 0.5) * source / target) / stretch)
            assert share == pytest.approx(weights[(taps >= 0) & (taps < source)].sum() / weights.sum(), abs=1e-12)
    tracemalloc.start()
    assert images_module._inside_weight(DEFAULT_LIMITS.pixels // 10, 1024).shape == (1024,)
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


def test_what_preparation_accepts_is_what_training_decodes():
    assert ImagesSection().max_pixels == DEFAULT_LIMITS.pixels
