"""Encoded images to normalised patches, by NVIDIA DALI, on the CPU or the GPU with the same pipeline.

The exported model is served through Hugging Face's PixtralImageProcessor, so training must see the pixels that it
makes. Three of its habits are not DALI's, and each is worth several grey levels:

- It resizes along one axis, rounds to whole grey levels within 0..255, then resizes along the other. Overshoot beside a
  hard edge is therefore clipped in between; DALI clips once, at the end. Hence two passes here, one per axis.
- Where the bicubic kernel reaches over the border, it leaves those taps out and divides by the weight that remains.
  DALI repeats the border's pixel. Hence each pass first surrounds the image with zeros, so that the taps outside add
  nothing, and then divides by the weight of the kernel inside.
- It never applies the orientation flag and never smooths chroma differently on the GPU. Hence ``adjust_orientation``
  off (preparation has applied it) and ``jpeg_fancy_upsampling`` on.

Measured on photographs against both of its backends: at most 2 grey levels anywhere, 0.01 on average.

An axis that keeps its length is left alone, as in the reference: there is a pipeline for each set of axes to resize.

No image is decoded that is not by its header what the corpus says (``image_headers.py``). DALI stops a whole batch at
one damaged image and invalidates the pipeline; the images of that batch are then decoded one by one, so that the
culprit is known and the others are kept.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_apriel.config.choices import Damaged, ImageDevice
from megatron_apriel.data.corpus.processor_files import MEAN, STD
from megatron_apriel.data.loading.image_headers import MAX_IMAGES, HeaderReader, ImageRequest, cause, import_dali
from megatron_apriel.data.loading.patches import patchify
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS
from megatron_apriel.errors import ConfigError, DataError
from megatron_apriel.terminal import named_logger

PIXELS_TOGETHER = 48_000_000
"""Source pixels of images decoded together (one larger image is decoded alone): bounds the memory."""

_ORDER = (1, 0)
_NAMES = {1: "horizontal", 0: "vertical"}
"""Axes of the resizing passes in the reference's order, and their names."""

_Axes = tuple[int, ...]

logger = named_logger(__name__)


