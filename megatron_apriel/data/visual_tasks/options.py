"""What samples are asked for: how many, how hard, of which tasks, and how their pictures are written."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.visual_tasks.difficulty import FULL_RANGE, Range
from megatron_apriel.data.visual_tasks.tasks import TASKS
from megatron_apriel.errors import ConfigError

FORMATS = {"jpeg": "jpg", "png": "png"}
"""Of pictures, with the ends of their names."""
MIN_MAX_SIDE, MAX_MAX_SIDE = 128, 4096


@dataclass(frozen=True)
class Options:
    """What to make.

    Attributes:
        samples: how many.
        seed: of everything random, at least 0.
        difficulty: one, or a range.
        tasks: some of ``tasks.TASKS``.
        weights: share of each task, or None for equal ones.
        max_side: longer side of the pictures, pixels.
        image_format: one of ``FORMATS``.
        quality: of JPEG.
        workers: processes.
        limits: on the raw images that are read.
        max_wrong: share of the samples whose pictures may give another answer; those are drawn again.
        leaves_out: variants of which the images give no samples are left out, and others made in their place.
    """

    samples: int
    seed: int = 0
    difficulty: Range = FULL_RANGE
    tasks: tuple[str, ...] = TASKS
    weights: tuple[float, ...] | None = None
    max_side: int = 512
    image_format: str = "jpeg"
    quality: int = 92
    workers: int = 1
    limits: ReadLimits = DEFAULT_LIMITS
    max_wrong: float = 0.01
    leaves_out: bool = False

    def check(self) -> None:
        """Raise ConfigError for numbers that cannot be."""
        for name, value, low, high in (
            ("samples", self.samples, 1, 10**9),
            ("seed", self.seed, 0, 2**63 - 1),
            ("max-side", self.max_side, MIN_MAX_SIDE, MAX_MAX_SIDE),
            ("quality", self.quality, 50, 100),
            ("workers", self.workers, 1, 4096),
            ("max-pixels", self.limits.pixels, 1, 2**40),
        ):
            if not low <= value <= high:
                raise ConfigError(f"--{name} {value} is outside of {low} to {high}.")
        if self.image_format not in FORMATS:
            raise ConfigError(f"--image-format {self.image_format!r} is unknown.", fix=f"One of {', '.join(FORMATS)}.")
