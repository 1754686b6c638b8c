"""Decoded images against transformers' processors, on photographs and on shapes that break things."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.image_utils import ChannelDimension
from transformers.models.pixtral.image_processing_pil_pixtral import (
    PixtralImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.models.pixtral.image_processing_pixtral import PixtralImageProcessor

from megatron_apriel.data.corpus.image_size import image_tokens, patch_grid
from megatron_apriel.data.corpus.processor_files import MEAN, STD
from megatron_apriel.data.loading.image_headers import MAX_IMAGES, ImageRequest
from megatron_apriel.data.loading.images import ImageDecoder
from megatron_apriel.data.loading.patches import patch_places, patchify
from megatron_apriel.errors import ConfigError, DataError
from megatron_apriel.testing.corpora import encode

PATCH = 16


@pytest.fixture(scope="module")
def decoder():
    with ImageDecoder(PATCH, device="cpu", threads=2) as decoder:
        yield decoder


def encoded(data: bytes, image_size: int = 1024, patch_size: int = PATCH, place: str = "here") -> ImageRequest:
    width, height = Image.open(io.BytesIO(data)).size
    grid = patch_grid(height, width, image_size, patch_size)
    return ImageRequest(np.frombuffer(data, np.uint8), height, width, *grid, place)


def grey_levels(patches: torch.Tensor, image: ImageRequest, patch_size: int = PATCH) -> np.ndarray:
    """Patches put together again and un-normalised, [height, width, 3] in 0..255."""
    cut = patches.reshape(image.rows, image.columns, 3, patch_size, patch_size)
    pixels = cut.permute(0, 3, 1, 4, 2).reshape(image.rows * patch_size, image.columns * patch_size, 3).numpy()
    return (pixels * np.array(STD) + np.array(MEAN)) * 255


def reference(
    processor, data: bytes, image_size: int = 1024, patch_size: int = PATCH
) -> tuple[np.ndarray, torch.Tensor]:
    """Grey levels [height, width, 3] and normalised pixels of transformers' processor."""
    output = processor(size={"longest_edge": image_size}, patch_size={"height": patch_size, "width": patch_size})(
        Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt"
    )
    height, width = (
        output["image_sizes"][0].tolist() if torch.is_tensor(output["image_sizes"]) else output["image_sizes"][0]
    )
    pixels = output["pixel_values"][0][:, :height, :width]
    return (pixels.permute(1, 2, 0).numpy() * np.array(STD) + np.array(MEAN)) * 255, pixels


