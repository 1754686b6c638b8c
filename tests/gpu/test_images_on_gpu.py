"""DALI's GPU decoders against its CPU ones, through the same pipeline."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_apriel.data.corpus.image_size import patch_grid
from megatron_apriel.data.loading.image_headers import ImageRequest
from megatron_apriel.data.loading.images import ImageDecoder
from megatron_apriel.testing.marks import needs_gpu

pytestmark = [pytest.mark.gpu, needs_gpu]
pytest.importorskip("nvidia.dali")
GREY_LEVEL = 1 / 255 / 0.26


def photograph(height: int, width: int, seed: int) -> Image.Image:
    """Smooth colours with some detail, as a camera sees them."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((smooth + generator.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_gpu_equals_cpu_within_two_grey_levels(kind: str) -> None:
    requests = []
    for number, (height, width) in enumerate([(640, 480), (1200, 1733), (33, 200), (512, 512)]):
        data = np.frombuffer(encoded(photograph(height, width, number), kind), dtype=np.uint8)
        rows, columns = patch_grid(height, width, 512, 16)
        requests.append(ImageRequest(data, height, width, rows, columns, f"image {number}"))
    with ImageDecoder(16, device="cpu") as cpu, ImageDecoder(16, device="gpu") as gpu:
        expected, found = cpu.patches(requests), gpu.patches(requests)
    assert found.shape == expected.shape
    difference = (found.cpu() - expected).abs()
    # The JPEG decoders differ in their inverse transform by a level, which resizing can double.
    assert float(difference.mean()) < 0.3 * GREY_LEVEL
    assert float(torch.quantile(difference.flatten()[:1_000_000], 0.999)) < 3 * GREY_LEVEL
