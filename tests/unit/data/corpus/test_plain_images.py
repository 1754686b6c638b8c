"""Which PNGs and JPEGs a corpus keeps byte for byte, against what DALI makes of them."""

import io

import numpy as np
import pytest
from odd_images import ODD_JPEGS, ODD_PNGS, PLAIN_JPEGS, PLAIN_PNGS
from PIL import Image

from megatron_apriel.data.corpus.plain_images import is_plain_jpeg, is_plain_png
from megatron_apriel.data.corpus.stored_images import encode_for_corpus
from megatron_apriel.data.loading.image_headers import import_dali
from megatron_apriel.data.raw.problems import BadRecord

PLAIN = {f"PNG, {name}": data for name, data in PLAIN_PNGS.items()} | {
    f"JPEG, {name}": data for name, data in PLAIN_JPEGS.items()
}
ODD = {f"PNG, {name}": data for name, data in ODD_PNGS.items()} | {
    f"JPEG, {name}": data for name, data in ODD_JPEGS.items()
}


def pixels_in_training(data: bytes) -> np.ndarray:
    """As DALI's decoder gives them, set as in ``images.py``."""
    dali = import_dali()
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
    with pipeline:
        encoded = dali.fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
        image = dali.fn.decoders.image(
            encoded, device="cpu", output_type=dali.types.RGB, adjust_orientation=False, jpeg_fancy_upsampling=True
        )
        pipeline.set_outputs(image)
    pipeline.build()
    pipeline.feed_input("encoded", [np.frombuffer(data, dtype=np.uint8)])
    return np.asarray(pipeline.run()[0].at(0)).astype(int)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_are_kept(name):
    assert encode_for_corpus(PLAIN[name]).data == PLAIN[name]
    expected = np.asarray(Image.open(io.BytesIO(PLAIN[name])).convert("RGB"))
    assert np.abs(pixels_in_training(PLAIN[name]) - expected).max() <= (0 if name.startswith("PNG") else 3)


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_written_anew_or_refused(name):
    try:
        stored = encode_for_corpus(ODD[name]).data
    except BadRecord as problem:
        assert "damaged" in str(problem) or "is none of" in str(problem)
        return
    assert stored != ODD[name] and is_plain_png(stored)
    assert np.array_equal(pixels_in_training(stored), np.asarray(Image.open(io.BytesIO(ODD[name])).convert("RGB")))


@pytest.mark.parametrize("name", ODD)
def test_no_odd_file_is_plain_whatever_pillow_says_of_it(name):
    if name in ("JPEG, Adobe's RGB", "JPEG, Adobe's fourth ink", "JPEG, four inks"):
        return  # which Pillow knows
    assert not (is_plain_png if name.startswith("PNG") else is_plain_jpeg)(ODD[name])


@pytest.mark.parametrize("name", ["PNG, text", "JPEG, plain", "JPEG, progressive", "JPEG, restarts"])
def test_no_beginning_of_a_plain_file_is_plain(name):
    check = is_plain_png if name.startswith("PNG") else is_plain_jpeg
    data = PLAIN[name]
    assert check(data)
    assert not any(check(data[:length]) for length in range(0, len(data), 7))
    assert not check(data[:-1])


def test_any_bit_of_a_png_counts():
    """Checked by its checksums alone, so that no decoder needs to be asked."""
    data = PLAIN["PNG, two parts"]
    for place in range(0, len(data), 5):
        assert not is_plain_png(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