def photographs() -> dict[str, np.ndarray]:
    images = {name: getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket", "camera")}
    images |= {f"sklearn{number}": image for number, image in enumerate(load_sample_images().images)}
    return {name: image if image.ndim == 3 else np.stack([image] * 3, -1) for name, image in images.items()}


# Longest side 1024 leaves most of these photographs at almost their size; the smaller limits shrink them.
@pytest.mark.parametrize(("image_size", "patch_size"), [(1024, 16), (256, 16), (336, 14), (64, 8)])
@pytest.mark.parametrize("processor", [PixtralImageProcessor, PixtralImageProcessorPil])
def test_photographs_equal_transformers_within_two_grey_levels(processor, image_size, patch_size):
    files = {name: encode(image, "JPEG", quality=92) for name, image in photographs().items()}
    with ImageDecoder(patch_size, device="cpu", threads=2) as decoder:
        for name, data in files.items():
            image = encoded(data, image_size, patch_size)
            expected, _ = reference(processor, data, image_size, patch_size)
            assert expected.shape == (image.rows * patch_size, image.columns * patch_size, 3), name
            difference = np.abs(grey_levels(decoder.patches([image]), image, patch_size) - expected)
            assert difference.max() < 2.01, (name, difference.max())
            assert difference.mean() < 0.05, (name, difference.mean())


def test_a_photograph_larger_than_the_limit_is_shrunk_as_transformers_does(decoder):
    large = np.asarray(Image.fromarray(photographs()["coffee"]).resize((1900, 1267), Image.LANCZOS))
    data = encode(large, "JPEG", quality=90)
    expected, _ = reference(PixtralImageProcessor, data)
    difference = np.abs(grey_levels(decoder.patches([encoded(data)]), encoded(data)) - expected)
    assert difference.max() < 2.01


def test_normalised_pixels_are_in_the_order_of_the_convolution(decoder):
    data = encode(photographs()["chelsea"][:64, :96])  # whole patches: nothing to resize
    _, pixels = reference(PixtralImageProcessor, data)
    patches = decoder.patches([encoded(data)])
    expected = torch.nn.functional.unfold(pixels[None], PATCH, stride=PATCH)[0].T
    assert patches.shape == (24, 768) and patches.dtype == torch.float32
    torch.testing.assert_close(patches, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("format", "options", "mode"),
    [
        ("JPEG", {"progressive": True}, "RGB"),
        ("JPEG", {"quality": 60, "subsampling": 2}, "RGB"),
        ("JPEG", {"quality": 90}, "L"),
        ("PNG", {}, "RGB"),
    ],
)
def test_formats(decoder, format, options, mode):
    data = encode(Image.fromarray(photographs()["rocket"]).convert(mode), format, **options)
    expected, _ = reference(PixtralImageProcessorPil, data)
    difference = np.abs(grey_levels(decoder.patches([encoded(data)]), encoded(data)) - expected)
    assert difference.max() < 2.01


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (1, 900), (1, 3000), (3000, 1), (17, 15)])
def test_thin_images(decoder, shape):
    data = encode(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    image = encoded(data)
    patches = decoder.patches([image])
    assert patches.shape == (image.rows * image.columns, 768)
    if max(shape) / min(shape) < 1024:
        expected, _ = reference(PixtralImageProcessorPil, data)
        assert np.abs(grey_levels(patches, image) - expected).max() < 3.01  # noise is harder than photographs


def test_any_number_of_images_gives_what_each_gives_alone(decoder):
    crops = [photographs()["coffee"][y : y + 30 + y, : 50 + 7 * y] for y in range(MAX_IMAGES + 8)]
    images = [encoded(encode(crop), 128) for crop in crops]
    alone = torch.cat([decoder.patches([image]) for image in images])
    assert torch.equal(decoder.patches(images), alone)
    assert decoder.patches([]).shape == (0, 768)


def test_threads_may_share_a_decoder(decoder):
    images = [encoded(encode(photographs()["chelsea"][:, : 100 + 20 * number]), 128) for number in range(8)]
    expected = [decoder.patches([image]) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(lambda image: decoder.patches([image]), images), expected, strict=True):
            assert torch.equal(found, wanted)


def damaged_files() -> dict[str, bytes]:
    jpeg, png = encode(photographs()["coffee"], "JPEG"), encode(photographs()["coffee"])
    return {
        "half a JPEG": jpeg[: len(jpeg) // 2],
        "a JPEG without its end": jpeg[:200],
        "half a PNG": png[: len(png) // 2],
        "no image": b"no image at all" * 20,
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_a_damaged_image_is_named(decoder, kind):
    bad = ImageRequest(
        np.frombuffer(damaged_files()[kind], np.uint8), 400, 600, 25, 38, "corpus c, document 7, image 2"
    )
    good = encoded(encode(photographs()["chelsea"]))
    with pytest.raises(DataError, match=r"corpus c, document 7, image 2 cannot be decoded: .*\n.*400 x 600 pixels"):
        decoder.patches([good, bad, good])
    # The decoder goes on.
    assert torch.isfinite(decoder.patches([good])).all()


def test_damaged_images_are_left_grey_and_counted_when_skipped(caplog):
    good = encoded(encode(photographs()["chelsea"]), 128)
    bad = [ImageRequest(np.frombuffer(data, np.uint8), 400, 600, 6, 8, kind) for kind, data in damaged_files().items()]
    with ImageDecoder(PATCH, device="cpu", threads=1, damaged="skip") as decoder:
        patches = decoder.patches([good, *bad, good])
        alone = decoder.patches([good])
        assert decoder.skipped == len(bad)
    sizes = [good.rows * good.columns, len(bad) * 48, good.rows * good.columns]
    first, middle, last = patches.split(sizes)
    assert torch.equal(first, alone) and torch.equal(last, alone)
    assert not middle.any()
    assert "no image cannot be decoded" in caplog.text and f"{len(bad)} so far" in caplog.text


def test_errors_that_are_kept_hold_no_threads():
    data = np.frombuffer(encode(photographs()["coffee"]), np.uint8).copy()
    data[data.size // 2] ^= 255  # the header is in order, so that DALI itself meets the damage
    picture = ImageRequest(data, 400, 600, 25, 38, "here")
    threads, kept = [], []
    with ImageDecoder(PATCH, device="cpu", threads=1) as decoder:
        for _ in range(4):
            with pytest.raises(DataError) as caught:
                decoder.patches([picture])
            kept.append(caught.value)
            threads.append(len(list(Path("/proc/self/task").iterdir())))
    # A thread or more for each that is kept would be three more; another library may have begun one meanwhile.
    assert len(kept) == 4 and threads[-1] < threads[0] + 3


def test_an_image_of_other_dimensions_than_recorded_is_damaged(decoder):
    data = np.frombuffer(encode(photographs()["chelsea"]), np.uint8)
    with pytest.raises(DataError, match="it has 300 x 451 pixels"):
        decoder.patches([ImageRequest(data, 300, 450, 19, 29, "c")])


def test_a_gpu_is_demanded_only_where_there_is_one():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="no CUDA device"):
        ImageDecoder(PATCH, device="gpu")


def test_patches_of_a_ramp():
    pixels = torch.arange(3 * 4 * 6).reshape(3, 4, 6)
    patches = patchify(pixels, 2)
    rows, columns = patch_places(2, 3)
    for patch, row, column in zip(patches, rows.tolist(), columns.tolist(), strict=True):
        block = pixels[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert patch.tolist() == block.reshape(-1).tolist()


def test_grids_equal_transformers():
    generator = np.random.default_rng(0)
    for _ in range(3000):
        height, width = np.exp(generator.uniform(0, 8.5, 2)).astype(int).clip(1).tolist()
        patch_size, image_size = int(generator.choice([8, 14, 16, 28])), int(generator.choice([128, 1000, 1024, 1540]))
        if min(height, width) * image_size < max(height, width):
            continue  # transformers makes an image without pixels of these
        expected = get_resize_output_image_size(
            np.empty((height, width, 3), np.uint8), image_size, patch_size, ChannelDimension.LAST
        )
        rows, columns = patch_grid(height, width, image_size, patch_size)
        assert (rows * patch_size, columns * patch_size) == tuple(expected), (height, width, image_size, patch_size)


def test_grids_with_rounding_equal_mistral_common():
    from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs

    encoder = ImageEncoder(ImageConfig(image_patch_size=16, max_image_size=1024), SpecialImageIDs(10, 12, 13))
    generator = np.random.default_rng(1)
    for _ in range(300):
        height, width = generator.integers(10, 3000, 2).tolist()
        columns, rows = encoder._image_to_num_tokens(Image.new("L", (width, height)))
        assert patch_grid(height, width, 1024, 16, "round") == (rows, columns), (height, width)


def test_image_tokens_and_images_without_pixels():
    assert image_tokens(64, 64) == 4160
    with pytest.raises(DataError, match="0 x 5 pixels"):
        patch_grid(0, 5, 1024, 16)