class ImageDecoder:
    """Decodes, resizes and normalises images; safe to call from several threads, one call at a time runs.

    Attributes:
        device: where the patches are made, ``cpu`` or ``cuda``.
        skipped: damaged images so far that were left grey.
    """

    def __init__(
        self,
        patch_size: int,
        *,
        device: ImageDevice = "auto",
        threads: int = 4,
        damaged: Damaged = "error",
        max_pixels: int = DEFAULT_LIMITS.pixels,
    ) -> None:
        """Raises ConfigError if a GPU is asked for where there is none, or DALI is not installed."""
        if device == "gpu" and not torch.cuda.is_available():
            raise ConfigError(
                "images.device=gpu, but no CUDA device is available.",
                fix="Set images.device to auto or cpu.",
            )
        self.patch_size, self.threads, self.damaged = patch_size, threads, damaged
        on_gpu = device != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.skipped = 0
        self._lock = threading.Lock()
        self._pipelines: dict[_Axes, Any] = {}
        self._headers = HeaderReader(max_pixels)
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None
        import_dali()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release DALI's threads and memory."""
        with self._lock:
            self._pipelines.clear()
            self._headers.close()

    def patches(self, images: Sequence[ImageRequest]) -> Tensor:
        """Normalised patches of all images, one after the other: float32 [patches, 3 * patch_size**2] on ``device``.

        Raises DataError naming the image's place if one is damaged or has other dimensions than recorded, unless
        ``damaged`` is ``skip``: then its patches are zero, the mean colour.
        """
        if not images:
            return torch.zeros(0, 3 * self.patch_size**2, device=self.device)
        decoded: dict[int, Tensor] = {}
        with self._lock:
            groups: dict[_Axes, list[int]] = {}
            for number, (image, problem) in enumerate(zip(images, self._headers.problems(images), strict=True)):
                if problem is not None:
                    decoded[number] = self._damaged(image, problem)
                else:
                    groups.setdefault(self._axes(image), []).append(number)
            for numbers in groups.values():
                parts = _decoded_together([images[number] for number in numbers])
                patches = [result for part in parts for result in self._decoded(part)]
                decoded.update(zip(numbers, patches, strict=True))
        return torch.cat([decoded[number] for number in range(len(images))])

    def _target(self, image: ImageRequest) -> tuple[int, int]:
        return image.rows * self.patch_size, image.columns * self.patch_size

    def _axes(self, image: ImageRequest) -> _Axes:
        """The axes along which an image is resized, in order."""
        stored, target = (image.height, image.width), self._target(image)
        return tuple(axis for axis in _ORDER if stored[axis] != target[axis])

    def _decoded(self, images: Sequence[ImageRequest]) -> list[Tensor]:
        """Patches of images with the same axes, the damaged ones among them dealt with."""
        axes = self._axes(images[0])
        if axes not in self._pipelines:
            self._pipelines[axes] = _build_pipeline(self.threads, self.device, axes)
        try:
            return self._run(self._pipelines[axes], axes, images)
        except RuntimeError as error:
            problem = cause(error)
        # Behind the handler, so that no error that is raised from here holds the broken pipeline and its threads.
        del self._pipelines[axes]
        if len(images) > 1:
            return [patches for image in images for patches in self._decoded([image])]
        return [self._damaged(images[0], problem)]

    def _damaged(self, image: ImageRequest, cause: str) -> Tensor:
        if self.damaged == "error":
            raise DataError(
                f"{image.place} cannot be decoded: {cause}.",
                f"It has {len(image.data)} bytes and should be {image.height} x {image.width} pixels.",
                "Prepare the corpus again, or set images.damaged=skip to train with a grey image in its place.",
            )
        self.skipped += 1
        logger.warning("%s cannot be decoded (%s) and is left grey; %d so far", image.place, cause, self.skipped)
        return torch.zeros(image.rows * image.columns, 3 * self.patch_size**2, device=self.device)

    def _run(self, pipeline: Any, axes: _Axes, images: Sequence[ImageRequest]) -> list[Tensor]:
        """Patches of at most MAX_IMAGES images with the same axes. Raises RuntimeError if DALI cannot decode one."""
        inputs: dict[str, list[NDArray[Any]]] = {"encoded": [image.data for image in images]}
        for image in images:
            for name, value in _pass_inputs((image.height, image.width), self._target(image), axes).items():
                inputs.setdefault(name, []).append(value)
        for name, values in inputs.items():
            pipeline.feed_input(name, values)
        (pixels,) = pipeline.run()
        result = [self._patchified(pixels, number) for number in range(len(images))]
        if self._stream is not None:
            # DALI reuses its buffers in the next run, and the patches are read on the device's default stream.
            self._stream.synchronize()
            for patches in result:
                patches.record_stream(torch.cuda.default_stream(self.device))
        return result

    def _patchified(self, pixels: Any, number: int) -> Tensor:
        if self._stream is None:
            # A copy: DALI owns the memory. patchify copies already unless the image is one patch.
            return patchify(torch.from_numpy(np.asarray(pixels.at(number))), self.patch_size).clone()
        with torch.cuda.stream(self._stream):
            return patchify(torch.from_dlpack(pixels[number]), self.patch_size).clone()


