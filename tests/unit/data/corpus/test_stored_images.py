"""Images as a corpus stores them, against Pillow and transformers' PixtralImageProcessor."""

import io
import struct
import zlib

import numpy as np
import pytest
from image_files_in_memory import file_of, orientation
from PIL import Image

from megatron_apriel.data.corpus.stored_images import encode_for_corpus
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import ReadLimits


def pixels(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert image.mode == "RGB" and image.format == "PNG" and not image.getexif() and not image.info
    return np.asarray(image)


def handmade_png(
    height: int, width: int, bits: int, colour_type: int, rows: bytes = b"", *more: tuple[bytes, bytes]
) -> bytes:
    """A PNG chunk by chunk, for what Pillow does not write."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)),
        *more,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def test_photographs_are_kept_byte_for_byte(photographs):
    for data in photographs.values():
        image = encode_for_corpus(data)
        assert image.data == data
        assert (image.width, image.height) == Image.open(io.BytesIO(data)).size


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"progressive": True}), ("JPEG", {"exif": orientation(1)}), ("JPEG", {"subsampling": 2}), ("PNG", {})],
)
def test_plain_files_are_kept(kind, options, small_photograph):
    data = file_of(small_photograph, kind, **options)
    assert encode_for_corpus(data).data == data
    if kind == "JPEG":
        grey = file_of(small_photograph.convert("L"), kind, **options)
        assert encode_for_corpus(grey).data == grey


@pytest.mark.parametrize("turn", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied_once(turn, kind, small_photograph):
    data = file_of(small_photograph, kind, exif=orientation(turn))
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    turned = {
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.transpose(1, 0, 2),
        6: plain.transpose(1, 0, 2)[:, ::-1],
        7: plain[::-1, ::-1].transpose(1, 0, 2),
        8: plain.transpose(1, 0, 2)[::-1],
    }[turn]
    image = encode_for_corpus(data)
    assert np.array_equal(pixels(image.data), turned)
    assert (image.height, image.width) == turned.shape[:2]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_blended_onto_white(kind, small_photograph):
    rgba = np.dstack([np.asarray(small_photograph), np.tile(np.linspace(0, 255, 60).astype(np.uint8), (40, 1))])
    data = file_of(Image.fromarray(rgba), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    result = pixels(encode_for_corpus(data).data)
    assert np.abs(result - expected).max() <= 1
    assert (result[:, 0] == 255).all(), "where it is fully transparent, it is white"


def test_grey_with_alpha_and_transparent_palettes_are_blended(small_photograph):
    grey = small_photograph.convert("LA")
    grey.putalpha(0)
    assert (pixels(encode_for_corpus(file_of(grey, "PNG")).data) == 255).all()
    palette = small_photograph.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    for kind in ("PNG", "GIF"):
        result = pixels(encode_for_corpus(file_of(palette, kind, transparency=3)).data)
        hidden = np.asarray(palette) == 3
        assert (result[hidden] == 255).all()
        assert np.array_equal(result[~hidden], np.asarray(palette.convert("RGB"))[~hidden])


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 2400).round().reshape(40, 60).astype(np.uint16)
    expected = np.rint(ramp / 257)
    for data in (file_of(Image.fromarray(ramp), "PNG"), file_of(Image.fromarray(ramp), "TIFF")):
        result = pixels(encode_for_corpus(data).data)
        assert np.array_equal(result, np.dstack([expected] * 3))
    colour = np.dstack([ramp, ramp[::-1], ramp[:, ::-1]])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)
    image = encode_for_corpus(data := handmade_png(40, 60, 16, 2, rows))
    assert image.data != data
    assert np.abs(pixels(image.data) - colour / 257).max() <= 1


def test_other_kinds_become_rgb(small_photograph):
    for kind, source in (
        ("JPEG", small_photograph.convert("CMYK")),
        ("BMP", small_photograph),
        ("TIFF", small_photograph),
        ("GIF", small_photograph.convert("P")),
        ("PNG", small_photograph.convert("1")),
        ("PNG", small_photograph.convert("L")),
        ("PNG", small_photograph.convert("P")),
    ):
        data = file_of(source, kind)
        reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(pixels(encode_for_corpus(data).data), reference)
    kept_rgb = file_of(small_photograph, "JPEG", keep_rgb=True)
    assert encode_for_corpus(kept_rgb).data != kept_rgb


def test_animations_give_their_first_picture(small_photograph):
    frames = [small_photograph, Image.new("RGB", small_photograph.size)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
        first = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert first.any()
        assert np.array_equal(pixels(encode_for_corpus(data).data), first)


def test_pages_of_a_tiff_are_refused_and_smaller_copies_are_not(small_photograph):
    page = Image.new("RGB", small_photograph.size)
    with pytest.raises(BadRecord, match="TIFF of several pages"):
        encode_for_corpus(file_of(small_photograph, "TIFF", save_all=True, append_images=[page]))
    copy = small_photograph.resize((8, 8))
    copy.encoderinfo = {"tiffinfo": {254: 1}}
    with_copy = file_of(small_photograph, "TIFF", save_all=True, append_images=[copy])
    assert np.array_equal(pixels(encode_for_corpus(with_copy).data), np.asarray(small_photograph))


def test_result_is_reproducible(small_photograph):
    data = file_of(small_photograph, "BMP")
    assert encode_for_corpus(data) == encode_for_corpus(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files_are_refused_at_every_length(kind, small_photograph):
    data = file_of(small_photograph, kind)
    for length in range(0, len(data) - 8, max(1, len(data) // 40)):
        try:
            cut = encode_for_corpus(data[:length])
        except BadRecord as problem:
            assert "image" in str(problem)
            continue
        # What was cut off was not part of the pixels.
        assert np.array_equal(pixels(cut.data), pixels(encode_for_corpus(data).data))


def test_a_png_without_its_end_is_written_anew(small_photograph):
    """Pillow reads it, the decoder of the training run would not."""
    whole = file_of(small_photograph, "PNG")
    assert encode_for_corpus(whole).data == whole
    assert np.array_equal(pixels(encode_for_corpus(whole + b"trailing").data), np.asarray(small_photograph))
    for missing in range(1, 13):
        kept = encode_for_corpus(whole[:-missing]).data
        assert kept.endswith(b"IEND\xaeB`\x82")
        assert np.array_equal(pixels(kept), np.asarray(Image.open(io.BytesIO(whole))))
    damaged = whole[:-1] + b"?"
    assert encode_for_corpus(damaged).data != damaged


def test_noise_is_refused_or_decodes(photographs):
    """Damage anywhere gives an image or a BadRecord, never another exception."""
    generator = np.random.default_rng(0)
    for data in (photographs["china.jpg"][:60000], photographs["chelsea.png"][:60000]):
        for _ in range(40):
            damaged = np.frombuffer(data, dtype=np.uint8).copy()
            damaged[generator.integers(0, 600, 20)] = generator.integers(0, 256, 20)
            try:
                encode_for_corpus(damaged.tobytes())
            except BadRecord as problem:
                assert str(problem)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an image has 0 bytes"),
        (b"<html>not found</html>", r"22 bytes, beginning b'<html>no', is none of JPEG, PNG, WEBP, GIF, TIFF, BMP"),
        (file_of(Image.new("F", (4, 4)), "TIFF"), "floating-point pixels"),
        (handmade_png(10000, 12000, 8, 2), "10000x12000 pixels exceeds the limit of 100000000 pixels"),
        (handmade_png(100000, 100000, 1, 0), "too large to decode"),
    ],
)
def test_refused_images(data, message):
    with pytest.raises(BadRecord, match=message):
        encode_for_corpus(data)


def test_the_limit_can_be_set(small_photograph):
    data = file_of(small_photograph, "PNG")
    assert encode_for_corpus(data, ReadLimits(pixels=2400)).height == 40
    with pytest.raises(BadRecord, match="40x60 pixels exceeds the limit of 2399 pixels"):
        encode_for_corpus(data, ReadLimits(pixels=2399))


def test_the_transparent_value_of_sixteen_bits_is_blended_or_refused():
    grey = np.array([[0, 0x1234, 0x1235, 65535]], dtype=">u2")
    data = handmade_png(1, 4, 16, 0, b"\0" + grey.tobytes(), (b"tRNS", b"\x12\x34"))
    assert pixels(encode_for_corpus(data).data)[0, :, 0].tolist() == [0, 255, 18, 255]
    colour = handmade_png(1, 1, 16, 2, b"\0" + bytes(6), (b"tRNS", b"\x12\x34" * 3))
    with pytest.raises(BadRecord, match="one transparent colour"):
        encode_for_corpus(colour)


@pytest.mark.parametrize(("bits", "white_is_zero"), [(12, False), (16, False), (16, True)])
def test_depth_and_white_of_a_grey_tiff(bits, white_is_zero):
    """Pillow gives the numbers as they stand in the file."""
    values = np.array([[0, 1, 2**bits // 3, 2**bits - 1]])
    text = "".join(f"{value:0{bits}b}" for value in values[0])
    data = int(text, 2).to_bytes(len(text) // 8, "big")
    if bits == 16:
        data = values.astype("<u2").tobytes()
    tags = {256: 4, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    expected = np.rint(values / (2**bits - 1) * 255)
    expected = 255 - expected if white_is_zero else expected
    assert np.array_equal(pixels(encode_for_corpus(file).data)[:, :, 0], expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_damaged_metadata_does_not_cost_the_picture(kind, small_photograph):
    """The orientation can be read; a fraction beside it has the type of a text."""
    exif = orientation(3)
    exif[0x011A] = 72.0  # XResolution
    whole = exif.tobytes()
    damaged = whole.replace(b"\x1a\x01\x05\x00", b"\x1a\x01\x02\x00").replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02")
    assert damaged != whole
    data = file_of(small_photograph, kind, exif=damaged, **({"lossless": True} if kind == "WEBP" else {}))
    result = pixels(encode_for_corpus(data).data)
    assert np.array_equal(result, np.asarray(small_photograph.rotate(180)))


def test_a_type_that_pillow_does_not_expect_is_damage():
    """A TIFF whose pixels begin at a fraction."""
    tags = {256: (4, 1), 257: (4, 1), 258: (4, 8), 259: (4, 1), 262: (4, 1), 273: (5, 8), 277: (4, 1), 279: (4, 1)}
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in tags.items())
    file = struct.pack("<2sHI8x", b"II", 42, 16) + struct.pack("<H", len(tags)) + entries + bytes(4)
    with pytest.raises(BadRecord, match="is damaged"):
        encode_for_corpus(file)


@pytest.mark.parametrize("mode", ["LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_pixels_converted_in_pieces_are_those_of_the_whole(mode, photographs):
    """An image of several pieces each way, against one conversion by Pillow."""
    image = Image.open(io.BytesIO(photographs["china.jpg"])).resize((2100, 1030))
    if mode == "I;16":
        values = np.asarray(image.convert("L")).astype(np.uint16) * 257
        image, expected = Image.fromarray(values), np.dstack([(values // 257).astype(np.uint8)] * 3)
    elif mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        white = Image.new("RGBA", image.size, "white")
        expected = np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    else:
        image = image.quantize(50) if mode == "P" else image.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    data = file_of(image, "TIFF")
    assert np.array_equal(pixels(encode_for_corpus(data).data), expected)
    turned = file_of(image, "TIFF", exif=orientation(6))
    assert np.array_equal(pixels(encode_for_corpus(turned).data), np.rot90(expected, 3))
