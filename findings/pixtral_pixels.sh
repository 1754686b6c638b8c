#!/usr/bin/env bash
# Library:   transformers 5.23.0 and mistral-common 1.13.1, with Pillow 13.0.0 and opencv-python-headless 5.0.0.93
# Behaviour: Both prepare images for Pixtral: shrink to 1,024 pixels by cubic interpolation, then patches of 16. What
#            comes out are other pixels. transformers smooths before it shrinks; mistral-common takes the nearest points
#            alone, so that fine lines stay or vanish as they happen to lie, and does not clip what overshoots. For 3 of
#            100 large images the number of patches differs too: one rounds down, the other to the nearest.
# Output:    other numbers of patches: 1684 of 56169 sizes
#            fine lines of 3,072 pixels: transformers grey 120 to 135, mistral-common grey 0 to 255
#            fine lines of 2,048 pixels: transformers grey 40 to 215, mistral-common grey -48 to 303
#            fine lines of 992 pixels: transformers grey 0 to 255, mistral-common grey 0 to 255
# Matters:   Who trains with one and serves with the other shows the model other pages: vLLM reads images by
#            mistral-common where it serves Mistral's form. Training, evaluation and servers follow transformers here
#            (megatron_apriel/data/corpus/image_size.py, docs/serving.md).
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet transformers==5.23.0 mistral-common==1.13.1 \
    opencv-python-headless==5.0.0.93 pillow==13.0.0

cd "$folder"
TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1 environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import sys
from types import SimpleNamespace

import numpy as np
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from PIL import Image
from transformers.models.pixtral.image_processing_pil_pixtral import (
    PixtralImageProcessorPil,
    get_resize_output_image_size,
)

theirs = PixtralImageProcessorPil()
mistral = ImageEncoder(ImageConfig(image_patch_size=16, max_image_size=1024), SpecialImageIDs(10, 12, 13))


def other_patches(width: int, height: int) -> bool:
    """Whether an image of this size gets another number of patches."""
    columns, rows = mistral._image_to_num_tokens(SimpleNamespace(size=(width, height)))
    pixels = np.broadcast_to(np.uint8(0), (height, width, 3))
    return get_resize_output_image_size(pixels, 1024, 16, "channels_last") != (rows * 16, columns * 16)


def greys(pixels: np.ndarray) -> list[int]:
    """Darkest and lightest of the red channel, in steps of 0 to 255 again, without the border."""
    red = (pixels[0] * theirs.image_std[0] + theirs.image_mean[0])[8:-8, 8:-8] * 255
    return [round(float(red.min())), round(float(red.max()))]


sides = range(1025, 4097, 13)
other = sum(other_patches(width, height) for width in sides for height in sides)
print(f"other numbers of patches: {other} of {len(sides) ** 2} sizes")
seen = []
for side in (3072, 2048, 992):
    lines = np.where(np.arange(side) % 4 < 2, 0, 255).astype(np.uint8)  # two pixels wide, two pixels apart
    page = Image.fromarray(np.repeat(lines[:, None], side, 1)).convert("RGB")
    one = greys(np.asarray(theirs(images=[page], return_tensors="np")["pixel_values"][0]))
    two = greys(mistral(ImageChunk(image=page)).image)
    print(
        f"fine lines of {side:,} pixels: transformers grey {one[0]} to {one[1]},"
        f" mistral-common grey {two[0]} to {two[1]}"
    )
    seen.append((one, two))
expected = [([120, 135], [0, 255]), ([40, 215], [-48, 303]), ([0, 255], [0, 255])]
sys.exit((other, seen) != (1684, expected))
PYTHON