def _decoded_together(images: Sequence[ImageRequest]) -> list[list[ImageRequest]]:
    """The images in parts that DALI decodes at a time."""
    parts: list[list[ImageRequest]] = []
    pixels = 0
    for image in images:
        size = image.height * image.width
        if not parts or len(parts[-1]) == MAX_IMAGES or pixels + size > PIXELS_TOGETHER:
            parts.append([])
            pixels = 0
        parts[-1].append(image)
        pixels += size
    return parts


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic kernel with a = -0.5, as Pillow, torchvision and DALI have it."""
    x = np.abs(distance)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _inside_weight(stored: int, target: int) -> NDArray[np.float64]:
    """The share of the kernel's weight that lies inside the image, for each output pixel along an axis, [target]."""
    scale = stored / target
    stretch = max(scale, 1.0)
    reach = math.ceil(2 * stretch) + 1
    centres = (np.arange(target) + 0.5) * scale
    share = np.ones(target)
    edge = (centres < reach + 1) | (centres > stored - reach - 1)  # elsewhere the kernel is inside; it can be long
    taps = np.floor(centres[edge])[:, None] + np.arange(-reach, reach + 1)
    weights = _cubic((taps + 0.5 - centres[edge][:, None]) / stretch)
    inside = (taps >= 0) & (taps < stored)
    share[edge] = (weights * inside).sum(1) / weights.sum(1)
    return share


def _pass_inputs(stored: tuple[int, int], target: tuple[int, int], axes: _Axes) -> dict[str, NDArray[Any]]:
    """Numbers that the pipeline needs for an image of ``stored`` height and width."""
    inputs: dict[str, NDArray[Any]] = {}
    size = list(stored)
    for axis in axes:
        name = _NAMES[axis]
        border = math.ceil(2 * max(1.0, stored[axis] / target[axis])) + 1
        begin, end = [0, 0], list(size)
        begin[axis], end[axis] = border, border + size[axis]
        size[axis] = target[axis]
        shape = [1, 1, 1]
        shape[axis] = target[axis]
        inputs[f"{name}_start"] = np.array([-border], dtype=np.int32)
        inputs[f"{name}_shape"] = np.array([stored[axis] + 2 * border], dtype=np.int32)
        inputs[f"{name}_begin"] = np.array(begin, dtype=np.float32)
        inputs[f"{name}_end"] = np.array(end, dtype=np.float32)
        inputs[f"{name}_size"] = np.array(size, dtype=np.float32)
        factor = 1 / _inside_weight(stored[axis], target[axis])
        inputs[f"{name}_factor"] = factor.astype(np.float32).reshape(shape)
    return inputs


def _build_pipeline(threads: int, device: torch.device, axes: _Axes) -> Any:
    """The pipeline; batches of 1 to MAX_IMAGES. Output: normalised pixels, float32 CHW."""
    dali = import_dali()
    fn, types = dali.fn, dali.types
    on_gpu = device.type == "cuda"

    def number(name: str, dtype: Any, dimensions: int) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=dimensions)

    def resized(image: Any, name: str, axis: int) -> Any:
        surrounded = fn.slice(
            image,
            start=number(f"{name}_start", types.INT32, 1),
            shape=number(f"{name}_shape", types.INT32, 1),
            axes=[axis],
            out_of_bounds_policy="pad",
            fill_values=[0],
        )
        pixels = fn.resize(
            surrounded,
            size=number(f"{name}_size", types.FLOAT, 1),
            roi_start=number(f"{name}_begin", types.FLOAT, 1),
            roi_end=number(f"{name}_end", types.FLOAT, 1),
            interp_type=types.INTERP_CUBIC,
            antialias=True,
            dtype=types.FLOAT,
        )
        factor = number(f"{name}_factor", types.FLOAT, 3)
        return fn.cast(pixels * (factor.gpu() if on_gpu else factor), dtype=types.UINT8)  # rounds and clips

    pipeline = dali.Pipeline(
        batch_size=MAX_IMAGES,
        num_threads=threads,
        device_id=device.index if on_gpu else None,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )
    with pipeline:
        encoded = number("encoded", types.UINT8, 1)
        image = fn.decoders.image(
            encoded,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )
        for axis in axes:
            image = resized(image, _NAMES[axis], axis)
        normalised = fn.crop_mirror_normalize(
            image,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
        )
        pipeline.set_outputs(normalised)
    pipeline.build()
    return pipeline
