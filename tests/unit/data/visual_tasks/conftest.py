"""Real photographs, and a way to draw one sample of a task at any difficulty."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
from PIL import Image

from megatron_apriel.data.visual_tasks.difficulty import NAMED
from megatron_apriel.data.visual_tasks.pixels import Pixels, decoded, encoded
from megatron_apriel.data.visual_tasks.raw_images import RawImages, image_files, read_header
from megatron_apriel.data.visual_tasks.refusals import Ambiguous
from megatron_apriel.data.visual_tasks.sample import Draw, Sample

MAX_SIDE = 256
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "ihc.png",
    "motorcycle_left.png", "camera.png", "coins.png", "flower.jpg", "china.jpg",
)  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of scikit-image and scikit-learn, at most 400 pixels long so that tests are quick, in two folders."""
    root = tmp_path_factory.mktemp("photographs")
    places = (Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images")
    (root / "more").mkdir()
    for number, name in enumerate(PHOTOGRAPHS):
        source = next(place / name for place in places if (place / name).is_file())
        with Image.open(source) as picture:
            picture.thumbnail((400, 400))
            picture.save((root / "more" if number % 2 else root) / f"{Path(name).stem}.png")
    return root


@pytest.fixture(scope="session")
def images(folder: Path) -> RawImages:
    names, _ = image_files(folder)
    headers = [one for one in (read_header(folder, name) for name in names) if not one.problem]
    return RawImages(folder, [one.name for one in headers], [(one.width, one.height) for one in headers], MAX_SIDE)


@pytest.fixture(scope="session")
def one_sample(images: RawImages) -> Callable[..., tuple[Sample, list[Pixels]]]:
    """``one_sample(maker, difficulty, number)``: a sample and its pictures as read back from their files."""

    def make(maker: Callable[[Draw], Sample], difficulty: float, number: int) -> tuple[Sample, list[Pixels]]:
        for attempt in range(60):
            draw = Draw(
                images,
                None,
                difficulty,
                np.random.default_rng([7, number, attempt]),
                np.random.default_rng([9, number]),
            )
            try:
                sample = maker(draw)
            except Ambiguous:
                continue
            return sample, [decoded(encoded(one, "jpeg", 95)) for one in sample.pictures]
        raise AssertionError(f"{maker.__name__} gave no sample at difficulty {difficulty}")

    return make


@pytest.fixture(params=sorted(NAMED.values()), ids=sorted(NAMED, key=NAMED.__getitem__))
def difficulty(request: pytest.FixtureRequest) -> float:
    return request.param
